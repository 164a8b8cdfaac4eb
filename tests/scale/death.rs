//! kill -9 of the daemon.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::stand::{Stand, end};
use crate::common::{Mount, Watchdog, skip};
use crate::data::{large_file, pattern};
use crate::require;

const RECORD: usize = 4096;
const WRITERS: usize = 4;

/// What one program did and was told to have succeeded, until the daemon died.
#[derive(Debug, Default)]
struct Acknowledged {
    records: usize,
    created: Vec<String>,
    renamed: Vec<String>,
    removed: Vec<String>,
    copied_up: Vec<String>,
}

fn record(writer: usize, number: usize) -> Vec<u8> {
    pattern((writer * 1_000_003 + number * 7919 + 1) as u64, RECORD)
}

/// Works until an operation fails; `durable` asks for the disk before it counts a thing as done.
fn work(root: &Path, writer: usize, durable: bool, dead: &AtomicBool) -> Acknowledged {
    let mut done = Acknowledged::default();
    let mut run = || -> std::io::Result<()> {
        let dir = root.join(format!("dir{writer}"));
        let mut log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(dir.join("log"))?;
        for number in 0.. {
            log.write_all(&record(writer, number))?;
            if durable {
                log.sync_all()?;
            }
            done.records = number + 1;
            let name = format!("new{number}");
            let mut new = File::create_new(dir.join(&name))?;
            new.write_all(name.as_bytes())?;
            if durable {
                new.sync_all()?;
            }
            drop(new);
            done.created.push(name.clone());
            if number % 3 == 0 {
                let to = format!("renamed{number}");
                // Until the answer it may have either name.
                done.created.pop();
                fs::rename(dir.join(&name), dir.join(&to))?;
                done.renamed.push(to);
            }
            if number < 200 {
                let name = format!("lower{number}");
                if number % 2 == 0 {
                    fs::remove_file(dir.join(&name))?;
                    done.removed.push(name);
                } else {
                    let mut file = OpenOptions::new().append(true).open(dir.join(&name))?;
                    file.write_all(b" appended")?;
                    if durable {
                        file.sync_all()?;
                    }
                    done.copied_up.push(name);
                }
            }
        }
        Ok(())
    };
    let error = run().unwrap_err();
    assert!(
        dead.load(Ordering::Acquire),
        "writer {writer} failed before the daemon died: {error}"
    );
    done
}

fn check(root: &Path, writer: usize, done: &Acknowledged) {
    let dir = root.join(format!("dir{writer}"));
    let mut log = File::open(dir.join("log")).unwrap();
    let mut found = vec![0; RECORD];
    for number in 0..done.records {
        log.read_exact(&mut found).unwrap_or_else(|e| {
            panic!("writer {writer}: record {number} of {}: {e}", done.records)
        });
        assert!(
            found == record(writer, number),
            "writer {writer}: record {number} differs"
        );
    }
    for name in &done.created {
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), *name);
    }
    for name in &done.renamed {
        let old = name.replace("renamed", "new");
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), old);
        assert!(!dir.join(&old).exists(), "{old} has both names");
    }
    for name in &done.removed {
        assert!(!dir.join(name).exists(), "{name} is back");
    }
    for name in &done.copied_up {
        let text = fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(text, format!("{name} of the lower layer appended"));
    }
}

fn nothing_acknowledged_is_lost(options: &str, durable: bool) {
    require!(skip::privileged());
    let _limit = Watchdog::new("death", Duration::from_secs(200));
    for (round, pause) in [300, 700, 1100].into_iter().enumerate() {
        let stand = Stand::new("death");
        for writer in 0..WRITERS {
            let dir = stand.scratch.dir(format!("lower/dir{writer}"));
            for number in 0..200 {
                let name = format!("lower{number}");
                fs::write(dir.join(&name), format!("{name} of the lower layer")).unwrap();
            }
        }
        let mut mount = stand.acetate(options).mount();
        let root = mount.path().to_owned();
        let dead = AtomicBool::new(false);
        let done: Vec<Acknowledged> = std::thread::scope(|scope| {
            let (root, dead) = (&root, &dead);
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| scope.spawn(move || work(root, writer, durable, dead)))
                .collect();
            std::thread::sleep(Duration::from_millis(pause));
            dead.store(true, Ordering::Release);
            mount.kill();
            writers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        drop(mount);
        let records: usize = done.iter().map(|d| d.records).sum();
        assert!(records > 0, "nothing was acknowledged");
        println!("death {options} round {round}: {records} records acknowledged, all are there");

        let mount = stand.acetate(options).mount();
        assert!(
            stand.left_in_work().is_empty(),
            "{:?}",
            stand.left_in_work()
        );
        for (writer, done) in done.iter().enumerate() {
            check(mount.path(), writer, done);
        }
        end(mount);
    }
}

#[test]
#[ignore = "heavy: kills daemons under load"]
fn a_killed_daemon_loses_nothing_that_write_acknowledged() {
    nothing_acknowledged_is_lost("", false);
}

#[test]
#[ignore = "heavy: kills daemons under load"]
fn a_killed_daemon_with_writeback_loses_nothing_that_fsync_acknowledged() {
    nothing_acknowledged_is_lost("passthrough=off", true);
}

fn killed_while_copying(mount: &mut Mount) {
    let large = mount.join("large");
    let opener = std::thread::spawn(move || OpenOptions::new().write(true).open(large).map(drop));
    std::thread::sleep(Duration::from_millis(150));
    mount.kill();
    assert!(
        opener.join().unwrap().is_err(),
        "the copy-up was over before the daemon died"
    );
}

#[test]
#[ignore = "heavy: copies a large file"]
fn a_daemon_killed_in_the_middle_of_a_copy_up_leaves_the_file_whole() {
    require!(skip::privileged());
    let _limit = Watchdog::new("death in a copy-up", Duration::from_secs(200));
    let stand = Stand::new("death");
    let lower = stand.lower.join("large");
    large_file(&lower, 1 << 30);
    let mut mount = stand.acetate("partial=off").mount();
    killed_while_copying(&mut mount);
    drop(mount);
    assert!(
        !stand.upper.join("large").exists(),
        "half a file in the upper"
    );
    assert!(!stand.left_in_work().is_empty(), "the copy had not begun");

    let begin = Instant::now();
    let mount = stand.acetate("partial=off").mount();
    println!("mount after the death: {:?}", begin.elapsed());
    assert!(
        stand.left_in_work().is_empty(),
        "{:?}",
        stand.left_in_work()
    );
    assert_eq!(fs::metadata(mount.join("large")).unwrap().size(), 1 << 30);
    let mut here = File::open(mount.join("large")).unwrap();
    let mut there = File::open(&lower).unwrap();
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for _ in 0..1 << 10 {
        here.read_exact(&mut a).unwrap();
        there.read_exact(&mut b).unwrap();
        assert!(a == b);
    }
    drop(here);
    end(mount);
}
