//! Hard links, and the count of names that a file has in the union.

use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Union;
use super::attr::union_nlink;
use super::cause::Cause;
use super::copy_up::Copy;
use super::error::{Error, Result};
use super::inode::{Indexed, Inode, NlinkBase, UpperPart};
use super::lock::RankedGuard;
use super::namei::FoundInode;
use super::types::{Caller, Entry, NodeId};
use crate::layer::upper::{Mark, Replace, TimeSet, Upper};
use crate::layer::{Layer, Stat};

/// The first of the inode numbers of names that stand for a file each, though a layer has one file under several. Above all
/// that the table counts up.
const NAMES_BASE: u64 = 0x7f << 56;

/// The number of the inode of such a name, always the same: whoever looks it up, in whatever order, comes to one inode. Programs
/// are shown the real file's (see [`Union::shown_number`]).
pub(crate) fn number_of_name(parent: &Inode, name: &OsStr) -> u64 {
    let mut hasher = DefaultHasher::new();
    (parent.ino, name).hash(&mut hasher);
    NAMES_BASE | hasher.finish() >> 8
}

/// Whether an inode is that of such a name.
pub(crate) fn is_of_name(ino: u64) -> bool {
    (NAMES_BASE..NAMES_BASE + (1 << 56)).contains(&ino)
}

impl Union {
    /// The inode number that programs see. `stat`: as [`Union::stat`] tells it. That of a name which stands for a file is the
    /// layer's as long as the file is as it lies there: by it programs tell that names are of one file. The kernel's overlayfs
    /// does the same.
    pub(crate) fn shown_number(&self, inode: &Inode, stat: &Stat) -> u64 {
        if !is_of_name(inode.ino) {
            return inode.ino;
        }
        self.stack
            .ino(stat.dev, stat.ino, || self.table.dynamic_ino())
    }

    /// Writes down the union's link count relative to the upper's, before an operation that changes both alike: so the mark
    /// is true before it, after it, and after a crash in between.
    ///
    /// A count that is not known stays as it is: too large, if anything, which costs an index entry that nobody needs any more.
    pub(crate) fn fix_nlink(&self, upper: &Upper, inode: &Inode) -> Result<()> {
        let Some((indexed, part)) = Self::indexed(inode) else {
            return Ok(());
        };
        let real = upper.stat(&part.node)?.nlink;
        let Some(nlink) = union_nlink(indexed.nlink, real, indexed.lower_nlink) else {
            return Ok(());
        };
        let base = NlinkBase::Upper(nlink as i64 - real as i64);
        self.set_nlink(upper, inode, &part, base)
    }

    /// After a copy-up: from now on the upper alone tells how many names there are, also to who may not look at the lower.
    pub(crate) fn count_in_upper(&self, upper: &Upper, inode: &Inode) {
        let _names = self.names_of(&[inode]);
        if let Err(e) = self.fix_nlink(upper, inode) {
            log::warn!("how many names a copy has is told by its layer still: {e}");
        }
    }

    /// To be held while names of these come or go.
    pub(crate) fn names_of(&self, inodes: &[&Inode]) -> Option<RankedGuard<'_, ()>> {
        let indexed = |inode: &&Inode| inode.state.read().indexed().is_some();
        inodes.iter().any(indexed).then(|| self.names.lock())
    }

    fn set_nlink(
        &self,
        upper: &Upper,
        inode: &Inode,
        part: &UpperPart,
        base: NlinkBase,
    ) -> Result<()> {
        upper.set_mark(&part.node, &Mark::Nlink(Some(base.to_text())))?;
        if let Some(indexed) = inode.state.write().indexed_mut() {
            indexed.nlink = base;
        }
        Ok(())
    }

    pub(crate) fn indexed(inode: &Inode) -> Option<(Indexed, UpperPart)> {
        let state = inode.state.read();
        Some((state.indexed().cloned()?, state.upper.as_deref().cloned()?))
    }

    /// A name is about to come to a file of which it is not known how many it has: the mark must not tell fewer than there are to
    /// who knows the lower.
    fn count_unknown(&self, upper: &Upper, inode: &Inode) -> Result<()> {
        let Some((indexed, part)) = Self::indexed(inode) else {
            return Ok(());
        };
        match (indexed.nlink, indexed.lower_nlink) {
            (NlinkBase::Lower(more), None) => {
                self.set_nlink(upper, inode, &part, NlinkBase::Lower(more + 1))
            }
            _ => Ok(()),
        }
    }

    /// Gives an indexed inode its upper entry under a name that only a lower has so far. The number of names does not change.
    /// Precondition: the directory's `ops` lock and [`Union::names_of`] are held and the directory is in the upper.
    pub(crate) fn link_up_locked(
        &self,
        upper: &Upper,
        inode: &Inode,
        parent: &Inode,
        name: &OsStr,
    ) -> Result<()> {
        let Some((indexed, part)) = Self::indexed(inode) else {
            return Ok(());
        };
        let dir = parent.upper().ok_or(Error::Errno(libc::EIO))?;
        let real = upper.stat(&part.node)?.nlink;
        let nlink = union_nlink(indexed.nlink, real, indexed.lower_nlink);
        // Else it is true before the link, and one too many from it on, until it is counted.
        if let (Some(nlink), Some(lower)) = (nlink, indexed.lower_nlink) {
            let base = NlinkBase::Lower(nlink as i64 - lower as i64);
            self.set_nlink(upper, inode, &part, base)?;
        }
        let before = upper.stat(&dir.node)?;
        self.mark_impure(upper, parent, &dir)?;
        upper.link(&part.node, &dir.node, name, Replace::Nothing)?;
        upper.set_times(
            &dir.node,
            Some(TimeSet::At(before.atime)),
            Some(TimeSet::At(before.mtime)),
        )?;
        if let Some(listing) = Self::dir_part(parent)?.listing.lock().as_mut() {
            listing.mark_upper(name);
        }
        if let (Some(nlink), None) = (nlink, indexed.lower_nlink) {
            let base = NlinkBase::Upper(nlink as i64 - real as i64 - 1);
            return self.set_nlink(upper, inode, &part, base);
        }
        self.fix_nlink(upper, inode)
    }

    pub(crate) fn do_link(
        &self,
        caller: &Caller,
        node: NodeId,
        new_parent: NodeId,
        new_name: &OsStr,
    ) -> Result<Entry> {
        let inode = self.node(node)?;
        let parent = self.node(new_parent)?;
        let dir = Self::dir_part(&parent)?;
        Self::check_new_name(new_name)?;
        self.writable()?;
        if inode.is_dir() {
            return Err(Error::Errno(libc::EPERM));
        }
        self.complete_names(&inode)?;
        self.copy_up(&parent, Copy::Meta, "new entry in it")?;
        self.copy_up(&inode, Copy::Move, Cause::new("link", caller))?;
        let upper = self.upper()?;
        let _ops = dir.ops.lock();
        let (part, nameless, has_origin) = {
            let state = inode.state.read();
            let part = state
                .upper
                .as_deref()
                .cloned()
                .ok_or(Error::Errno(libc::EIO))?;
            (part, state.dentries.is_empty(), state.has_origin)
        };
        // An unlinked file cannot come back. It may have names that nobody asked for.
        let unlinked = nameless && self.nlink(&inode, &upper.stat(&part.node)?)? == 0;
        if unlinked || parent.state.read().dead {
            return Err(Error::Errno(libc::ENOENT));
        }
        let at = self.at_locked(&parent, new_name)?;
        if at.upper || (at.lower && !at.whiteout) {
            return Err(Error::Errno(libc::EEXIST));
        }
        let into = parent.upper().ok_or(Error::Errno(libc::EIO))?;
        let _names = self.names_of(&[&inode]);
        self.fix_nlink(upper, &inode)?;
        self.count_unknown(upper, &inode)?;
        if has_origin {
            self.mark_impure(upper, &parent, &into)?;
        }
        let replace = if at.whiteout {
            Replace::Whiteout
        } else {
            Replace::Nothing
        };
        upper.link(&part.node, &into.node, new_name, replace)?;
        let kept = parent.shared_name(new_name);
        inode.state.write().add_name(&parent, kept);
        self.note_name(&inode, &parent, new_name);
        if let Some(listing) = dir.listing.lock().as_mut() {
            listing.insert_upper(new_name, inode.file_type(), inode.ino);
        }
        let stat = upper.stat(&part.node)?;
        self.entry(&FoundInode { inode, stat })
    }

    /// A lower file with several names gets its index entry before one of them changes, so that the others stay right.
    pub(crate) fn copy_up_linked(&self, inode: &Arc<Inode>, reason: &'static str) -> Result<()> {
        if !self.is_linked_below(inode)? {
            return Ok(());
        }
        self.copy_up(inode, Copy::Meta, reason)
    }

    /// Whether a file that was not copied up has other names, which an index entry is to keep together with this one.
    fn is_linked_below(&self, inode: &Inode) -> Result<bool> {
        let lower = {
            let state = inode.state.read();
            if state.upper.is_some() || inode.is_dir() || !self.params.index {
                return Ok(false);
            }
            state.lowers.first().cloned()
        };
        let Some(lower) = lower else { return Ok(false) };
        let layer = self.stack.lower(&lower);
        Ok(layer.stat(&lower.node)?.nlink > 1 && layer.handle(&lower.node)?.is_some())
    }

    /// See [`Union::may_copy_linked`].
    pub(crate) fn do_may_copy_linked(&self, parent: NodeId, name: &OsStr) -> bool {
        // What is removed was looked up before, here or by the process before.
        if !self.met_links.load(Ordering::Relaxed) && !self.took_over() {
            return false;
        }
        let found = self
            .node(parent)
            .and_then(|parent| self.find_inode(&parent, name));
        match found {
            Ok(Some(inode)) => self.is_linked_below(&inode).unwrap_or(false),
            // The removal will tell.
            Ok(None) | Err(_) => false,
        }
    }

    /// Drops the index entry of an inode that has no name left.
    pub(crate) fn unindex(&self, upper: &Upper, inode: &Inode) -> Result<()> {
        let Some((indexed, part)) = Self::indexed(inode) else {
            return Ok(());
        };
        let real = upper.stat(&part.node)?.nlink;
        // Without its entry the other names would show the lower again.
        if union_nlink(indexed.nlink, real, indexed.lower_nlink) != Some(0) {
            return Ok(());
        }
        if !upper.is_pinned(&part.node) {
            upper.pin(&part.node)?;
            self.note_grave(inode, false)?;
        }
        upper.index_remove(&indexed.handle)?;
        inode.state.write().set_indexed(None);
        Ok(())
    }
}
