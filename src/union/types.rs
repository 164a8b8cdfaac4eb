//! The vocabulary of the union's operations: what a transport passes in and gets back.

use std::any::Any;
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

pub use crate::layer::Timestamp;

/// A node id: what the kernel knows an inode by. 1 is the root.
pub type NodeId = u64;

/// The node id of the root directory.
pub const ROOT: NodeId = 1;

/// Who asks, in the ids of the mount's own user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
    /// Process id, 0 where it is outside the daemon's pid namespace.
    pub pid: u32,
}

/// Attributes of a node as a program sees them (ids mapped, link count of the union).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// `st_ino`.
    pub ino: u64,
    /// File type and permission bits.
    pub mode: u32,
    /// Link count.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a special file, in the kernel's 32-bit encoding (`new_encode_dev`).
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte units.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
}

/// An answer that names a node; each one given to the kernel counts as one lookup of it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The node id, which differs from `attr.ino` for a file that got a new node at copy-up.
    pub node: NodeId,
    /// Tells apart two inodes that had the same node id at different times.
    pub generation: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long the kernel may keep the attributes. Zero when `node != attr.ino`.
    pub attr_ttl: Duration,
    /// How long the kernel may keep the name.
    pub entry_ttl: Duration,
}

/// The answer of a lookup.
#[derive(Clone, Copy, Debug)]
pub enum Lookup {
    /// The name exists.
    Found(Entry),
    /// It does not, and the kernel may remember that so long.
    Absent(Duration),
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The present.
    Now,
    /// This time.
    At(Timestamp),
}

/// What `setattr` is to change.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncate or extend.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// The open file by which it is asked, if any.
    pub handle: Option<HandleId>,
}

/// Names an open file or directory.
pub type HandleId = u64;

/// A registered backing file of the kernel's passthrough; dropping the last clone closes it.
pub type Backing = Arc<dyn Any + Send + Sync>;

/// Registers backing files with the kernel. The transport implements it for the request at hand.
pub trait BackingOpener {
    /// Registers an open file for passthrough; `writable`: programs may write to it.
    fn open_backing(&self, fd: BorrowedFd<'_>, writable: bool) -> io::Result<Backing>;
    /// The number that the kernel knows it by.
    fn id_of(&self, _backing: &Backing) -> u32 {
        0
    }
}

/// Tells the kernel what to cache, and what no more. Called without any lock held where nothing else is said.
pub trait Notify: Send + Sync {
    /// The attributes of a node are to be asked for again.
    fn inval_attr(&self, node: NodeId);
    /// The same, soon; may be called while the kernel writes the node's data back.
    fn inval_attr_later(&self, node: NodeId);
    /// The attributes and cached data of a node are out of date.
    fn inval_data(&self, node: NodeId);
    /// What the kernel holds back of a node's data is to be written, which is done when this returns. It waits for requests to
    /// write: called with no lock held, and by a thread that is not needed for them.
    fn write_back(&self, _node: NodeId) {}
    /// The kernel was told of some thousand nodes more. Called while a request is served.
    fn told_many(&self) {}
    /// These are the data of a node from its beginning, to be cached. The kernel waits for pages of the node that it is
    /// reading or writing at the moment: nobody else may have it open. Called with the lock of the node's opens held.
    fn store(&self, node: NodeId, data: &[u8]);
}

/// How an opened file is to be served.
#[derive(Clone)]
pub enum OpenMode {
    /// By read and write requests through the page cache; `keep`: what is cached from before is still valid.
    Cached {
        /// The pages that the kernel holds stay valid.
        keep: bool,
    },
    /// By the kernel itself, on this backing file.
    Passthrough(Backing),
}

/// The answer of `open` and `create`.
#[derive(Clone)]
pub struct Opened {
    /// The open file.
    pub handle: HandleId,
    /// How it is served.
    pub mode: OpenMode,
}

/// How `rename` treats the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces what is there.
    Replace,
    /// `EEXIST` when something is there.
    NoReplace,
    /// Exchanges the two atomically.
    Exchange,
}

/// One entry of a directory listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a OsStr,
    /// `d_ino`.
    pub ino: u64,
    /// The file type bits.
    pub file_type: u32,
    /// The cookie that a reading continues after; never 0, stable while entries come and go.
    pub cookie: u64,
}

/// What the kernel says of a write besides its data.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteFlags {
    /// The writer, where it may not keep suid and sgid (`FUSE_WRITE_KILL_SUIDGID`).
    pub kill_priv: Option<Caller>,
    /// These are pages that were written to before, not what a program waits for (`FUSE_WRITE_CACHE`): the kernel takes all of
    /// them for written unless it is told an error.
    pub cached: bool,
}
