//! Runs cases: given ones, and random ones that shrink when they fail.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner,
};

use super::common::{Watchdog, skip};
use super::generate::{self, Variant};
use super::op::Case;
use super::sys;
use super::world::{Against, World};
use crate::require;

/// Runs one case on a thread with a working directory and an umask of its own.
fn run(case: &Case, against: Against) -> Result<(), String> {
    let case = case.clone();
    let _limit = Watchdog::new("a case", Duration::from_secs(90));
    let worker = thread::spawn(move || {
        sys::unshare_fs().unwrap();
        let Some(mut world) = World::new(&case, against) else {
            return Ok(());
        };
        for (index, step) in case.steps.iter().enumerate() {
            world.step(step).map_err(|e| format!("step {index}: {e}"))?;
        }
        world.finish()
    });
    match worker.join() {
        Ok(result) => result,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("panic: {}", text.unwrap_or("?")))
        }
    }
}

/// Runs a case of the regression tests.
pub fn replay(case: &Case) {
    require!(skip::privileged());
    if let Err(text) = run(case, Against::Acetate) {
        panic!("{text}");
    }
}

/// The same for what becomes an image at the end.
pub fn replay_committed(case: &Case) {
    require!(skip::privileged());
    if let Err(text) = run(case, Against::Image) {
        panic!("{text}");
    }
}

fn sequences(default: u32) -> u32 {
    match std::env::var("ACETATE_SEQUENCES") {
        Ok(text) => text.parse().expect("ACETATE_SEQUENCES is a number"),
        Err(_) => default,
    }
}

/// Where randomness starts: `ACETATE_SEED` is a number, or `random` for another start each time, as the nightly runs have it. Without
/// it each run is the same, so that a change is judged by what it changes.
fn seed() -> u64 {
    match std::env::var("ACETATE_SEED").as_deref() {
        Ok("random") => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        Ok(text) => text.parse().expect("ACETATE_SEED is a number or random"),
        Err(_) => 1,
    }
}

/// Runs random cases; a failure is shrunk and printed as the code of a regression test.
pub fn random(name: &str, against: Against, variant: Variant, default: u32) {
    let config = Config {
        cases: sequences(default),
        max_shrink_iters: 1500,
        // Well before whoever runs the tests ends this one, and its message with it.
        max_shrink_time: 90_000,
        failure_persistence: None::<Box<FileFailurePersistence>>.map(|p| p as _),
        ..Config::default()
    };
    let cases = config.cases;
    let seed = seed();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    println!("{name}: {cases} sequences, seed {seed}");
    let begin = Instant::now();
    let count = Cell::new(0_u32);
    let result = runner.run(&generate::case(variant), |case| {
        count.set(count.get() + 1);
        run(&case, against).map_err(|reason| {
            // At once: what does not come about a second time is not found again by shrinking it.
            eprintln!("{name}, sequence {}: {reason}", count.get());
            TestCaseError::fail(reason)
        })
    });
    match result {
        Ok(()) => println!("{name}: {} sequences in {:?}", count.get(), begin.elapsed()),
        Err(TestError::Fail(reason, case)) => {
            panic!(
                "{name}, after {} sequences: {reason}\n{}",
                count.get(),
                case.as_code()
            );
        }
        Err(TestError::Abort(reason)) => panic!("{name}: {reason}"),
    }
}

/// Runs a test with several seeds: one for every hundred sequences that are asked for.
pub fn seeds(name: &str, test: impl Fn(u64)) {
    let begin = Instant::now();
    let count = (sequences(300) / 100).max(1);
    let first = seed();
    for seed in (first..).take(count as usize) {
        println!("{name}: seed {seed}");
        test(seed);
    }
    println!("{name}: {count} seeds in {:?}", begin.elapsed());
}
