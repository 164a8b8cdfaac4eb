//! How inodes are open: cached or passthrough, on which real file.
//!
//! The kernel demands that all opens of one node that exist at the same time are of one kind and, with passthrough,
//! share one backing file. What it counts lasts until the last mapping is gone, which is when RELEASE comes.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::cause::Cause;
use super::copy_up::Copy;
use super::error::{Error, Result};
use super::file::Handle;
use super::inode::{Inode, State};
use super::params::PassthroughLower;
use super::types::{Backing, BackingOpener, Caller, NodeId, OpenMode, Opened};
use super::{Union, stats};
use crate::layer::{Access, Layer, RealFile};

/// How one node id is open.
#[derive(Debug)]
pub(crate) struct NodeOpen {
    /// Immutable.
    pub node: NodeId,
    /// A leaf lock.
    pub counts: Mutex<OpenCounts>,
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

#[derive(Clone, Debug)]
struct SharedFile {
    real: Arc<RealFile>,
    upper: bool,
    access: Access,
}

impl NodeOpen {
    pub(crate) fn new(node: NodeId) -> NodeOpen {
        NodeOpen {
            node,
            counts: Mutex::default(),
        }
    }

    /// One handle less. True when attributes may have changed behind the kernel's back and nobody can change
    /// them so any more.
    pub(crate) fn release(&self, passthrough: bool, mapper: bool) -> bool {
        let mut counts = self.counts.lock();
        if passthrough {
            counts.passthrough -= 1;
        } else {
            counts.cached -= 1;
        }
        counts.mappers -= u32::from(mapper);
        counts.maybe_mapped |= mapper && passthrough;
        let backing = if counts.passthrough == 0 {
            counts.backing.take()
        } else {
            None
        };
        let file = if counts.passthrough == 0 && counts.cached == 0 {
            counts.file.take()
        } else {
            None
        };
        let settled = mapper && counts.mappers == 0;
        drop(counts);
        // Closing is a system call: not under the leaf lock.
        drop((backing, file));
        settled
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
        let inode = self.table.get(node)?;
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

    /// Whether attributes may change by such a descriptor without a request: times by a shared mapping, and with the writeback
    /// cache the allocated blocks, which the kernel does not keep account of.
    fn changes_attributes_unseen(&self, flags: i32) -> bool {
        match flags & libc::O_ACCMODE {
            libc::O_RDONLY => false,
            libc::O_RDWR => true,
            _ => self.params.writeback,
        }
    }

    /// Opens an inode that has what the flags need in the upper. `staged`: the real file, open already.
    pub(crate) fn open_inode(
        &self,
        inode: &Arc<Inode>,
        node: NodeId,
        flags: i32,
        staged: Option<RealFile>,
        opener: &dyn BackingOpener,
    ) -> Result<Opened> {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let mapper = self.changes_attributes_unseen(flags);
        let mut slot = inode.open.lock();
        if inode.current_node() != node {
            return Err(Error::Errno(libc::ESTALE));
        }
        let open = slot.get_or_insert_with(|| Arc::new(NodeOpen::new(node)));
        let (upper, shared, backing, cached) = {
            let counts = open.counts.lock();
            (
                inode.data_in_upper(),
                counts.file.clone(),
                counts.backing.clone(),
                counts.cached,
            )
        };
        if let (Some(backing), Some(shared)) = (&backing, &shared) {
            // All opens of a node share the backing file. One of the lower cannot be here beside an upper part: the
            // node would have been retired.
            return Ok(self.opened(
                inode,
                open,
                flags,
                shared.clone(),
                Some(backing.clone()),
                mapper,
            ));
        }
        // All passthrough handles share one file, so it must be fit for writing, whoever opens first.
        let may_pass = self.params.passthrough && cached == 0;
        let access = if upper && (write || may_pass) && !self.params.read_only {
            Access::Write
        } else {
            Access::Read
        };
        let shared = match (staged, shared) {
            (Some(real), _) => SharedFile {
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
        let pass = may_pass && self.is_fit(inode, &shared)?;
        let backing = match (pass, shared.real.as_fd()) {
            (true, Some(fd)) => match opener.open_backing(fd.as_fd()) {
                Ok(backing) => Some(backing),
                Err(e) => {
                    // Correct all the same, only slower; out of descriptors is the usual reason.
                    log::debug!("no passthrough for inode {}: {e}", inode.ino);
                    None
                }
            },
            _ => None,
        };
        Ok(self.opened(inode, open, flags, shared, backing, mapper))
    }

    fn opened(
        &self,
        inode: &Arc<Inode>,
        open: &Arc<NodeOpen>,
        flags: i32,
        shared: SharedFile,
        backing: Option<Backing>,
        mapper: bool,
    ) -> Opened {
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
        Opened { handle, mode }
    }

    /// Whether a file is to be served by passthrough, by what it is.
    fn is_fit(&self, inode: &Inode, shared: &SharedFile) -> Result<bool> {
        let Some(file) = shared.real.as_file() else {
            return Ok(false);
        };
        if shared.upper && inode.partial().is_some() {
            // What the kernel would read by itself lacks blocks.
            return Ok(false);
        }
        if shared.upper {
            // The kernel writes to the backing file as a process without CAP_FSETID, which would take suid and sgid
            // away from root's writes too; through the cache it says whose write it is.
            return Ok(file.metadata()?.mode() & (libc::S_ISUID | libc::S_ISGID) == 0);
        }
        let layer = {
            let state = inode.state.read();
            let Some(lower) = state.lowers.last() else {
                return Ok(false);
            };
            self.stack.lower(lower).clone()
        };
        if !layer.is_protected() {
            return Ok(false);
        }
        if self.params.read_only {
            return Ok(true);
        }
        match self.params.passthrough_lower {
            PassthroughLower::Always => Ok(true),
            PassthroughLower::Never => Ok(false),
            PassthroughLower::Auto => {
                if file.metadata()?.mode() & 0o111 != 0 {
                    return Ok(true);
                }
                let mut magic = [0; 4];
                let n = shared.real.read_at(&mut magic, 0)?;
                Ok(&magic[..n] == b"\x7fELF")
            }
        }
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
        let mut slot = inode.open.lock();
        change(&mut inode.state.write());
        let open = slot.as_ref()?;
        let lower_passthrough = {
            let mut counts = open.counts.lock();
            let pass = counts.passthrough > 0;
            if !pass {
                // Later opens take the upper's file; handles switch when they are used next.
                counts.file = None;
            }
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
