//! The writable upper layer: the only way anything in it changes.
//!
//! Every mutation that a crash could leave half-done is built in the workdir and published by one rename or link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::error::UpperError;
use super::fdcache::FdCache;
use super::{
    Access, Layer, LayerEntry, LayerLookup, Marks, Node, OverlayHandle, RealFile, Stat, Timestamp,
};

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
}

/// A new inode in the workdir that no one sees yet. Dropped without [`Upper::publish`] it is removed again.
#[derive(Debug)]
pub struct Staged {
    node: Node,
}

impl Staged {
    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }
    /// The open file, for [`Stage::File`].
    pub fn file(&self) -> Option<&File> {
        None
    }
    /// Attributes at present.
    pub fn stat(&self) -> io::Result<Stat> {
        nosys()
    }
    /// Sets owner and group.
    pub fn chown(&self, _uid: Option<u32>, _gid: Option<u32>) -> io::Result<()> {
        nosys()
    }
    /// Sets the permission bits.
    pub fn chmod(&self, _mode: u32) -> io::Result<()> {
        nosys()
    }
    /// Sets times; `None` leaves one as it is.
    pub fn set_times(&self, _atime: Option<TimeSet>, _mtime: Option<TimeSet>) -> io::Result<()> {
        nosys()
    }
    /// Sets an xattr by its name on disk.
    pub fn set_xattr(&self, _disk_name: &OsStr, _value: &[u8], _flags: i32) -> io::Result<()> {
        nosys()
    }
    /// Writes a private mark.
    pub fn set_mark(&self, _mark: &Mark) -> io::Result<()> {
        nosys()
    }
}

/// The writable upper layer and its workdir.
#[derive(Debug)]
pub struct Upper {
    _private: (),
}

fn nosys<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Upper {
    /// Checks both directories, takes them for this mount, and cleans the workdir.
    pub fn open(
        upper: &Path,
        _work: &Path,
        _options: UpperOptions,
        _cache: Arc<FdCache>,
    ) -> Result<Arc<Upper>, UpperError> {
        Err(UpperError::Missing("upper directory", upper.to_owned()))
    }
    /// How it was opened.
    pub fn options(&self) -> &UpperOptions {
        unreachable!()
    }
    /// Makes a new inode in the workdir: a file of mode 0600, a directory of mode 0700, until set otherwise.
    pub fn stage(self: &Arc<Self>, _kind: Stage<'_>) -> io::Result<Staged> {
        nosys()
    }
    /// Gives a staged inode its name; returns the node at its place.
    pub fn publish(
        &self,
        _staged: Staged,
        _dir: &Node,
        _name: &OsStr,
        _replace: Replace,
    ) -> io::Result<Node> {
        nosys()
    }
    /// Gives a node another name.
    pub fn link(
        &self,
        _node: &Node,
        _dir: &Node,
        _name: &OsStr,
        _replace: Replace,
    ) -> io::Result<()> {
        nosys()
    }
    /// Takes a name away. `node` is `None` where the upper has nothing of that name and only a whiteout is made.
    /// A directory must hold nothing but whiteouts.
    pub fn remove(
        &self,
        _dir: &Node,
        _name: &OsStr,
        _node: Option<&Node>,
        _is_dir: bool,
        _whiteout: bool,
    ) -> io::Result<()> {
        nosys()
    }
    /// Moves a node. `whiteout`: leave one at the old name, in the same step. `replaced`: the upper node that
    /// stands at the new name, if any.
    #[allow(clippy::too_many_arguments)]
    pub fn rename(
        &self,
        _from: (&Node, &OsStr),
        _node: &Node,
        _to: (&Node, &OsStr),
        _replaced: Option<&Node>,
        _replace: Replace,
        _whiteout: bool,
    ) -> io::Result<()> {
        nosys()
    }
    /// Exchanges two nodes atomically; each is given as directory, name, node.
    pub fn exchange(
        &self,
        _a: (&Node, &OsStr, &Node),
        _b: (&Node, &OsStr, &Node),
    ) -> io::Result<()> {
        nosys()
    }
    /// Holds the node open, so that it goes on working after its last name is removed.
    pub fn pin(&self, _node: &Node) -> io::Result<()> {
        nosys()
    }
    /// Lets go of what [`Upper::pin`] holds.
    pub fn unpin(&self, _node: &Node) {}
    /// Whether the node is held open.
    pub fn is_pinned(&self, _node: &Node) -> bool {
        false
    }
    /// The node was found under another name too.
    pub fn add_location(&self, _node: &Node, _dir: &Node, _name: &OsStr) {}
    /// Sets owner and group.
    pub fn chown(&self, _node: &Node, _uid: Option<u32>, _gid: Option<u32>) -> io::Result<()> {
        nosys()
    }
    /// Sets the permission bits.
    pub fn chmod(&self, _node: &Node, _mode: u32) -> io::Result<()> {
        nosys()
    }
    /// Sets times; `None` leaves one as it is.
    pub fn set_times(
        &self,
        _node: &Node,
        _atime: Option<TimeSet>,
        _mtime: Option<TimeSet>,
    ) -> io::Result<()> {
        nosys()
    }
    /// Sets the size of a regular file.
    pub fn truncate(&self, _node: &Node, _size: u64) -> io::Result<()> {
        nosys()
    }
    /// Sets an xattr by its name on disk; `flags` as of `setxattr(2)`.
    pub fn set_xattr(
        &self,
        _node: &Node,
        _disk_name: &OsStr,
        _value: &[u8],
        _flags: i32,
    ) -> io::Result<()> {
        nosys()
    }
    /// Removes an xattr by its name on disk.
    pub fn remove_xattr(&self, _node: &Node, _disk_name: &OsStr) -> io::Result<()> {
        nosys()
    }
    /// Writes a private mark.
    pub fn set_mark(&self, _node: &Node, _mark: &Mark) -> io::Result<()> {
        nosys()
    }
    /// Makes a file or directory durable; does nothing when volatile.
    pub fn fsync(&self, _node: &Node) -> io::Result<()> {
        nosys()
    }
    /// Makes the whole filesystem durable; does nothing when volatile.
    pub fn sync(&self) -> io::Result<()> {
        nosys()
    }
    /// The upper inode that was copied up from the lower inode of this handle. Answered from memory when there is none.
    pub fn index_lookup(&self, _handle: &OverlayHandle) -> io::Result<Option<(Node, Stat)>> {
        nosys()
    }
    /// No lower inode has an index entry.
    pub fn index_is_empty(&self) -> bool {
        false
    }
    /// Records the upper inode of a lower inode with several links.
    pub fn index_add(&self, _handle: &OverlayHandle, _node: &Node) -> io::Result<()> {
        nosys()
    }
    /// Forgets it; no error when there is none.
    pub fn index_remove(&self, _handle: &OverlayHandle) -> io::Result<()> {
        nosys()
    }
}

impl Layer for Upper {
    fn root(&self) -> Node {
        Node::Index(0)
    }
    fn lookup(&self, _: &Node, _: &OsStr, _: bool) -> io::Result<LayerLookup> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn stat(&self, _: &Node) -> io::Result<Stat> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn marks(&self, _: &Node, _: &Stat) -> io::Result<Marks> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn read_dir(
        &self,
        _: &Node,
        _: bool,
        _: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn read_link(&self, _: &Node) -> io::Result<OsString> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn list_xattr(&self, _: &Node) -> io::Result<Vec<OsString>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn get_xattr(&self, _: &Node, _: &OsStr) -> io::Result<Option<Vec<u8>>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn open(&self, _: &Node, _: Access) -> io::Result<RealFile> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn handle(&self, _: &Node) -> io::Result<Option<OverlayHandle>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn stat_by_handle(&self, _: &OverlayHandle) -> io::Result<Option<Stat>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn statfs(&self) -> io::Result<nix::sys::statvfs::Statvfs> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn describe(&self) -> String {
        String::new()
    }
    fn dev(&self) -> u64 {
        0
    }
}
