//! What the kernel remembers is never out of date, and what it forgets comes back the same.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::common::skip;
use crate::map::Map;
use crate::require;
use crate::rig::{OLD, Rig, open, open_creat, read_all};

const OPTIONS: [&str; 3] = [
    "passthrough_lower=auto",
    "passthrough_lower=always",
    "passthrough=off",
];

#[test]
fn attributes_are_never_stale() {
    require!(skip::privileged());
    for options in OPTIONS {
        let rig = Rig::new("stale", options, |lower| {
            fs::write(lower.join("file"), vec![b'l'; 10_000]).unwrap();
        });
        let path = rig.at("file");
        let size = || fs::metadata(&path).unwrap().size();
        let reader = open(&path, libc::O_RDONLY).unwrap();
        assert_eq!(size(), 10_000);
        let file = open(&path, libc::O_RDWR).unwrap();
        file.write_all_at(b"more", 20_000).unwrap();
        assert_eq!(
            (size(), file.metadata().unwrap().size()),
            (20_004, 20_004),
            "{options}: write"
        );
        file.set_len(5).unwrap();
        assert_eq!(
            (size(), file.metadata().unwrap().size()),
            (5, 5),
            "{options}: ftruncate"
        );
        nix::unistd::truncate(&path, 50).unwrap();
        assert_eq!(
            (size(), file.metadata().unwrap().size()),
            (50, 50),
            "{options}: truncate"
        );
        let append = open(&path, libc::O_WRONLY | libc::O_APPEND).unwrap();
        append.write_all_at(b"end", 0).unwrap();
        assert_eq!(size(), 53, "{options}: append");
        assert_eq!(read_all(&file).unwrap()[50..], *b"end");
        let before = fs::metadata(&path).unwrap().mtime_nsec();
        thread::sleep(Duration::from_millis(20));
        file.write_all_at(b"x", 0).unwrap();
        assert_ne!(
            fs::metadata(&path).unwrap().mtime_nsec(),
            before,
            "{options}: mtime of a write"
        );
        file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
        assert!(
            fs::metadata(&path).unwrap().blocks() >= 2048,
            "{options}: blocks"
        );
        drop((reader, file, append));
        assert_eq!(size(), 1 << 20, "{options}: closed");
        rig.finish(|_| {});
    }
}

#[test]
fn a_map_that_outlives_its_descriptor_keeps_attributes_fresh() {
    require!(skip::privileged());
    for options in OPTIONS {
        let rig = Rig::new("stale-map", options, |lower| {
            fs::write(lower.join("file"), vec![b'l'; 8192]).unwrap();
        });
        let path = rig.at("file");
        let mut map = Map::shared(&open(&path, libc::O_RDWR).unwrap(), 8192).unwrap();
        // The open alone must leave the time, and what is asked now is remembered.
        assert_eq!(fs::metadata(&path).unwrap().mtime(), OLD, "{options}");
        map.write(0, b"first");
        map.sync().unwrap();
        assert!(
            fs::metadata(&path).unwrap().mtime() > OLD,
            "{options}: the first write"
        );
        drop(map);
        assert!(
            fs::metadata(&path).unwrap().mtime() > OLD,
            "{options}: after the map"
        );
        assert_eq!(fs::read(&path).unwrap()[..5], *b"first", "{options}");
        rig.finish(|_| {});
    }
}

/// A file that can be read and written when it is made, as by `mkstemp(3)`.
fn make(path: &Path) -> fs::File {
    let mut options = fs::File::options();
    options.read(true).write(true).create_new(true);
    options.open(path).unwrap()
}

#[test]
fn a_map_of_a_file_that_was_just_made_keeps_attributes_fresh() {
    require!(skip::privileged());
    let time = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.mtime(), found.mtime_nsec())
    };
    let rig = Rig::new("made-map", "", |_| {});
    for closed in [false, true] {
        let (path, below) = (rig.at("new"), rig.upper.join("new"));
        let file = make(&path);
        file.write_all_at(&[1; 8192], 0).unwrap();
        let mut map = Map::shared(&file, 8192).unwrap();
        let kept = (!closed).then_some(file);
        let written = time(&below);
        let later = rig.scratch.join("later");
        loop {
            fs::write(&later, "x").unwrap();
            if time(&later) > written {
                break;
            }
        }
        // Nobody has asked for the attributes since the file was made.
        map.write(0, b"mapped");
        map.sync().unwrap();
        assert!(time(&path) > written, "closed: {closed}");
        assert_eq!(time(&path), time(&below), "closed: {closed}");
        drop((kept, map));
        fs::remove_file(&path).unwrap();
    }
    rig.finish(|_| {});
}

#[test]
fn a_file_is_made_and_removed_without_asking_for_its_name_again() {
    require!(skip::privileged());
    const FILES: u64 = 50;
    let rig = Rig::new("made-removed", "", |_| {});
    let round = |round: u32| {
        let dir = rig.at(format!("dir{round}"));
        fs::create_dir(&dir).unwrap();
        let before = rig.operation("lookup");
        for i in 0..FILES {
            drop(make(&dir.join(i.to_string())));
        }
        for i in 0..FILES {
            fs::remove_file(dir.join(i.to_string())).unwrap();
        }
        rig.operation("lookup") - before
    };
    // Where memory is short, or another test drops the caches, the kernel forgets names: not in each round.
    let fewest = (0..10)
        .map(round)
        .find(|lookups| *lookups < FILES + FILES / 2);
    assert!(fewest.is_some(), "each name is looked up more than once");
    rig.finish(|_| {});
}

#[test]
fn a_write_into_the_writeback_cache_asks_for_nothing_else() {
    require!(skip::privileged());
    let rig = Rig::new("writeback", "passthrough=off", |_| {});
    let file = fs::File::create(rig.at("new")).unwrap();
    file.write_all_at(b"first", 0).unwrap();
    let asked = || rig.operation("getattr") + rig.operation("getxattr");
    let before = asked();
    for i in 0..400 {
        file.write_all_at(&[1; 4096], i * 4096).unwrap();
    }
    // What is written back meanwhile makes the kernel ask again.
    let count = asked() - before;
    assert!(count < 100, "asked {count} times for 400 writes");
    file.sync_all().unwrap();
    assert!(fs::metadata(rig.at("new")).unwrap().blocks() >= 3200);
    drop(file);
    rig.finish(|upper| assert_eq!(fs::metadata(upper.join("new")).unwrap().len(), 400 * 4096));
}

#[test]
fn an_append_with_an_fsync_asks_for_nothing_else() {
    require!(skip::privileged());
    let rig = Rig::new("append-fsync", "passthrough=off", |_| {});
    let file = open_creat(&rig.at("log"), libc::O_WRONLY | libc::O_APPEND, 0o644).unwrap();
    let append = |count: usize| {
        for _ in 0..count {
            file.write_all_at(b"a line\n", 0).unwrap();
            file.sync_data().unwrap();
        }
    };
    append(1);
    let asked = || rig.operation("getattr") + rig.operation("getxattr");
    let before = asked();
    // All in one block, so that what the kernel knows of the file stays true.
    append(100);
    let count = asked() - before;
    assert!(count < 20, "asked {count} times for 100 appends");
    // More blocks are told.
    let at = fs::metadata(rig.at("log")).unwrap();
    assert_eq!(at.len(), 707);
    file.write_all_at(&[b'x'; 16384], 0).unwrap();
    file.sync_data().unwrap();
    assert!(fs::metadata(rig.at("log")).unwrap().blocks() > at.blocks());
    drop(file);
    rig.finish(|upper| assert_eq!(fs::metadata(upper.join("log")).unwrap().len(), 707 + 16384));
}

#[test]
fn a_lower_file_is_not_copied_up_because_it_is_removed() {
    require!(skip::privileged());
    let names = || (0..20).map(|i| format!("file{i}"));
    let rig = Rig::new("removed", "passthrough=off", |lower| {
        for name in names() {
            fs::write(lower.join(name), "data").unwrap();
        }
    });
    // With the writeback cache the kernel tells the time of the removal of a file that is gone.
    for name in names() {
        assert_eq!(fs::metadata(rig.at(&name)).unwrap().mtime(), OLD);
        fs::remove_file(rig.at(name)).unwrap();
    }
    assert_eq!(
        (rig.counter("copy_up_data"), rig.counter("copy_up_meta")),
        (0, 0)
    );
    rig.finish(|_| {});
}

#[test]
fn names_that_were_missing_appear_at_once() {
    require!(skip::privileged());
    let rig = Rig::new("negative", "", |lower| {
        fs::create_dir(lower.join("dir")).unwrap()
    });
    for i in 0..50 {
        let path = rig.at(format!("dir/{i}"));
        assert!(!path.exists());
        match i % 5 {
            0 => fs::write(&path, "").unwrap(),
            1 => fs::create_dir(&path).unwrap(),
            2 => std::os::unix::fs::symlink("..", &path).unwrap(),
            3 => fs::hard_link(rig.at("dir/0"), &path).unwrap(),
            _ => fs::rename(rig.at(format!("dir/{}", i - 1)), &path).unwrap(),
        }
        assert!(path.exists(), "{i}");
    }
    assert_eq!(fs::read_dir(rig.at("dir")).unwrap().count(), 40);
    rig.finish(|_| {});
}

#[test]
fn cached_listings_follow_every_change() {
    require!(skip::privileged());
    let rig = Rig::new("listing", "", |lower| {
        fs::create_dir(lower.join("dir")).unwrap();
        for i in 0..300 {
            fs::write(lower.join(format!("dir/{i}")), "").unwrap();
        }
    });
    let names = || fs::read_dir(rig.at("dir")).unwrap().count();
    assert_eq!((names(), names()), (300, 300));
    fs::write(rig.at("dir/new"), "").unwrap();
    assert_eq!(names(), 301);
    fs::remove_file(rig.at("dir/7")).unwrap();
    assert_eq!(names(), 300);
    fs::rename(rig.at("dir/8"), rig.at("eight")).unwrap();
    assert_eq!(names(), 299);
    fs::rename(rig.at("eight"), rig.at("dir/8")).unwrap();
    fs::rename(rig.at("dir"), rig.at("moved")).unwrap();
    assert_eq!(fs::read_dir(rig.at("moved")).unwrap().count(), 300);
    rig.finish(|_| {});
}

/// Makes the kernel forget every name and inode that is not in use.
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// Trap 5: a node leaves the table only when the kernel's count of it is 0.
#[test]
fn what_is_forgotten_comes_back_the_same() {
    require!(skip::privileged());
    let rig = Rig::new("forget", "", |lower| {
        for i in 0..500 {
            fs::write(lower.join(format!("{i}")), format!("{i}")).unwrap();
        }
    });
    let inode = |i: u32| fs::metadata(rig.at(i.to_string())).unwrap().ino();
    fs::write(rig.at("3"), "changed").unwrap();
    let held = open(&rig.at("5"), libc::O_RDWR).unwrap();
    held.write_all_at(b"held", 0).unwrap();
    let unlinked = open(&rig.at("6"), libc::O_RDWR).unwrap();
    fs::remove_file(rig.at("6")).unwrap();
    let before: Vec<u64> = (0..500).filter(|i| *i != 6).map(inode).collect();
    let known = rig.counter("inodes");
    assert!(known >= 500);
    for round in 0..3 {
        drop_caches();
        let after: Vec<u64> = (0..500).filter(|i| *i != 6).map(inode).collect();
        assert_eq!(before, after, "round {round}");
    }
    drop_caches();
    // Forgets are sent in the background.
    let begin = std::time::Instant::now();
    while rig.counter("inodes") > known / 2 {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "nothing is forgotten"
        );
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fs::read(rig.at("3")).unwrap(), b"changed");
    assert_eq!(read_all(&held).unwrap(), b"held");
    assert_eq!(read_all(&unlinked).unwrap(), b"6");
    unlinked.write_all_at(b"still here", 0).unwrap();
    assert_eq!(unlinked.metadata().unwrap().nlink(), 0);
    drop((held, unlinked));
    rig.finish(|_| {});
}

#[test]
fn lookups_and_forgets_race_without_losing_a_node() {
    require!(skip::privileged());
    let rig = Rig::new("forget-race", "", |lower| {
        for i in 0..64 {
            fs::create_dir(lower.join(format!("d{i}"))).unwrap();
            fs::write(lower.join(format!("d{i}/file")), "x").unwrap();
        }
    });
    thread::scope(|scope| {
        for t in 0..3 {
            let rig = &rig;
            scope.spawn(move || {
                for round in 0..40 {
                    for i in 0..64 {
                        let path = rig.at(format!("d{i}/file"));
                        assert_eq!(fs::read(&path).unwrap(), b"x", "{t} {round} {i}");
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..40 {
                drop_caches();
            }
        });
    });
    rig.finish(|_| {});
}

/// Trap 6: an interrupted request must not run twice, nor answer as if it had.
#[test]
fn interrupted_operations_run_once() {
    require!(skip::privileged());
    let rig = Rig::new("interrupt", "", |_| {});
    // Python's calls retry after EINTR (PEP 475), as most programs do; a second run of the same request would show
    // as EEXIST or ENOENT. The timer interrupts many of them.
    let script = r#"
import os, signal, sys
count = 0
def tick(*_):
    global count
    count += 1
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
os.chdir(sys.argv[1])
for i in range(1500):
    os.mkdir("d")
    os.rename("d", "e")
    os.close(os.open("e/f", os.O_CREAT | os.O_EXCL | os.O_RDWR))
    os.link("e/f", "e/g")
    os.symlink("x", "e/s")
    for name in ("e/f", "e/g", "e/s"):
        os.unlink(name)
    os.rmdir("e")
signal.setitimer(signal.ITIMER_REAL, 0, 0)
assert count > 100, count
"#;
    require!(skip::program("python3"));
    let output = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(rig.mount.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    rig.finish(|upper| assert_eq!(fs::read_dir(upper).unwrap().count(), 0));
}

#[test]
fn one_inode_number_through_copy_up_rename_and_remount() {
    require!(skip::privileged());
    let rig = Rig::new("inodes", "", |lower| {
        fs::create_dir(lower.join("dir")).unwrap();
        fs::write(lower.join("dir/file"), "data").unwrap();
        fs::write(lower.join("other"), "data").unwrap();
    });
    let inode = |name: &str| fs::symlink_metadata(rig.at(name)).unwrap().ino();
    let (dir, file) = (inode("dir"), inode("dir/file"));
    fs::set_permissions(rig.at("dir/file"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!((inode("dir"), inode("dir/file")), (dir, file), "chmod");
    fs::rename(rig.at("dir"), rig.at("moved")).unwrap();
    assert_eq!((inode("moved"), inode("moved/file")), (dir, file), "rename");
    drop_caches();
    assert_eq!(
        (inode("moved"), inode("moved/file")),
        (dir, file),
        "forgotten"
    );
    open_creat(&rig.at("new"), libc::O_RDWR, 0o644).unwrap();
    let new = inode("new");
    let Rig {
        scratch,
        lower,
        upper,
        mount,
        ..
    } = rig;
    mount.unmount().unwrap();
    let again = crate::common::Acetate::new(scratch.join("merged"))
        .lowers(&[&lower])
        .upper(&upper, &scratch.join("work"))
        .mount();
    let inode = |name: &str| fs::symlink_metadata(again.join(name)).unwrap().ino();
    assert_eq!(
        (inode("moved"), inode("moved/file"), inode("new")),
        (dir, file, new),
        "remount"
    );
    again.unmount().unwrap();
}
