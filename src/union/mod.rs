//! The union of layers as a filesystem. Knows neither FUSE nor OCI.
//!
//! [`Union`] offers one method per filesystem operation; what each does lies in the module of its concern:
//!
//! - `stack`: the layers, and the lookup of one name through them; `namei`: from a name to an inode;
//! - `inode`, `table`: identity, real parts and names of a file; which of them the kernel knows by which node id;
//! - `listing`, `readdir`: the merged entries of a directory;
//! - `copy_up`, `copy_data`, `cause`, `dir`, `rename`: changes of the upper; `attr`, `xattr`, `acl`, `idmap`: attributes;
//! - `open`, `file`: open files, and whether the kernel serves them by itself; `partial`: those that are copied up by blocks;
//! - `journal`, `record`, `book`, `adopt`: what another process has to know to go on where this one stops, and how it does;
//! - `explain`, `report`, `stats`: what a union tells about itself; `lock`: the order of locks; `models`: tests under every
//!   order of threads; `probe`: what is fuzzed.

mod acl;
mod adopt;
mod attr;
mod book;
mod cause;
mod checkpoint;
mod copy_data;
mod copy_up;
#[cfg(test)]
pub(crate) mod deaths;
mod dir;
pub mod error;
mod explain;
mod few;
mod file;
mod fit;
mod identity;
pub mod idmap;
mod inode;
mod journal;
mod links;
mod listing;
mod lock;
#[cfg(test)]
mod models;
mod moves;
mod namei;
mod note;
mod numbered;
mod open;
pub mod params;
mod partial;
pub mod probe;
mod readdir;
mod record;
mod remove;
mod rename;
pub mod report;
mod stack;
mod stats;
mod strays;
mod table;
pub mod types;
mod xattr;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::statvfs::Statvfs;

pub use error::{Error, Result};
pub use journal::{BROKEN, Journal, is_resent};
pub use params::Params;
pub use record::FORM;
pub use report::{Change, ChangeKind, Completed, Explanation, PartialWord, StatsSnapshot};
pub use types::*;

use crate::layer::upper::Upper;
use crate::layer::{Layer, Opaque};
use crate::sys::sync::{AtomicBool, Mutex};
use file::Handles;
use inode::{Inode, State, UpperPart};
use lock::{Rank, Ranked};
use open::IdleFiles;
use params::RedirectDir;
use stack::Stack;
use strays::Strays;
use table::Table;

/// The merged filesystem.
#[derive(Debug)]
pub struct Union {
    /// Immutable.
    stack: Stack,
    /// Immutable.
    params: Params,
    /// The root directory, known to the kernel as [`ROOT`]. Immutable.
    root: Arc<Inode>,
    /// Its own leaf locks.
    table: Table,
    /// Its own leaf locks.
    handles: Handles,
    /// Its own leaf lock.
    idle: IdleFiles,
    /// Held by renames between directories.
    rename_lock: Ranked<()>,
    /// Set once.
    notify: OnceLock<NotifyCell>,
    /// Atomic.
    stats: stats::Counters,
    /// When and why inodes were copied up by this mount, and what it cost, by inode number. A leaf lock.
    copied: Mutex<HashMap<u64, explain::CopyUpEvent>>,
    /// The partial files; its own lock.
    partials: Arc<partial::Registry>,
    /// Set once those that an earlier mount left have been found. A leaf lock.
    partials_found: Mutex<Option<()>>,
    /// Where another process finds what it has to know to go on where this one stops. Set once, if at all.
    journal: OnceLock<Arc<Journal>>,
    /// What the process before left. Set once, if there was one.
    adopted: OnceLock<adopt::Adopted>,
    /// A lower file of several names was found. Atomic.
    met_links: AtomicBool,
    strays: Strays,
    /// Held while the number of names of a file changes that is in the index, across the system calls that do it.
    names: Ranked<()>,
}

struct NotifyCell(Arc<dyn Notify>);

impl std::fmt::Debug for NotifyCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notify")
    }
}

impl std::ops::Deref for NotifyCell {
    type Target = dyn Notify;
    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

#[allow(clippy::too_many_arguments)]
impl Union {
    /// Makes a union of lower layers (topmost first) and an upper, if it is to be writable.
    pub fn new(
        lowers: Vec<Arc<dyn Layer>>,
        upper: Option<Arc<Upper>>,
        params: Params,
    ) -> Result<Union> {
        let follow = params.redirect_dir != RedirectDir::NoFollow;
        let stack = Stack::new(lowers, upper, follow, params.data_layers);
        let table = Table::new();
        let parts = stack.root()?;
        let Some(stat) = parts.stat().copied() else {
            return Err(Error::Corrupt("a union needs at least one layer".into()));
        };
        let numbered = parts.lower_stat.unwrap_or(stat);
        let ino = stack.ino(numbered.dev, numbered.ino, || table.dynamic_ino());
        let state = State {
            lowers: parts.lowers,
            impure: parts.upper.as_ref().is_some_and(|u| u.marks.impure),
            upper: parts.upper.map(|u| {
                Box::new(UpperPart {
                    real_ino: u.stat.ino,
                    xwhiteouts: u.marks.opaque == Opaque::XWhiteouts,
                    node: u.node,
                })
            }),
            ..State::default()
        };
        let root = Arc::new(Inode::new(ROOT, ino, libc::S_IFDIR, state));
        table.acquire(ROOT, &root);
        Ok(Union {
            stack,
            params,
            root,
            table,
            handles: Handles::new(),
            idle: IdleFiles::for_this_process(),
            rename_lock: Ranked::new(Rank::Rename, ()),
            notify: OnceLock::new(),
            stats: stats::Counters::default(),
            copied: Mutex::default(),
            partials: Arc::default(),
            partials_found: Mutex::default(),
            journal: OnceLock::new(),
            adopted: OnceLock::new(),
            met_links: AtomicBool::new(false),
            strays: Strays::default(),
            names: Ranked::new(Rank::Names, ()),
        })
    }

    fn writable(&self) -> Result<()> {
        if self.params.read_only || self.stack.upper.is_none() {
            return Err(Error::Errno(libc::EROFS));
        }
        Ok(())
    }

    /// Refuses every change from now on; called before the first request.
    pub fn refuse_changes(&mut self) {
        self.params.read_only = true;
    }

    /// Where cache invalidations go; called once, before the first request.
    pub fn set_notify(&self, notify: Arc<dyn Notify>) {
        if self.notify.set(NotifyCell(notify)).is_err() {
            log::error!("the receiver of cache invalidations was set twice");
        }
    }

    /// The semantic options.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Called once when the mount is gone: lets go of every inode and open file.
    pub fn shutdown(&self) {
        self.handles.clear();
        self.idle.clear();
        self.table.clear();
    }

    /// What a name in a directory stands for.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Lookup> {
        self.do_lookup(parent, name)
    }

    /// The kernel gives back `count` lookups of a node.
    pub fn forget(&self, node: NodeId, count: u64) {
        self.do_forget(node, count)
    }

    /// Where the kernel knows more than `most` nodes: those of them, of what nobody uses here, that it may be asked to forget, so
    /// that a quarter less than `most` are left. Else none.
    pub fn nodes_beyond(&self, most: usize) -> Vec<NodeId> {
        self.table.unused(|known| match known > most {
            true => known - most + most / 4,
            false => 0,
        })
    }

    /// Attributes, and how long they may be kept.
    pub fn getattr(&self, node: NodeId, handle: Option<HandleId>) -> Result<(Attr, Duration)> {
        self.do_getattr(node, handle)
    }

    /// An all-`None` [`SetAttr`] means: take suid and sgid away.
    pub fn setattr(
        &self,
        caller: &Caller,
        node: NodeId,
        set: &SetAttr,
    ) -> Result<(Attr, Duration)> {
        self.do_setattr(caller, node, set)
    }

    /// The target of a symlink.
    pub fn readlink(&self, node: NodeId) -> Result<OsString> {
        self.do_readlink(node)
    }

    /// `rdev` in the kernel's 32-bit encoding.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Result<Entry> {
        self.do_mknod(caller, parent, name, mode, umask, rdev)
    }

    /// Makes a directory.
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        self.do_mkdir(caller, parent, name, mode, umask)
    }

    /// Makes a symlink.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Entry> {
        self.do_symlink(caller, parent, name, target)
    }

    /// Gives a file another name.
    pub fn link(
        &self,
        caller: &Caller,
        node: NodeId,
        new_parent: NodeId,
        new_name: &OsStr,
    ) -> Result<Entry> {
        self.do_link(caller, node, new_parent, new_name)
    }

    /// Removes a name of what is no directory.
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.do_unlink(parent, name)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.do_rmdir(parent, name)
    }

    /// Moves a name.
    pub fn rename(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        self.do_rename(caller, parent, name, new_parent, new_name, mode)
    }

    /// `flags` as of `open(2)`. `ESTALE` asks the kernel to look the name up again.
    pub fn open(
        &self,
        caller: &Caller,
        node: NodeId,
        flags: i32,
        backing: &dyn BackingOpener,
    ) -> Result<Opened> {
        self.do_open(caller, node, flags, backing)
    }

    /// Makes a regular file and opens it.
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        backing: &dyn BackingOpener,
    ) -> Result<(Entry, Opened)> {
        self.do_create(caller, parent, name, mode, umask, flags, backing)
    }

    /// Reads; fewer bytes than asked only at the end of the file.
    pub fn read(&self, handle: HandleId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.do_read(handle, offset, buf)
    }

    /// Writes; returns how many bytes were taken.
    pub fn write(
        &self,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<usize> {
        self.do_write(handle, offset, data, flags)
    }

    /// An open file is closed.
    pub fn release(&self, handle: HandleId) {
        self.do_release(handle)
    }

    /// Makes an open file durable.
    pub fn fsync(&self, handle: HandleId, datasync: bool) -> Result<()> {
        self.do_fsync(handle, datasync)
    }

    /// As `fallocate(2)`.
    pub fn fallocate(&self, handle: HandleId, offset: u64, length: u64, mode: i32) -> Result<()> {
        self.do_fallocate(handle, offset, length, mode)
    }

    /// `SEEK_DATA` and `SEEK_HOLE` of `lseek(2)`.
    pub fn lseek(&self, handle: HandleId, offset: i64, whence: i32) -> Result<u64> {
        self.do_lseek(handle, offset, whence)
    }

    /// As `copy_file_range(2)`.
    pub fn copy_file_range(
        &self,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        self.do_copy_file_range(from, from_offset, to, to_offset, len)
    }

    /// Entries after cookie `offset` until `sink` returns true (full). `.` and `..` included.
    pub fn readdir(
        &self,
        node: NodeId,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        self.do_readdir(node, offset, sink)
    }

    /// As `readdir`, with each entry looked up; `None` for `.` and `..`. An entry that `sink` refuses by true is not counted as looked up.
    pub fn readdirplus(
        &self,
        node: NodeId,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<&Entry>) -> bool,
    ) -> Result<()> {
        self.do_readdirplus(node, offset, sink)
    }

    /// Makes the entries of a directory durable.
    pub fn fsyncdir(&self, node: NodeId, _datasync: bool) -> Result<()> {
        self.do_fsyncdir(node)
    }

    /// Statistics of the upper filesystem, or the topmost lower.
    pub fn statfs(&self) -> Result<Statvfs> {
        self.do_statfs()
    }

    /// Sets an xattr; `flags` as of `setxattr(2)`.
    pub fn setxattr(
        &self,
        caller: &Caller,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        self.do_setxattr(caller, node, name, value, flags)
    }

    /// The value of an xattr.
    pub fn getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        self.do_getxattr(node, name)
    }

    /// The names of the xattrs that a caller may see.
    pub fn listxattr(&self, caller: &Caller, node: NodeId) -> Result<Vec<OsString>> {
        self.do_listxattr(caller, node)
    }

    /// Removes an xattr.
    pub fn removexattr(&self, caller: &Caller, node: NodeId, name: &OsStr) -> Result<()> {
        self.do_removexattr(caller, node, name)
    }

    /// Whether a change of the node may first have to copy its data up, which may take long. A guess: another request
    /// may be doing it.
    pub fn may_copy_data(&self, node: NodeId) -> bool {
        self.do_may_copy_data(node)
    }

    /// Likewise of the removal of a name: the file's other names may need a copy.
    pub fn may_copy_linked(&self, parent: NodeId, name: &OsStr) -> bool {
        self.do_may_copy_linked(parent, name)
    }

    /// Which layer shows the path (relative to the mount's root), what hides the others, whether it was copied up.
    pub fn explain(&self, path: &Path) -> Result<Explanation> {
        self.do_explain(path)
    }

    /// What the upper changes, in time proportional to it; sorted by path.
    pub fn diff(&self) -> Result<Vec<Change>> {
        self.do_diff()
    }

    /// Inode numbers of changed files that no name in the upper leads to: hard links that were changed by names which were
    /// removed since, while other names lie below.
    pub fn unnamed(&self) -> Result<Vec<u64>> {
        self.do_unnamed()
    }

    /// Counters since the mount was made; those of single operations are the transport's.
    pub fn stats(&self) -> StatsSnapshot {
        self.do_stats()
    }

    /// Copies the rest of the file at a path, or of all files where that is the root (relative to the mount's root), that
    /// were copied up by blocks; `stop` is asked between the steps.
    pub fn complete(&self, path: &Path, stop: &dyn Fn() -> bool) -> Result<Completed> {
        self.do_complete(path, stop)
    }

    /// To be called now and then by a thread that may take its time: makes durable what programs wrote to partial files,
    /// and completes those that no program changed for as long as `quiet`, and those of which little is missing.
    pub fn tend_partial(&self, quiet: Duration, stop: &dyn Fn() -> bool) -> Result<()> {
        self.do_tend_partial(quiet, stop)
    }

    /// To be called when the mount is gone and the upper is kept: completes everything, unless another mount waits for the upper.
    pub fn complete_at_end(&self) -> Result<Completed> {
        self.do_complete_at_end()
    }

    /// Whether reading or writing by a handle may first have to copy data, which may take long.
    pub fn may_wait(&self, handle: HandleId) -> bool {
        match self.handles.get(handle) {
            Ok(handle) => handle.inode.state.read().partial().is_some(),
            // As of a node.
            Err(_) => self.took_over(),
        }
    }

    fn do_readlink(&self, node: NodeId) -> Result<OsString> {
        let inode = self.node(node)?;
        if inode.file_type() != libc::S_IFLNK {
            return Err(Error::Errno(libc::EINVAL));
        }
        let (layer, at) = self.top(&inode)?;
        Ok(layer.read_link(&at)?)
    }
}
