//! Runs cases: given ones, and random ones that shrink when they fail.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner};

use super::common::Watchdog;
use super::generate;
use super::op::Case;
use super::sys;
use super::world::{Against, World};

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
pub fn replay(case: &Case, against: Against) {
    if let Err(text) = run(case, against) {
        panic!("{text}");
    }
}

fn sequences(default: u32) -> u32 {
    match std::env::var("ACETATE_SEQUENCES") {
        Ok(text) => text.parse().expect("ACETATE_SEQUENCES is a number"),
        Err(_) => default,
    }
}

/// Runs random cases; a failure is shrunk and printed as the code of a regression test.
pub fn random(name: &str, against: Against, options: &'static [&'static str], default: u32) {
    let config = Config {
        cases: sequences(default),
        max_shrink_iters: 1500,
        failure_persistence: None::<Box<FileFailurePersistence>>.map(|p| p as _),
        ..Config::default()
    };
    let cases = config.cases;
    let mut runner = TestRunner::new(config);
    println!("{name}: {cases} sequences, seed by proptest");
    let begin = Instant::now();
    let count = Cell::new(0_u32);
    let result = runner.run(&generate::case(options, 40), |case| {
        count.set(count.get() + 1);
        run(&case, against).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => println!("{name}: {} sequences in {:?}", count.get(), begin.elapsed()),
        Err(TestError::Fail(_, case)) => {
            let text = run(&case, against).err();
            panic!(
                "{name}, after {} sequences: {}\n{}",
                count.get(),
                text.as_deref().unwrap_or("not when it is run again"),
                case.as_code()
            );
        }
        Err(TestError::Abort(reason)) => panic!("{name}: {reason}"),
    }
}
