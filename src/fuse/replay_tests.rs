//! Processes that die at any record that they write, one after the other, under a kernel played by the test: what that knows
//! of must stay what it was, and no request may be noticed to have been done twice or by halves.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Once;
use crate::layer::Layer;
use crate::layer::dir::{DirLayer, LayerOptions};
use crate::layer::fdcache::FdCache;
use crate::layer::format::OverrideStat;
use crate::layer::upper::{AccessTimes, Namespace, Upper, UpperOptions};
use crate::sys::shared_log::SharedLog;
use crate::union::{
    Backing, BackingOpener, Caller, Entry, Journal, Lookup, NodeId, Params, ROOT, RenameMode,
    Result, Union, deaths,
};

const ME: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};

/// See `FUSE_UNIQUE_RESEND`.
const RESENT: u64 = 1 << 63;

const NAMES: [&str; 5] = ["a", "b", "c", "lower", "other"];

struct NoBacking;

impl BackingOpener for NoBacking {
    fn open_backing(&self, _: BorrowedFd<'_>, _: bool) -> io::Result<Backing> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What is to be at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Thing {
    /// Names of one file have one.
    id: u64,
    dir: bool,
}

/// What a request asks for.
#[derive(Clone, Debug)]
enum Ask {
    Lookup(String),
    Mkdir(String),
    Create(String),
    Unlink(String),
    Rmdir(String),
    Link(String, String),
    Rename(String, String, RenameMode),
}

fn split(path: &str) -> (&str, &OsStr) {
    match path.rsplit_once('/') {
        Some((dir, name)) => (dir, OsStr::new(name)),
        None => ("", OsStr::new(path)),
    }
}

/// The same numbers each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

struct Rig {
    _dir: tempfile::TempDir,
    log: Arc<SharedLog>,
    layers: Vec<Arc<dyn Layer>>,
    upper: Arc<Upper>,
    union: Arc<Union>,
    unique: u64,
    dice: Dice,
    /// The tree as it must be.
    things: BTreeMap<String, Thing>,
    next_id: u64,
    /// What the kernel has in its cache, by path.
    dentries: BTreeMap<String, NodeId>,
    /// How often it was told a node, and the inode number that came with it.
    nodes: HashMap<NodeId, (u64, u64)>,
    /// Files without a name that somebody has open.
    orphans: Vec<NodeId>,
    /// What was done last, for whoever looks into a failure.
    done: Vec<String>,
}

impl Rig {
    fn new(seed: u64) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["lower/lower/other", "upper", "work"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        let cache = Arc::new(FdCache::for_this_process());
        let layer = DirLayer::open(&at("lower"), LayerOptions::default(), cache.clone()).unwrap();
        let mut things = BTreeMap::new();
        for (id, (path, dir)) in [
            ("lower", true),
            ("lower/other", true),
            ("lower/a", false),
            ("other", false),
        ]
        .into_iter()
        .enumerate()
        {
            if !dir {
                fs::write(at("lower").join(path), path).unwrap();
            }
            things.insert(path.to_owned(), Thing { id: id as u64, dir });
        }
        let options = UpperOptions {
            namespace: Namespace::Trusted,
            volatile: true,
            override_stat: OverrideStat::Off,
            access_times: AccessTimes::AsBelow,
        };
        let upper = Upper::open(&at("upper"), &at("work"), options, cache).unwrap();
        let layers = vec![Arc::new(layer) as Arc<dyn Layer>];
        let log = Arc::new(SharedLog::new().unwrap());
        let union =
            Arc::new(Union::new(layers.clone(), Some(upper.clone()), Params::default()).unwrap());
        union.set_journal(Journal::new(log.clone()));
        union.note_root();
        Rig {
            _dir: dir,
            log,
            layers,
            upper,
            union,
            unique: 2,
            dice: Dice(seed),
            things,
            next_id: 100,
            dentries: BTreeMap::new(),
            nodes: HashMap::new(),
            orphans: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Another process takes over.
    fn die(&mut self) {
        self.done.push("died".into());
        deaths::never();
        self.upper.renew().unwrap();
        let union = Union::new(
            self.layers.clone(),
            Some(self.upper.clone()),
            Params::default(),
        )
        .unwrap();
        union.renew().unwrap();
        // Mapped anew, as in a process of its own.
        let memory = self.log.as_fd().try_clone_to_owned().unwrap();
        self.log = Arc::new(SharedLog::of(memory).unwrap());
        // As when it has grown long.
        if self.dice.below(2) == 0 {
            Journal::shorten(&self.log);
        }
        let journal = Journal::take_up(self.log.clone());
        union.adopt(&journal, &|_| Arc::new(())).unwrap();
        union.set_journal(journal);
        // A process that died closes nothing.
        std::mem::forget(std::mem::replace(&mut self.union, Arc::new(union)));
    }

    /// As the adaptor does it.
    fn serve(
        union: &Union,
        unique: u64,
        ask: &Ask,
        nodes: &dyn Fn(&str) -> NodeId,
    ) -> Result<Option<Entry>> {
        let place = |path: &str| nodes(split(path).0);
        match ask {
            Ask::Lookup(path) => match union.lookup(place(path), split(path).1)? {
                Lookup::Found(entry) => Ok(Some(entry)),
                Lookup::Absent(_) => Ok(None),
            },
            Ask::Mkdir(path) => {
                let (parent, name) = (place(path), split(path).1);
                let once = Once::name(union, unique, parent, name);
                let make = || union.mkdir(&ME, parent, name, 0o755, 0);
                once.make(make, || union.rmdir(parent, name)).map(Some)
            }
            Ask::Create(path) => {
                let (parent, name) = (place(path), split(path).1);
                let once = Once::name(union, unique, parent, name);
                let make = || union.create(&ME, parent, name, 0o644, 0, libc::O_RDWR, &NoBacking);
                let (entry, opened) = once.make(make, || union.unlink(parent, name))?;
                union.release(opened.handle);
                Ok(Some(entry))
            }
            Ask::Unlink(path) => {
                let (parent, name) = (place(path), split(path).1);
                let once = Once::name(union, unique, parent, name);
                once.remove(|| union.unlink(parent, name), libc::ENOENT)?;
                Ok(None)
            }
            Ask::Rmdir(path) => {
                let (parent, name) = (place(path), split(path).1);
                let once = Once::name(union, unique, parent, name);
                once.remove(|| union.rmdir(parent, name), libc::ENOENT)?;
                Ok(None)
            }
            Ask::Link(from, path) => {
                let (parent, name) = (place(path), split(path).1);
                let once = Once::name(union, unique, parent, name);
                let link = || union.link(&ME, nodes(from), parent, name);
                once.link(link, (parent, name)).map(Some)
            }
            Ask::Rename(from, to, mode) => {
                let (old, new) = ((place(from), split(from).1), (place(to), split(to).1));
                let once = Once::rename(union, unique, old, new, *mode);
                once.moved(*mode, new, || {
                    union.rename(&ME, old.0, old.1, new.0, new.1, *mode)
                })?;
                Ok(None)
            }
        }
    }

    /// Has a request served, by as many processes as it takes.
    fn ask(&mut self, ask: Ask) -> Option<Entry> {
        self.unique += 2;
        let mut unique = self.unique;
        loop {
            self.done.push(format!("{ask:?}"));
            let deadly = self.dice.below(3) == 0;
            deaths::after(if deadly {
                self.dice.below(14)
            } else {
                usize::MAX
            });
            let (union, dentries) = (self.union.clone(), &self.dentries);
            let nodes = |path: &str| {
                if path.is_empty() {
                    ROOT
                } else {
                    dentries[path]
                }
            };
            let served = catch_unwind(AssertUnwindSafe(|| {
                Rig::serve(&union, unique, &ask, &nodes)
            }));
            deaths::never();
            drop(union);
            match served {
                Ok(answer) => match answer {
                    Ok(entry) => return entry,
                    Err(e) => self.fail(&format!("{ask:?}: {e}")),
                },
                Err(panic) if panic.is::<deaths::Death>() => {
                    self.die();
                    unique |= RESENT;
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    }

    fn fail(&self, why: &str) -> ! {
        let last: Vec<&String> = self.done.iter().rev().take(60).collect();
        panic!("{why}\nthe last first: {last:#?}");
    }

    /// The kernel is told a node for a name.
    fn told(&mut self, path: &str, entry: &Entry) {
        let known = self.nodes.entry(entry.node).or_insert((0, entry.attr.ino));
        known.0 += 1;
        let before = known.1;
        if before != entry.attr.ino {
            self.fail(&format!("{path}: number {} was {before}", entry.attr.ino));
        }
        self.dentries.insert(path.to_owned(), entry.node);
    }

    /// The kernel knows a path, with all directories above it.
    fn walk(&mut self, path: &str) {
        let mut at = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !at.is_empty() {
                at.push('/');
            }
            at.push_str(part);
            if !self.dentries.contains_key(&at) {
                match self.ask(Ask::Lookup(at.clone())) {
                    Some(entry) => self.told(&at, &entry),
                    None => self.fail(&format!("{at} is not there")),
                }
            }
        }
    }

    /// The kernel drops a name, and the node when it was the last.
    fn drop_dentry(&mut self, path: &str, stays_open: bool) {
        let Some(node) = self.dentries.remove(path) else {
            return;
        };
        if stays_open && !self.orphans.contains(&node) {
            self.orphans.push(node);
        }
        self.forget_unless_used(node);
    }

    fn forget_unless_used(&mut self, node: NodeId) {
        if self.dentries.values().any(|n| *n == node) || self.orphans.contains(&node) {
            return;
        }
        if let Some((count, _)) = self.nodes.remove(&node) {
            self.done.push(format!("forget {node}"));
            self.union.forget(node, count);
        }
    }

    /// All that the kernel knows is as it was.
    fn check(&mut self) {
        for (&node, &(_, ino)) in &self.nodes {
            match self.union.getattr(node, None) {
                Ok((attr, _)) if attr.ino == ino => {}
                Ok((attr, _)) => self.fail(&format!("node {node}: number {} was {ino}", attr.ino)),
                Err(e) => {
                    let paths: Vec<_> = self.dentries.iter().filter(|(_, n)| **n == node).collect();
                    self.fail(&format!("node {node} at {paths:?}: {e}"));
                }
            }
        }
    }

    fn step(&mut self) {
        let all: Vec<String> = self.things.keys().cloned().collect();
        let dirs: Vec<String> = std::iter::once(String::new())
            .chain(all.iter().filter(|path| self.things[*path].dir).cloned())
            .collect();
        let dir = &dirs[self.dice.below(dirs.len())];
        let name = NAMES[self.dice.below(NAMES.len())];
        let new = if dir.is_empty() {
            name.to_owned()
        } else {
            format!("{dir}/{name}")
        };
        if new.matches('/').count() > 3 {
            return;
        }
        let old = (!all.is_empty()).then(|| all[self.dice.below(all.len())].clone());
        let is_empty = |things: &BTreeMap<String, Thing>, path: &str| {
            !things.keys().any(|p| p.starts_with(&format!("{path}/")))
        };
        let choice = self.dice.below(12);
        match (choice, old) {
            (0, _) => self.die(),
            (1, _) => {
                // Memory is short.
                let leaves: Vec<String> = (self.dentries.keys())
                    .filter(|path| {
                        !self
                            .dentries
                            .keys()
                            .any(|p| p.starts_with(&format!("{path}/")))
                    })
                    .cloned()
                    .collect();
                if !leaves.is_empty() {
                    let leaf = leaves[self.dice.below(leaves.len())].clone();
                    self.drop_dentry(&leaf, false);
                }
            }
            (2, _) if !self.orphans.is_empty() => {
                let which = self.dice.below(self.orphans.len());
                let node = self.orphans.swap_remove(which);
                self.forget_unless_used(node);
            }
            (2 | 3, Some(path)) => self.walk(&path),
            (4..=6, _) if !self.things.contains_key(&new) => {
                let dir = choice != 6;
                self.walk(split(&new).0);
                let ask = if dir {
                    Ask::Mkdir(new.clone())
                } else {
                    Ask::Create(new.clone())
                };
                let entry = self.ask(ask).unwrap();
                self.told(&new, &entry);
                self.next_id += 1;
                self.things.insert(
                    new,
                    Thing {
                        id: self.next_id,
                        dir,
                    },
                );
            }
            (7, Some(path)) => {
                self.walk(&path);
                let thing = self.things[&path];
                if !thing.dir {
                    self.ask(Ask::Unlink(path.clone()));
                } else if is_empty(&self.things, &path) {
                    self.ask(Ask::Rmdir(path.clone()));
                } else {
                    return;
                }
                self.things.remove(&path);
                let stays_open = self.dice.below(3) == 0;
                self.drop_dentry(&path, stays_open);
            }
            (8, Some(path)) if !self.things[&path].dir && !self.things.contains_key(&new) => {
                self.walk(&path);
                self.walk(split(&new).0);
                let entry = self.ask(Ask::Link(path.clone(), new.clone())).unwrap();
                self.told(&new, &entry);
                self.things.insert(new, self.things[&path]);
            }
            (9..=11, Some(path)) => self.rename(path, new),
            _ => {}
        }
    }

    fn rename(&mut self, from: String, to: String) {
        let (thing, target) = (self.things[&from], self.things.get(&to).copied());
        let below = |path: &str, dir: &str| path.starts_with(&format!("{dir}/"));
        if from == to || below(&to, &from) || below(&from, &to) {
            return;
        }
        let exchange = target.is_some() && self.dice.below(2) == 0;
        if let (Some(target), false) = (target, exchange) {
            let full = target.dir && self.things.keys().any(|path| below(path, &to));
            if target.dir != thing.dir || full || target.id == thing.id {
                return;
            }
        }
        self.walk(&from);
        self.walk(if target.is_some() { &to } else { split(&to).0 });
        let mode = if exchange {
            RenameMode::Exchange
        } else {
            RenameMode::Replace
        };
        if exchange && target.is_some_and(|target| target.id == thing.id) {
            return;
        }
        self.ask(Ask::Rename(from.clone(), to.clone(), mode));
        if target.is_some() && !exchange {
            self.things.remove(&to);
            let stays_open = self.dice.below(3) == 0;
            self.drop_dentry(&to, stays_open);
        }
        swap(&mut self.things, &from, &to);
        swap(&mut self.dentries, &from, &to);
    }

    /// The tree that is there.
    fn tree(&self) -> BTreeMap<String, bool> {
        let mut found = BTreeMap::new();
        let mut pending = vec![(String::new(), ROOT)];
        while let Some((at, node)) = pending.pop() {
            let mut names: Vec<OsString> = Vec::new();
            let read = self.union.readdir(node, 0, &mut |entry| {
                names.push(entry.name.to_owned());
                false
            });
            read.unwrap();
            for name in names.into_iter().filter(|name| name != "." && name != "..") {
                let Lookup::Found(entry) = self.union.lookup(node, &name).unwrap() else {
                    self.fail(&format!("{name:?} in {at:?} is listed and not there"));
                };
                let name = name.to_str().unwrap();
                let path = if at.is_empty() {
                    name.to_owned()
                } else {
                    format!("{at}/{name}")
                };
                let dir = entry.attr.mode & libc::S_IFMT == libc::S_IFDIR;
                if dir {
                    pending.push((path.clone(), entry.node));
                }
                found.insert(path, dir);
            }
        }
        found
    }
}

/// Exchanges what is at and below two paths.
fn swap<T>(map: &mut BTreeMap<String, T>, a: &str, b: &str) {
    let moved = |path: &str, from: &str, to: &str| -> Option<String> {
        let rest = path.strip_prefix(from)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
    };
    let old = std::mem::take(map);
    for (path, value) in old {
        let new = moved(&path, a, b).or_else(|| moved(&path, b, a));
        map.insert(new.unwrap_or(path), value);
    }
}

fn play(seed: u64, steps: usize) {
    let mut rig = Rig::new(seed);
    for _ in 0..steps {
        rig.step();
        rig.check();
    }
    let expected: BTreeMap<String, bool> = rig
        .things
        .iter()
        .map(|(path, thing)| (path.clone(), thing.dir))
        .collect();
    assert_eq!(rig.tree(), expected, "seed {seed}");
    // What is no longer known takes nothing with it.
    rig.die();
    rig.check();
}

#[test]
fn whatever_record_a_process_dies_at_nobody_notices() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: trusted xattrs need root");
        return;
    }
    deaths::quietly();
    // The dead close nothing, and nobody here closes it after them.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    // Each takes a second or less; which ones, for a longer search: `ACETATE_GAMES=40..300`.
    let games = std::env::var("ACETATE_GAMES").ok();
    let games = games.as_deref().and_then(|text| text.split_once(".."));
    let games = games.and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    for seed in games.unwrap_or(0..25) {
        play(seed, 120);
    }
}
