//! The union under every order of its threads that a model tries: see `sys::sync`.
//!
//! What is checked is the program's own code on directories of this machine; only its locks are handed out by the model.
//! `ACETATE_LONG=1 cargo test --lib union::models` tries thirty times as many orders.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use shuttle::thread;

use super::inode::{Inode, State};
use super::table::Table;
use super::{
    Backing, BackingOpener, Caller, Entry, Lookup, NodeId, OpenMode, Params, ROOT, RenameMode,
    SetAttr, SetTime, Union, WriteFlags,
};
use crate::layer::dir::{DirLayer, LayerOptions};
use crate::layer::fdcache::FdCache;
use crate::layer::format::OverrideStat;
use crate::layer::upper::{AccessTimes, Namespace, Upper, UpperOptions};
use crate::layer::{Layer, Timestamp};
use crate::sys::sync::model;

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};

/// Registers files for passthrough, or refuses to.
struct Opener(bool);

impl BackingOpener for Opener {
    fn open_backing(&self, _: BorrowedFd<'_>, _: bool) -> io::Result<Backing> {
        match self.0 {
            true => Ok(Arc::new(())),
            false => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// A union over one lower layer, as the program that drives it and the kernel see it.
struct World {
    dir: tempfile::TempDir,
    union: Union,
}

impl World {
    /// `make`: fills the lower layer.
    fn new(params: Params, make: impl Fn(&Path)) -> Arc<World> {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.unwrap();
        for name in ["lower", "upper", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        make(&dir.path().join("lower"));
        let union = World::open(dir.path(), params);
        Arc::new(World { dir, union })
    }

    fn open(dir: &Path, params: Params) -> Union {
        let cache = Arc::new(FdCache::for_this_process());
        let options = LayerOptions::default();
        let lower: Arc<dyn Layer> =
            Arc::new(DirLayer::open(&dir.join("lower"), options, cache.clone()).unwrap());
        let none = rustix::fs::XattrFlags::empty();
        let trusted = rustix::fs::setxattr(dir, "trusted.probe", b"", none).is_ok();
        let options = UpperOptions {
            namespace: if trusted {
                Namespace::Trusted
            } else {
                Namespace::User
            },
            volatile: false,
            override_stat: OverrideStat::Off,
            access_times: AccessTimes::AsBelow,
        };
        let upper = Upper::open(&dir.join("upper"), &dir.join("work"), options, cache).unwrap();
        let params = Params {
            no_sync: true,
            ..params
        };
        Union::new(vec![lower], Some(upper), params).unwrap()
    }

    fn find(&self, name: &str) -> Option<Entry> {
        match self.union.lookup(ROOT, OsStr::new(name)) {
            Ok(Lookup::Found(entry)) => Some(entry),
            Ok(Lookup::Absent(_)) => None,
            // Removed while it was looked at.
            Err(e) if e.errno() == libc::ENOENT => None,
            Err(e) => panic!("{name}: {e}"),
        }
    }

    fn look_up(&self, name: &str) -> NodeId {
        self.find(name).unwrap().node
    }

    fn rename(&self, from: &str, to: &str) {
        let [from, to] = [from, to].map(OsStr::new);
        self.union
            .rename(&CALLER, ROOT, from, ROOT, to, RenameMode::Replace)
            .unwrap();
    }

    /// Opens a node; where the kernel is asked to look the name up again, as it does.
    fn open_as_kernel(&self, name: &str, flags: i32, opener: &Opener) -> (u64, OpenMode) {
        loop {
            let node = self.look_up(name);
            let opened = self.union.open(&CALLER, node, flags, opener);
            self.union.forget(node, 1);
            match opened {
                Ok(opened) => return (opened.handle, opened.mode),
                Err(e) if e.errno() == libc::ESTALE => {}
                Err(e) => panic!("{name}: {e}"),
            }
        }
    }

    fn write(&self, name: &str, offset: u64, data: &[u8]) {
        let (handle, _) = self.open_as_kernel(name, libc::O_RDWR, &Opener(false));
        let taken = self
            .union
            .write(handle, offset, data, WriteFlags::default());
        assert_eq!(taken.unwrap(), data.len());
        self.union.release(handle);
    }

    fn read(&self, name: &str) -> Vec<u8> {
        let (handle, _) = self.open_as_kernel(name, libc::O_RDONLY, &Opener(false));
        let data = self.read_handle(handle);
        self.union.release(handle);
        data
    }

    fn read_handle(&self, handle: u64) -> Vec<u8> {
        let mut data = vec![0; 64 << 10];
        let len = self.union.read(handle, 0, &mut data).unwrap();
        data.truncate(len);
        data
    }

    /// When the kernel has given everything back, nothing is left of the table but its root.
    fn is_forgotten(&self) {
        assert_eq!(self.union.table.len(), 1, "nodes that nobody forgot");
    }

    fn lower(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join("lower").join(name)).unwrap()
    }
}

/// What a thread of a model does.
type Body = Box<dyn FnOnce(&World) + Send>;

/// Runs each on a thread of the model, and waits for all.
fn together(world: &Arc<World>, bodies: Vec<Body>) {
    let threads: Vec<_> = bodies
        .into_iter()
        .map(|body| {
            let world = world.clone();
            thread::spawn(move || body(&world))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn an_inode_number_is_one_inode() {
    model(3000, || {
        let table = Arc::new(Table::new());
        let threads: Vec<_> = (0..3)
            .map(|at| {
                let table = table.clone();
                thread::spawn(move || {
                    for round in 0..2 {
                        let make = |node| Inode::new(node, 7, libc::S_IFREG, State::default());
                        let (inode, _) = table.find_or_insert(7, make);
                        let known = table.find_ino(7).unwrap();
                        assert!(Arc::ptr_eq(&known, &inode), "two inodes have one number");
                        let node = inode.current_node();
                        table.acquire(node, &inode);
                        let found = table.get(node).unwrap();
                        assert!(Arc::ptr_eq(&found, &inode), "a node is another inode");
                        if at == round {
                            // As at the copy-up of a file that is open, under the lock of its opens.
                            let _open = inode.open.lock();
                            let node = table.renumber(&inode);
                            inode
                                .current
                                .store(node, std::sync::atomic::Ordering::Release);
                        }
                        drop((inode, known, found));
                        table.forget(node, 1);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(table.len(), 0);
        assert!(table.find_ino(7).is_none());
    });
}

#[test]
fn lookups_are_counted() {
    model(400, || {
        let world = World::new(Params::default(), |lower| {
            fs::create_dir(lower.join("dir")).unwrap();
            fs::write(lower.join("a"), "of a").unwrap();
            fs::write(lower.join("b"), "of b").unwrap();
        });
        together(
            &world,
            vec![
                Box::new(|world| {
                    for _ in 0..2 {
                        let node = world.look_up("b");
                        let (attr, _) = world.union.getattr(node, None).unwrap();
                        assert_eq!(attr.size, 4);
                        world.union.forget(node, 1);
                    }
                }),
                Box::new(|world| {
                    let mut told: HashMap<NodeId, u64> = HashMap::new();
                    let mut names = Vec::new();
                    world
                        .union
                        .readdirplus(ROOT, 0, &mut |entry, found| {
                            names.push(entry.name.to_owned());
                            if let Some(found) = found {
                                *told.entry(found.node).or_default() += 1;
                            }
                            false
                        })
                        .unwrap();
                    for name in ["b", "dir"] {
                        let times = names.iter().filter(|n| *n == OsStr::new(name)).count();
                        assert_eq!(times, 1, "{name} is listed so often");
                    }
                    for (node, count) in told {
                        world.union.getattr(node, None).unwrap();
                        world.union.forget(node, count);
                    }
                }),
                Box::new(|world| {
                    world.rename("a", "c");
                    assert!(world.find("a").is_none());
                    let node = world.look_up("c");
                    world.union.forget(node, 1);
                }),
            ],
        );
        assert_eq!(world.read("c"), b"of a");
        assert_eq!(world.lower("a"), b"of a");
        world.is_forgotten();
    });
}

#[test]
fn a_file_is_copied_up_once() {
    model(400, || {
        let world = World::new(Params::default(), |lower| {
            fs::write(lower.join("a"), vec![b'.'; 10_000]).unwrap();
            fs::hard_link(lower.join("a"), lower.join("b")).unwrap();
        });
        // Open before the copy-up: reads afterwards what was written since.
        let (handle, _) = world.open_as_kernel("a", libc::O_RDONLY, &Opener(false));
        together(
            &world,
            vec![
                Box::new(|world| world.write("a", 0, b"one")),
                Box::new(|world| world.write("b", 5000, b"two")),
                Box::new(|world| {
                    let node = world.look_up("b");
                    let set = SetAttr {
                        mode: Some(0o600),
                        ..SetAttr::default()
                    };
                    world.union.setattr(&CALLER, node, &set).unwrap();
                    world.union.forget(node, 1);
                }),
            ],
        );
        let mut expected = vec![b'.'; 10_000];
        expected[..3].copy_from_slice(b"one");
        expected[5000..5003].copy_from_slice(b"two");
        assert!(world.read_handle(handle) == expected, "an old handle");
        world.union.release(handle);
        for name in ["a", "b"] {
            assert!(world.read(name) == expected, "{name}");
            let entry = world.find(name).unwrap();
            assert_eq!((entry.attr.nlink, entry.attr.mode & 0o777), (2, 0o600));
            world.union.forget(entry.node, 1);
        }
        assert_eq!(world.lower("a"), vec![b'.'; 10_000]);
        world.is_forgotten();
    });
}

#[test]
fn a_passthrough_reader_and_a_writer_have_nodes_of_their_own() {
    model(400, || {
        let params = Params {
            passthrough_lower: super::params::PassthroughLower::Always,
            ..Params::default()
        };
        let world = World::new(params, |lower| fs::write(lower.join("a"), "old").unwrap());
        together(
            &world,
            vec![
                Box::new(|world| {
                    let (handle, mode) = world.open_as_kernel("a", libc::O_RDONLY, &Opener(true));
                    if let OpenMode::Cached { .. } = mode {
                        // It has been copied up, or is about to be.
                        let data = world.read_handle(handle);
                        assert!(data == b"old" || data == b"new", "{data:?}");
                    }
                    world.union.release(handle);
                }),
                Box::new(|world| world.write("a", 0, b"new")),
                Box::new(|world| {
                    let node = world.look_up("a");
                    let (attr, _) = world.union.getattr(node, None).unwrap();
                    assert_eq!(attr.size, 3);
                    world.union.forget(node, 1);
                }),
            ],
        );
        assert_eq!(world.read("a"), b"new");
        assert_eq!(world.lower("a"), b"old");
        world.is_forgotten();
    });
}

#[test]
fn completion_keeps_what_programs_write() {
    const BLOCK: usize = 4096;
    model(300, || {
        let params = Params {
            metacopy: true,
            partial: Some(BLOCK as u64),
            ..Params::default()
        };
        let world = World::new(params.clone(), |lower| {
            fs::write(lower.join("a"), vec![b'.'; 4 * BLOCK]).unwrap();
        });
        let mut expected = vec![b'.'; 4 * BLOCK];
        world.write("a", BLOCK as u64 + 1, b"begun");
        expected[BLOCK + 1..BLOCK + 6].copy_from_slice(b"begun");
        together(
            &world,
            vec![
                Box::new(|world| world.write("a", 3 * BLOCK as u64 - 2, b"across")),
                Box::new(|world| {
                    world.union.complete(Path::new("/"), &|| false).unwrap();
                }),
                Box::new(|world| {
                    let data = world.read("a");
                    assert_eq!(data.len(), 4 * BLOCK);
                    assert_eq!(&data[BLOCK + 1..BLOCK + 6], b"begun");
                    assert!(data[..BLOCK].iter().all(|&byte| byte == b'.'));
                }),
            ],
        );
        expected[3 * BLOCK - 2..3 * BLOCK + 4].copy_from_slice(b"across");
        assert!(world.read("a") == expected, "while it is mounted");
        world.union.complete(Path::new("/"), &|| false).unwrap();
        let upper = fs::File::open(world.dir.path().join("upper/a")).unwrap();
        let mut whole = vec![0; 4 * BLOCK];
        upper.read_exact_at(&mut whole, 0).unwrap();
        assert!(whole == expected, "in the upper itself");
        let incompat = world.dir.path().join("work/incompat/acetate-partial");
        assert!(!incompat.exists(), "the upper is whole");
        assert_eq!(world.lower("a"), vec![b'.'; 4 * BLOCK]);
        world.is_forgotten();
    });
}

#[test]
fn a_truncation_and_a_completion_agree() {
    const BLOCK: usize = 4096;
    model(200, || {
        let params = Params {
            metacopy: true,
            partial: Some(BLOCK as u64),
            ..Params::default()
        };
        let world = World::new(params, |lower| {
            fs::write(lower.join("a"), vec![b'.'; 3 * BLOCK]).unwrap();
        });
        world.write("a", 0, b"begun");
        let resize = |world: &World, size: u64| {
            let node = world.look_up("a");
            let set = SetAttr {
                size: Some(size),
                ..SetAttr::default()
            };
            world.union.setattr(&CALLER, node, &set).unwrap();
            world.union.forget(node, 1);
        };
        together(
            &world,
            vec![
                Box::new(move |world| {
                    resize(world, BLOCK as u64 + 10);
                    resize(world, 2 * BLOCK as u64);
                }),
                Box::new(|world| {
                    world.union.complete(Path::new("/"), &|| false).unwrap();
                }),
            ],
        );
        let mut expected = vec![b'.'; BLOCK + 10];
        expected[..5].copy_from_slice(b"begun");
        expected.resize(2 * BLOCK, 0);
        assert!(world.read("a") == expected);
        world.is_forgotten();
    });
}

#[test]
fn a_removed_file_is_copied_up_for_those_who_have_it() {
    model(600, || {
        let world = World::new(Params::default(), |lower| {
            fs::write(lower.join("a"), "old").unwrap();
        });
        let node = world.look_up("a");
        together(
            &world,
            vec![
                Box::new(|world| world.union.unlink(ROOT, OsStr::new("a")).unwrap()),
                Box::new(move |world| {
                    let flags = libc::O_RDWR;
                    let opened = world.union.open(&CALLER, node, flags, &Opener(false));
                    let handle = opened.unwrap().handle;
                    let taken = world.union.write(handle, 0, b"new", WriteFlags::default());
                    assert_eq!(taken.unwrap(), 3);
                    assert_eq!(world.read_handle(handle), b"new");
                    world.union.release(handle);
                }),
                // As the kernel asks about a name that it has known for long: whatever else goes on in the directory.
                Box::new(|world| {
                    if let Some(entry) = world.find("a") {
                        world.union.forget(entry.node, 1);
                    }
                }),
            ],
        );
        assert!(world.find("a").is_none());
        assert_eq!(world.union.getattr(node, None).unwrap().0.size, 3);
        world.union.forget(node, 1);
        assert_eq!(world.lower("a"), b"old");
        let upper = world.dir.path().join("upper/a");
        assert!(!upper.is_file(), "the removed file is there again");
        world.is_forgotten();
    });
}

fn resolve_names(world: &World, path: &str) -> Vec<NodeId> {
    let mut nodes = vec![ROOT];
    for name in path.split('/') {
        let parent = *nodes.last().unwrap();
        match world.union.lookup(parent, OsStr::new(name)).unwrap() {
            Lookup::Found(entry) => nodes.push(entry.node),
            Lookup::Absent(_) => panic!("{path} is not there"),
        }
    }
    nodes.remove(0);
    nodes
}

#[test]
fn attributes_set_beside_a_copy_of_the_data_stay() {
    model(200, || {
        let params = Params {
            metacopy: true,
            ..Params::default()
        };
        let world = World::new(params, |lower| {
            fs::write(lower.join("a"), vec![b'.'; 10_000]).unwrap();
        });
        let node = world.look_up("a");
        let chmod = move |world: &World, mode| {
            let set = SetAttr {
                mode: Some(mode),
                ..SetAttr::default()
            };
            world.union.setattr(&CALLER, node, &set).unwrap();
        };
        // From now on the upper has its attributes, and the lower its data.
        chmod(&world, 0o4755);
        let name = OsStr::new("security.capability");
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let set = |world: &World| {
            world
                .union
                .setxattr(&CALLER, node, name, &capability, 0)
                .unwrap();
        };
        set(&world);
        together(
            &world,
            vec![
                Box::new(move |world| {
                    chmod(world, 0o600);
                    world.union.removexattr(&CALLER, node, name).unwrap();
                }),
                Box::new(|world| {
                    let (handle, _) = world.open_as_kernel("a", libc::O_RDWR, &Opener(false));
                    world.union.release(handle);
                }),
            ],
        );
        let (attr, _) = world.union.getattr(node, None).unwrap();
        assert_eq!(attr.mode & 0o7777, 0o600, "the change of mode is undone");
        let left = world.union.getxattr(node, name);
        assert_eq!(left.unwrap_err().errno(), libc::ENODATA);
        assert!(world.read("a") == vec![b'.'; 10_000]);
        world.union.forget(node, 1);
        world.is_forgotten();
    });
}

#[test]
fn times_of_a_directory_set_beside_a_copy_up_in_it_stay() {
    model(200, || {
        let world = World::new(Params::default(), |lower| {
            fs::create_dir(lower.join("dir")).unwrap();
            fs::write(lower.join("dir/a"), "data").unwrap();
        });
        let nodes = resolve_names(&world, "dir/a");
        let (dir, file) = (nodes[0], nodes[1]);
        let at = |sec| SetAttr {
            mtime: Some(SetTime::At(Timestamp { sec, nsec: 0 })),
            ..SetAttr::default()
        };
        world.union.setattr(&CALLER, dir, &at(1000)).unwrap();
        together(
            &world,
            vec![
                Box::new(move |world| {
                    world.union.setattr(&CALLER, dir, &at(2000)).unwrap();
                }),
                Box::new(move |world| {
                    let opened = world
                        .union
                        .open(&CALLER, file, libc::O_RDWR, &Opener(false));
                    world.union.release(opened.unwrap().handle);
                }),
            ],
        );
        let (attr, _) = world.union.getattr(dir, None).unwrap();
        assert_eq!(attr.mtime.sec, 2000, "the change of times is undone");
        for node in nodes {
            world.union.forget(node, 1);
        }
        world.is_forgotten();
    });
}

#[test]
fn a_lookup_that_was_overtaken_by_a_copy_up_shows_the_copy() {
    model(1000, || {
        let world = World::new(Params::default(), |lower| {
            fs::write(lower.join("a"), "old").unwrap();
        });
        together(
            &world,
            vec![
                Box::new(|world| {
                    world.look_up("a");
                }),
                // Copied up, written, closed and forgotten.
                Box::new(|world| world.write("a", 0, b"new")),
            ],
        );
        assert_eq!(world.read("a"), b"new", "the lower file shows");
        let node = world.look_up("a");
        world.union.forget(node, 2);
        assert_eq!(world.lower("a"), b"old");
        world.is_forgotten();
    });
}
