//! Power cuts: the disk as it was at a random moment, of which the filesystem, and then a mount, make what they can.
//!
//! The filesystem of the upper lies in a file on one that can clone, and a clone of that file holds what the disk had taken at one
//! moment: the clone waits for writes under way and keeps others out.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use acetate::layer::format::PartialRecord;

use crate::common::stand::{Stand, end};
use crate::common::{LoopImage, Scratch, Watchdog, program, skip};
use crate::require;
use crate::rig::{MIB, Random, mark, pattern, set_mark};

const FILES: u64 = 3;
const LENGTH: usize = 3 * MIB + 123;

/// What was asked for, in order, and how many of that an fsync has acknowledged.
#[derive(Clone, Default)]
struct History {
    writes: Vec<(usize, Vec<u8>)>,
    synced: usize,
}

/// The filesystem in a file, mounted.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, dir: PathBuf) -> Mounted {
        fs::create_dir_all(&dir).unwrap();
        program::must(
            Command::new("mount")
                .args(["-t", "ext4", "-o", "loop"])
                .arg(image)
                .arg(&dir),
            Duration::from_secs(60),
        );
        Mounted(dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        crate::common::mount::detach(&self.0);
    }
}

/// Writes at random, and syncs now and then, until told to stop.
fn work(path: &Path, seed: u64, history: &Mutex<History>, stop: &AtomicBool) {
    let mut random = Random(seed);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    while !stop.load(Ordering::Relaxed) {
        if random.below(8) == 0 {
            let asked = history.lock().unwrap().writes.len();
            if random.below(2) == 0 {
                file.sync_all().unwrap();
            } else {
                file.sync_data().unwrap();
            }
            history.lock().unwrap().synced = asked;
            continue;
        }
        let at = random.below(LENGTH as u64 - 20_000) as usize;
        let data = pattern(random.below(1 << 40), 1 + random.below(20_000) as usize);
        history.lock().unwrap().writes.push((at, data.clone()));
        file.write_all_at(&data, at as u64).unwrap();
    }
}

/// Every byte is as the last fsync before the cut left it, or as a write after that made it.
fn check(found: &[u8], lower: &[u8], before: &History, after: &History, what: &str) {
    assert_eq!(found.len(), lower.len(), "{what}");
    let mut synced = lower.to_vec();
    for (at, data) in &after.writes[..before.synced] {
        synced[*at..at + data.len()].copy_from_slice(data);
    }
    let mut right: Vec<bool> = found.iter().zip(&synced).map(|(a, b)| a == b).collect();
    for (at, data) in &after.writes[before.synced..] {
        for (offset, byte) in data.iter().enumerate() {
            right[at + offset] |= found[at + offset] == *byte;
        }
    }
    if let Some(at) = right.iter().position(|right| !right) {
        panic!(
            "{what}: byte {at} is {}, {} was synced ({} writes of {}), {} below",
            found[at],
            synced[at],
            before.synced,
            after.writes.len(),
            lower[at]
        );
    }
}

#[test]
#[ignore = "heavy: the disk at ten moments"]
fn a_power_cut_loses_nothing_that_was_synced() {
    require!(skip::privileged());
    let cuts = if std::env::var_os("ACETATE_LONG").is_some() {
        100
    } else {
        10
    };
    let _limit = Watchdog::new("power cuts", Duration::from_secs(240 + 20 * cuts as u64));
    let mut stand = Stand::new("cuts");
    let under = match LoopImage::new(&stand.scratch, "xfs", 2 << 30) {
        Ok(under) => under,
        Err(reason) => crate::skip!("{reason}"),
    };
    let disks = Scratch::new_in(under.path(), "disks");
    let image = disks.join("disk");
    File::create(&image).unwrap().set_len(160 << 20).unwrap();
    program::must(
        Command::new("sh")
            .args([
                "-c",
                "PATH=$PATH:/usr/sbin:/sbin exec mkfs.ext4 -q -F \"$1\"",
                "sh",
            ])
            .arg(&image),
        Duration::from_secs(60),
    );
    let lowers: Vec<Vec<u8>> = (0..FILES).map(|n| pattern(n + 1, LENGTH)).collect();
    for (number, lower) in lowers.iter().enumerate() {
        fs::write(stand.lower.join(number.to_string()), lower).unwrap();
    }
    let mut random = Random(20_261_121);
    let mut partial = 0;
    for cut in 0..cuts {
        // Completed by nobody, or while they are written to.
        let options = ["partial=64K,complete=off", "partial=64K,complete=0.02"][cut % 2];
        let disk = Mounted::new(&image, stand.scratch.join(format!("disk-{cut}")));
        (stand.upper, stand.work) = (disk.0.join("upper"), disk.0.join("work"));
        for dir in [&stand.upper, &stand.work] {
            if dir.exists() {
                fs::remove_dir_all(dir).unwrap();
            }
            fs::create_dir(dir).unwrap();
        }
        // The directories themselves are to be there.
        rustix::fs::syncfs(File::open(&disk.0).unwrap()).unwrap();
        let mount = stand.acetate(options).mount();
        let histories: Vec<_> = (0..FILES)
            .map(|_| Arc::<Mutex<History>>::default())
            .collect();
        let stop = AtomicBool::new(false);
        let copy = disks.join(format!("cut-{cut}"));
        let pause = Duration::from_millis(random.below(600));
        let states = std::thread::scope(|scope| {
            for (number, history) in histories.iter().enumerate() {
                let (path, stop) = (mount.join(number.to_string()), &stop);
                let seed = (cut as u64 + 1) * 1000 + number as u64;
                scope.spawn(move || work(&path, seed, history, stop));
            }
            std::thread::sleep(pause);
            let all = || {
                histories
                    .iter()
                    .map(|h| h.lock().unwrap().clone())
                    .collect::<Vec<_>>()
            };
            let before = all();
            let target = File::create(&copy).unwrap();
            let cloned = rustix::fs::ioctl_ficlone(&target, File::open(&image).unwrap());
            let after = all();
            stop.store(true, Ordering::Relaxed);
            cloned.unwrap();
            (before, after)
        });
        end(mount);
        drop(disk);

        let disk = Mounted::new(&copy, stand.scratch.join(format!("cut-{cut}")));
        (stand.upper, stand.work) = (disk.0.join("upper"), disk.0.join("work"));
        for number in 0..FILES {
            // The machine was started again.
            let upper = stand.upper.join(number.to_string());
            let Some(value) = upper.exists().then(|| mark(&upper)).flatten() else {
                continue;
            };
            let mut record = PartialRecord::decode(&value).unwrap();
            record.boot = [1; 16];
            set_mark(&upper, &record.encode());
            partial += 1;
        }
        let mount = stand.acetate("partial=64K,complete=off").mount();
        let look = |root: &Path, when: &str| {
            for (number, lower) in lowers.iter().enumerate() {
                let found = fs::read(root.join(number.to_string())).unwrap();
                let what = format!("cut {cut}, file {number} {when}");
                check(&found, lower, &states.0[number], &states.1[number], &what);
            }
        };
        look(mount.path(), "as found");
        crate::rig::complete(mount.path());
        look(mount.path(), "completed");
        end(mount);
        drop(disk);
        fs::remove_file(&copy).unwrap();
    }
    println!("{cuts} cuts, {partial} partial files met");
    assert!(partial > 0, "no cut met a partial file");
    drop(disks);
    under.unmount().unwrap();
}
