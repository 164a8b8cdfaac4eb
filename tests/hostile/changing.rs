//! Layers that change underneath: not supported, and yet no reason to die, to hang, or to show what was never there.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::view::{Layers, view};
use crate::common::{Watchdog, skip};
use crate::require;

#[test]
fn a_file_that_shrinks_or_goes_while_it_is_read_and_copied() {
    require!(skip::privileged());
    let _limit = Watchdog::new("shrinking", Duration::from_secs(100));
    let layers = Layers::new("shrinking");
    for number in 0..8 {
        fs::write(
            layers.bottom.join(format!("file{number}")),
            vec![b'a'; 300_000],
        )
        .unwrap();
    }
    let mount = layers.writable();
    let mut held = File::open(mount.join("file0")).unwrap();
    let mut start = [0; 10];
    held.read_exact(&mut start).unwrap();
    let cut = |number: u32, to| {
        let file = layers.bottom.join(format!("file{number}"));
        File::options()
            .write(true)
            .open(file)
            .unwrap()
            .set_len(to)
            .unwrap();
    };
    (0..4).for_each(|number| cut(number, 1000));
    fs::remove_file(layers.bottom.join("file4")).unwrap();
    fs::remove_file(layers.bottom.join("file5")).unwrap();
    fs::create_dir(layers.bottom.join("file5")).unwrap();
    fs::remove_file(layers.bottom.join("file6")).unwrap();
    symlink(layers.outside.join("secret"), layers.bottom.join("file6")).unwrap();
    for number in 0..8 {
        let path = mount.join(format!("file{number}"));
        // Each may fail, and none may show anything but what some file of that name held.
        let appended = File::options()
            .append(true)
            .custom_flags_nofollow()
            .open(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"b"));
        if let Ok(data) = read_nofollow(&path) {
            assert!(
                data.iter().all(|byte| [b'a', b'b', 0].contains(byte)),
                "{number}"
            );
            if number == 7 {
                appended.unwrap();
                assert_eq!(data.len(), 300_001);
            }
        }
    }
    drop(held);
    assert_eq!(fs::read(layers.outside.join("secret")).unwrap(), b"SECRET");
    fs::write(mount.join("alive"), "yes").unwrap();
    assert_eq!(fs::read(mount.join("alive")).unwrap(), b"yes");
    drop(mount.unmount().unwrap());
}

trait NoFollow {
    fn custom_flags_nofollow(&mut self) -> &mut Self;
}

impl NoFollow for fs::OpenOptions {
    fn custom_flags_nofollow(&mut self) -> &mut Self {
        use std::os::unix::fs::OpenOptionsExt;
        self.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
    }
}

fn read_nofollow(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let mut data = Vec::new();
    File::options()
        .read(true)
        .custom_flags_nofollow()
        .open(path)?
        .read_to_end(&mut data)?;
    Ok(data)
}

/// Directories are swapped for symlinks that lead out, and back, while the tree is walked and changed.
#[test]
fn a_race_with_a_symlink_leads_nowhere() {
    require!(skip::privileged());
    let _limit = Watchdog::new("race with a symlink", Duration::from_secs(100));
    let layers = Layers::new("race");
    for dir in ["one", "one/two", "aside"] {
        fs::create_dir(layers.bottom.join(dir)).unwrap();
    }
    fs::write(layers.bottom.join("one/two/secret"), "plain").unwrap();
    // Where the symlink leads there is the same path, with another content.
    fs::create_dir(layers.outside.join("two")).unwrap();
    fs::write(layers.outside.join("two/secret"), "SECRET").unwrap();
    let mount = layers.writable();
    let over = AtomicBool::new(false);
    let end = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (one, aside) = (layers.bottom.join("one"), layers.bottom.join("aside/one"));
            while !over.load(Ordering::Relaxed) {
                fs::rename(&one, &aside).unwrap();
                symlink(&layers.outside, &one).unwrap();
                fs::remove_file(&one).unwrap();
                fs::rename(&aside, &one).unwrap();
            }
        });
        let mut number = 0u32;
        while Instant::now() < end {
            // The program itself would follow a symlink that the mount shows: it does not ask through one.
            let dir = mount.join("one");
            if fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir())
                && let Ok(dir) = File::options()
                    .read(true)
                    .custom_flags_nofollow()
                    .open(&dir)
            {
                use rustix::fs::{Mode, OFlags, openat};
                let flags = OFlags::NOFOLLOW | OFlags::RDWR;
                for (name, flags) in [("two/secret", OFlags::RDONLY), ("two/secret", flags)] {
                    if let Ok(file) = openat(&dir, name, flags, Mode::empty()) {
                        let mut text = String::new();
                        if File::from(file).read_to_string(&mut text).is_ok() {
                            assert_eq!(text, "plain");
                        }
                    }
                }
                number += 1;
                let made = format!("two/new{number}");
                let flags = OFlags::CREATE | OFlags::WRONLY;
                drop(openat(
                    &dir,
                    made.as_str(),
                    flags,
                    Mode::from_raw_mode(0o600),
                ));
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let mut outside: Vec<_> = view_names(&layers);
    outside.sort();
    assert_eq!(outside, ["secret", "two", "two/secret"]);
    drop(view(mount.path()));
    drop(mount.unmount().unwrap());
}

fn view_names(layers: &Layers) -> Vec<String> {
    let mut names = Vec::new();
    for dir in ["", "two"] {
        for entry in fs::read_dir(layers.outside.join(dir)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            names.push(if dir.is_empty() {
                name
            } else {
                format!("{dir}/{name}")
            });
        }
    }
    names
}
