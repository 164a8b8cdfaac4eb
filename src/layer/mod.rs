//! Read access to one layer, and the writable upper layer.
//!
//! A [`Layer`] is handle-based: a caller starts at [`Layer::root`] and steps from node to node, so that a
//! plain directory, an archive and a packed layer can all implement it. Layers decode whiteouts and the
//! overlay's private xattrs; their callers never see `.wh.` names or 0:0 character devices.

pub mod dir;
pub mod error;
pub mod fdcache;
pub mod format;
mod name;
pub mod node;
pub mod owners;
pub mod packed;
mod tree;
pub mod upper;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

pub use name::SharedName;
pub use node::{ChildNode, PathNode};
pub(crate) use tree::to_stat;

/// A point in time: seconds since the epoch (negative before 1970) and nanoseconds below 1e9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds since the epoch, rounded down.
    pub sec: i64,
    /// Nanoseconds, `0..1_000_000_000`.
    pub nsec: u32,
}

/// What `lstat` tells of a node, ids as they lie on disk (before any id map), after
/// `override_stat` where the layer was opened with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Device of the filesystem that holds the node.
    pub dev: u64,
    /// Inode number there.
    pub ino: u64,
    /// File type and permission bits (`st_mode`).
    pub mode: u32,
    /// Link count.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a special file (`dev_t` of the C library).
    pub rdev: u64,
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

impl Stat {
    /// The file type bits, `S_IFREG` and so on.
    pub fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }
    /// True for a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type() == libc::S_IFREG
    }
}

/// A node of a layer. Cheap to clone; valid as long as its layer.
#[derive(Clone, Debug)]
pub enum Node {
    /// A node of a plain directory tree: found by its parent and name.
    Path(Arc<PathNode>),
    /// A node of a plain directory tree that never moves and is no directory.
    Child(ChildNode),
    /// A node of an indexed layer: the number of its entry.
    Index(u64),
}

/// The answer of [`Layer::lookup`].
#[derive(Clone, Debug)]
pub enum LayerLookup {
    /// This layer says nothing of the name.
    Missing,
    /// This layer hides the name in the layers below.
    Whiteout,
    /// The layer has the name.
    Found(Found),
}

/// A node found by name.
#[derive(Clone, Debug)]
pub struct Found {
    /// The node.
    pub node: Node,
    /// Its attributes at the time of the lookup.
    pub stat: Stat,
    /// The same layer also whites the name out (`.wh.NAME` beside `NAME`): a directory is then opaque.
    pub beside_whiteout: bool,
}

/// How a directory hides the layers below (kernel: `overlay.opaque`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opaque {
    /// It does not.
    #[default]
    No,
    /// `y`, or a `.wh..wh..opq` entry: nothing below shows through.
    Yes,
    /// `x`: not opaque, but regular files in it may be whiteouts by the `overlay.whiteout` xattr.
    XWhiteouts,
}

/// The overlay's private xattrs on one node, decoded. Those of all accepted namespaces count
/// (`trusted.overlay.`, `user.overlay.`, `user.fuseoverlayfs.` for opaque).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Directories: how the layers below are hidden.
    pub opaque: Opaque,
    /// Where the layers below have this directory or data: absolute from the layer's root, or one name
    /// beside its own.
    pub redirect: Option<OsString>,
    /// The file holds no data; the data is in a layer below.
    pub metacopy: bool,
    /// The file handle (kernel `struct ovl_fb` as stored, undecoded) of the lower node it was copied from.
    pub origin: Option<OverlayHandle>,
    /// The raw value of `overlay.nlink`, such as `U+1`.
    pub nlink: Option<String>,
    /// Directories: some entries have an origin, so `d_ino` needs a lookup each.
    pub impure: bool,
    /// With `metacopy`: some of the file's blocks are here after all, as this says (see
    /// [`format::PartialRecord`]). Without it a remainder that says nothing.
    pub partial: Option<Vec<u8>>,
    /// Attributes are to be put back that the copying of data changed (see [`upper::Mark::Kept`]).
    pub kept: bool,
}

/// A file handle in the form the kernel's overlayfs stores (`struct ovl_fb`: version, magic, length,
/// flags, type, filesystem uuid, file id), used as `origin` and, in hexadecimal, as index entry name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OverlayHandle(pub Vec<u8>);

/// One entry of [`Layer::read_dir`].
#[derive(Clone, Copy, Debug)]
pub struct LayerEntry<'a> {
    /// The name, without any whiteout prefix.
    pub name: &'a OsStr,
    /// Inode number in the layer's filesystem; 0 for a whiteout that has none.
    pub ino: u64,
    /// What stands there.
    pub kind: EntryKind,
}

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A node of this type (`S_IFREG` and so on).
    Node(u32),
    /// A whiteout in any form.
    Whiteout,
}

/// What [`Layer::open`] is to open a regular file for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Writing, and reading where the process may (a mode-0200 file of another user opens write-only).
    Write,
}

/// An open regular file of a layer.
#[derive(Debug)]
pub struct RealFile {
    /// Immutable: the open file.
    file: File,
}

impl RealFile {
    /// Wraps an open file.
    pub fn from_file(file: File) -> RealFile {
        RealFile { file }
    }
    /// Reads at `offset` without moving a file position; fewer bytes than asked only at the end. An error behind the first
    /// bytes is one of the whole: as an answer to the kernel, fewer bytes say that the file ends there.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
    /// The descriptor, where the data is a file of its own: the seam for reflink and passthrough.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
    /// The file itself, where the data is a file of its own.
    pub fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

/// Read access to one layer. All methods may be called from many threads at once.
///
/// Errors are those of the system calls beneath; absence is a value, never an error.
pub trait Layer: Send + Sync + std::fmt::Debug {
    /// The layer's root directory.
    fn root(&self) -> Node;
    /// What the layer says of `name` in `dir`. `xwhiteouts`: `dir` was marked [`Opaque::XWhiteouts`].
    fn lookup(&self, dir: &Node, name: &OsStr, xwhiteouts: bool) -> io::Result<LayerLookup>;
    /// Attributes, not following a symlink.
    fn stat(&self, node: &Node) -> io::Result<Stat>;
    /// The overlay's private marks. `stat` spares looking for marks that a node of its type cannot have.
    fn marks(&self, node: &Node, stat: &Stat) -> io::Result<Marks>;
    /// Every entry but `.`, `..` and opaque markers, whiteouts decoded, in the order of the directory, until `sink` breaks.
    /// A name that is both whited out and present in this layer is given as the node only.
    fn read_dir(
        &self,
        dir: &Node,
        xwhiteouts: bool,
        sink: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()>;
    /// The target of a symlink.
    fn read_link(&self, node: &Node) -> io::Result<OsString>;
    /// Names of all xattrs as they lie on disk, private ones included; of a layer of the store, without those, as a mount would
    /// write them (see [`dir::LayerOptions::names_for`]).
    fn list_xattr(&self, node: &Node) -> io::Result<Vec<OsString>>;
    /// The value of one xattr by its name on disk; `None` when it is absent.
    fn get_xattr(&self, node: &Node, name: &OsStr) -> io::Result<Option<Vec<u8>>>;
    /// Whether an xattr that was listed tells of this layer, and not of the file, so that no copy of the file is to have it. `namespace`: of the
    /// upper.
    fn is_mark(&self, namespace: upper::Namespace, name: &OsStr) -> bool {
        format::is_mark_of_lower(namespace, name)
    }
    /// Opens a regular file. Lower layers refuse [`Access::Write`] with `EROFS`.
    fn open(&self, node: &Node, access: Access) -> io::Result<RealFile>;
    /// The node's file handle in the kernel overlay's form; `None` where the filesystem has none.
    fn handle(&self, node: &Node) -> io::Result<Option<OverlayHandle>>;
    /// Attributes of the node that a handle of this layer's filesystem names: `None` when the handle is of another
    /// filesystem, is stale, or the process may not open by handle.
    fn stat_by_handle(&self, handle: &OverlayHandle) -> io::Result<Option<Stat>>;
    /// The inode number that a handle of this layer's filesystem holds, read from its bytes: `None` when it is of another
    /// filesystem, or of a type that is not known. Needs no privilege.
    fn ino_of_handle(&self, _handle: &OverlayHandle) -> Option<u64> {
        None
    }
    /// Nothing can be written through what [`Layer::open`] gives, not even by the kernel reopening it: passthrough is safe.
    fn is_protected(&self) -> bool {
        false
    }
    /// Filesystem statistics.
    fn statfs(&self) -> io::Result<nix::sys::statvfs::Statvfs>;
    /// Where the layer lies, for messages.
    fn describe(&self) -> String;
    /// Device number of the filesystem that holds the layer.
    fn dev(&self) -> u64;
}
