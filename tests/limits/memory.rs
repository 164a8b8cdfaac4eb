//! A daemon with little memory below a walk of many files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::stand::{Stand, end};
use crate::common::{Watchdog, skip};
use crate::{require, skip};

const LIMIT: u64 = 64 << 20;
const PER_DIR: usize = 1000;

/// A group of processes that share a limit of memory.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Result<Group, String> {
        let name = format!("{name}-{}", std::process::id());
        // The second version of control groups, or else the first.
        for (base, file) in [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ] {
            let dir = Path::new(base).join(&name);
            if fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Group(dir);
            // Where control groups are mounted below, it is an ordinary folder.
            if group.0.join("cgroup.procs").exists()
                && fs::write(group.0.join(file), LIMIT.to_string()).is_ok()
            {
                return Ok(group);
            }
        }
        Err("no memory can be limited by control groups".into())
    }

    /// How often the limit was in the way so that a process was killed.
    fn kills(&self) -> u64 {
        let files = ["memory.events", "memory.oom_control"].map(|name| self.0.join(name));
        let texts = files
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok());
        let kills = texts.flat_map(|text| {
            let lines = text
                .lines()
                .filter_map(|line| line.strip_prefix("oom_kill "));
            lines
                .map(|count| count.parse::<u64>().unwrap())
                .collect::<Vec<_>>()
        });
        kills.sum()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended; that they have left is told a moment later.
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} is left", self.0.display());
    }
}

/// Bytes of memory of the daemon that are no file.
fn size(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

#[test]
#[ignore = "heavy: walks many files"]
fn a_walk_with_little_memory_ends() {
    require!(skip::privileged());
    let long = std::env::var_os("ACETATE_LONG").is_some();
    let _limit = Watchdog::new("memory", Duration::from_secs(if long { 3000 } else { 270 }));
    let group = match Group::new("acetate-memory") {
        Ok(group) => group,
        Err(reason) => skip!("{reason}"),
    };
    let stand = Stand::new("memory");
    let (dirs, rounds) = if long { (1000, 2) } else { (300, 1) };
    for number in 0..dirs {
        let dir = stand.lower.join(format!("dir-{number}"));
        fs::create_dir(&dir).unwrap();
        // One file of many names would be one node.
        for number in 0..PER_DIR {
            fs::File::create(dir.join(format!("file-{number}"))).unwrap();
        }
    }
    let procs = group.0.join("cgroup.procs");
    let enter = format!("echo $$ >{} && exec \"$@\"", procs.display());
    let mount = stand.acetate("").by(&["sh", "-c", &enter, "sh"]).mount();
    let pid = mount.pid().unwrap();
    let mut largest = 0;
    for round in 0..rounds {
        for number in 0..dirs {
            let dir = mount.join(format!("dir-{number}"));
            let mut names = 0;
            for entry in fs::read_dir(&dir).unwrap() {
                assert!(entry.unwrap().metadata().unwrap().is_file());
                names += 1;
            }
            assert_eq!(names, PER_DIR, "{dir:?}");
            if number % 10 == 0 {
                largest = largest.max(size(pid));
            }
            if number % 100 == round {
                fs::write(dir.join("file-7"), format!("{round}")).unwrap();
                fs::rename(dir.join("file-8"), dir.join("moved")).unwrap();
                fs::rename(dir.join("moved"), dir.join("file-8")).unwrap();
            }
        }
    }
    println!("{} files, {largest} bytes at most", dirs * PER_DIR);
    assert_eq!(group.kills(), 0, "the daemon was killed");
    for number in (0..dirs).filter(|number| number % 100 < rounds) {
        let path = mount.join(format!("dir-{number}/file-7"));
        assert_eq!(
            fs::read_to_string(path).unwrap(),
            format!("{}", number % 100)
        );
    }
    assert!(largest < LIMIT, "{largest} bytes");
    end(mount);
    drop(group);
}
