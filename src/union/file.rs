//! Open files: reading, writing and what else goes by handle.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;

use super::Union;
use super::error::{Error, Result};
use super::inode::Inode;
use super::open::NodeOpen;
use super::types::{HandleId, WriteFlags};
use crate::layer::{Access, RealFile};
use crate::sys::sync::{AtomicU64, Mutex, RwLock};

/// An open file.
#[derive(Debug)]
pub(crate) struct Handle {
    /// Immutable.
    pub inode: Arc<Inode>,
    /// The node it was opened on, with its counts. Immutable.
    open: Arc<NodeOpen>,
    /// The real file, replaced when the inode is copied up; a leaf lock.
    file: RwLock<HandleFile>,
    /// As of `open(2)`. Immutable.
    flags: i32,
    /// Immutable.
    passthrough: bool,
    /// Counted among the node's mappers. Immutable.
    mapper: bool,
}

#[derive(Clone, Debug)]
struct HandleFile {
    real: Arc<RealFile>,
    upper: bool,
}

impl Handle {
    pub(crate) fn new(
        inode: Arc<Inode>,
        open: Arc<NodeOpen>,
        real: Arc<RealFile>,
        upper: bool,
        flags: i32,
        passthrough: bool,
        mapper: bool,
    ) -> Handle {
        Handle {
            inode,
            open,
            file: RwLock::new(HandleFile { real, upper }),
            flags,
            passthrough,
            mapper,
        }
    }
}

const SHARDS: usize = 16;

/// The table of open handles. Its locks are leaves.
#[derive(Debug)]
pub(crate) struct Handles {
    shards: [Mutex<HashMap<HandleId, Arc<Handle>>>; SHARDS],
    next: AtomicU64,
}

impl Handles {
    pub(crate) fn new() -> Handles {
        Handles {
            shards: std::array::from_fn(|_| Mutex::default()),
            next: AtomicU64::new(1),
        }
    }

    fn shard(&self, id: HandleId) -> &Mutex<HashMap<HandleId, Arc<Handle>>> {
        &self.shards[id as usize % SHARDS]
    }

    pub(crate) fn insert(&self, handle: Handle) -> HandleId {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(id).lock().insert(id, Arc::new(handle));
        id
    }

    pub(crate) fn get(&self, id: HandleId) -> Result<Arc<Handle>> {
        self.shard(id)
            .lock()
            .get(&id)
            .cloned()
            .ok_or(Error::Errno(libc::EBADF))
    }

    /// Handles told from now on are greater.
    pub(super) fn go_on_after(&self, last: HandleId) {
        self.next.fetch_max(last + 1, Ordering::Relaxed);
    }

    /// A handle that was told before.
    pub(super) fn insert_at(&self, id: HandleId, handle: Handle) {
        self.shard(id).lock().insert(id, Arc::new(handle));
    }

    pub(crate) fn remove(&self, id: HandleId) -> Option<Arc<Handle>> {
        self.shard(id).lock().remove(&id)
    }

    /// Whether the inode is open for writing. Looks through all handles: for what is asked rarely.
    pub(crate) fn write_to(&self, inode: &Arc<Inode>) -> bool {
        self.shards.iter().any(|shard| {
            shard.lock().values().any(|handle| {
                Arc::ptr_eq(&handle.inode, inode)
                    && handle.flags & libc::O_ACCMODE != libc::O_RDONLY
            })
        })
    }

    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let handles = std::mem::take(&mut *shard.lock());
            drop(handles);
        }
    }
}

/// A write with the writeback cache on: when it has allocated blocks, the kernel's idea of them is out of date. To tell it
/// more often than that would cost two requests for each write, one for the attributes and one for the capabilities that
/// the kernel then looks for anew.
struct StaleBlocks<'a> {
    union: &'a Union,
    handle: &'a Handle,
    real: &'a RealFile,
    /// Before the write. `None`: it is not known, or does not tell what the file shows.
    before: Option<u64>,
    /// The mode may have changed with it, by a program that waits for this very write.
    killed: bool,
}

impl<'a> StaleBlocks<'a> {
    fn new(
        union: &'a Union,
        handle: &'a Handle,
        real: &'a RealFile,
        killed: bool,
    ) -> StaleBlocks<'a> {
        let known = union.params.writeback && !killed && handle.inode.partial().is_none();
        StaleBlocks {
            union,
            handle,
            real,
            before: if known { allocated(real) } else { None },
            killed,
        }
    }
}

/// How many blocks a file has.
fn allocated(real: &RealFile) -> Option<u64> {
    let stat = rustix::fs::fstat(real.as_fd()?).ok()?;
    u64::try_from(stat.st_blocks).ok()
}

impl Drop for StaleBlocks<'_> {
    fn drop(&mut self) {
        if !self.union.params.writeback
            || (self.before.is_some() && self.before == allocated(self.real))
        {
            return;
        }
        let open = &self.handle.open;
        open.has_new_blocks();
        match self.union.notify.get() {
            Some(notify) if self.killed => notify.inval_attr(open.node),
            Some(notify) => notify.inval_attr_later(open.node),
            None => {}
        }
    }
}

/// What came of a write.
#[derive(Debug)]
pub(crate) struct Written {
    /// How many bytes were taken, from the first on.
    pub bytes: usize,
    /// Why it was not all.
    pub error: Option<io::Error>,
}

impl Written {
    /// How many bytes count as written. A program is told of those, and of the error by its next write; of pages that it wrote
    /// before, the kernel takes all for written whatever the number says, so that they would be lost and no fsync would tell.
    fn answer(self, cached: bool) -> Result<usize> {
        match self.error {
            Some(e) if cached || self.bytes == 0 => Err(e.into()),
            _ => Ok(self.bytes),
        }
    }
}

/// Writes as much as goes.
pub(crate) fn write_fully(file: &File, data: &[u8], offset: u64) -> Written {
    let mut bytes = 0;
    let error = loop {
        if bytes == data.len() {
            break None;
        }
        match file.write_at(&data[bytes..], offset + bytes as u64) {
            Ok(0) => break Some(io::Error::from_raw_os_error(libc::EIO)),
            Ok(n) => bytes += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => break Some(e),
        }
    };
    Written { bytes, error }
}

/// The answer of `SEEK_DATA` and `SEEK_HOLE` for a file whose holes are not known.
fn all_data(real: &RealFile, offset: u64, whence: i32) -> Result<u64> {
    let fd = real.as_fd().ok_or(Error::Errno(libc::EBADF))?;
    let stat = rustix::fs::fstat(fd).map_err(io::Error::from)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    match whence {
        libc::SEEK_DATA if offset < size => Ok(offset),
        libc::SEEK_HOLE if offset < size => Ok(size),
        libc::SEEK_DATA | libc::SEEK_HOLE => Err(Error::Errno(libc::ENXIO)),
        _ => Err(Error::Errno(libc::EINVAL)),
    }
}

impl Union {
    /// The real file of a handle: the upper's as soon as there is one, so that a descriptor opened before copy-up reads the
    /// new data afterwards.
    fn real(&self, handle: &Handle) -> Result<HandleFile> {
        let current = handle.file.read().clone();
        if current.upper || !handle.inode.data_in_upper() {
            return Ok(current);
        }
        let write = handle.flags & libc::O_ACCMODE != libc::O_RDONLY || self.params.writeback;
        let access = if write { Access::Write } else { Access::Read };
        let fresh = HandleFile {
            real: Arc::new(self.open_real(&handle.inode, access)?),
            upper: true,
        };
        let mut file = handle.file.write();
        let old = std::mem::replace(&mut *file, fresh.clone());
        drop(file);
        drop(old);
        Ok(fresh)
    }

    /// As [`Union::real`], for a change: never a lower file, whatever the handle was opened for.
    fn real_for_change(&self, handle: &Handle) -> Result<HandleFile> {
        self.writable()?;
        let file = self.real(handle)?;
        if !file.upper {
            return Err(Error::Errno(libc::EBADF));
        }
        Ok(file)
    }

    pub(crate) fn do_read(&self, id: HandleId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let handle = self.handle(id)?;
        let file = self.real(&handle)?;
        // Asked afterwards: a copy-up may come between.
        if let Some(partial) = handle.inode.partial() {
            return partial.read(offset, buf);
        }
        Ok(file.real.read_at(buf, offset)?)
    }

    pub(crate) fn do_write(
        &self,
        id: HandleId,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<usize> {
        let handle = self.handle(id)?;
        let file = self.real_for_change(&handle)?;
        if let Some(writer) = &flags.kill_priv {
            self.kill_priv(writer, &handle.inode)?;
        }
        let _stale = StaleBlocks::new(self, &handle, &file.real, flags.kill_priv.is_some());
        if let Some(partial) = handle.inode.partial() {
            let written = partial.write(offset, data);
            self.note_copied_bytes(&handle.inode, partial.take_copied());
            return written?.answer(flags.cached);
        }
        let real = file.real.as_file().ok_or(Error::Errno(libc::EBADF))?;
        write_fully(real, data, offset).answer(flags.cached)
    }

    pub(crate) fn do_release(&self, id: HandleId) {
        self.note_release(id);
        let Some(handle) = self.handles.remove(id) else {
            if let (Some(node), Some(notify)) = (self.release_adopted(id), self.notify.get()) {
                notify.inval_attr(node);
            }
            return;
        };
        let open = &handle.open;
        // A lower file that is still what the node shows.
        let is_lower = !handle.inode.data_in_upper() && handle.inode.current_node() == open.node;
        let idle = is_lower.then_some(&self.idle);
        if open.release(handle.passthrough, handle.mapper, idle)
            && let Some(notify) = self.notify.get()
        {
            // Writes through a mapping change size and times without the kernel's cache noticing.
            notify.inval_attr(open.node);
        }
    }

    pub(crate) fn do_fsync(&self, id: HandleId, datasync: bool) -> Result<()> {
        let handle = self.handle(id)?;
        if self.params.writeback
            && handle.open.take_new_blocks()
            && let Some(notify) = self.notify.get()
        {
            // What was written back is known when the program asks next.
            notify.inval_attr(handle.open.node);
        }
        if self.params.no_sync {
            return Ok(());
        }
        if let Some(upper) = &self.stack.upper {
            upper.settle_names()?;
        }
        let file = self.real(&handle)?;
        if !file.upper {
            // Of a metacopy file the attributes are the upper's.
            return match (handle.inode.upper(), &self.stack.upper) {
                (Some(part), Some(upper)) => Ok(upper.fsync(&part.node)?),
                _ => Ok(()),
            };
        }
        if let Some(partial) = handle.inode.partial() {
            return partial.sync(datasync);
        }
        let real = file.real.as_file().ok_or(Error::Errno(libc::EBADF))?;
        if datasync {
            real.sync_data()?;
        } else {
            real.sync_all()?;
        }
        Ok(())
    }

    pub(crate) fn do_fallocate(
        &self,
        id: HandleId,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<()> {
        let handle = self.handle(id)?;
        let file = self.real_for_change(&handle)?;
        if let Some(partial) = handle.inode.partial() {
            return partial.fallocate(offset, length, mode as u32);
        }
        let fd = file.real.as_fd().ok_or(Error::Errno(libc::EBADF))?;
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        rustix::fs::fallocate(fd, flags, offset, length).map_err(io::Error::from)?;
        Ok(())
    }

    pub(crate) fn do_lseek(&self, id: HandleId, offset: i64, whence: i32) -> Result<u64> {
        if self.params.writeback {
            // What the kernel has not written back yet is a hole in the real file: a copy guided by it would lose data. The kernel
            // then takes the whole file for data, and asks no more.
            return Err(Error::Errno(libc::ENOSYS));
        }
        let handle = self.handle(id)?;
        let offset = u64::try_from(offset).map_err(|_| Error::Errno(libc::ENXIO))?;
        let file = self.real(&handle)?;
        if self.may_hold_data(&handle) {
            return all_data(&file.real, offset, whence);
        }
        if let (Some(partial), libc::SEEK_DATA | libc::SEEK_HOLE) = (handle.inode.partial(), whence)
        {
            return partial.seek(offset, whence == libc::SEEK_DATA);
        }
        let fd = file.real.as_fd().ok_or(Error::Errno(libc::EBADF))?;
        let from = match whence {
            libc::SEEK_DATA => rustix::fs::SeekFrom::Data(offset),
            libc::SEEK_HOLE => rustix::fs::SeekFrom::Hole(offset),
            // The kernel answers the others itself.
            _ => return Err(Error::Errno(libc::EINVAL)),
        };
        // The position of the shared descriptor is used by nobody.
        Ok(rustix::fs::seek(fd, from).map_err(io::Error::from)?)
    }

    /// Whether programs may have changed data of the file that only the kernel has: by a mapping.
    fn may_hold_data(&self, handle: &Handle) -> bool {
        if handle.open.may_be_written_by_map() {
            return true;
        }
        // The node that is opened now, where this handle's was retired.
        let open = handle.inode.open.lock();
        open.as_ref()
            .is_some_and(|open| open.may_be_written_by_map())
    }

    pub(crate) fn do_copy_file_range(
        &self,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        let from = self.handle(from)?;
        let to = self.handle(to)?;
        let source = self.real(&from)?;
        let target = self.real_for_change(&to)?;
        if from.inode.partial().is_some() || to.inode.partial().is_some() {
            // The kernel then copies by reading and writing.
            return Err(Error::Errno(libc::EXDEV));
        }
        let source = source.real.as_fd().ok_or(Error::Errno(libc::EBADF))?;
        let target = target.real.as_fd().ok_or(Error::Errno(libc::EBADF))?;
        let (mut source_at, mut target_at) = (from_offset, to_offset);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let n = rustix::fs::copy_file_range(
            source.as_fd(),
            Some(&mut source_at),
            target.as_fd(),
            Some(&mut target_at),
            len,
        )
        .map_err(io::Error::from)?;
        Ok(n as u64)
    }
}
