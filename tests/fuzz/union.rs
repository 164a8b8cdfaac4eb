//! Random layers and random operations, by bytes: the union is driven as a library, without a mount, beside a model of a plain
//! directory. Whatever the kernel would not have asked is not asked.
//!
//! As root marks are `trusted.`; without privilege, as below `unshare -r`, they are `user.`, and no private mounts are made, which
//! is many times faster.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use acetate::layer::Layer;
use acetate::layer::dir::{DirLayer, LayerOptions};
use acetate::layer::fdcache::FdCache;
use acetate::layer::format::OverrideStat;
use acetate::layer::upper::{AccessTimes, Namespace, Upper, UpperOptions};
use acetate::union::{
    Backing, BackingOpener, Caller, Entry, Error, Lookup, NodeId, Opened, Params, ROOT, RenameMode,
    SetAttr, Union, WriteFlags,
};

/// Whether `trusted.` xattrs can be set.
fn is_trusted(dir: &Path) -> bool {
    static TRUSTED: OnceLock<bool> = OnceLock::new();
    *TRUSTED.get_or_init(|| {
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir, "trusted.probe", b"", none).is_ok()
    })
}

/// The input, read from the front; zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit
    }

    /// One to three names of three.
    fn path(&mut self) -> Vec<&'static str> {
        let depth = 1 + self.below(3);
        (0..depth)
            .map(|_| ["a", "b", "c"][usize::from(self.below(3))])
            .collect()
    }

    fn data(&mut self) -> Vec<u8> {
        let length = [0, 1, 10, 5000, 20_000][usize::from(self.below(5))];
        vec![b'a' + self.below(26); length]
    }
}

type Names = Vec<&'static str>;
type FileNumber = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dir,
    File(FileNumber),
}

/// The plain directory.
#[derive(Debug, Default)]
struct Model {
    /// The root is not among them.
    names: BTreeMap<Names, Kind>,
    /// By number; several names may have one.
    files: Vec<Vec<u8>>,
}

impl Model {
    fn is_dir(&self, path: &[&'static str]) -> bool {
        path.is_empty() || self.names.get(path) == Some(&Kind::Dir)
    }

    fn below<'a>(&'a self, path: &'a [&'static str]) -> impl Iterator<Item = &'a Names> {
        self.names
            .keys()
            .filter(move |name| name.len() > path.len() && name.starts_with(path))
    }

    fn remove_all(&mut self, path: &[&'static str]) {
        self.names.retain(|name, _| !name.starts_with(path));
    }

    fn children(&self, path: &[&'static str]) -> BTreeSet<&'static str> {
        self.below(path)
            .filter(|name| name.len() == path.len() + 1)
            .filter_map(|name| name.last().copied())
            .collect()
    }

    fn add_file(&mut self, path: Names, data: Vec<u8>) {
        self.files.push(data);
        self.names.insert(path, Kind::File(self.files.len() - 1));
    }
}

/// Makes a layer on disk, and puts it onto the model as the rules of overlayfs say.
fn build_layer(input: &mut Input<'_>, dir: &Path, model: &mut Model) {
    let mut own: BTreeMap<Names, bool> = BTreeMap::new();
    for _ in 0..input.below(10) {
        let path = input.path();
        let parent = &path[..path.len() - 1];
        if own.contains_key(&path) || !(parent.is_empty() || own.get(parent) == Some(&true)) {
            continue;
        }
        let at = dir.join(path.join("/"));
        let kind = input.below(8);
        own.insert(path.clone(), kind < 4);
        match kind {
            0..=3 => {
                fs::create_dir(&at).unwrap();
                let opaque = kind == 3;
                if opaque {
                    let none = rustix::fs::XattrFlags::empty();
                    let name = if is_trusted(dir) {
                        "trusted.overlay.opaque"
                    } else {
                        "user.overlay.opaque"
                    };
                    rustix::fs::setxattr(&at, name, b"y", none).unwrap();
                }
                if opaque || !model.is_dir(&path) {
                    model.remove_all(&path);
                }
                model.names.insert(path, Kind::Dir);
            }
            4..=6 => {
                let data = input.data();
                fs::write(&at, &data).unwrap();
                model.remove_all(&path);
                model.add_file(path, data);
            }
            _ => {
                use rustix::fs::{CWD, FileType, Mode, mknodat};
                mknodat(CWD, &at, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
                model.remove_all(&path);
            }
        }
    }
}

struct NoBacking;

impl BackingOpener for NoBacking {
    fn open_backing(&self, _: BorrowedFd<'_>, _: bool) -> io::Result<Backing> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};

struct World {
    dir: tempfile::TempDir,
    union: Option<Union>,
    model: Model,
    /// What each input decides once.
    params: Params,
    /// Lookups that are to be given back.
    looked_up: Vec<NodeId>,
}

impl World {
    fn new(input: &mut Input<'_>) -> World {
        // Where nothing waits for a disk, if there is such a place.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.unwrap();
        let mut model = Model::default();
        for layer in ["bottom", "top"] {
            fs::create_dir(dir.path().join(layer)).unwrap();
            build_layer(input, &dir.path().join(layer), &mut model);
        }
        for other in ["upper", "work"] {
            fs::create_dir(dir.path().join(other)).unwrap();
        }
        let choice = input.byte();
        let params = Params {
            metacopy: choice & 1 != 0,
            partial: (choice & 2 != 0).then_some(4096),
            index: choice & 4 == 0,
            no_sync: true,
            ..Params::default()
        };
        let mut world = World {
            dir,
            union: None,
            model,
            params,
            looked_up: Vec::new(),
        };
        world.mount();
        world
    }

    fn mount(&mut self) {
        let cache = Arc::new(FdCache::for_this_process());
        let lowers = ["top", "bottom"].map(|name| -> Arc<dyn Layer> {
            let path = self.dir.path().join(name);
            Arc::new(DirLayer::open(&path, LayerOptions::default(), cache.clone()).unwrap())
        });
        let options = UpperOptions {
            namespace: if is_trusted(self.dir.path()) {
                Namespace::Trusted
            } else {
                Namespace::User
            },
            volatile: false,
            override_stat: OverrideStat::Off,
            access_times: AccessTimes::AsBelow,
        };
        let (upper, work) = (self.dir.path().join("upper"), self.dir.path().join("work"));
        let upper = Upper::open(&upper, &work, options, cache.clone()).unwrap();
        self.union = Some(Union::new(lowers.into(), Some(upper), self.params.clone()).unwrap());
    }

    fn remount(&mut self) {
        self.looked_up.clear();
        self.union = None;
        self.mount();
    }

    fn union(&self) -> &Union {
        self.union.as_ref().unwrap()
    }

    fn took(&mut self, entry: Entry) -> NodeId {
        self.looked_up.push(entry.node);
        entry.node
    }

    fn forget(&mut self) {
        for node in std::mem::take(&mut self.looked_up) {
            self.union().forget(node, 1);
        }
    }

    fn look_up(&mut self, parent: NodeId, name: &str) -> Option<Entry> {
        match self.union().lookup(parent, OsStr::new(name)).unwrap() {
            Lookup::Found(entry) => {
                self.took(entry);
                Some(entry)
            }
            Lookup::Absent(_) => None,
        }
    }

    /// The node of a path, which is where and what the model says.
    fn node(&mut self, path: &[&'static str]) -> Option<NodeId> {
        let mut node = ROOT;
        for (at, name) in path.iter().enumerate() {
            let expected = self.model.names.get(&path[..=at]).copied();
            let found = self.look_up(node, name);
            let kind = found.map(|entry| entry.attr.mode & libc::S_IFMT == libc::S_IFDIR);
            let wanted = expected.map(|kind| kind == Kind::Dir);
            assert_eq!(kind, wanted, "{:?}", &path[..=at]);
            node = found?.node;
        }
        Some(node)
    }

    /// The node of the directory that a path lies in, where there is one.
    fn parent(&mut self, path: &[&'static str]) -> Option<NodeId> {
        let parent = &path[..path.len() - 1];
        if !self.model.is_dir(parent) {
            return None;
        }
        self.node(parent)
    }

    fn write_at(&self, opened: &Opened, offset: u64, data: &[u8]) {
        let union = self.union();
        let taken = union.write(opened.handle, offset, data, WriteFlags::default());
        assert_eq!(taken.unwrap(), data.len());
    }

    fn open(&self, node: NodeId, flags: i32) -> Opened {
        self.union().open(&CALLER, node, flags, &NoBacking).unwrap()
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let path = input.path();
        let Some(parent) = self.parent(&path) else {
            return;
        };
        let name = OsStr::new(path[path.len() - 1]);
        let node = self.node(&path);
        let known = self.model.names.get(&path).copied();
        match (input.below(12), known, node) {
            (0 | 1, None, _) => {
                let data = input.data();
                let flags = libc::O_RDWR;
                let (entry, opened) = self
                    .union()
                    .create(&CALLER, parent, name, 0o644, 0, flags, &NoBacking)
                    .unwrap();
                self.took(entry);
                self.write_at(&opened, 0, &data);
                self.union().release(opened.handle);
                self.model.add_file(path, data);
            }
            (2, None, _) => {
                let entry = self.union().mkdir(&CALLER, parent, name, 0o755, 0).unwrap();
                self.took(entry);
                self.model.names.insert(path, Kind::Dir);
            }
            (0..=2, Some(Kind::File(_)), _) | (3, Some(Kind::File(_)), _) => {
                self.union().unlink(parent, name).unwrap();
                self.model.names.remove(&path);
            }
            (2 | 3, Some(Kind::Dir), _) => {
                let empty = self.model.children(&path).is_empty();
                match self.union().rmdir(parent, name) {
                    Ok(()) => {
                        assert!(empty, "{path:?} was not empty");
                        self.model.names.remove(&path);
                    }
                    Err(Error::Errno(libc::ENOTEMPTY)) => assert!(!empty, "{path:?} was empty"),
                    Err(e) => panic!("rmdir {path:?}: {e}"),
                }
            }
            (4 | 5, Some(kind), _) => self.rename(input, path, parent, kind),
            (6 | 7, Some(Kind::File(number)), Some(node)) => {
                let (data, offset) = (input.data(), usize::from(input.byte()) * 64);
                let opened = self.open(node, libc::O_RDWR);
                self.write_at(&opened, offset as u64, &data);
                self.union().release(opened.handle);
                let file = &mut self.model.files[number];
                if !data.is_empty() {
                    let end = offset + data.len();
                    file.resize(file.len().max(end), 0);
                    file[offset..end].copy_from_slice(&data);
                }
            }
            (8, Some(Kind::File(number)), Some(node)) => {
                let size = usize::from(input.byte()) * 64;
                let set = SetAttr {
                    size: Some(size as u64),
                    ..SetAttr::default()
                };
                self.union().setattr(&CALLER, node, &set).unwrap();
                self.model.files[number].resize(size, 0);
            }
            (9, Some(Kind::File(number)), Some(node)) => {
                let new = input.path();
                if let Some(new_parent) = self.parent(&new)
                    && !self.model.names.contains_key(&new)
                {
                    let name = OsStr::new(new[new.len() - 1]);
                    let entry = self.union().link(&CALLER, node, new_parent, name).unwrap();
                    self.took(entry);
                    self.model.names.insert(new, Kind::File(number));
                }
            }
            (10, ..) => self.forget(),
            (11, ..) => {
                if input.below(4) == 0 {
                    self.remount();
                } else {
                    self.union().complete(Path::new("/"), &|| false).unwrap();
                }
            }
            _ => {}
        }
    }

    fn rename(&mut self, input: &mut Input<'_>, path: Names, parent: NodeId, kind: Kind) {
        let new = input.path();
        let exchange = input.below(4) == 0;
        // What the kernel finds out before it asks.
        if new.starts_with(&path) || path.starts_with(&new) {
            return;
        }
        let Some(new_parent) = self.parent(&new) else {
            return;
        };
        self.node(&new);
        let there = self.model.names.get(&new).copied();
        let mode = match (exchange, there) {
            (true, Some(_)) => RenameMode::Exchange,
            (true, None) => RenameMode::NoReplace,
            (false, _) => RenameMode::Replace,
        };
        if mode == RenameMode::Replace {
            match (kind, there) {
                (Kind::Dir, Some(Kind::File(_))) | (Kind::File(_), Some(Kind::Dir)) => return,
                // Two names of one file: nothing happens.
                (Kind::File(a), Some(Kind::File(b))) if a == b => return,
                _ => {}
            }
        }
        let names = [&path, &new].map(|path| OsStr::new(path[path.len() - 1]));
        let done = self
            .union()
            .rename(&CALLER, parent, names[0], new_parent, names[1], mode);
        if mode == RenameMode::Replace && !self.model.children(&new).is_empty() {
            assert!(
                matches!(done, Err(Error::Errno(libc::ENOTEMPTY))),
                "{done:?}"
            );
            return;
        }
        done.unwrap_or_else(|e| panic!("rename {path:?} {new:?} {mode:?}: {e}"));
        let names = std::mem::take(&mut self.model.names);
        for (name, kind) in names {
            let moved = if name.starts_with(&path) {
                [new.as_slice(), &name[path.len()..]].concat()
            } else if name.starts_with(&new) {
                if mode != RenameMode::Exchange {
                    continue;
                }
                [path.as_slice(), &name[new.len()..]].concat()
            } else {
                name
            };
            self.model.names.insert(moved, kind);
        }
    }

    /// Everything is as in the model.
    fn check(&mut self) {
        let mut left: Vec<(Names, NodeId)> = vec![(Vec::new(), ROOT)];
        while let Some((path, node)) = left.pop() {
            let mut listed = BTreeSet::new();
            self.union()
                .readdir(node, 0, &mut |entry| {
                    let name = entry.name.to_str().unwrap().to_owned();
                    if name != "." && name != ".." {
                        assert!(listed.insert(name), "{path:?}: {:?} twice", entry.name);
                    }
                    false
                })
                .unwrap();
            let expected = self.model.children(&path);
            let listed: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
            assert_eq!(listed, expected, "{path:?}");
            for name in expected {
                let below = [path.as_slice(), &[name]].concat();
                let node = self.node(&below).unwrap();
                match self.model.names[&below] {
                    Kind::Dir => left.push((below, node)),
                    Kind::File(number) => self.check_file(&below, node, number),
                }
            }
        }
        self.forget();
    }

    fn check_file(&self, path: &[&str], node: NodeId, number: FileNumber) {
        let union = self.union();
        let expected = &self.model.files[number];
        let (attr, _) = union.getattr(node, None).unwrap();
        assert_eq!(attr.size, expected.len() as u64, "{path:?}");
        let opened = self.open(node, libc::O_RDONLY);
        let mut data = vec![0; expected.len() + 1];
        let got = union.read(opened.handle, 0, &mut data).unwrap();
        union.release(opened.handle);
        assert!(data[..got] == expected[..], "{path:?} has other data");
    }
}

/// Every file of a tree, with its data.
fn tree(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                left.push(entry.path());
            }
            let data = if kind.is_file() {
                fs::read(entry.path()).unwrap()
            } else {
                Vec::new()
            };
            found.insert(entry.path(), data);
        }
    }
    found
}

/// Builds layers, runs operations, and compares; panics at the first difference.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut world = World::new(&mut input);
    let lowers = ["bottom", "top"].map(|name| world.dir.path().join(name));
    let before = lowers.each_ref().map(|dir| tree(dir));
    world.check();
    while !input.0.is_empty() {
        world.step(&mut input);
    }
    world.check();
    world.remount();
    world.check();
    assert!(
        lowers.each_ref().map(|dir| tree(dir)) == before,
        "a lower layer was changed"
    );
}
