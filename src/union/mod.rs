//! The union of layers as a filesystem. Knows neither FUSE nor OCI.

pub mod error;
pub mod idmap;
pub mod params;
pub mod report;
pub mod types;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::statvfs::Statvfs;

pub use error::{Error, Result};
pub use params::Params;
pub use report::{Change, ChangeKind, Explanation, StatsSnapshot};
pub use types::*;

use crate::layer::Layer;
use crate::layer::upper::Upper;

/// The merged filesystem.
pub struct Union {}

#[allow(unused_variables, clippy::todo, clippy::too_many_arguments)]
impl Union {
    /// See the module.
    pub fn new(
        lowers: Vec<Arc<dyn Layer>>,
        upper: Option<Arc<Upper>>,
        params: Params,
    ) -> Result<Union> {
        todo!()
    }
    /// Where cache invalidations go; called once, before the first request.
    pub fn set_notify(&self, notify: Arc<dyn Notify>) {
        todo!()
    }
    /// See the module.
    pub fn params(&self) -> &Params {
        todo!()
    }
    /// See the module.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Lookup> {
        todo!()
    }
    /// The kernel gives back `count` lookups of a node.
    pub fn forget(&self, node: NodeId, count: u64) {
        todo!()
    }
    /// See the module.
    pub fn getattr(&self, node: NodeId, handle: Option<HandleId>) -> Result<(Attr, Duration)> {
        todo!()
    }
    /// An all-`None` [`SetAttr`] means: take suid and sgid away.
    pub fn setattr(
        &self,
        caller: &Caller,
        node: NodeId,
        set: &SetAttr,
    ) -> Result<(Attr, Duration)> {
        todo!()
    }
    /// See the module.
    pub fn readlink(&self, node: NodeId) -> Result<OsString> {
        todo!()
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
        todo!()
    }
    /// See the module.
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        todo!()
    }
    /// See the module.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Entry> {
        todo!()
    }
    /// See the module.
    pub fn link(&self, node: NodeId, new_parent: NodeId, new_name: &OsStr) -> Result<Entry> {
        todo!()
    }
    /// See the module.
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        todo!()
    }
    /// See the module.
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        todo!()
    }
    /// See the module.
    pub fn rename(
        &self,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        todo!()
    }
    /// `flags` as of `open(2)`. `ESTALE` asks the kernel to look the name up again.
    pub fn open(
        &self,
        caller: &Caller,
        node: NodeId,
        flags: i32,
        backing: &dyn BackingOpener,
    ) -> Result<Opened> {
        todo!()
    }
    /// See the module.
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
        todo!()
    }
    /// See the module.
    pub fn read(&self, handle: HandleId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        todo!()
    }
    /// See the module.
    pub fn write(
        &self,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<usize> {
        todo!()
    }
    /// See the module.
    pub fn release(&self, handle: HandleId) {
        todo!()
    }
    /// See the module.
    pub fn fsync(&self, handle: HandleId, datasync: bool) -> Result<()> {
        todo!()
    }
    /// See the module.
    pub fn fallocate(&self, handle: HandleId, offset: u64, length: u64, mode: i32) -> Result<()> {
        todo!()
    }
    /// See the module.
    pub fn lseek(&self, handle: HandleId, offset: i64, whence: i32) -> Result<u64> {
        todo!()
    }
    /// See the module.
    pub fn copy_file_range(
        &self,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        todo!()
    }
    /// See the module.
    pub fn opendir(&self, node: NodeId) -> Result<HandleId> {
        todo!()
    }
    /// Entries after cookie `offset` until `sink` returns true (full). `.` and `..` included.
    pub fn readdir(
        &self,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        todo!()
    }
    /// As `readdir`, with each entry looked up; `None` for `.` and `..`. An entry that `sink` refuses by true is not counted as looked up.
    pub fn readdirplus(
        &self,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<&Entry>) -> bool,
    ) -> Result<()> {
        todo!()
    }
    /// See the module.
    pub fn releasedir(&self, handle: HandleId) {
        todo!()
    }
    /// See the module.
    pub fn fsyncdir(&self, handle: HandleId, datasync: bool) -> Result<()> {
        todo!()
    }
    /// See the module.
    pub fn statfs(&self) -> Result<Statvfs> {
        todo!()
    }
    /// See the module.
    pub fn setxattr(
        &self,
        caller: &Caller,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        todo!()
    }
    /// See the module.
    pub fn getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        todo!()
    }
    /// See the module.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<OsString>> {
        todo!()
    }
    /// See the module.
    pub fn removexattr(&self, caller: &Caller, node: NodeId, name: &OsStr) -> Result<()> {
        todo!()
    }
    /// Called once when the mount is gone: lets go of every layer.
    pub fn shutdown(&self) {
        todo!()
    }
    /// Which layer shows the path (relative to the mount's root), what hides the others, whether it was copied up.
    pub fn explain(&self, path: &Path) -> Result<Explanation> {
        todo!()
    }
    /// What the upper changes, in time proportional to it; sorted by path.
    pub fn diff(&self) -> Result<Vec<Change>> {
        todo!()
    }
    /// See the module.
    pub fn stats(&self) -> StatsSnapshot {
        todo!()
    }
}
