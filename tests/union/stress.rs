//! Threads that do all kinds of things to the same few names, as fast as they can.
//!
//! Changes of one directory follow one another, as the kernel has them.
//!
//! Under ThreadSanitizer, in `tests/tsan` (`ACETATE_LONG=1`: 80,000 steps in a minute):
//!
//! ```sh
//! RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer' \
//!   TSAN_OPTIONS="suppressions=$PWD/suppressions history_size=7 exitcode=66" \
//!   cargo test --target x86_64-unknown-linux-gnu threads_that_change
//! ```
//!
//! A target has to be named, lest build scripts are compiled so too. `suppressions` tells what is reported and is no race.

use std::collections::HashSet;

use parking_lot::Mutex;

use super::*;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const DIRS: [&str; 2] = ["one", "two"];
const THREADS: u64 = 4;

/// What the kernel keeps of a mount.
struct Vfs<'a> {
    union: &'a Union,
    dirs: [NodeId; 2],
    /// Held by what changes the entries of a directory; the first before the second.
    locks: [Mutex<()>; 2],
    /// Held by renames between directories.
    rename: Mutex<()>,
}

/// What another thread may be the cause of.
const EXPECTED: [i32; 4] = [libc::ENOENT, libc::EEXIST, libc::ESTALE, libc::ENOTEMPTY];

impl Vfs<'_> {
    fn check<T>(what: &str, result: acetate::union::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(e) if EXPECTED.contains(&e.errno()) => None,
            Err(e) => panic!("{what}: {e}"),
        }
    }

    fn with_node(&self, dir: usize, name: &OsStr, act: impl FnOnce(NodeId)) {
        if let Some(Lookup::Found(entry)) =
            Self::check("lookup", self.union.lookup(self.dirs[dir], name))
        {
            act(entry.node);
            self.union.forget(entry.node, 1);
        }
    }

    fn step(&self, random: u64) {
        let (dir, other) = (random as usize % 2, (random >> 1) as usize % 2);
        let name = OsStr::new(NAMES[(random >> 2) as usize % NAMES.len()]);
        let new = OsStr::new(NAMES[(random >> 4) as usize % NAMES.len()]);
        let (union, parent) = (self.union, self.dirs[dir]);
        match (random >> 8) % 9 {
            0 => {
                let _changing = self.locks[dir].lock();
                let flags = libc::O_RDWR;
                let made = union.create(&ME, parent, name, 0o644, 0, flags, &Kernel::default());
                if let Some((entry, opened)) = Self::check("create", made) {
                    union.release(opened.handle);
                    union.forget(entry.node, 1);
                }
            }
            1 => {
                let _changing = self.locks[dir].lock();
                Self::check("unlink", union.unlink(parent, name));
            }
            2 => {
                let _rename = (dir != other).then(|| self.rename.lock());
                let _first = self.locks[dir.min(other)].lock();
                let _second = (dir != other).then(|| self.locks[dir.max(other)].lock());
                let mode = RenameMode::Replace;
                let renamed = union.rename(&ME, parent, name, self.dirs[other], new, mode);
                Self::check("rename", renamed);
            }
            3 => self.with_node(dir, name, |node| {
                let _changing = self.locks[other].lock();
                let linked = union.link(&ME, node, self.dirs[other], new);
                if let Some(entry) = Self::check("link", linked) {
                    union.forget(entry.node, 1);
                }
            }),
            4 | 5 => self.with_node(dir, name, |node| {
                let opened = union.open(&ME, node, libc::O_RDWR, &Kernel::default());
                if let Some(opened) = Self::check("open", opened) {
                    let offset = (random >> 16) % 20_000;
                    let written = union.write(opened.handle, offset, b"data", Default::default());
                    assert_eq!(written.unwrap(), 4);
                    let mut back = [0; 64];
                    union.read(opened.handle, offset, &mut back).unwrap();
                    union.release(opened.handle);
                }
            }),
            6 => self.with_node(dir, name, |node| {
                let set = SetAttr {
                    mode: Some(0o600 | ((random >> 16) as u32 % 8)),
                    size: (random >> 20)
                        .is_multiple_of(4)
                        .then_some((random >> 24) % 30_000),
                    ..SetAttr::default()
                };
                Self::check("setattr", union.setattr(&ME, node, &set));
                Self::check("getattr", union.getattr(node, None));
            }),
            7 => {
                let mut told = Vec::new();
                // The kernel lists a directory while nothing changes in it.
                let _changing = self.locks[dir].lock();
                let listed = union.readdirplus(parent, 0, &mut |_, entry| {
                    told.extend(entry.map(|entry| entry.node));
                    false
                });
                Self::check("readdirplus", listed);
                for node in told {
                    union.forget(node, 1);
                }
            }
            _ => {
                Self::check("completion", union.complete(Path::new("/"), &|| false));
            }
        }
    }
}

#[test]
fn threads_that_change_the_same_names_agree() {
    let steps = match std::env::var_os("ACETATE_LONG") {
        Some(_) => 20_000,
        None => 250,
    };
    let params = Params {
        metacopy: true,
        partial: Some(4096),
        no_sync: true,
        ..Params::default()
    };
    let mut rig = Rig::new(1, params, |lowers| {
        for dir in DIRS {
            fs::create_dir(lowers[0].join(dir)).unwrap();
            for name in NAMES {
                fs::write(lowers[0].join(dir).join(name), vec![b'.'; 20_000]).unwrap();
            }
        }
        let [link, of] = ["two/d", "one/d"].map(|name| lowers[0].join(name));
        fs::remove_file(&link).unwrap();
        fs::hard_link(of, link).unwrap();
    });
    let vfs = Vfs {
        union: rig.u(),
        dirs: DIRS.map(|dir| rig.node(dir)),
        locks: Default::default(),
        rename: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for thread in 1..=THREADS {
            let vfs = &vfs;
            scope.spawn(move || {
                let mut state = thread.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                for _ in 0..steps {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    vfs.step(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8);
                }
            });
        }
    });
    rig.u().complete(Path::new("/"), &|| false).unwrap();
    let see = |rig: &Rig| -> Vec<(String, u64, u32, u64, Vec<u8>)> {
        let mut seen = Vec::new();
        let mut numbers = HashSet::new();
        for dir in DIRS {
            for name in rig.list(dir) {
                let path = format!("{dir}/{name}");
                let attr = rig.get(&path).attr;
                let opened = rig.open(&path, libc::O_RDONLY);
                let mut data = vec![0; 40_000];
                let len = rig.u().read(opened.handle, 0, &mut data).unwrap();
                data.truncate(len);
                rig.u().release(opened.handle);
                assert_eq!(attr.size, len as u64, "{path}");
                numbers.insert(attr.ino);
                seen.push((path, attr.ino, attr.nlink, attr.size, data));
            }
        }
        // As many names as the links of all files say: none is lost, and none too many.
        let links: u64 = numbers
            .iter()
            .filter_map(|ino| seen.iter().find(|file| file.1 == *ino))
            .map(|file| u64::from(file.2))
            .sum();
        assert_eq!(links, seen.len() as u64);
        seen
    };
    let before = see(&rig);
    assert!(!before.is_empty());
    rig.mount();
    let after = see(&rig);
    assert!(before == after, "{before:?}\n{after:?}");
    let lower = fs::read(rig.lowers[0].join("one/a")).unwrap();
    assert!(lower == vec![b'.'; 20_000], "the lower was changed");
}
