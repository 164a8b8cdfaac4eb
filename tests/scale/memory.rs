//! What the daemon keeps in memory of what the kernel knows.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::stand::{Stand, end};
use crate::common::{Watchdog, skip};
use crate::require;

/// Files in one directory.
const EACH: usize = 1000;

/// Bytes of memory that a file may take which the kernel was told of.
const BYTES_PER_FILE: u64 = 300;

/// Bytes that may remain of it once the kernel has forgotten all.
const LEFT_PER_FILE: u64 = 100;

/// Bytes that a mount takes of which nobody asks anything. Of a program that was built without optimisation.
const IDLE: u64 = 10 << 20;

fn directories() -> usize {
    if std::env::var_os("ACETATE_LONG").is_some() {
        1000
    } else {
        100
    }
}

/// The memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// Looks at everything below a directory; how many there are.
fn walk(dir: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        count += 1;
        if entry.metadata().unwrap().is_dir() {
            count += walk(&entry.path());
        }
    }
    count
}

#[test]
#[ignore = "heavy: makes 100,000 files; 1,000,000 with ACETATE_LONG"]
fn memory_is_bounded_and_given_back() {
    require!(skip::privileged());
    let _limit = Watchdog::new("memory", Duration::from_secs(900));
    let stand = Stand::new("memory");
    let directories = directories();
    for d in 0..directories {
        let dir = stand.scratch.dir(format!("lower/dir-{d}"));
        for f in 0..EACH {
            fs::write(dir.join(format!("file-{f}")), "").unwrap();
        }
    }
    let mount = stand.acetate("").mount();
    let pid = mount.pid().unwrap();
    // What only the start needed goes once nobody waits for the mount any more.
    let begin = Instant::now();
    let mut idle = resident(pid);
    while idle > IDLE {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{idle} bytes while nothing is asked"
        );
        thread::sleep(Duration::from_millis(100));
        idle = resident(pid);
    }
    // The program's own text that a walk needs is no file's.
    assert_eq!(walk(&mount.join("dir-0")), EACH);
    let begun = resident(pid);
    let files = directories * EACH;
    assert_eq!(walk(mount.path()), files + directories);
    let walked = resident(pid);
    let each = walked.saturating_sub(begun) / (files - EACH) as u64;
    println!("idle {idle}, {begun} after {EACH} files, {walked} after {files}: {each} bytes each");
    // Less, where another program has the kernel forget some of them meanwhile.
    assert!(each <= BYTES_PER_FILE, "{each} bytes a file");
    let begin = Instant::now();
    loop {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        thread::sleep(Duration::from_millis(100));
        let left = resident(pid).saturating_sub(begun);
        if left <= LEFT_PER_FILE * files as u64 {
            println!("{left} bytes more than at the beginning");
            break;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(600),
            "{left} bytes are not given back"
        );
    }
    end(mount);
}
