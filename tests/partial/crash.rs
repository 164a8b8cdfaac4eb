//! kill -9 of the daemon at random moments of partial writes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::common::stand::{Stand, end};
use crate::common::{Watchdog, skip};
use crate::require;
use crate::rig::{MIB, Random, assert_whole, pattern};

const FILES: u64 = 3;

fn length(file: u64) -> usize {
    2 * MIB + 4096 * file as usize + 7 * file as usize
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write(u64, Vec<u8>),
    Truncate(u64),
    Punch(u64, u64),
    Sync,
}

impl Op {
    pub(crate) fn any(random: &mut Random) -> Op {
        let at = random.below(2 * MIB as u64);
        match random.below(20) {
            0 => Op::Truncate(2 * MIB as u64 - random.below(300_000)),
            1 => Op::Truncate(2 * MIB as u64 + random.below(100_000)),
            2 => Op::Punch(at, 1 + random.below(50_000)),
            3 | 4 => Op::Sync,
            _ => {
                let seed = random.below(1 << 40);
                Op::Write(at, pattern(seed, 1 + random.below(20_000) as usize))
            }
        }
    }

    pub(crate) fn run(&self, file: &File) -> std::io::Result<()> {
        match self {
            Op::Write(at, data) => file.write_all_at(data, *at),
            Op::Truncate(size) => file.set_len(*size),
            Op::Punch(at, len) => {
                let flags =
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(file, flags, *at, *len)?)
            }
            Op::Sync => file.sync_all(),
        }
    }

    pub(crate) fn apply(&self, model: &mut Vec<u8>) {
        match self {
            Op::Write(at, data) => {
                let at = *at as usize;
                if model.len() < at + data.len() {
                    model.resize(at + data.len(), 0);
                }
                model[at..at + data.len()].copy_from_slice(data);
            }
            Op::Truncate(size) => model.resize(*size as usize, 0),
            Op::Punch(at, len) => {
                let end = model.len().min((at + len) as usize);
                if (*at as usize) < end {
                    model[*at as usize..end].fill(0);
                }
            }
            Op::Sync => {}
        }
    }
}

/// Changes a file until the daemon dies; returns what was acknowledged, and what may or may not have happened.
fn work(path: &Path, seed: u64, model: &mut Vec<u8>) -> Op {
    let mut random = Random(seed);
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(_) => return Op::Sync,
    };
    loop {
        let op = Op::any(&mut random);
        if op.run(&file).is_err() {
            return op;
        }
        op.apply(model);
    }
}

/// Each byte is that of the acknowledged state or that of the operation under way.
fn check(found: &[u8], before: &[u8], under_way: &Op, what: &str) {
    let mut after = before.to_vec();
    under_way.apply(&mut after);
    assert!(
        found.len() == before.len()
            || found.len() == after.len()
            || matches!(under_way, Op::Write(..)),
        "{what}: {} bytes, neither {} nor {}",
        found.len(),
        before.len(),
        after.len()
    );
    for (at, byte) in found.iter().enumerate() {
        let known = [before.get(at), after.get(at)];
        assert!(
            known.contains(&Some(byte)),
            "{what}: byte {at} is {byte}, not one of {known:?} ({under_way:?})"
        );
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_old_comes_back() {
    require!(skip::privileged());
    let rounds = if std::env::var_os("ACETATE_LONG").is_some() {
        100
    } else {
        20
    };
    // Each mounts and unmounts four times, which takes seconds on a machine that is busy.
    let _limit = Watchdog::new("kills", Duration::from_secs(20 * rounds as u64));
    let mut random = Random(20_261_121);
    let mut partial = 0;
    for round in 0..rounds {
        let stand = Stand::new("kills");
        let mut models: Vec<Vec<u8>> = (0..FILES).map(|n| pattern(n, length(n))).collect();
        for (number, model) in models.iter().enumerate() {
            fs::write(stand.lower.join(number.to_string()), model).unwrap();
        }
        // Completed by nobody, or while they are written to.
        let options = ["partial=64K,complete=off", "partial=64K,complete=0"][round % 2];
        // The same files meet two deaths.
        for death in 0..2 {
            let mut mount = stand.acetate(options).mount();
            let root = mount.path().to_owned();
            let pause = Duration::from_micros(500 + random.below(120_000));
            let seed = random.below(1 << 30) + 1;
            let under_way: Vec<Op> = std::thread::scope(|scope| {
                let writers: Vec<_> = models
                    .iter_mut()
                    .enumerate()
                    .map(|(number, model)| {
                        let path = root.join(number.to_string());
                        scope.spawn(move || work(&path, seed + number as u64, model))
                    })
                    .collect();
                std::thread::sleep(pause);
                mount.kill();
                writers.into_iter().map(|w| w.join().unwrap()).collect()
            });
            drop(mount);
            partial += usize::from(stand.work.join("work/incompat/acetate-partial").exists());
            let mount = stand.acetate("partial=64K,complete=off").mount();
            for (number, model) in models.iter_mut().enumerate() {
                let found = fs::read(mount.join(number.to_string())).unwrap();
                let what = format!("round {round}, death {death}, file {number}");
                check(&found, model, &under_way[number], &what);
                *model = found;
            }
            if death == 0 {
                // Left as they are, by another kill.
                let mut mount = mount;
                mount.kill();
                drop(mount);
            } else {
                end(mount);
            }
        }
        for (number, model) in models.iter().enumerate() {
            let upper = stand.upper.join(number.to_string());
            if upper.exists() {
                assert_whole(&upper, &stand.work, model);
            }
        }
    }
    println!("{rounds} rounds of two deaths, {partial} with partial files");
    assert!(partial > rounds / 2, "no kill met a partial file");
}
