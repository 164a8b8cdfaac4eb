//! What the kernel does itself and what it asks the daemon for.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::thread;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use crate::common::skip;
use crate::map::Map;
use crate::require;
use crate::rig::{Rig, open, open_creat, read_all};

/// Trap 1: passthrough is refused silently when the session asked for the wrong things.
#[test]
fn passthrough_really_is_on_for_root() {
    require!(skip::privileged());
    let rig = Rig::new("really", "", |_| {});
    fs::write(rig.at("file"), "data").unwrap();
    assert_eq!(fs::read_to_string(rig.at("file")).unwrap(), "data");
    assert!(
        rig.counter("passthrough_opens") >= 2,
        "files of the upper are not passed through"
    );
    let before = rig.operation("write") + rig.operation("read");
    let file = open(&rig.at("file"), libc::O_RDWR).unwrap();
    for i in 0..100 {
        file.write_all_at(&[7; 4096], i * 4096).unwrap();
    }
    read_all(&file).unwrap();
    assert_eq!(
        rig.operation("write") + rig.operation("read"),
        before,
        "data came to the daemon"
    );
    drop(file);
    rig.finish(|upper| assert_eq!(fs::metadata(upper.join("file")).unwrap().len(), 409_600));
}

#[test]
fn the_read_ahead_of_the_mount_is_raised() {
    require!(skip::privileged());
    let rig = Rig::new("read-ahead", "", |_| {});
    let dev = fs::metadata(rig.mount.path()).unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    // The mount is there a moment before the daemon has done all that belongs to mounting.
    let begin = std::time::Instant::now();
    loop {
        let set =
            fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).unwrap();
        if set.trim().parse::<u32>().unwrap() > 128 {
            break;
        }
        assert!(
            begin.elapsed() < std::time::Duration::from_secs(20),
            "{set}"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    rig.finish(|_| {});
}

/// Trap 2: one node has one backing file, and a cached open beside a passthrough one would answer EIO.
#[test]
fn opens_of_every_kind_beside_one_another() {
    require!(skip::privileged());
    for options in [
        "passthrough_lower=never",
        "passthrough_lower=auto",
        "passthrough_lower=always",
    ] {
        let rig = Rig::new("beside", options, |lower| {
            fs::write(lower.join("file"), vec![b'l'; 20_000]).unwrap();
        });
        let path = rig.at("file");
        let mut held = Vec::new();
        for round in 0..20u8 {
            let reader = open(&path, libc::O_RDONLY).unwrap();
            let map = Map::read_only(&reader, 20_000).unwrap();
            let writer = open(&path, libc::O_RDWR).unwrap();
            writer
                .write_all_at(&[round; 10], u64::from(round) * 100)
                .unwrap();
            let after = open(&path, libc::O_RDONLY).unwrap();
            let data = read_all(&after).unwrap();
            assert_eq!(
                &data[usize::from(round) * 100..][..10],
                [round; 10],
                "{options}"
            );
            held.push((reader, map, writer, after));
            if round % 3 == 2 {
                held.remove(0);
            }
            if round % 7 == 6 {
                held.clear();
            }
        }
        held.clear();
        let passed = rig.counter("passthrough_opens");
        assert!(open(&path, libc::O_RDWR).is_ok());
        assert!(
            rig.counter("passthrough_opens") > passed,
            "{options}: never back to passthrough"
        );
        rig.finish(|_| {});
    }
}

#[test]
fn a_file_stays_cached_until_its_last_cached_mapping_is_gone() {
    require!(skip::privileged());
    let rig = Rig::new("until", "passthrough_lower=never", |lower| {
        fs::write(lower.join("file"), vec![b'l'; 8192]).unwrap();
    });
    let path = rig.at("file");
    let map = Map::read_only(&open(&path, libc::O_RDONLY).unwrap(), 8192).unwrap();
    let passed = rig.counter("passthrough_opens");
    let writer = open(&path, libc::O_RDWR).unwrap();
    writer.write_all_at(b"new", 0).unwrap();
    assert_eq!(
        rig.counter("passthrough_opens"),
        passed,
        "passthrough beside a cached mapping"
    );
    assert_eq!(
        read_all(&open(&path, libc::O_RDONLY).unwrap()).unwrap()[..3],
        *b"new"
    );
    drop((map, writer));
    // The last release is sent after the close has returned.
    let begin = std::time::Instant::now();
    while rig.counter("passthrough_opens") == passed {
        assert!(begin.elapsed().as_secs() < 30, "never moves to passthrough");
        assert_eq!(
            read_all(&open(&path, libc::O_RDONLY).unwrap()).unwrap()[..3],
            *b"new"
        );
    }
    rig.finish(|_| {});
}

/// Trap 3: these come to the daemon, and act on the file that is passed through.
#[test]
fn what_passthrough_does_not_cover_acts_on_the_same_file() {
    require!(skip::privileged());
    for options in ["", "passthrough=off"] {
        let rig = Rig::new("not-covered", options, |lower| {
            fs::write(lower.join("file"), vec![b'l'; 64 << 10]).unwrap();
        });
        let file = open(&rig.at("file"), libc::O_RDWR).unwrap();
        file.write_all_at(b"head", 0).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        assert_eq!(fs::read(rig.upper.join("file")).unwrap()[..4], *b"head");
        fallocate(&file, FallocateFlags::empty(), 64 << 10, 64 << 10).unwrap();
        assert_eq!(file.metadata().unwrap().size(), 128 << 10);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, 16 << 10, 16 << 10).unwrap();
        let (hole, data) = match options {
            "" => (16 << 10, 32 << 10),
            // Where the kernel holds writes back, all is data.
            _ => (128 << 10, 16 << 10),
        };
        assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), hole);
        assert_eq!(seek(&file, SeekFrom::Data(16 << 10)).unwrap(), data);
        let copy = open_creat(&rig.at("copy"), libc::O_RDWR, 0o644).unwrap();
        let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &copy, Some(&mut 0), 4096);
        assert_eq!(copied.unwrap(), 4096);
        let data = read_all(&copy).unwrap();
        assert_eq!((data.len(), &data[..4]), (4096, &b"head"[..]), "{options}");
        assert_eq!(copy.metadata().unwrap().size(), 4096);
        drop((file, copy));
        rig.finish(|_| {});
    }
}

/// What is written and not yet written back is no hole: a copy that is guided by holes would lose it.
#[test]
fn data_that_the_kernel_still_holds_is_no_hole() {
    require!(skip::privileged());
    for options in ["", "passthrough=off"] {
        let rig = Rig::new("held-back", options, |_| {});
        let file = open_creat(&rig.at("new"), libc::O_RDWR, 0o644).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[b'x'; 4096], 512 << 10).unwrap();
        let from = seek(&file, SeekFrom::Data(0)).unwrap();
        let to = seek(&file, SeekFrom::Hole(from)).unwrap();
        assert!(
            from <= 512 << 10 && to >= 516 << 10,
            "{options}: {from} {to}"
        );
        drop(file);
        rig.finish(|_| {});
    }
}

/// The same of what was written into a mapping.
#[test]
fn data_in_a_mapping_is_no_hole() {
    require!(skip::privileged());
    for options in ["complete=off", "partial=off", "passthrough=off"] {
        let rig = Rig::new("mapped", options, |lower| {
            let file = fs::File::create(lower.join("sparse")).unwrap();
            file.set_len(8 << 20).unwrap();
        });
        let path = rig.at("sparse");
        let file = open(&path, libc::O_RDWR).unwrap();
        let mut map = Map::shared(&file, 8 << 20).unwrap();
        map.write(2 << 20, b"mapped");
        let other = open(&path, libc::O_RDONLY).unwrap();
        for file in [&file, &other] {
            let from = seek(file, SeekFrom::Data(0)).unwrap();
            let to = seek(file, SeekFrom::Hole(from)).unwrap();
            assert!(
                from <= 2 << 20 && to >= (2 << 20) + 6,
                "{options}: {from} {to}"
            );
            let end = seek(file, SeekFrom::Data(8 << 20)).unwrap_err();
            assert_eq!(end, rustix::io::Errno::NXIO, "{options}");
        }
        drop((map, file, other));
        rig.finish(|upper| {
            let data = fs::read(upper.join("sparse")).unwrap();
            assert_eq!(data[2 << 20..(2 << 20) + 6], *b"mapped", "{options}");
        });
    }
}

#[test]
fn a_program_runs_and_is_replaced_while_it_runs() {
    require!(skip::privileged());
    let rig = Rig::new("program", "", |lower| {
        fs::copy("/bin/sleep", lower.join("sleep")).unwrap();
        fs::set_permissions(lower.join("sleep"), fs::Permissions::from_mode(0o755)).unwrap();
    });
    let path = rig.at("sleep");
    let mut child = std::process::Command::new(&path).arg("30").spawn().unwrap();
    thread::sleep(std::time::Duration::from_millis(50));
    let inode = fs::metadata(&path).unwrap().ino();
    // As package managers do it: a new file is renamed over the one that runs.
    fs::copy("/bin/sleep", rig.at("sleep.new")).unwrap();
    fs::rename(rig.at("sleep.new"), &path).unwrap();
    assert_ne!(fs::metadata(&path).unwrap().ino(), inode);
    assert!(
        child.try_wait().unwrap().is_none(),
        "the running program fell"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        std::process::Command::new(&path)
            .arg("0")
            .status()
            .unwrap()
            .success()
    );
    rig.finish(|_| {});
}
