//! Copy-up: making the upper part of a lower inode.
//!
//! The copy is built in the workdir in the kernel's order (data, owner, xattrs, mode, times, marks), synced, and published by one
//! rename. Only the inode's own copy-up lock is held meanwhile; the parent's directory lock is taken for the
//! publication alone.
//!
//! # What is synced
//!
//! After a power cut the name must show the lower file or the whole copy. So data that was copied is on the disk before the name
//! is, as with the kernel's overlayfs. Where none was written (attributes alone, a truncation to nothing, a clone,
//! directories, symlinks) there are changes of metadata only, and the rename that publishes them is the last. It cannot survive
//! them where the filesystem keeps their order:
//!
//! - ext4: all of them are in the running transaction of the journal or in an earlier one, and transactions are
//!   replayed whole and in order. (`auto_da_alloc` is of no help here: it is about a rename onto a file.) One
//!   without a journal keeps no order, and no sync of single files makes up for the repair that it needs after a power cut.
//! - xfs: its log is replayed in order of the log sequence numbers; a clone's extents and the new size are logged, after the
//!   source's data was written.
//! - btrfs: a commit holds all of them or none. The log of an fsync does not, and is kept from doing harm by the upper (see its
//!   `order`).
//!
//! There a sync of each file, which is a commit of the journal, gives nothing that a program was promised: what it asks to be
//! durable it fsyncs itself, and that reaches the upper file. This is the kernel's own choice with `metacopy=on`.
//!
//! Where data was written, delayed allocation would write it after the rename's transaction: so it is written out before, which is no
//! commit of the journal either (see the upper's `order`). Elsewhere each copy is synced.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::fs::FallocateFlags;

use super::cause::Cause;
use super::copy_data::{Copied, Pace, copy_data};
use super::error::{Error, Result};
use super::inode::{Indexed, Inode, LowerRef, NlinkBase, State, UpperPart};
use super::links::is_of_name;
use super::partial::Begun;
use super::types::NodeId;
use super::{Union, acl, stats};
use crate::layer::format;
use crate::layer::upper::{Mark, Replace, Stage, Staged, TimeSet, Upper};
use crate::layer::{Layer, Node, OverlayHandle, RealFile, Stat};

/// How much a copy-up copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copy {
    /// Attributes are to change: the data may stay below where the mount does metadata-only copy-up.
    Meta,
    /// Likewise, and the file is to get another name: it has to tell where its data is.
    Move,
    /// The data is to change.
    Data,
    /// Likewise, and neither the place of the data below nor a map of its blocks can be recorded.
    Whole,
    /// The data is about to be cut to nothing: none is copied.
    NoData,
}

impl Copy {
    /// Whether the data is to stay below where it can.
    fn is_meta(self) -> bool {
        matches!(self, Copy::Meta | Copy::Move)
    }

    /// Whether an inode in this state needs nothing more.
    fn is_done(self, state: &State) -> bool {
        state.upper.is_some()
            && match self {
                _ if !state.metacopy => true,
                Copy::Meta => true,
                Copy::Move => is_absolute(state.redirect()),
                Copy::Data | Copy::Whole | Copy::NoData => false,
            }
    }
}

/// What a metacopy file was given.
enum Brought {
    /// All of its data.
    All(Copied),
    /// A map of its blocks, of which none is there yet.
    Blocks(Begun),
}

/// Whether the data is found by this redirect, whatever name the file has.
fn is_absolute(redirect: Option<&std::ffi::OsStr>) -> bool {
    redirect.is_some_and(|path| path.as_bytes().starts_with(b"/"))
}

/// The longest path that is recorded for a file's data: it shares the room for xattrs with the program's own.
const REDIRECT_MAX: usize = 1024;

impl Union {
    /// See [`Union::may_copy_data`].
    pub(crate) fn do_may_copy_data(&self, node: NodeId) -> bool {
        if self.stack.upper.is_none() {
            return false;
        }
        match self.table.get(node) {
            Ok(inode) => inode.is_file() && !inode.data_in_upper(),
            // It was told the kernel by the process before, and what it is now takes looking.
            Err(_) => self.took_over(),
        }
    }

    /// Makes sure that the inode, and every directory above it, has an upper part.
    pub(crate) fn copy_up(
        &self,
        inode: &Arc<Inode>,
        how: Copy,
        cause: impl Into<Cause>,
    ) -> Result<()> {
        let cause = cause.into();
        if how.is_done(&inode.state.read()) {
            return Ok(());
        }
        self.writable()?;
        let mut above = Vec::new();
        let mut at = inode.clone();
        loop {
            let parent = {
                let state = at.state.read();
                state.dentries.first().map(|d| d.parent.clone())
            };
            match parent {
                Some(parent) if parent.upper().is_none() => {
                    above.push(parent.clone());
                    at = parent;
                }
                _ => break,
            }
        }
        for dir in above.iter().rev() {
            self.copy_up_one(dir, Copy::Meta, cause)?;
        }
        self.copy_up_one(inode, how, cause)
    }

    fn copy_up_one(&self, inode: &Arc<Inode>, how: Copy, cause: Cause) -> Result<()> {
        let upper = self.upper()?;
        let _copying = inode
            .copy_up
            .lock_unless(|| cause.is_void())
            .ok_or(Error::Errno(libc::EINTR))?;
        let begin = Instant::now();
        let (lower, metacopy) = {
            let state = inode.state.read();
            if how.is_done(&state) {
                return Ok(());
            }
            if state.upper.is_some() {
                (None, true)
            } else {
                (state.lowers.first().cloned(), false)
            }
        };
        let retired = if metacopy {
            if how == Copy::Move && self.mark_data_location(upper, inode)? {
                return Ok(());
            }
            self.copy_up_data(upper, inode, how, cause)?
        } else {
            let lower = lower
                .ok_or_else(|| Error::Corrupt(format!("inode {} is in no layer", inode.ino)))?;
            let mut copied = self.copy_up_whole(upper, inode, &lower, (how, cause));
            // The program's xattrs leave no room for ours.
            for how in [Copy::Data, Copy::Whole] {
                match copied {
                    Err(e) if inode.is_file() && is_no_room(e.errno()) => {
                        copied = self.copy_up_whole(upper, inode, &lower, (how, cause));
                    }
                    other => {
                        copied = other;
                        break;
                    }
                }
            }
            copied?
        };
        self.note_copy_up(inode, cause.reason, begin.elapsed());
        drop(_copying);
        // The number that is shown may be the copy's from now on.
        let renumbered = is_of_name(inode.ino).then(|| inode.current_node());
        if let (Some(node), Some(notify)) = (retired.or(renumbered), self.notify.get()) {
            notify.inval_attr(node);
        }
        Ok(())
    }

    /// Builds and publishes the upper part. Precondition: the inode's copy-up lock is held and it has no upper part.
    fn copy_up_whole(
        &self,
        upper: &Arc<Upper>,
        inode: &Arc<Inode>,
        lower: &LowerRef,
        (how, cause): (Copy, Cause),
    ) -> Result<Option<NodeId>> {
        let layer = self.stack.lower(lower).clone();
        let stat = layer.stat(&lower.node)?;
        let handle = layer.handle(&lower.node)?;
        let mut metacopy = inode.is_file()
            && how.is_meta()
            && self.params.metacopy
            && handle.is_some()
            && stat.size > 0;
        let mut location = None;
        // Only where the data's name is not, or will not stay, the file's own.
        if metacopy && (how == Copy::Move || stat.nlink > 1) {
            location = self.data_location(inode)?;
            metacopy = location.is_some();
        }
        let target;
        let stage = match stat.file_type() {
            libc::S_IFREG => Stage::File,
            libc::S_IFDIR => Stage::Dir,
            libc::S_IFLNK => {
                target = layer.read_link(&lower.node)?;
                Stage::Symlink(&target)
            }
            other => Stage::Special(other, stat.rdev),
        };
        let staged = upper.stage(stage)?;
        let mut copied = Copied::default();
        let mut partial = None;
        if inode.is_file() && how != Copy::NoData {
            let file = staged.file().ok_or(Error::Errno(libc::EIO))?;
            if metacopy {
                file.set_len(stat.size)?;
            } else if stat.size > 0 {
                let source = self.open_data(inode)?;
                if how != Copy::Whole {
                    partial = self.begin_partial(inode, &stat, &source, file)?;
                }
                if partial.is_none() {
                    copied = copy_data(&source, file, stat.size, self.pace(&cause))?;
                }
            }
        }
        self.copy_attributes(upper, &*layer, &lower.node, &stat, &staged)?;
        let indexed = self.index_for(inode, &stat, &handle);
        // A broken hard link is no longer the lower's inode.
        let origin = handle.filter(|_| stat.nlink == 1 || inode.is_dir() || indexed.is_some());
        if let Some(handle) = &origin {
            staged.set_mark(&Mark::Origin(handle.clone()))?;
        }
        if metacopy {
            staged.set_mark(&Mark::Metacopy(true))?;
            if location.is_some() {
                staged.set_mark(&Mark::Redirect(location.clone()))?;
            }
        }
        if let Some(partial) = &partial {
            self.mark_partial(partial, &staged)?;
        }
        if let Some(indexed) = &indexed {
            staged.set_mark(&Mark::Nlink(Some(indexed.nlink.to_text())))?;
        }
        if let Some(file) = staged.file()
            && self.must_sync(upper, &copied)
        {
            upper.sync_copy(file)?;
        }
        // Nothing may fail between the index entry and the name.
        let real_ino = staged.stat()?.ino;
        if origin.is_none() && !inode.is_dir() {
            self.strays.put(real_ino, inode);
        } else {
            self.strays.forget(real_ino);
        }
        if let Some(indexed) = &indexed {
            upper.index_add(&indexed.handle, staged.node())?;
        }
        let key = indexed.as_ref().map(|indexed| indexed.handle.clone());
        let bytes = copied.bytes;
        let has_origin = origin.is_some();
        let published = self.publish_copy(upper, inode, staged, has_origin, |node| {
            let partial = partial.map(|begun| {
                stats::add(&self.stats.copy_up_partial, 1);
                begun.keep()
            });
            self.switch_data(inode, |state| {
                state.upper = Some(Box::new(UpperPart {
                    node,
                    real_ino,
                    xwhiteouts: false,
                }));
                state.set_partial(partial);
                state.metacopy = metacopy;
                state.set_redirect(location.map(OsString::into_boxed_os_str));
                state.has_origin = has_origin;
                state.set_indexed(indexed);
            })
        });
        let retired = match (published, &key) {
            (Ok(retired), _) => retired,
            (Err(e), Some(key)) => {
                // The index would give the copy to the file's other names.
                if let Err(e) = upper.index_remove(key) {
                    log::error!("index entry of a failed copy-up stays: {e}");
                }
                return Err(e);
            }
            (Err(e), None) => return Err(e),
        };
        if key.is_some() {
            self.count_in_upper(upper, inode);
        }
        let kind = if bytes > 0 {
            &self.stats.copy_up_data
        } else {
            &self.stats.copy_up_meta
        };
        stats::add(kind, 1);
        self.note_copied_bytes(inode, bytes);
        Ok(retired)
    }

    /// A file of several names stays one inode by an index entry, as with the kernel's `index=on`.
    fn index_for(
        &self,
        inode: &Inode,
        stat: &Stat,
        handle: &Option<OverlayHandle>,
    ) -> Option<Indexed> {
        if inode.is_dir() || stat.nlink <= 1 || !self.params.index {
            return None;
        }
        handle.as_ref().map(|handle| Indexed {
            handle: handle.clone(),
            lower_nlink: Some(stat.nlink),
            // True however many of the names have been linked up already.
            nlink: NlinkBase::Lower(0),
        })
    }

    /// Owner, xattrs, mode and times, in the order in which one does not undo another.
    fn copy_attributes(
        &self,
        upper: &Upper,
        layer: &dyn Layer,
        node: &Node,
        stat: &Stat,
        staged: &Staged,
    ) -> Result<()> {
        staged.chown(Some(stat.uid), Some(stat.gid))?;
        let namespace = upper.options().namespace;
        for name in layer.list_xattr(node)? {
            // What tells of the layer, in the form of another overlay, would tell of the upper when that is a layer in its turn.
            if format::from_disk(namespace, &name).is_none()
                || layer.is_mark(namespace, &name)
                || (self.params.noacl && acl::is_acl(&name))
            {
                continue;
            }
            let Some(value) = layer.get_xattr(node, &name)? else {
                continue;
            };
            match staged.set_xattr(&name, &value, 0) {
                Ok(()) => {}
                Err(e) if may_lose(&name, &e) => {
                    log::debug!("xattr {name:?} is not kept by the upper: {e}");
                }
                Err(e) => return Err(e.into()),
            }
        }
        if stat.file_type() != libc::S_IFLNK {
            staged.chmod(stat.mode & 0o7777)?;
        }
        staged.set_times(Some(TimeSet::At(stat.atime)), Some(TimeSet::At(stat.mtime)))?;
        Ok(())
    }

    /// Whether a copy has to be synced before it gets its name (see the module's head).
    fn must_sync(&self, upper: &Upper, copied: &Copied) -> bool {
        !self.params.no_sync && (copied.bytes > 0 || !upper.keeps_order())
    }

    /// The path of a file's data from the roots of the lower layers. `None` where it would not lead to that data.
    fn data_location(&self, inode: &Inode) -> Result<Option<OsString>> {
        let Some(path) = self.lower_path(inode) else {
            return Ok(None);
        };
        let data = inode.state.read().lowers.last().cloned();
        let (Some(data), true) = (data, path.len() <= REDIRECT_MAX) else {
            return Ok(None);
        };
        let stat = self.stack.lower(&data).stat(&data.node)?;
        let found = self.stack.data_at(&path)?;
        Ok(
            (found.map(|found| (found.dev, found.ino)) == Some((stat.dev, stat.ino)))
                .then_some(path),
        )
    }

    /// Makes a metacopy file of the upper tell where its data is, whatever name it will have; false where it cannot.
    /// Precondition: the inode's copy-up lock is held.
    fn mark_data_location(&self, upper: &Upper, inode: &Inode) -> Result<bool> {
        let part = inode
            .upper()
            .ok_or_else(|| Error::Corrupt("metacopy without an upper part".into()))?;
        let Some(path) = self.data_location(inode)? else {
            return Ok(false);
        };
        match upper.set_mark(&part.node, &Mark::Redirect(Some(path.clone()))) {
            Ok(()) => {}
            Err(e) if e.raw_os_error().is_some_and(is_no_room) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        inode
            .state
            .write()
            .set_redirect(Some(path.into_boxed_os_str()));
        Ok(true)
    }

    /// Gives the copy its place, under one of the names that the inode still has.
    fn publish_copy(
        &self,
        upper: &Upper,
        inode: &Arc<Inode>,
        staged: Staged,
        has_origin: bool,
        switch: impl FnOnce(Node) -> Option<NodeId>,
    ) -> Result<Option<NodeId>> {
        loop {
            let dentry = inode.state.read().dentries.first().cloned();
            let Some(dentry) = dentry else {
                // All names are gone: the copy lives on as an open file without one.
                upper.pin(staged.node())?;
                let node = staged.node().clone();
                self.note_grave_as(inode, Some(&node), false)?;
                drop(staged);
                return Ok(switch(node));
            };
            let dir = dentry
                .parent
                .dir
                .as_ref()
                .ok_or(Error::Errno(libc::ENOTDIR))?;
            let _ops = dir.ops.lock();
            if !inode.state.read().has_name(&dentry.parent, &dentry.name) {
                continue;
            }
            if self.is_removed_locked(&dentry.parent, &dentry.name)? {
                // Whoever looked the name up was overtaken by its removal.
                let mut state = inode.state.write();
                state.remove_name(&dentry.parent, &dentry.name);
                drop(state);
                self.note_no_name(inode, &dentry.parent, &dentry.name);
                continue;
            }
            let parent = dentry.parent.upper().ok_or_else(|| {
                Error::Corrupt(format!("the parent of {:?} was not copied up", dentry.name))
            })?;
            // The publication is no change of the directory that a program made.
            let before = upper.stat(&parent.node)?;
            if has_origin {
                self.mark_impure(upper, &dentry.parent, &parent)?;
            }
            let published = upper.publish(staged, &parent.node, &dentry.name, Replace::Nothing)?;
            // It is there: an error now would leave it to nobody.
            if let Err(e) = upper.set_times(
                &parent.node,
                Some(TimeSet::At(before.atime)),
                Some(TimeSet::At(before.mtime)),
            ) {
                log::warn!(
                    "the times of {name:?}'s directory show its copy-up: {e}",
                    name = dentry.name
                );
            }
            if let Some(listing) = dir.listing.lock().as_mut() {
                listing.mark_upper(&dentry.name);
            }
            // While the name is still locked: whoever removes it has to find the upper part, and keep it for those who have the
            // file open.
            return Ok(switch(published.node));
        }
    }

    /// Tells later readers that the directory holds copied-up entries, whose inode numbers are not their real ones.
    pub(crate) fn mark_impure(&self, upper: &Upper, inode: &Inode, part: &UpperPart) -> Result<()> {
        if let Some(dir) = &inode.dir
            && !dir.impure.swap(true, Ordering::Relaxed)
        {
            upper.set_mark(&part.node, &Mark::Impure)?;
        }
        Ok(())
    }

    /// Brings the data of a metacopy file up, into the file itself: as long as it is marked, nobody reads its own data.
    /// Precondition: the inode's copy-up lock is held.
    fn copy_up_data(
        &self,
        upper: &Upper,
        inode: &Arc<Inode>,
        how: Copy,
        cause: Cause,
    ) -> Result<Option<NodeId>> {
        let part = inode
            .upper()
            .ok_or_else(|| Error::Corrupt("metacopy without an upper part".into()))?;
        let stat = upper.stat(&part.node)?;
        let target = upper.open(&part.node, crate::layer::Access::Write)?;
        let file = target.as_file().ok_or(Error::Errno(libc::EIO))?;
        let source = match how {
            Copy::NoData => None,
            _ => Some(self.open_data(inode)?),
        };
        // Writing takes capabilities away, which is not a program's here; so does a clone, which the copy by blocks tries.
        let copying = self.begin_copying(&part, file)?;
        let copied = copying.around((upper, file), || {
            let Some(source) = &source else {
                file.set_len(0)?;
                return Ok(Brought::All(Copied::default()));
            };
            if let Some(begun) = self.convert_metacopy(inode, &part, &stat, source)? {
                return Ok(Brought::Blocks(begun));
            }
            let copied = copy_data(source, file, stat.size, self.pace(&cause));
            if copied.is_err() {
                give_back(file, stat.size);
            }
            Ok(Brought::All(copied?))
        })?;
        let copied = match copied {
            Brought::All(copied) => copied,
            Brought::Blocks(begun) => {
                let partial = begun.keep();
                stats::add(&self.stats.copy_up_partial, 1);
                return Ok(self.switch_data(inode, |state| {
                    state.metacopy = false;
                    state.set_partial(Some(partial));
                }));
            }
        };
        if self.must_sync(upper, &copied) {
            upper.sync_copy(file)?;
        }
        upper.set_mark(&part.node, &Mark::Metacopy(false))?;
        upper.set_mark(&part.node, &Mark::Redirect(None))?;
        stats::add(&self.stats.copy_up_data, 1);
        self.note_copied_bytes(inode, copied.bytes);
        Ok(self.switch_data(inode, |state| {
            state.metacopy = false;
            state.set_redirect(None);
        }))
    }

    fn pace<'a>(&self, cause: &'a Cause) -> Pace<'a> {
        Pace {
            lazy: self.params.no_sync,
            cause,
        }
    }

    /// The file that holds the data below.
    fn open_data(&self, inode: &Inode) -> Result<RealFile> {
        let lower = inode.state.read().lowers.last().cloned();
        let lower =
            lower.ok_or_else(|| Error::Corrupt(format!("inode {} has no data", inode.ino)))?;
        Ok(self
            .stack
            .lower(&lower)
            .open(&lower.node, crate::layer::Access::Read)?)
    }

    /// The upper, or `EROFS`.
    pub(crate) fn upper(&self) -> Result<&Arc<Upper>> {
        self.stack.upper.as_ref().ok_or(Error::Errno(libc::EROFS))
    }
}

/// Gives back the room of data that was not copied to its end; the size, which is the file's, stays.
fn give_back(file: &File, size: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if size > 0
        && let Err(e) = rustix::fs::fallocate(file, flags, 0, size)
    {
        log::debug!("half a copy keeps its room: {e}");
    }
}

/// Whether an error may be for want of room for xattrs.
pub(crate) fn is_no_room(errno: i32) -> bool {
    matches!(errno, libc::ENOSPC | libc::E2BIG | libc::ERANGE)
}

/// Xattrs that an upper may be unable to hold without the file being wrong: as the kernel's overlayfs, all but ACLs.
fn may_lose(name: &std::ffi::OsStr, e: &io::Error) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let bytes = name.as_bytes();
    match e.raw_os_error() {
        Some(libc::EOPNOTSUPP) => !acl::is_acl(name),
        // An unprivileged daemon cannot write these, nor can the programs that it serves.
        Some(libc::EPERM) => bytes.starts_with(b"trusted.") || bytes.starts_with(b"security."),
        _ => false,
    }
}
