//! Marks of what cannot carry them.
//!
//! `user.` xattrs cannot be set on symlinks and special files. Their marks lie on an empty regular file in
//! `acetate-marks/` of the workdir instead, which the kernel's overlayfs ignores. Its name is inode number and birth
//! time of the inode that it stands for, so that a reused inode number is never taken for it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::Namespace;
use crate::layer::Marks;
use crate::layer::format::{MarkNames, read_marks};
use crate::layer::node::PathNode;
use crate::layer::tree::{Tree, path_node};
use crate::layer::{LayerLookup, Node};
use crate::sys::xattr::Target;

const NAME: &str = "acetate-marks";
/// Present while a mount uses the directory, so that the next one knows whether entries may be out of date.
const IN_USE: &str = ".in-use";

/// The sidecar directory and what is in it.
#[derive(Debug)]
pub(super) struct Sidecar {
    /// Immutable: the user's workdir.
    base: OwnedFd,
    /// A leaf lock, but for the making of the directory.
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The directory, once it exists.
    dir: Option<Arc<OwnedFd>>,
    /// Entry names by inode number.
    entries: HashMap<u64, OsString>,
}

fn entry_name(fd: BorrowedFd<'_>) -> io::Result<Option<(u64, OsString)>> {
    let stat = rustix::fs::statx(
        fd,
        "",
        AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::INO | StatxFlags::BTIME,
    )?;
    if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
        return Ok(None);
    }
    let (sec, nsec) = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
    let name = format!("{:x}-{sec:x}-{nsec:x}", stat.stx_ino);
    Ok(Some((stat.stx_ino, name.into())))
}

fn entry_ino(name: &OsStr) -> Option<u64> {
    let text = std::str::from_utf8(name.as_bytes()).ok()?;
    u64::from_str_radix(text.split('-').next()?, 16).ok()
}

impl Sidecar {
    /// Reads the directory, and sweeps it when the last mount did not end in order.
    pub(super) fn open(
        tree: &Arc<Tree>,
        base: BorrowedFd<'_>,
        root: &Arc<PathNode>,
    ) -> io::Result<Sidecar> {
        let sidecar = Sidecar {
            base: base.try_clone_to_owned()?,
            state: RwLock::default(),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(base, NAME, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(sidecar),
            Err(e) => return Err(e.into()),
        };
        let mut entries = HashMap::new();
        let mut in_use = false;
        tree.for_each_entry(dir.as_fd(), |name, _, _| {
            in_use |= name == IN_USE;
            if let Some(ino) = entry_ino(name) {
                entries.insert(ino, name.to_owned());
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if in_use && !entries.is_empty() {
            let live = live_entries(tree, root, &entries)?;
            for (ino, name) in &entries {
                if !live.contains_key(ino) {
                    rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
                }
            }
            entries = live;
        }
        if !in_use {
            mark_in_use(&dir)?;
        }
        *sidecar.state.write() = State {
            dir: Some(Arc::new(dir)),
            entries,
        };
        Ok(sidecar)
    }

    /// The marks of a node.
    pub(super) fn read(&self, node: &PathNode) -> io::Result<Marks> {
        if !self.state.read().entries.contains_key(&node.ino()) {
            return Ok(Marks::default());
        }
        match self.carrier(node.path_fd()?.as_fd(), false)? {
            Some(carrier) => {
                read_marks(Target::Fd(carrier.as_fd()), MarkNames::Own(Namespace::User))
            }
            None => Ok(Marks::default()),
        }
    }

    /// The file that carries the marks of an inode; made when `create` asks for it. `None` when there is none, or the
    /// filesystem records no birth times.
    pub(super) fn carrier(&self, fd: BorrowedFd<'_>, create: bool) -> io::Result<Option<File>> {
        let Some((ino, name)) = entry_name(fd)? else {
            return Ok(None);
        };
        let (dir, known) = {
            let state = self.state.read();
            (state.dir.clone(), state.entries.get(&ino) == Some(&name))
        };
        if !known && !create {
            return Ok(None);
        }
        let dir = match dir {
            Some(dir) => dir,
            None => self.make_dir()?,
        };
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, &name, flags, Mode::from_raw_mode(0o600))?;
        let stale = self.state.write().entries.insert(ino, name.clone());
        if let Some(stale) = stale.filter(|stale| *stale != name) {
            remove_entry(&dir, &stale);
        }
        Ok(Some(file.into()))
    }

    fn make_dir(&self) -> io::Result<Arc<OwnedFd>> {
        match rustix::fs::mkdirat(&self.base, NAME, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.base, NAME, flags, Mode::empty())?;
        mark_in_use(&dir)?;
        Ok(self
            .state
            .write()
            .dir
            .get_or_insert_with(|| Arc::new(dir))
            .clone())
    }

    /// The inode number of a node that has marks here and is about to lose its last name.
    pub(super) fn last_name(&self, node: &PathNode) -> io::Result<Option<u64>> {
        if !self.state.read().entries.contains_key(&node.ino()) {
            return Ok(None);
        }
        let stat = node.raw_stat()?;
        Ok((stat.st_nlink <= 1).then_some(node.ino()))
    }

    /// Removes the marks of an inode that is gone.
    pub(super) fn forget(&self, ino: Option<u64>) {
        let Some(ino) = ino else { return };
        let (dir, name) = {
            let mut state = self.state.write();
            (state.dir.clone(), state.entries.remove(&ino))
        };
        if let (Some(dir), Some(name)) = (dir, name) {
            remove_entry(&dir, &name);
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if let Some(dir) = &self.state.get_mut().dir {
            remove_entry(dir, OsStr::new(IN_USE));
        }
    }
}

impl Sidecar {
    /// Takes what another one has read. What was open before stays open (see [`Upper::renew`](super::Upper::renew)).
    pub(super) fn replace(&self, by: Sidecar) {
        let state = std::mem::take(&mut *by.state.write());
        std::mem::forget(std::mem::replace(&mut *self.state.write(), state));
        // It must not end the use of the directory.
        std::mem::forget(by);
    }
}

/// Best effort: an entry that stays is bound to an inode that is gone, and swept when the next mount finds it in use.
fn remove_entry(dir: &OwnedFd, name: &OsStr) {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => log::warn!("cannot remove {name:?} from {NAME} of the workdir: {e}"),
    }
}

fn mark_in_use(dir: &OwnedFd) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, IN_USE, flags, Mode::from_raw_mode(0o600))?;
    Ok(())
}

/// Those of the entries whose inode is in the upper.
fn live_entries(
    tree: &Arc<Tree>,
    root: &Arc<PathNode>,
    entries: &HashMap<u64, OsString>,
) -> io::Result<HashMap<u64, OsString>> {
    let mut live = HashMap::new();
    let mut pending = vec![root.clone()];
    while let Some(dir) = pending.pop() {
        let mut found = Vec::new();
        tree.for_each_entry(dir.dir_fd()?.as_fd(), |name, ino, file_type| {
            if file_type == FileType::Directory || entries.contains_key(&ino) {
                found.push(name.to_owned());
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for name in found {
            let LayerLookup::Found(found) = tree.lookup(&dir, &name, false)? else {
                continue;
            };
            let Node::Path(node) = &found.node else {
                continue;
            };
            if found.stat.is_dir() {
                pending.push(path_node(&found.node)?.clone());
                continue;
            }
            if let Some((ino, name)) = entry_name(node.path_fd()?.as_fd())?
                && entries.get(&ino) == Some(&name)
            {
                live.insert(ino, name);
            }
        }
    }
    Ok(live)
}
