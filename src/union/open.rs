//! How inodes are open: cached or passthrough, on which real file.
//!
//! The kernel demands that all opens of one node that exist at the same time are of one kind and, with passthrough,
//! share one backing file. What it counts lasts until the last mapping is gone, which is when RELEASE comes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::cause::Cause;
use super::copy_up::Copy;
use super::error::{Error, Result};
use super::file::Handle;
use super::inode::{Inode, State};
use super::record::OpenFile;
use super::types::{Backing, BackingOpener, Caller, NodeId, OpenMode, Opened};
use super::{Union, stats};
use crate::layer::{Access, Layer, RealFile};
use crate::sys::sync::{AtomicBool, Mutex};

/// Lower files of at most so many bytes are given to the kernel when they are opened. Copying so much takes about as long as
/// the request to read it.
const STORED_MAX: usize = 64 << 10;

thread_local! {
    /// Where data to be stored is read to: a new buffer for each would be zeroed each time.
    static STORED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How one node id is open.
#[derive(Debug)]
pub(crate) struct NodeOpen {
    /// Immutable.
    pub node: NodeId,
    /// A leaf lock.
    pub counts: Mutex<OpenCounts>,
    /// Writes have allocated blocks since the last fsync. Atomic.
    new_blocks: AtomicBool,
}

/// The open files of one node id.
#[derive(Default)]
pub(crate) struct OpenCounts {
    pub cached: u32,
    pub passthrough: u32,
    /// Handles through which attributes change without a request.
    pub mappers: u32,
    /// Such a handle was passed through and is closed. The mapping that it may have made belongs to the backing file alone and
    /// outlives it unseen: RELEASE waits for mappings of cached files only (tried on Linux 6.18).
    pub maybe_mapped: bool,
    /// What all passthrough handles share.
    backing: Option<Backing>,
    /// The real file that handles share, and where it lies.
    file: Option<SharedFile>,
    /// Pages cached before are out of date: writes went past them.
    past_cache: bool,
    /// The process before had the lower's file registered.
    adopted_lower: bool,
    /// Whether the lower file is fit for passthrough, once that was found out.
    pub(super) lower_fit: Option<bool>,
    /// The kernel was given the lower file's data.
    stored: bool,
    /// Among the [`IdleFiles`].
    idle: bool,
}

impl std::fmt::Debug for OpenCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenCounts")
            .field("cached", &self.cached)
            .field("passthrough", &self.passthrough)
            .field("mappers", &self.mappers)
            .finish_non_exhaustive()
    }
}

impl OpenCounts {
    fn is_unused(&self) -> bool {
        self.passthrough == 0 && self.cached == 0
    }

    /// What no handle needs any more, to be dropped without the lock.
    fn close(&mut self) -> (Option<Backing>, Option<SharedFile>) {
        let backing = if self.passthrough == 0 {
            self.backing.take()
        } else {
            None
        };
        let file = if self.is_unused() {
            self.file.take()
        } else {
            None
        };
        (backing, file)
    }
}

/// Lower files that were closed last. What is run once is run again: these need not be opened, looked at and registered anew.
#[derive(Debug)]
pub(crate) struct IdleFiles {
    /// Immutable.
    capacity: usize,
    /// A leaf lock. The longest closed first; some may be in use again.
    queue: Mutex<VecDeque<Arc<NodeOpen>>>,
}

impl IdleFiles {
    /// Takes a fair part of the files that the process may have open.
    pub(crate) fn for_this_process() -> IdleFiles {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .unwrap_or(u64::MAX);
        IdleFiles {
            capacity: (limit / 16).clamp(4, 256) as usize,
            queue: Mutex::default(),
        }
    }

    fn push(&self, open: Arc<NodeOpen>) {
        let oldest = {
            let mut queue = self.queue.lock();
            queue.push_back(open);
            if queue.len() > self.capacity {
                queue.pop_front()
            } else {
                None
            }
        };
        if let Some(oldest) = oldest {
            oldest.close_idle();
        }
    }

    /// Closes all that are not in use.
    pub(crate) fn clear(&self) {
        let queue = std::mem::take(&mut *self.queue.lock());
        for open in queue {
            open.close_idle();
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct SharedFile {
    pub real: Arc<RealFile>,
    pub upper: bool,
    access: Access,
}

impl NodeOpen {
    pub(crate) fn new(node: NodeId) -> NodeOpen {
        NodeOpen {
            node,
            counts: Mutex::default(),
            new_blocks: AtomicBool::new(false),
        }
    }

    /// A write has allocated blocks, of which the kernel is to be told.
    pub(crate) fn has_new_blocks(&self) {
        self.new_blocks.store(true, Ordering::Release);
    }

    /// Whether that happened since this was asked last.
    pub(crate) fn take_new_blocks(&self) -> bool {
        self.new_blocks.swap(false, Ordering::AcqRel)
    }

    /// Whether a program may have a mapping through which it changes data that the kernel then keeps to itself for a while. A
    /// mapping of a file that is passed through is one of the backing file, which knows.
    pub(super) fn may_be_written_by_map(&self) -> bool {
        let counts = self.counts.lock();
        counts.mappers > 0 && counts.passthrough == 0
    }

    /// A node that was opened by the process before.
    pub(super) fn adopted(node: NodeId) -> NodeOpen {
        let open = NodeOpen::new(node);
        open.counts.lock().past_cache = true;
        open
    }

    /// One of the files that the process before opened; `backing`: the one that its node shares, with passthrough.
    pub(super) fn count_adopted(&self, file: &OpenFile, backing: Option<&Backing>) {
        let mut counts = self.counts.lock();
        if file.passthrough {
            counts.passthrough += 1;
            counts.backing = backing.cloned();
            counts.adopted_lower |= !file.upper;
        } else {
            counts.cached += 1;
        }
        counts.mappers += u32::from(file.mapper);
    }

    /// Whether the kernel reads, for the process before, a lower file whose data is in the upper by now.
    pub(super) fn is_out_of_date(&self, data_in_upper: bool) -> bool {
        let counts = self.counts.lock();
        data_in_upper && counts.passthrough > 0 && counts.adopted_lower
    }

    /// One handle less. True when attributes may have changed behind the kernel's back and nobody can change
    /// them so any more. `idle`: where the file goes after the last handle, if it is to stay open for a while.
    pub(crate) fn release(
        self: &Arc<NodeOpen>,
        passthrough: bool,
        mapper: bool,
        idle: Option<&IdleFiles>,
    ) -> bool {
        let mut counts = self.counts.lock();
        if passthrough {
            counts.passthrough -= 1;
        } else {
            counts.cached -= 1;
        }
        counts.mappers -= u32::from(mapper);
        counts.maybe_mapped |= mapper && passthrough;
        let settled = mapper && counts.mappers == 0;
        let is_lower = counts.file.as_ref().is_some_and(|file| !file.upper);
        let keep = idle.filter(|_| is_lower && counts.is_unused());
        let closed = if keep.is_none() {
            counts.close()
        } else {
            (None, None)
        };
        let keep = keep.filter(|_| !std::mem::replace(&mut counts.idle, true));
        drop(counts);
        // Closing is a system call: not under the leaf lock.
        drop(closed);
        if let Some(idle) = keep {
            idle.push(self.clone());
        }
        settled
    }

    /// Closes the file if nobody has used it again.
    fn close_idle(&self) {
        let mut counts = self.counts.lock();
        counts.idle = false;
        let closed = counts.close();
        drop(counts);
        drop(closed);
    }
}

impl Union {
    /// See [`Union::open`].
    pub(crate) fn do_open(
        &self,
        caller: &Caller,
        node: NodeId,
        flags: i32,
        opener: &dyn BackingOpener,
    ) -> Result<Opened> {
        let inode = self.node(node)?;
        if !inode.is_file() {
            // The kernel opens special files itself.
            return Err(Error::Errno(if inode.is_dir() {
                libc::EISDIR
            } else {
                libc::ENXIO
            }));
        }
        // A retired node: the kernel looks the name up again and opens the new one.
        if inode.current_node() != node {
            return Err(Error::Errno(libc::ESTALE));
        }
        let truncate = flags & libc::O_TRUNC != 0;
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if write || truncate {
            self.writable()?;
            let how = if truncate { Copy::NoData } else { Copy::Data };
            self.copy_up(&inode, how, Cause::new("open for writing", caller))?;
            if inode.current_node() != node {
                return Err(Error::Errno(libc::ESTALE));
            }
            if truncate {
                self.truncate_upper(caller, &inode, 0)?;
            }
        }
        if let Some(partial) = inode.partial() {
            partial.usable()?;
        }
        let opened = self.open_inode(&inode, node, flags, None, opener)?;
        if self.changes_attributes_unseen(flags)
            && let Some(notify) = self.notify.get()
        {
            // What the kernel learnt by the lookup just before would outlive the first such change.
            notify.inval_attr(node);
        }
        Ok(opened)
    }

    /// Whether attributes may change by such a descriptor without a request: times by a shared mapping. With the writeback cache
    /// the kernel keeps the times; the allocated blocks, of which it keeps no account, change when it writes back, which is
    /// told in `do_write`. To have the attributes asked for at each write would cost two requests for each: with them the
    /// kernel forgets that the file has no capability to take away.
    fn changes_attributes_unseen(&self, flags: i32) -> bool {
        flags & libc::O_ACCMODE == libc::O_RDWR && !self.params.writeback
    }

    /// Whether each write by such a descriptor is to be durable, on a filesystem where names have to be committed before.
    fn settles_writes(&self, flags: i32) -> bool {
        flags & libc::O_DSYNC != 0
            && flags & libc::O_ACCMODE != libc::O_RDONLY
            && self
                .stack
                .upper
                .as_ref()
                .is_some_and(|upper| upper.must_settle_names())
    }

    /// Opens an inode that has what the flags need in the upper. `staged`: the real file, open already, and its mode.
    pub(crate) fn open_inode(
        &self,
        inode: &Arc<Inode>,
        node: NodeId,
        flags: i32,
        staged: Option<(RealFile, u32)>,
        opener: &dyn BackingOpener,
    ) -> Result<Opened> {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let mapper = self.changes_attributes_unseen(flags);
        let mut slot = inode.open.lock();
        if inode.current_node() != node {
            return Err(Error::Errno(libc::ESTALE));
        }
        let open = slot.get_or_insert_with(|| Arc::new(self.unopened(node)));
        let (upper, shared, backing, cached) = {
            let counts = open.counts.lock();
            (
                inode.data_in_upper(),
                counts.file.clone(),
                counts.backing.clone(),
                counts.cached,
            )
        };
        if let Some(backing) = backing {
            // All opens of a node share the backing file. One of the lower cannot be here beside an upper part: the
            // node would have been retired.
            let shared = match shared {
                Some(shared) => shared,
                None => self.adopted_file(inode, upper)?,
            };
            let id = opener.id_of(&backing);
            return Ok(self.opened(inode, open, flags, shared, Some((backing, id)), mapper));
        }
        // All passthrough handles share one file, so it must be fit for writing, whoever opens first.
        let may_pass = self.params.passthrough && cached == 0 && !self.settles_writes(flags);
        let access = if upper && (write || may_pass) && !self.params.read_only {
            Access::Write
        } else {
            Access::Read
        };
        let made = staged.as_ref().map(|(_, mode)| *mode);
        let shared = match (staged, shared) {
            (Some((real, _)), _) => SharedFile {
                real: Arc::new(real),
                upper: true,
                access: Access::Write,
            },
            (None, Some(s))
                if s.upper == upper && (s.access == access || access == Access::Read) =>
            {
                s
            }
            _ => SharedFile {
                real: Arc::new(self.open_real(inode, access)?),
                upper,
                access,
            },
        };
        let pass = may_pass && self.is_fit(inode, open, &shared, made)?;
        let writable = shared.access == Access::Write;
        let backing = match (pass, shared.real.as_fd()) {
            (true, Some(fd)) => match opener.open_backing(fd.as_fd(), writable) {
                Ok(backing) => Some(backing),
                Err(e) => {
                    // Correct all the same, only slower; out of descriptors is the usual reason.
                    log::debug!("no passthrough for inode {}: {e}", inode.ino);
                    None
                }
            },
            _ => None,
        };
        if backing.is_none() && cached == 0 && !shared.upper {
            self.store_data(open, &shared);
        }
        let backing = backing.map(|backing| {
            let id = opener.id_of(&backing);
            (backing, id)
        });
        Ok(self.opened(inode, open, flags, shared, backing, mapper))
    }

    /// Gives the kernel the data of a small lower file that is about to be read: that spares the request to read it, and the
    /// one for the attributes by which the kernel would then learn the time of access. Precondition: the lock of the
    /// inode's opens is held, and nobody has the node open. So the kernel waits for no page, and the data cannot be older
    /// than what the file has by then: whatever changes it takes that lock first, in `switch_data`.
    fn store_data(&self, open: &NodeOpen, shared: &SharedFile) {
        let (Some(notify), Some(file)) = (self.notify.get(), shared.real.as_file()) else {
            return;
        };
        {
            let mut counts = open.counts.lock();
            // What is cached from before is about to be dropped, and this with it.
            if counts.past_cache || std::mem::replace(&mut counts.stored, true) {
                return;
            }
        }
        STORED.with_borrow_mut(|buffer| {
            buffer.resize(STORED_MAX + 1, 0);
            match file.read_at(buffer, 0) {
                Ok(length @ 1..=STORED_MAX) => notify.store(open.node, &buffer[..length]),
                Ok(_) => {}
                // The read that follows tells it to the program.
                Err(e) => log::debug!("data of node {} is not read ahead: {e}", open.node),
            }
        });
    }

    /// How a node is open that nobody has open. What the process before did past the cache is not known.
    fn unopened(&self, node: NodeId) -> NodeOpen {
        if self.took_over() {
            NodeOpen::adopted(node)
        } else {
            NodeOpen::new(node)
        }
    }

    /// The file that the process before registered.
    fn adopted_file(&self, inode: &Inode, upper: bool) -> Result<SharedFile> {
        let access = if upper && !self.params.read_only {
            Access::Write
        } else {
            Access::Read
        };
        Ok(SharedFile {
            real: Arc::new(self.open_real(inode, access)?),
            upper,
            access,
        })
    }

    fn opened(
        &self,
        inode: &Arc<Inode>,
        open: &Arc<NodeOpen>,
        flags: i32,
        shared: SharedFile,
        backing: Option<(Backing, u32)>,
        mapper: bool,
    ) -> Opened {
        let (backing, id) = backing.unzip();
        let mut counts = open.counts.lock();
        let mode = match &backing {
            Some(backing) => {
                counts.passthrough += 1;
                counts.past_cache = true;
                stats::add(&self.stats.passthrough_opens, 1);
                OpenMode::Passthrough(backing.clone())
            }
            None => {
                counts.cached += 1;
                stats::add(&self.stats.cached_opens, 1);
                OpenMode::Cached {
                    keep: !std::mem::take(&mut counts.past_cache),
                }
            }
        };
        counts.mappers += u32::from(mapper);
        let passthrough = backing.is_some();
        counts.backing = backing;
        counts.file = Some(shared.clone());
        drop(counts);
        let handle = self.handles.insert(Handle::new(
            inode.clone(),
            open.clone(),
            shared.real,
            shared.upper,
            flags,
            passthrough,
            mapper,
        ));
        let open = OpenFile {
            node: open.node,
            flags,
            passthrough,
            mapper,
            upper: shared.upper,
            backing: id.unwrap_or(0),
        };
        self.note_open(handle, open);
        Opened { handle, mode }
    }

    /// Opens the file that holds the data.
    pub(crate) fn open_real(&self, inode: &Inode, access: Access) -> Result<RealFile> {
        let state = inode.state.read();
        match (&state.upper, &self.stack.upper) {
            (Some(part), Some(upper)) if !state.metacopy => {
                let node = part.node.clone();
                drop(state);
                Ok(upper.open(&node, access)?)
            }
            _ => {
                let Some(lower) = state.lowers.last().cloned() else {
                    return Err(Error::Corrupt(format!("inode {} has no data", inode.ino)));
                };
                drop(state);
                Ok(self.stack.lower(&lower).open(&lower.node, Access::Read)?)
            }
        }
    }

    /// Makes `change` to the state, after which the data is in the upper. When the kernel reads the lower file by itself at that
    /// moment, the inode gets a new node id; returns the retired one.
    pub(crate) fn switch_data(
        &self,
        inode: &Arc<Inode>,
        change: impl FnOnce(&mut State),
    ) -> Option<NodeId> {
        self.table.moves.note(inode.ino);
        let mut slot = inode.open.lock();
        change(&mut inode.state.write());
        let open = slot.as_ref()?;
        let lower_passthrough = {
            let mut counts = open.counts.lock();
            let pass = counts.passthrough > 0;
            // Later opens take the upper's file; handles switch when they are used next.
            let closed = (!pass).then(|| (counts.backing.take(), counts.file.take()));
            drop(counts);
            drop(closed);
            pass
        };
        if !lower_passthrough {
            return None;
        }
        let old = open.node;
        let new = self.table.renumber(inode);
        *slot = Some(Arc::new(NodeOpen::new(new)));
        inode.current.store(new, Ordering::Release);
        Some(old)
    }
}
