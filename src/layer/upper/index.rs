//! The index: upper inodes by the lower ones they were copied from.
//!
//! An entry is a hard link in `index/` of the workdir, named by the lower's file handle in hexadecimal, as the kernel
//! writes it. The kernel refuses a mount whose index holds an entry without an origin mark; so what cannot carry
//! `user.` marks is kept in `acetate-index/` beside it, which the kernel ignores. All names are in memory, so that a
//! miss costs no system call.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Node, OverlayHandle, Stat, Upper};
use crate::layer::node::PathNode;
use crate::layer::tree::{Tree, path_node};

/// The index directories: the kernel's, and that of what the kernel would not take.
const NAMES: [&str; 2] = ["index", "acetate-index"];

/// The index directories and the names in them.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// A leaf lock, but for the making of a directory.
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The directories, once they exist.
    dirs: [Option<Arc<PathNode>>; 2],
    /// In which of the two the entry of a handle is.
    handles: HashMap<OverlayHandle, usize>,
}

impl State {
    fn dir_of(&self, handle: &OverlayHandle) -> Option<Arc<PathNode>> {
        self.dirs[*self.handles.get(handle)?].clone()
    }
}

fn entry_name(handle: &OverlayHandle) -> OsString {
    let mut name = String::with_capacity(handle.0.len() * 2);
    for byte in &handle.0 {
        // Writing to a string cannot fail.
        write!(name, "{byte:02x}").unwrap_or_default();
    }
    name.into()
}

fn parse_entry_name(name: &OsStr) -> Option<OverlayHandle> {
    let digits = name.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect::<Option<Vec<u8>>>()
        .map(OverlayHandle)
}

fn open_dir(
    tree: &Arc<Tree>,
    base: BorrowedFd<'_>,
    name: &str,
) -> io::Result<Option<Arc<PathNode>>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd: OwnedFd = match rustix::fs::openat(base, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let ino = rustix::fs::fstat(&fd)?.st_ino as u64;
    Ok(Some(PathNode::root(tree.clone(), Arc::new(fd), ino)))
}

impl Index {
    /// Reads the names in the index of a workdir, if it has one.
    pub(super) fn open(tree: &Arc<Tree>, base: BorrowedFd<'_>) -> io::Result<Index> {
        let mut state = State::default();
        for (which, name) in NAMES.into_iter().enumerate() {
            let Some(dir) = open_dir(tree, base, name)? else {
                continue;
            };
            let fd = dir.dir_fd()?;
            super::open::let_owner_in(fd.as_fd())?;
            tree.for_each_entry(fd.as_fd(), |name, _, _| {
                if let Some(handle) = parse_entry_name(name) {
                    state.handles.insert(handle, which);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            state.dirs[which] = Some(dir);
        }
        Ok(Index {
            state: RwLock::new(state),
        })
    }
}

impl Index {
    /// Takes what another one has read. What was open before stays open (see [`Upper::renew`]).
    pub(super) fn replace(&self, by: Index) {
        std::mem::forget(std::mem::replace(
            &mut *self.state.write(),
            by.state.into_inner(),
        ));
    }
}

impl Upper {
    /// The upper inode that was copied up from the lower inode of this handle. Answered from memory when there is none.
    pub fn index_lookup(&self, handle: &OverlayHandle) -> io::Result<Option<(Node, Stat)>> {
        let Some(dir) = self.index.state.read().dir_of(handle) else {
            return Ok(None);
        };
        let name = entry_name(handle);
        let raw = match rustix::fs::statat(&*dir.dir_fd()?, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(raw) => raw,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let file_type = raw.st_mode as u32 & libc::S_IFMT;
        if file_type == libc::S_IFDIR || (file_type == libc::S_IFCHR && raw.st_rdev == 0) {
            // What the kernel keeps of directories and of removed files, for NFS export.
            return Ok(None);
        }
        let node = PathNode::child(&dir, &name, raw.st_ino as u64);
        let stat = self.tree.stat(&node)?;
        Ok(Some((Node::Path(node), stat)))
    }

    /// The handles whose upper inode has no name in the upper: the names that it was changed by are gone, and those that are
    /// left lie in lower layers.
    pub fn index_unnamed(&self) -> io::Result<Vec<OverlayHandle>> {
        let handles: Vec<OverlayHandle> = self.index.state.read().handles.keys().cloned().collect();
        let mut unnamed = Vec::new();
        for handle in handles {
            if let Some((_, stat)) = self.index_lookup(&handle)?
                && stat.nlink == 1
            {
                unnamed.push(handle);
            }
        }
        Ok(unnamed)
    }

    /// Whether the index holds nothing, so that no handle need be asked for.
    pub fn index_is_empty(&self) -> bool {
        self.index.state.read().handles.is_empty()
    }

    /// Records the upper inode of a lower inode with several links.
    pub fn index_add(&self, handle: &OverlayHandle, node: &Node) -> io::Result<()> {
        let fd = path_node(node)?.path_fd()?;
        let kernels = !self.needs_sidecar(rustix::fs::fstat(&fd)?.st_mode);
        let which = usize::from(!kernels);
        let dir = self.index_dir(which)?;
        crate::sys::path_fd::link(fd, &*dir.dir_fd()?, &entry_name(handle))?;
        let mut state = self.index.state.write();
        state.handles.insert(handle.clone(), which);
        Ok(())
    }

    /// Forgets it; no error when there is none.
    pub fn index_remove(&self, handle: &OverlayHandle) -> io::Result<()> {
        let Some(dir) = self.index.state.read().dir_of(handle) else {
            return Ok(());
        };
        match rustix::fs::unlinkat(&*dir.dir_fd()?, entry_name(handle), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        self.index.state.write().handles.remove(handle);
        Ok(())
    }

    fn index_dir(&self, which: usize) -> io::Result<Arc<PathNode>> {
        if let Some(dir) = &self.index.state.read().dirs[which] {
            return Ok(dir.clone());
        }
        let name = NAMES[which];
        match rustix::fs::mkdirat(&self.work.base, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let made = open_dir(&self.tree, self.work.base.as_fd(), name)?.ok_or(Errno::NOENT)?;
        Ok(self.index.state.write().dirs[which]
            .get_or_insert(made)
            .clone())
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn names_are_hexadecimal() {
        let handle = OverlayHandle(vec![0, 0xfb, 0x1d, 0x0a]);
        assert_eq!(entry_name(&handle), OsStr::new("00fb1d0a"));
        assert_eq!(parse_entry_name(OsStr::new("00fb1d0a")), Some(handle));
        assert_eq!(parse_entry_name(OsStr::new("00f")), None);
        assert_eq!(parse_entry_name(OsStr::new("zz")), None);
    }
}
