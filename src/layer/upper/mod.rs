//! The writable upper layer: the only way anything in it changes.
//!
//! Every mutation that a crash could leave half-done is built in the workdir and published by one rename or link.
//!
//! The workdir is laid out as the kernel's overlayfs does, so that either can go on where the other stopped:
//! `work/` is scratch space, emptied at every mount; `index/` holds a hard link to every upper inode whose lower one
//! has several names. `acetate-marks/` and `acetate-index/` are our own (see `sidecar` and `index`) and ignored by
//! the kernel.

pub(crate) mod attrs;
mod create;
mod index;
mod open;
mod order;
mod partial;
mod private;
mod publish;
mod remove;
mod sidecar;
mod stage;
#[cfg(test)]
mod tests;
mod whiteout;
mod workdir;

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use nix::sys::statvfs::{Statvfs, fstatvfs};

use super::dir::Handles;
use super::node::PathNode;
use super::tree::{Tree, path_node};
use super::{
    Access, Layer, LayerEntry, LayerLookup, Marks, Node, OverlayHandle, RealFile, Stat, Timestamp,
};

pub use crate::sys::mount_clone::AccessTimes;
pub use create::NewAttributes;
pub use partial::{NOWHERE, ask_to_yield, partial_left};
pub use stage::{Published, Staged};

/// Which xattr namespace the overlay's private marks are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.overlay.`: needs CAP_SYS_ADMIN in the initial user namespace.
    Trusted,
    /// `user.overlay.`, as the kernel's `userxattr`.
    User,
}

/// How an [`Upper`] is opened.
#[derive(Clone, Debug)]
pub struct UpperOptions {
    /// Where private marks are written.
    pub namespace: Namespace,
    /// Never sync: after a crash the upper is to be thrown away.
    pub volatile: bool,
    /// `xattr_permissions=1|2`: owner and mode are kept in `override_stat` xattrs.
    pub override_stat: super::format::OverrideStat,
    /// When reading changes access times, where the upper can be reached by a mount of its own.
    pub access_times: AccessTimes,
}

/// What is to be staged in the workdir.
#[derive(Clone, Copy, Debug)]
pub enum Stage<'a> {
    /// An empty regular file, open for reading and writing.
    File,
    /// An empty directory.
    Dir,
    /// A symlink to this target.
    Symlink(&'a OsStr),
    /// A special file: type bits (`S_IFIFO`, `S_IFSOCK`, `S_IFCHR`, `S_IFBLK`) and device number.
    Special(u32, u64),
}

/// What a publication finds at the name in the upper directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// No entry; `EEXIST` when there is one after all.
    Nothing,
    /// A whiteout, which goes away in the same step as the new entry appears.
    Whiteout,
    /// A file, which is replaced atomically.
    File,
    /// A directory that is empty but for whiteouts, which is replaced atomically.
    EmptyDir,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSet {
    /// The present.
    Now,
    /// This time.
    At(Timestamp),
}

/// One of the overlay's private marks to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The directory hides the layers below.
    Opaque,
    /// The directory does not, but may hold whiteouts that are marked by an xattr.
    XWhiteouts,
    /// Where the layers below have this directory or data; `None` takes the mark away.
    Redirect(Option<OsString>),
    /// The file holds no data of its own; false takes the mark away.
    Metacopy(bool),
    /// The lower node this was copied from.
    Origin(OverlayHandle),
    /// The link count relative to the upper or lower inode; `None` takes the mark away.
    Nlink(Option<String>),
    /// The directory holds entries with an origin.
    Impure,
    /// Only some of the file's blocks are here (see [`super::format::PartialRecord`]); `None` takes the mark away.
    Partial(Option<Vec<u8>>),
    /// Attributes that are to be put back once blocks of the file are filled; `None` takes the mark away.
    Kept(Option<Vec<u8>>),
}

/// The writable upper layer and its workdir.
#[derive(Debug)]
pub struct Upper {
    /// Immutable.
    path: PathBuf,
    /// Immutable.
    options: UpperOptions,
    /// Immutable.
    tree: Arc<Tree>,
    /// Immutable.
    root: Arc<PathNode>,
    /// Immutable: the upper directory, open for reading.
    root_fd: Arc<OwnedFd>,
    /// Immutable: the same, locked against other mounts.
    lock: OwnedFd,
    /// Immutable: the root of the private mount by which both directories are reached, where it has to be kept.
    _mount: Option<OwnedFd>,
    /// Immutable: device of the upper directory.
    dev: u64,
    /// What the filesystem keeps over a power cut.
    order: order::Order,
    /// The scratch directory and the form of whiteouts.
    work: workdir::Workdir,
    /// Upper inodes by the lower ones they were copied from.
    index: index::Index,
    /// Marks of what cannot carry xattrs.
    sidecar: sidecar::Sidecar,
    /// Set once, when handles are first asked for.
    handles: OnceLock<Handles>,
    /// How the workdir says that there are partial files.
    partial: partial::Announcement,
}

impl Upper {
    /// How it was opened.
    pub fn options(&self) -> &UpperOptions {
        &self.options
    }

    /// Holds the node open, so that it goes on working after its last name is removed.
    pub fn pin(&self, node: &Node) -> io::Result<()> {
        let node = path_node(node)?;
        if !node.is_pinned() {
            let fd = node.path_fd()?;
            node.set_pinned(Some(fd));
        }
        Ok(())
    }

    /// The descriptor that holds the node open, and its inode number.
    pub fn pinned(&self, node: &Node) -> Option<(RawFd, u64)> {
        let node = path_node(node).ok()?;
        Some((node.pinned_fd()?, node.ino()))
    }

    /// The descriptors by which the upper and the workdir are held.
    pub fn locks(&self) -> [BorrowedFd<'_>; 2] {
        [self.lock.as_fd(), self.work.base.as_fd()]
    }

    /// A node without a name, of which another process left a descriptor. Fails where that is another file's.
    pub fn adopt_pinned(&self, fd: OwnedFd, ino: u64) -> io::Result<Node> {
        let stat = rustix::fs::fstat(&fd)?;
        if stat.st_ino as u64 != ino || stat.st_dev as u64 != self.dev {
            // Whose it is knows nobody: it stays open.
            std::mem::forget(fd);
            return Err(io::Error::from_raw_os_error(libc::ESTALE));
        }
        Ok(Node::Path(PathNode::nameless(
            &self.tree,
            Arc::new(fd),
            ino,
        )))
    }

    /// Lets go of what [`Upper::pin`] holds.
    pub fn unpin(&self, node: &Node) {
        if let Ok(node) = path_node(node) {
            node.set_pinned(None);
        }
    }

    /// Whether the node is held open.
    pub fn is_pinned(&self, node: &Node) -> bool {
        path_node(node).is_ok_and(|node| node.is_pinned())
    }

    /// The node was found under another name too.
    pub fn add_location(&self, node: &Node, dir: &Node, name: &OsStr) {
        if let (Ok(node), Ok(dir)) = (path_node(node), path_node(dir)) {
            node.add_place(dir, name);
        }
    }

    fn handles(&self) -> io::Result<&Handles> {
        if let Some(handles) = self.handles.get() {
            return Ok(handles);
        }
        let handles = Handles::open(&self.root_fd)?;
        Ok(self.handles.get_or_init(|| handles))
    }
}

impl Layer for Upper {
    fn root(&self) -> Node {
        Node::Path(self.root.clone())
    }
    fn lookup(&self, dir: &Node, name: &OsStr, xwhiteouts: bool) -> io::Result<LayerLookup> {
        let xwhiteouts = xwhiteouts || self.work.writes_marked_whiteouts();
        self.tree.lookup(path_node(dir)?, name, xwhiteouts)
    }
    fn stat(&self, node: &Node) -> io::Result<Stat> {
        self.tree.stat(path_node(node)?)
    }
    fn marks(&self, node: &Node, stat: &Stat) -> io::Result<Marks> {
        let node = path_node(node)?;
        if self.needs_sidecar(stat.mode) {
            return self.sidecar.read(node);
        }
        self.tree.marks(node, stat.is_dir())
    }
    fn read_dir(
        &self,
        dir: &Node,
        xwhiteouts: bool,
        sink: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let xwhiteouts = xwhiteouts || self.work.writes_marked_whiteouts();
        self.tree.read_dir(path_node(dir)?, xwhiteouts, sink)
    }
    fn read_link(&self, node: &Node) -> io::Result<OsString> {
        self.tree.read_link(path_node(node)?)
    }
    fn list_xattr(&self, node: &Node) -> io::Result<Vec<OsString>> {
        self.tree.list_xattr(path_node(node)?)
    }
    fn get_xattr(&self, node: &Node, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        self.tree.get_xattr(path_node(node)?, name)
    }
    fn open(&self, node: &Node, access: Access) -> io::Result<RealFile> {
        let fd = self.open_file(path_node(node)?, access)?;
        Ok(RealFile::from_file(fd.into()))
    }
    fn handle(&self, node: &Node) -> io::Result<Option<OverlayHandle>> {
        self.handles()?.encode(&self.tree, path_node(node)?)
    }
    fn stat_by_handle(&self, handle: &OverlayHandle) -> io::Result<Option<Stat>> {
        self.handles()?.stat(handle)
    }
    fn ino_of_handle(&self, handle: &OverlayHandle) -> Option<u64> {
        self.handles().ok()?.ino(handle)
    }
    fn statfs(&self) -> io::Result<Statvfs> {
        Ok(fstatvfs(&*self.root_fd)?)
    }
    fn describe(&self) -> String {
        self.path.display().to_string()
    }
    fn dev(&self) -> u64 {
        self.dev
    }
}
