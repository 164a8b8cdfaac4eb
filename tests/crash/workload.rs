//! Random steps on a mount, one after the other, each told to the model.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{CWD, FallocateFlags, FileType, Mode, RenameFlags, XattrFlags};

use crate::disk::Record;
use crate::model::{History, Ino, Kind, Node, Promise, State, Version};

/// Numbers at random, the same each time.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.below(2);
        }
        random
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        (!all.is_empty()).then(|| &all[self.below(all.len() as u64) as usize])
    }
}

/// Bytes among which there is no zero, so that a hole is never taken for them.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..length).map(|_| 1 + random.below(255) as u8).collect()
}

const DIR_MODES: [u32; 2] = [0o755, 0o700];
const FILE_MODES: [u32; 3] = [0o644, 0o600, 0o755];
const MTIME: i64 = 1_000_000_000_123_456_789;

/// Fills the lower layer; returns it as the model's first state, with the files' data.
pub(crate) fn build_lower(lower: &Path, random: &mut Random) -> History {
    let mut state = State::default();
    let mut history = History::default();
    let mut add = |path: &str, kind: Kind, mode: u32, tag: Option<&str>| {
        let full = lower.join(path);
        let ino = state.names.len() + 1;
        match &kind {
            Kind::Dir => fs::create_dir(&full).unwrap(),
            Kind::File => {
                let sizes = [0, 700, 5000, 9000, 40_000, 130_000];
                let size = sizes[random.below(sizes.len() as u64) as usize];
                let data = pattern(ino as u64, size + random.below(300) as usize);
                fs::write(&full, &data).unwrap();
                history.data.insert(
                    ino,
                    vec![Version {
                        state: 0,
                        data: Rc::new(data),
                    }],
                );
            }
            Kind::Symlink(target) => symlink(target, &full).unwrap(),
            Kind::Fifo => mkfifo(&full).unwrap(),
        }
        if !matches!(kind, Kind::Symlink(_)) {
            fs::set_permissions(&full, fs::Permissions::from_mode(mode)).unwrap();
        }
        if let Some(tag) = tag {
            set_tag(&full, tag.as_bytes()).unwrap();
        }
        let mtime = (kind != Kind::Dir).then_some(MTIME);
        let node = Node {
            mode: if matches!(kind, Kind::Symlink(_)) {
                0o777
            } else {
                mode
            },
            kind,
            tag: tag.map(|t| t.as_bytes().to_vec()),
            mtime,
        };
        state.names.insert(path.into(), ino);
        state.nodes.insert(ino, node);
    };
    for dir in ["a", "a/b", "a/b/c", "d", "d/e", "f"] {
        add(dir, Kind::Dir, 0o755, (dir == "a/b").then_some("lower"));
    }
    for dir in ["a", "a/b", "a/b/c", "d", "d/e", "f"] {
        for (number, mode) in FILE_MODES.into_iter().enumerate() {
            let path = format!("{dir}/n{number}");
            add(&path, Kind::File, mode, (number == 1).then_some("lower"));
        }
    }
    add("d/link", Kind::Symlink("../a/n0".into()), 0o777, None);
    add("f/fifo", Kind::Fifo, 0o644, None);
    for (from, to) in [("a/n0", "d/n4"), ("a/b/n2", "a/b/n5")] {
        fs::hard_link(lower.join(from), lower.join(to)).unwrap();
        let ino = state.names[Path::new(from)];
        state.names.insert(to.into(), ino);
    }
    for path in state.names.keys() {
        let time = rustix::fs::Timespec {
            tv_sec: MTIME / 1_000_000_000,
            tv_nsec: MTIME % 1_000_000_000,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(CWD, lower.join(path), &times, flags).unwrap();
    }
    history.states.push(state);
    history
}

fn mkfifo(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::mknodat(
        CWD,
        path,
        FileType::Fifo,
        Mode::from_raw_mode(0o644),
        0,
    )?)
}

fn set_tag(path: &Path, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::setxattr(
        path,
        "user.tag",
        value,
        XattrFlags::empty(),
    )?)
}

/// What a step changes beside names.
enum Changed {
    /// Nothing.
    No,
    /// An inode's attributes or its own name.
    Inode(Ino),
    /// Two of them.
    Two(Ino, Ino),
    /// A file's data.
    Data(Ino, Vec<u8>),
}

/// A workload under way.
pub(crate) struct Workload<'a> {
    pub(crate) root: PathBuf,
    /// The filesystem of the upper.
    pub(crate) disk: PathBuf,
    pub(crate) record: &'a Record,
    pub(crate) random: Random,
    pub(crate) history: History,
    pub(crate) next: Ino,
}

impl Workload<'_> {
    fn step(
        &mut self,
        what: String,
        act: impl FnOnce(&Path) -> io::Result<()>,
        apply: impl FnOnce(&mut State) -> Changed,
    ) {
        self.history.begins.push(self.record.position());
        act(&self.root)
            .unwrap_or_else(|e| panic!("step {}: {what}: {e}", self.history.steps.len()));
        let mut state = self.history.last().clone();
        let at = self.history.states.len();
        match apply(&mut state) {
            Changed::No => {}
            Changed::Inode(ino) => self.history.changed.entry(ino).or_default().push(at),
            Changed::Two(a, b) => {
                for ino in [a, b] {
                    self.history.changed.entry(ino).or_default().push(at);
                }
            }
            Changed::Data(ino, data) => {
                if let Some(node) = state.nodes.get_mut(&ino) {
                    node.mtime = None;
                }
                self.history.data.entry(ino).or_default().push(Version {
                    state: at,
                    data: Rc::new(data),
                });
            }
        }
        self.history.states.push(state);
        self.history.steps.push(what);
    }

    fn paths(&self, wanted: impl Fn(&Node) -> bool) -> Vec<PathBuf> {
        let state = self.history.last();
        let all = state.names.iter();
        all.filter(|(_, ino)| wanted(&state.nodes[*ino]))
            .map(|(path, _)| path.clone())
            .collect()
    }

    fn any(&mut self, wanted: impl Fn(&Node) -> bool) -> Option<PathBuf> {
        let all = self.paths(wanted);
        self.random.pick(&all).cloned()
    }

    fn file(&mut self) -> Option<PathBuf> {
        self.any(|n| n.kind == Kind::File)
    }

    /// A name that nothing has, or may have.
    fn place(&mut self, free: bool) -> Option<PathBuf> {
        let mut dirs = self.paths(|n| n.kind == Kind::Dir);
        dirs.push(PathBuf::new());
        dirs.retain(|d| d.components().count() < 5);
        let dir = self.random.pick(&dirs)?.clone();
        let path = dir.join(format!("n{}", self.random.below(8)));
        (!free || !self.history.last().names.contains_key(&path)).then_some(path)
    }

    fn ino(&self, path: &Path) -> Ino {
        self.history.last().names[path]
    }

    /// Makes a new inode at a free name.
    fn make(&mut self, kind: Kind, mode: u32) {
        let Some(path) = self.place(true) else { return };
        let ino = self.next;
        self.next += 1;
        let (target, node) = (
            path.clone(),
            Node {
                kind: kind.clone(),
                mode,
                tag: None,
                mtime: None,
            },
        );
        let is_file = kind == Kind::File;
        self.step(
            format!("make {kind:?} {path:?} mode {mode:o}"),
            |root| {
                let full = root.join(&path);
                match &kind {
                    Kind::Dir => Ok(rustix::fs::mkdir(full, Mode::from_raw_mode(mode))?),
                    Kind::File => OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .mode(mode)
                        .open(full)
                        .map(drop),
                    Kind::Symlink(target) => symlink(target, full),
                    Kind::Fifo => mkfifo(&full),
                }
            },
            |state| {
                state.names.insert(target, ino);
                state.nodes.insert(ino, node);
                if is_file {
                    Changed::Data(ino, Vec::new())
                } else {
                    Changed::Inode(ino)
                }
            },
        );
        // The name is a change as well as the empty contents.
        if is_file {
            let at = self.history.states.len() - 1;
            self.history.changed.entry(ino).or_default().push(at);
        }
    }

    /// Changes a file's data through a descriptor of its own.
    fn change(
        &mut self,
        path: &Path,
        what: String,
        flags: i32,
        act: impl FnOnce(&File) -> io::Result<()>,
        apply: impl FnOnce(&mut Vec<u8>),
    ) {
        let ino = self.ino(path);
        let mut data = self.history.latest(ino);
        apply(&mut data);
        self.step(
            format!("{what} {path:?}"),
            |root| {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(flags)
                    .open(root.join(path))?;
                act(&file)
            },
            |_| Changed::Data(ino, data),
        );
    }

    fn write(&mut self) {
        let Some(path) = self.file() else { return };
        let size = self.history.latest(self.ino(&path)).len() as u64;
        let seed = self.random.below(1 << 40);
        let bytes = pattern(seed, 1 + self.random.below(9000) as usize);
        let at = match self.random.below(4) {
            0 => size,
            _ => self.random.below(size + 1),
        };
        let what = format!("write {} at {at} of {size}", bytes.len());
        let copy = bytes.clone();
        self.change(
            &path,
            what,
            0,
            |file| file.write_all_at(&bytes, at),
            |data| {
                let (at, end) = (at as usize, at as usize + copy.len());
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[at..end].copy_from_slice(&copy);
            },
        );
    }

    fn truncate(&mut self) {
        let Some(path) = self.file() else { return };
        let size = self.history.latest(self.ino(&path)).len() as u64;
        let new = self.random.below(size + 3000);
        if self.random.below(3) == 0 {
            let flags = libc::O_TRUNC;
            self.change(&path, "empty".into(), flags, |_| Ok(()), Vec::clear);
        } else {
            let what = format!("truncate {size} to {new}");
            self.change(
                &path,
                what,
                0,
                |file| file.set_len(new),
                |data| data.resize(new as usize, 0),
            );
        }
    }

    fn punch(&mut self) {
        let Some(path) = self.file() else { return };
        let size = self.history.latest(self.ino(&path)).len() as u64;
        let (at, len) = (self.random.below(size + 1), 1 + self.random.below(20_000));
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let what = format!("punch {len} at {at} of {size}");
        self.change(
            &path,
            what,
            0,
            |file| Ok(rustix::fs::fallocate(file, flags, at, len)?),
            |data| {
                let end = data.len().min((at + len) as usize);
                if (at as usize) < end {
                    data[at as usize..end].fill(0);
                }
            },
        );
    }

    fn attributes(&mut self) {
        let tag = self.random.below(2) == 0;
        let wanted = |n: &Node| match n.kind {
            Kind::File | Kind::Dir => true,
            Kind::Fifo => !tag,
            Kind::Symlink(_) => false,
        };
        let Some(path) = self.any(wanted) else { return };
        let (ino, number) = (self.ino(&path), self.random.below(1 << 20));
        if tag {
            let value = format!("tag {number}").into_bytes();
            let copy = value.clone();
            self.step(
                format!("tag {number} {path:?}"),
                |root| set_tag(&root.join(&path), &value),
                |state| {
                    state.nodes.get_mut(&ino).unwrap().tag = Some(copy);
                    Changed::Inode(ino)
                },
            );
        } else {
            let modes = if self.history.last().is_dir(&path) {
                &DIR_MODES[..]
            } else {
                &FILE_MODES[..]
            };
            let mode = modes[number as usize % modes.len()];
            self.step(
                format!("chmod {mode:o} {path:?}"),
                |root| {
                    let mode = fs::Permissions::from_mode(mode);
                    fs::set_permissions(root.join(&path), mode)
                },
                |state| {
                    state.nodes.get_mut(&ino).unwrap().mode = mode;
                    Changed::Inode(ino)
                },
            );
        }
    }

    fn link(&mut self) {
        let Some(from) = self.any(|n| n.kind != Kind::Dir) else {
            return;
        };
        let Some(to) = self.place(true) else { return };
        let ino = self.ino(&from);
        self.step(
            format!("link {from:?} {to:?}"),
            |root| fs::hard_link(root.join(&from), root.join(&to)),
            |state| {
                state.names.insert(to.clone(), ino);
                Changed::Inode(ino)
            },
        );
    }

    fn remove(&mut self, path: &Path) {
        let dir = self.history.last().is_dir(path);
        self.step(
            format!("remove {path:?}"),
            |root| {
                if dir {
                    fs::remove_dir(root.join(path))
                } else {
                    fs::remove_file(root.join(path))
                }
            },
            |state| {
                state.remove(path);
                Changed::No
            },
        );
    }

    /// Removes a directory with all in it, and may make it anew, which hides what is below.
    fn remove_tree(&mut self) {
        let Some(dir) = self.any(|n| n.kind == Kind::Dir) else {
            return;
        };
        let all: Vec<PathBuf> = self
            .history
            .last()
            .names
            .keys()
            .filter(|p| p.starts_with(&dir))
            .cloned()
            .collect();
        if all.len() > 12 {
            return;
        }
        for path in all.iter().rev() {
            self.remove(path);
        }
        if self.random.below(2) == 0 {
            let ino = self.next;
            self.next += 1;
            self.step(
                format!("make Dir {dir:?} again"),
                |root| {
                    Ok(rustix::fs::mkdir(
                        root.join(&dir),
                        Mode::from_raw_mode(0o755),
                    )?)
                },
                |state| {
                    state.names.insert(dir.clone(), ino);
                    let node = Node {
                        kind: Kind::Dir,
                        mode: 0o755,
                        tag: None,
                        mtime: None,
                    };
                    state.nodes.insert(ino, node);
                    Changed::Inode(ino)
                },
            );
        }
    }

    fn rename(&mut self) {
        let dirs = self.random.below(3) == 0;
        let Some(from) = self.any(|n| !dirs || n.kind == Kind::Dir) else {
            return;
        };
        let exchange = self.random.below(5) == 0;
        let to = if exchange {
            self.any(|_| true)
        } else {
            self.place(false)
        };
        let Some(to) = to.filter(|to| !to.starts_with(&from) && !from.starts_with(to)) else {
            return;
        };
        let state = self.history.last();
        let (a, b) = (self.ino(&from), state.names.get(&to).copied());
        if b == Some(a) {
            return;
        }
        if exchange {
            let b = b.unwrap();
            self.step(
                format!("exchange {from:?} {to:?}"),
                |root| {
                    let (from, to) = (root.join(&from), root.join(&to));
                    Ok(rustix::fs::renameat_with(
                        CWD,
                        from,
                        CWD,
                        to,
                        RenameFlags::EXCHANGE,
                    )?)
                },
                |state| {
                    let aside = Path::new("/aside");
                    state.relocate(&from, aside);
                    state.relocate(&to, &from);
                    state.relocate(aside, &to);
                    Changed::Two(a, b)
                },
            );
            return;
        }
        let fits = match b {
            None => true,
            Some(_) if state.is_dir(&from) => state.is_empty_dir(&to),
            Some(_) => !state.is_dir(&to),
        };
        if !fits {
            return;
        }
        self.step(
            format!("rename {from:?} {to:?}"),
            |root| fs::rename(root.join(&from), root.join(&to)),
            |state| {
                state.remove(&to);
                state.relocate(&from, &to);
                Changed::Inode(a)
            },
        );
    }

    fn fsync(&mut self) {
        let dir = self.random.below(6) == 0;
        let path = if dir {
            self.any(|n| n.kind == Kind::Dir)
        } else {
            self.file()
        };
        let Some(path) = path else { return };
        let data = self.random.below(3) == 0;
        let write = !dir && self.random.below(2) == 0;
        let ino = self.ino(&path);
        self.step(
            format!("fsync {path:?}, data only: {data}"),
            |root| {
                let mut options = OpenOptions::new();
                let file = options.read(true).write(write).open(root.join(&path))?;
                if data {
                    file.sync_data()
                } else {
                    file.sync_all()
                }
            },
            |_| Changed::No,
        );
        let promise = Promise {
            position: self.record.position(),
            state: self.history.states.len() - 1,
            attributes: !data,
        };
        if !dir {
            let promises = &mut self.history.fsynced;
            promises.entry(ino).or_default().push(promise);
        }
    }

    /// As `sync`: the mount's filesystem, then that of the upper.
    fn sync(&mut self) {
        let disk = self.disk.clone();
        self.step(
            "sync".into(),
            |root| {
                for dir in [root, &disk] {
                    rustix::fs::syncfs(File::open(dir)?)?;
                }
                Ok(())
            },
            |_| Changed::No,
        );
        let promise = Promise {
            position: self.record.position(),
            state: self.history.states.len() - 1,
            attributes: true,
        };
        self.history.synced.push(promise);
    }

    /// One random step, or a few that belong together.
    pub(crate) fn any_step(&mut self) {
        match self.random.below(100) {
            0..8 => {
                let mode = FILE_MODES[self.random.below(3) as usize];
                self.make(Kind::File, mode);
            }
            8..12 => {
                let mode = DIR_MODES[self.random.below(2) as usize];
                self.make(Kind::Dir, mode);
            }
            12..14 => self.make(Kind::Symlink("nowhere".into()), 0o777),
            14 => self.make(Kind::Fifo, 0o644),
            15..35 => self.write(),
            35..41 => self.truncate(),
            41..44 => self.punch(),
            44..55 => self.attributes(),
            55..60 => self.link(),
            60..66 => {
                if let Some(path) = self.any(|n| n.kind != Kind::Dir) {
                    self.remove(&path);
                }
            }
            66..69 => self.remove_tree(),
            69..86 => self.rename(),
            86..97 => self.fsync(),
            _ => self.sync(),
        }
    }
}

/// The value of `user.tag`.
pub(crate) fn tag_of(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 256];
    match rustix::fs::lgetxattr(path, OsStr::new("user.tag"), &mut value[..]) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Time of modification in nanoseconds.
pub(crate) fn mtime(meta: &fs::Metadata) -> i64 {
    meta.mtime() * 1_000_000_000 + meta.mtime_nsec()
}
