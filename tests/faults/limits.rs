//! Too few descriptors.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::common::stand::Stand;
use crate::common::{Tree, TreeOptions, Watchdog, skip};
use crate::require;

const FILES: usize = 200;
const LENGTH: usize = 200_000;

/// What may not change of the lower. Not when it was read: other programs of the machine may look at it.
const LOWER: TreeOptions = TreeOptions {
    atime: false,
    ..TreeOptions::UNTOUCHED
};

/// An error that a program gets which asks for too much.
fn is_limit(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Runs something until it is not refused any more: the kernel tells the daemon of a close a moment later.
fn patiently<T>(act: impl Fn() -> io::Result<T>) -> T {
    let begin = Instant::now();
    loop {
        match act() {
            Ok(value) => return value,
            Err(e) if is_limit(&e) && begin.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_daemon_out_of_descriptors_tells_so_and_goes_on() {
    require!(skip::privileged());
    require!(skip::program("prlimit"));
    let _limit = Watchdog::new("descriptors", Duration::from_secs(120));
    let stand = Stand::new("descriptors");
    let name = |number: usize| format!("file-{number}");
    for number in 0..FILES {
        let data = vec![number as u8 | 1; LENGTH];
        fs::write(stand.lower.join(name(number)), data).unwrap();
    }
    let lower = Tree::read(&stand.lower, LOWER).unwrap();
    let mount = stand
        .acetate("partial=off")
        .by(&["prlimit", "--nofile=64:64"])
        .mount();
    let mut refused = 0;
    for round in 0..2 {
        let mut held = Vec::new();
        for number in 0..FILES {
            let mut options = OpenOptions::new();
            options.read(true).write(number % 2 == round);
            match options.open(mount.join(name(number))) {
                Ok(file) => held.push((number, file)),
                Err(e) if is_limit(&e) => refused += 1,
                Err(e) => panic!("open of {number}: {e}"),
            }
        }
        // What is open goes on.
        for (number, file) in &held {
            let mut byte = [0];
            file.read_exact_at(&mut byte, 1000).unwrap();
            assert_eq!(byte[0], *number as u8 | 1);
        }
        for attempt in [
            File::create(mount.join(format!("new-{round}"))).map(drop),
            fs::create_dir(mount.join(format!("dir-{round}"))),
            fs::rename(mount.join("file-7"), mount.join("file-7a")),
        ] {
            if let Err(e) = attempt {
                assert!(is_limit(&e), "{e}");
            }
        }
        drop(held);
        if patiently(|| fs::exists(mount.join("file-7a"))) {
            patiently(|| fs::rename(mount.join("file-7a"), mount.join("file-7")));
        }
    }
    assert!(refused > 0, "the limit was not met");
    // Everything is there, and everything can be changed.
    for number in 0..FILES {
        let path = mount.join(name(number));
        assert!(patiently(|| fs::read(&path)) == vec![number as u8 | 1; LENGTH]);
        let file = patiently(|| OpenOptions::new().write(true).open(&path));
        file.write_all_at(b"changed", 5).unwrap();
    }
    mount.unmount().unwrap();
    assert!(
        stand.left_in_work().is_empty(),
        "{:?}",
        stand.left_in_work()
    );
    for number in 0..FILES {
        let mut expected = vec![number as u8 | 1; LENGTH];
        expected[5..12].copy_from_slice(b"changed");
        assert!(fs::read(stand.upper.join(name(number))).unwrap() == expected);
    }
    let after = Tree::read(&stand.lower, LOWER).unwrap();
    lower.assert_same(&after, "the lower layer");
}
