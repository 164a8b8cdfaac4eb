//! Nodes of a directory tree, found by parent and name.
//!
//! A node keeps no descriptor of its own: a directory's lies in the mount's [`FdCache`](super::fdcache::FdCache), and everything else is reached
//! by its parent's. Each step opens one component below a descriptor and never follows a symlink, so nothing that lies
//! in a layer leads outside, and paths may be longer than `PATH_MAX`. What is found is compared with the inode number that was recorded.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat as RawStat};
use rustix::io::Errno;
use smallvec::SmallVec;

use super::SharedName;
use super::fdcache::NO_SLOT;
use super::tree::Tree;

/// How often a node is sought again when another thread may be renaming it or a directory above.
const ATTEMPTS: usize = 64;

/// A node of a directory tree. Valid as long as it has a place in the tree or is held open.
pub struct PathNode {
    /// Immutable.
    tree: Arc<Tree>,
    /// Immutable: inode number on disk, which what is found at a place must have.
    ino: u64,
    /// Where the tree's descriptor cache has this directory. A hint: the cache checks it.
    slot: AtomicU32,
    /// What is known of `.wh.` entries in this directory; see [`DotWhiteouts`].
    dot_whiteouts: AtomicU8,
    /// A leaf lock, never held across a system call.
    state: Mutex<State>,
}

/// What a lower layer has under a name, as long as nothing is done with it: there is one for each lower file that the
/// kernel knows.
#[derive(Clone, Debug)]
pub struct ChildNode {
    dir: Arc<PathNode>,
    name: SharedName,
    ino: u64,
}

impl ChildNode {
    pub(super) fn new(dir: &Arc<PathNode>, name: &OsStr, ino: u64) -> ChildNode {
        ChildNode {
            dir: dir.clone(),
            name: name.into(),
            ino,
        }
    }

    /// The path from the tree's root.
    pub fn path(&self) -> Option<Vec<u8>> {
        let mut path = self.dir.path()?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(self.name.as_bytes());
        Some(path)
    }

    /// The node itself.
    pub(super) fn node(&self) -> Arc<PathNode> {
        let place = Place {
            parent: self.dir.clone(),
            name: self.name.clone(),
        };
        PathNode::with(self.dir.tree.clone(), self.ino, Places::One(place))
    }
}

#[derive(Default)]
struct State {
    places: Places,
    /// Keeps the inode after its last name is gone.
    pinned: Option<Arc<OwnedFd>>,
}

/// Where a node stands. A rename adds the new place before it happens and takes the old one away afterwards, so that
/// one of the two is right at every moment.
#[derive(Default)]
enum Places {
    #[default]
    Nowhere,
    Root(Arc<OwnedFd>),
    One(Place),
    /// The box keeps the usual case small.
    #[allow(clippy::box_collection)]
    Many(Box<Vec<Place>>),
}

#[derive(Clone)]
struct Place {
    parent: Arc<PathNode>,
    name: SharedName,
}

/// A name that was copied out of a node, so that no lock is held while it is used.
pub(super) type Name = SmallVec<[u8; 64]>;

/// How a node is reached for one system call.
pub(super) enum Spot {
    /// By a descriptor of its own, opened with `O_PATH`.
    Held(Arc<OwnedFd>),
    /// The same of a directory.
    Dir(Arc<OwnedFd>),
    /// By its parent's and a name; what stands there is to be verified.
    At(Arc<OwnedFd>, Name),
}

/// What is known of entries named `.wh.` in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DotWhiteouts {
    /// Nothing, after so many questions.
    Unknown(u8),
    /// It holds none.
    None,
    /// It holds some, or may.
    Some,
}

impl PathNode {
    /// The root of a tree.
    pub(super) fn root(tree: Arc<Tree>, fd: Arc<OwnedFd>, ino: u64) -> Arc<PathNode> {
        PathNode::with(tree, ino, Places::Root(fd))
    }

    /// A node that was found at a name of `parent`.
    pub(super) fn child(parent: &Arc<PathNode>, name: &OsStr, ino: u64) -> Arc<PathNode> {
        let place = Place {
            parent: parent.clone(),
            name: name.into(),
        };
        PathNode::with(parent.tree.clone(), ino, Places::One(place))
    }

    /// A node that is held open and stands nowhere.
    pub(super) fn nameless(tree: &Arc<Tree>, fd: Arc<OwnedFd>, ino: u64) -> Arc<PathNode> {
        let node = PathNode::with(tree.clone(), ino, Places::Nowhere);
        node.set_pinned(Some(fd));
        node
    }

    /// The path from the tree's root, by one of its names; `None` where it has none.
    pub fn path(&self) -> Option<Vec<u8>> {
        let mut parts: Vec<SharedName> = Vec::new();
        let mut next = match &self.state.lock().places {
            Places::Root(_) => return Some(Vec::new()),
            Places::Nowhere => return None,
            Places::One(place) => place.clone(),
            Places::Many(places) => places.first()?.clone(),
        };
        loop {
            parts.push(next.name);
            let parent = next.parent;
            next = match &parent.state.lock().places {
                Places::Root(_) => break,
                Places::Nowhere => return None,
                Places::One(place) => place.clone(),
                Places::Many(places) => places.first()?.clone(),
            };
        }
        let parts: Vec<&[u8]> = parts.iter().rev().map(|part| part.as_bytes()).collect();
        Some(parts.join(&b'/'))
    }

    /// The descriptor that holds it open.
    pub(super) fn pinned_fd(&self) -> Option<RawFd> {
        Some(self.state.lock().pinned.as_ref()?.as_raw_fd())
    }

    fn with(tree: Arc<Tree>, ino: u64, places: Places) -> Arc<PathNode> {
        Arc::new(PathNode {
            tree,
            ino,
            slot: AtomicU32::new(NO_SLOT),
            dot_whiteouts: AtomicU8::new(0),
            state: Mutex::new(State {
                places,
                pinned: None,
            }),
        })
    }

    /// Inode number on disk.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    pub(super) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    pub(super) fn dot_whiteouts(&self) -> DotWhiteouts {
        match self.dot_whiteouts.load(Ordering::Relaxed) {
            u8::MAX => DotWhiteouts::Some,
            254 => DotWhiteouts::None,
            asked => DotWhiteouts::Unknown(asked),
        }
    }

    pub(super) fn set_dot_whiteouts(&self, known: DotWhiteouts) {
        let value = match known {
            DotWhiteouts::Some => u8::MAX,
            DotWhiteouts::None => 254,
            DotWhiteouts::Unknown(asked) => asked.min(253),
        };
        self.dot_whiteouts.store(value, Ordering::Relaxed);
    }

    /// A descriptor of this directory, opened with `O_PATH`.
    pub fn dir_fd(self: &Arc<Self>) -> io::Result<Arc<OwnedFd>> {
        if let Some(fd) = self.held() {
            return Ok(fd);
        }
        self.attempt(|attempt| self.walk(attempt))
    }

    /// The pinned descriptor, the root's, or the one in the cache.
    fn held(&self) -> Option<Arc<OwnedFd>> {
        {
            let state = self.state.lock();
            if let Some(fd) = &state.pinned {
                return Some(fd.clone());
            }
            if let Places::Root(fd) = &state.places {
                return Some(fd.clone());
            }
        }
        self.tree
            .cache()
            .get(self.slot.load(Ordering::Relaxed), self.address())
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Opens every directory from the nearest one that is open down to this one.
    fn walk(self: &Arc<Self>, attempt: usize) -> io::Result<Arc<OwnedFd>> {
        let mut chain = vec![(self.clone(), self.place(attempt)?)];
        let mut fd = loop {
            let Some((_, place)) = chain.last() else {
                return Err(stale());
            };
            if let Some(fd) = place.parent.held() {
                break fd;
            }
            let parent = place.parent.clone();
            let place = parent.place(attempt)?;
            chain.push((parent, place));
        };
        while let Some((node, place)) = chain.pop() {
            fd = node.open_dir_at(&fd, &place.name)?;
        }
        Ok(fd)
    }

    fn open_dir_at(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<Arc<OwnedFd>> {
        let fd = self.open_name(parent, name, OFlags::PATH | OFlags::DIRECTORY)?;
        if rustix::fs::fstat(&fd)?.st_ino != self.ino {
            return Err(stale());
        }
        let fd = Arc::new(fd);
        let cache = self.tree.cache();
        let before = self.slot.load(Ordering::Relaxed);
        if cache.get(before, self.address()).is_none() {
            let slot = cache.insert(self.address(), fd.clone());
            let other = self.slot.swap(slot, Ordering::Relaxed);
            if other != before && other != slot {
                // Another thread kept its descriptor at the same time.
                cache.remove(other, self.address());
            }
        }
        Ok(fd)
    }

    /// One of the node's places; attempts go through all of them in turn.
    fn place(&self, attempt: usize) -> io::Result<Place> {
        match &self.state.lock().places {
            Places::Nowhere => Err(gone()),
            Places::Root(_) => Err(stale()),
            Places::One(place) => Ok(place.clone()),
            Places::Many(places) => places
                .get(attempt % places.len().max(1))
                .cloned()
                .ok_or_else(gone),
        }
    }

    /// Runs `f`, again when what it seeks may have been moved meanwhile.
    fn attempt<T>(&self, mut f: impl FnMut(usize) -> io::Result<T>) -> io::Result<T> {
        let mut attempt = 0;
        loop {
            match f(attempt) {
                Err(e) if attempt + 1 < ATTEMPTS && may_have_moved(&e) => {
                    attempt += 1;
                    if attempt > 2 {
                        std::thread::yield_now();
                    }
                }
                Err(e) if may_have_moved(&e) && e.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(stale());
                }
                other => return other,
            }
        }
    }

    fn spot(&self, attempt: usize) -> io::Result<Spot> {
        {
            let state = self.state.lock();
            if let Some(fd) = &state.pinned {
                return Ok(Spot::Held(fd.clone()));
            }
            if let Places::Root(fd) = &state.places {
                return Ok(Spot::Dir(fd.clone()));
            }
        }
        if let Some(fd) = self
            .tree
            .cache()
            .get(self.slot.load(Ordering::Relaxed), self.address())
        {
            return Ok(Spot::Dir(fd));
        }
        let place = self.place(attempt)?;
        let dir = place.parent.dir_fd()?;
        Ok(Spot::At(dir, Name::from_slice(place.name.as_bytes())))
    }

    /// Runs `f` with a way to reach the node, again when it answers that something else stands there.
    pub(super) fn reach<T>(&self, mut f: impl FnMut(&Spot) -> io::Result<T>) -> io::Result<T> {
        self.attempt(|attempt| f(&self.spot(attempt)?))
    }

    /// `lstat`, verified.
    pub(super) fn raw_stat(&self) -> io::Result<RawStat> {
        self.reach(|spot| {
            let stat = match spot {
                Spot::Held(fd) | Spot::Dir(fd) => rustix::fs::fstat(fd)?,
                Spot::At(dir, name) => {
                    rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?
                }
            };
            self.verify(&stat)?;
            Ok(stat)
        })
    }

    /// Opens the node; the descriptor is verified. `flags` without `O_NOFOLLOW`, which is always meant.
    pub(super) fn open(&self, flags: OFlags) -> io::Result<OwnedFd> {
        self.reach(|spot| {
            let fd = match spot {
                Spot::Held(fd) | Spot::Dir(fd) if flags.contains(OFlags::PATH) => fd.try_clone()?,
                Spot::Held(fd) => crate::sys::path_fd::reopen(fd, flags)?,
                Spot::Dir(fd) => {
                    rustix::fs::openat(fd, ".", flags | OFlags::CLOEXEC, Mode::empty())?
                }
                Spot::At(dir, name) => self.open_at(dir, OsStr::from_bytes(name), flags)?,
            };
            self.verify(&rustix::fs::fstat(&fd)?)?;
            Ok(fd)
        })
    }

    /// Opens a name, which is no symlink's target and no other mount's root: that one's files have numbers of their own, which may
    /// be the same.
    fn open_name(&self, dir: &OwnedFd, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.tree.may_hold_mounts() {
            let within = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            match rustix::fs::openat2(dir, name, flags, Mode::empty(), within) {
                // Before Linux 5.6, or a sandbox that does not know the call.
                Err(Errno::NOSYS) => {}
                other => return other,
            }
        }
        rustix::fs::openat(dir, name, flags, Mode::empty())
    }

    fn open_at(&self, dir: &OwnedFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
        // What stands there by now may be a fifo, which would be waited for.
        let flags = flags | OFlags::NONBLOCK;
        self.open_name(dir, name, flags).map_err(|e| {
            // Or a whiteout, which cannot be opened: the error is not this node's, even where the number is, which a filesystem gives
            // to the next that it makes. No node that answers so by itself is ever opened.
            if e == Errno::NXIO {
                return stale();
            }
            match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if stat.st_ino != self.ino => stale(),
                _ => e.into(),
            }
        })
    }

    /// A verified `O_PATH` descriptor: the only way to change anything.
    pub(super) fn path_fd(&self) -> io::Result<Arc<OwnedFd>> {
        self.reach(|spot| match spot {
            Spot::Held(fd) | Spot::Dir(fd) => Ok(fd.clone()),
            Spot::At(dir, name) => {
                let fd = self.open_name(dir, OsStr::from_bytes(name), OFlags::PATH)?;
                self.verify(&rustix::fs::fstat(&fd)?)?;
                Ok(Arc::new(fd))
            }
        })
    }

    fn verify(&self, stat: &RawStat) -> io::Result<()> {
        if stat.st_ino == self.ino {
            Ok(())
        } else {
            Err(stale())
        }
    }

    /// Adds a place; no change when it is known.
    pub(super) fn add_place(&self, parent: &Arc<PathNode>, name: &OsStr) {
        let place = Place {
            parent: parent.clone(),
            name: name.into(),
        };
        let mut state = self.state.lock();
        state.places = match std::mem::take(&mut state.places) {
            Places::Root(fd) => Places::Root(fd),
            Places::Nowhere => Places::One(place),
            Places::One(known) if known.is(parent, name) => Places::One(known),
            Places::One(known) => Places::Many(Box::new(vec![known, place])),
            Places::Many(mut known) => {
                if !known.iter().any(|k| k.is(parent, name)) {
                    known.push(place);
                }
                Places::Many(known)
            }
        };
    }

    /// Takes a place away.
    pub(super) fn remove_place(&self, parent: &Arc<PathNode>, name: &OsStr) {
        // The last reference to a parent may go here: it is dropped after the lock.
        let mut removed = SmallVec::<[Place; 2]>::new();
        {
            let mut state = self.state.lock();
            state.places = match std::mem::take(&mut state.places) {
                Places::One(known) if known.is(parent, name) => {
                    removed.push(known);
                    Places::Nowhere
                }
                Places::Many(mut known) => {
                    if let Some(at) = known.iter().position(|k| k.is(parent, name)) {
                        removed.push(known.remove(at));
                    }
                    match known.len() {
                        0 => Places::Nowhere,
                        1 => known.pop().map_or(Places::Nowhere, Places::One),
                        _ => Places::Many(known),
                    }
                }
                other => other,
            };
        }
        drop(removed);
    }

    /// Keeps this copy of its name instead of its own, where that is its only one.
    fn share_name(&self, name: &SharedName) {
        if let Places::One(place) = &mut self.state.lock().places
            && place.name == *name
        {
            place.name = name.clone();
        }
    }

    pub(super) fn set_pinned(&self, fd: Option<Arc<OwnedFd>>) {
        let before = std::mem::replace(&mut self.state.lock().pinned, fd);
        drop(before);
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.state.lock().pinned.is_some()
    }
}

impl super::Node {
    /// Gives the node a copy of its name that others keep too, so that all of them take the room of one.
    pub(crate) fn share_name(&mut self, name: &SharedName) {
        match self {
            super::Node::Path(node) => node.share_name(name),
            super::Node::Child(child) if child.name == *name => child.name = name.clone(),
            super::Node::Child(_) | super::Node::Index(_) => {}
        }
    }
}

impl Place {
    fn is(&self, parent: &Arc<PathNode>, name: &OsStr) -> bool {
        // The same directory may have been found twice, and so have two nodes.
        self.parent.ino == parent.ino && *self.name == *name
    }
}

impl Spot {
    /// The same for an xattr call.
    pub(super) fn xattr_target(&self) -> crate::sys::xattr::Target<'_> {
        match self {
            Spot::Held(fd) => crate::sys::xattr::Target::Fd(fd.as_fd()),
            Spot::Dir(fd) => crate::sys::xattr::Target::Dir(fd.as_fd()),
            Spot::At(dir, name) => {
                crate::sys::xattr::Target::At(dir.as_fd(), OsStr::from_bytes(name))
            }
        }
    }

    /// The same as a descriptor and a path below it, which is empty for the descriptor itself.
    pub(super) fn at(&self) -> (BorrowedFd<'_>, &OsStr) {
        match self {
            Spot::Held(fd) | Spot::Dir(fd) => (fd.as_fd(), OsStr::new("")),
            Spot::At(dir, name) => (dir.as_fd(), OsStr::from_bytes(name)),
        }
    }
}

impl Drop for PathNode {
    fn drop(&mut self) {
        self.tree
            .cache()
            .remove(*self.slot.get_mut(), self.address());
        // A deep path hangs on its last node: dropped by recursion it would overflow the stack.
        let mut parents = Vec::new();
        self.state.get_mut().places.take_parents(&mut parents);
        while let Some(parent) = parents.pop() {
            let address = Arc::as_ptr(&parent).addr();
            if let Some(mut last) = Arc::into_inner(parent) {
                // It has moved out of its allocation, by whose address the cache knows it.
                let slot = std::mem::replace(last.slot.get_mut(), NO_SLOT);
                last.tree.cache().remove(slot, address);
                last.state.get_mut().places.take_parents(&mut parents);
            }
        }
    }
}

impl Places {
    fn take_parents(&mut self, into: &mut Vec<Arc<PathNode>>) {
        match std::mem::take(self) {
            Places::One(place) => into.push(place.parent),
            Places::Many(places) => into.extend(places.into_iter().map(|p| p.parent)),
            Places::Nowhere | Places::Root(_) => {}
        }
    }
}

impl fmt::Debug for PathNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("PathNode");
        out.field("ino", &self.ino);
        if let Places::One(place) = &self.state.lock().places {
            out.field("name", &place.name);
        }
        out.finish_non_exhaustive()
    }
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

fn may_have_moved(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ELOOP)
    )
}
