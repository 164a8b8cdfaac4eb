//! What the daemon need not be asked.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::common::skip;
use crate::map::Map;
use crate::require;
use crate::rig::{Rig, open, read_all};

#[test]
fn directories_are_read_without_being_opened() {
    require!(skip::privileged());
    let rig = Rig::new("opendir", "", |lower| {
        for i in 0..20 {
            fs::create_dir(lower.join(format!("d{i}"))).unwrap();
            fs::write(lower.join(format!("d{i}/file")), "").unwrap();
        }
    });
    for _ in 0..3 {
        for i in 0..20 {
            let names = fs::read_dir(rig.at(format!("d{i}"))).unwrap().count();
            assert_eq!(names, 1);
        }
    }
    assert!(rig.operation("opendir") <= 1, "directories are opened");
    assert_eq!(rig.operation("releasedir"), 0);
    // One that was opened is read by node, also once it has no name any more.
    let mut held = fs::read_dir(rig.at("d3")).unwrap();
    fs::remove_file(rig.at("d3/file")).unwrap();
    fs::remove_dir(rig.at("d3")).unwrap();
    assert!(held.next().is_none_or(|entry| entry.is_ok()));
    let dir = fs::File::open(rig.at("d4")).unwrap();
    dir.sync_all().unwrap();
    drop((held, dir));
    rig.finish(|_| {});
}

/// FUSE 7.41, below which the page cache is not filled ahead.
fn linux_6_12() -> Result<(), String> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut parts = release.split(['.', '-']).map_while(|p| p.parse().ok());
    let version: (u32, u32) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= (6, 12) {
        Ok(())
    } else {
        Err(format!("Linux {release} is older than 6.12"))
    }
}

#[test]
fn small_lower_files_are_read_by_their_open() {
    const FILES: usize = 50;
    const SIZE: usize = 5000;
    require!(skip::privileged());
    require!(linux_6_12());
    for options in ["passthrough_lower=auto", "passthrough=off"] {
        let rig = Rig::new("stored", options, |lower| {
            for i in 0..FILES {
                fs::write(
                    lower.join(format!("{i}")),
                    vec![b'a' + (i % 26) as u8; SIZE],
                )
                .unwrap();
            }
        });
        for i in 0..FILES {
            let file = open(&rig.at(i.to_string()), libc::O_RDONLY).unwrap();
            let expected = vec![b'a' + (i % 26) as u8; SIZE];
            assert_eq!(read_all(&file).unwrap(), expected, "{options}");
            assert_eq!(file.metadata().unwrap().len(), SIZE as u64);
            // The rest of the last page is nobody's memory.
            let map = Map::read_only(&file, 8192).unwrap();
            assert_eq!(map.read(0, SIZE), expected);
            assert_eq!(map.read(SIZE, 8192 - SIZE), [0; 8192 - SIZE], "{options}");
        }
        // Other programs may make the kernel drop what it caches at any time.
        let asked = rig.operation("read");
        assert!(asked < FILES as u64 / 2, "{options}: {asked} reads");
        let asked = rig.operation("getattr");
        assert!(asked < FILES as u64 / 2, "{options}: {asked} getattrs");
        rig.finish(|_| {});
    }
}

#[test]
fn what_was_read_by_an_open_is_never_stale() {
    require!(skip::privileged());
    for options in ["passthrough_lower=auto", "passthrough=off"] {
        let rig = Rig::new("stored-stale", options, |lower| {
            for name in ["written", "truncated", "replaced", "appended", "mapped"] {
                fs::write(lower.join(name), vec![b'l'; 5000]).unwrap();
            }
        });
        let names = ["written", "truncated", "replaced", "appended", "mapped"];
        let readers = names.map(|name| open(&rig.at(name), libc::O_RDONLY).unwrap());
        for reader in &readers {
            assert_eq!(read_all(reader).unwrap(), [b'l'; 5000]);
        }
        let writer = open(&rig.at("written"), libc::O_WRONLY).unwrap();
        writer.write_all_at(b"new", 4000).unwrap();
        nix::unistd::truncate(&rig.at("truncated"), 100).unwrap();
        nix::unistd::truncate(&rig.at("truncated"), 4500).unwrap();
        fs::write(rig.at("replaced"), "all").unwrap();
        let append = open(&rig.at("appended"), libc::O_WRONLY | libc::O_APPEND).unwrap();
        append.write_all_at(b"end", 0).unwrap();
        let mapped = open(&rig.at("mapped"), libc::O_RDWR).unwrap();
        Map::shared(&mapped, 5000).unwrap().write(10, b"map");
        let mut expected = names.map(|_| vec![b'l'; 5000]);
        expected[0][4000..4003].copy_from_slice(b"new");
        expected[1] = [vec![b'l'; 100], vec![0; 4400]].concat();
        expected[2] = b"all".to_vec();
        expected[3].extend(b"end");
        expected[4][10..13].copy_from_slice(b"map");
        for ((name, reader), expected) in names.iter().zip(&readers).zip(&expected) {
            assert_eq!(&read_all(reader).unwrap(), expected, "{options}: {name}");
            assert_eq!(
                &fs::read(rig.at(name)).unwrap(),
                expected,
                "{options}: {name}"
            );
        }
        drop((readers, writer, append, mapped));
        for (name, expected) in names.iter().zip(&expected) {
            assert_eq!(
                &fs::read(rig.at(name)).unwrap(),
                expected,
                "{options}: {name}"
            );
        }
        rig.finish(|upper| {
            for (name, expected) in names.iter().zip(&expected) {
                assert_eq!(&fs::read(upper.join(name)).unwrap(), expected, "{name}");
            }
        });
    }
}

/// The processor time that a process has taken, in clock ticks.
fn processor_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn an_idle_mount_takes_no_processor_time() {
    require!(skip::privileged());
    let rig = Rig::new("idle", "busy_poll=1000", |_| {});
    let pid = rig.mount.pid().unwrap();
    for i in 0..2000 {
        assert!(fs::symlink_metadata(rig.at(format!("missing{i}"))).is_err());
    }
    let before = processor_time(pid);
    // The time that is measured: who polls takes half of it and more.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let ticks = processor_time(pid) - before;
    assert!(ticks < 10, "{ticks} ticks in a second");
    rig.finish(|_| {});
}
