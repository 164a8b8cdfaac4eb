//! Removing entries of a directory.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Union;
use super::copy_up::Copy;
use super::error::{Error, Result};
use super::inode::Inode;
use super::types::NodeId;
use crate::layer::upper::Upper;

impl Union {
    pub(crate) fn do_unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        let parent = self.node(parent)?;
        let dir = Self::dir_part(&parent)?;
        self.writable()?;
        let inode = self
            .find_inode(&parent, name)?
            .ok_or(Error::Errno(libc::ENOENT))?;
        if inode.is_dir() {
            return Err(Error::Errno(libc::EISDIR));
        }
        self.complete_names(&inode)?;
        self.copy_up(&parent, Copy::Meta, "removal of an entry")?;
        self.copy_up_linked(&inode, "unlink of one of its names")?;
        let upper = self.upper()?;
        let _ops = dir.ops.lock();
        let mut at = self.at_locked(&parent, name)?;
        if !at.upper && (at.whiteout || !at.lower) {
            return Err(Error::Errno(libc::ENOENT));
        }
        let _names = self.names_of(&[&inode]);
        if !at.upper && Self::indexed(&inode).is_some() {
            self.link_up_locked(upper, &inode, &parent, name)?;
            at.upper = true;
        }
        self.fix_nlink(upper, &inode)?;
        self.pin_last(upper, &inode)?;
        let into = parent.upper().ok_or(Error::Errno(libc::EIO))?;
        let node = inode.upper().filter(|_| at.upper).map(|part| part.node);
        upper.remove(&into.node, name, node.as_ref(), false, at.lower)?;
        inode.state.write().remove_name(&parent, name);
        self.note_no_name(&inode, &parent, name);
        if let Some(listing) = dir.listing.lock().as_mut() {
            listing.remove(name, at.lower);
        }
        self.unindex(upper, &inode)?;
        self.forget_nameless(&inode);
        Ok(())
    }

    /// Holds an inode that is about to lose the last name by which the upper knows it: the kernel may go on using it, and
    /// of an indexed one the other names may be the lower's alone.
    pub(crate) fn pin_last(&self, upper: &Upper, inode: &Inode) -> Result<()> {
        let part = {
            let state = inode.state.read();
            if state.dentries.len() > 1 && state.indexed().is_none() {
                return Ok(());
            }
            state.upper.as_deref().cloned()
        };
        if let Some(part) = part {
            upper.pin(&part.node)?;
        }
        self.note_grave(inode, inode.is_dir())
    }

    pub(crate) fn do_rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        let parent = self.node(parent)?;
        let dir = Self::dir_part(&parent)?;
        self.writable()?;
        let inode = self
            .find_inode(&parent, name)?
            .ok_or(Error::Errno(libc::ENOENT))?;
        let own = Self::dir_part(&inode)?;
        self.copy_up(&parent, Copy::Meta, "removal of an entry")?;
        let upper = self.upper()?;
        let _ops = dir.ops.lock();
        let _own_ops = own.ops.lock();
        self.check_empty_locked(&inode)?;
        let at = self.at_locked(&parent, name)?;
        if !at.upper && (at.whiteout || !at.lower) {
            return Err(Error::Errno(libc::ENOENT));
        }
        let into = parent.upper().ok_or(Error::Errno(libc::EIO))?;
        let node = inode.upper().map(|part| part.node);
        if let Some(node) = &node {
            upper.pin(node)?;
        }
        self.note_grave(&inode, true)?;
        upper.remove(&into.node, name, node.as_ref(), true, at.lower)?;
        self.bury(&inode, &parent, name);
        if let Some(listing) = dir.listing.lock().as_mut() {
            listing.remove(name, at.lower);
        }
        Ok(())
    }

    /// `ENOTEMPTY` unless the merged directory is empty. Precondition: its `ops` lock is held.
    pub(crate) fn check_empty_locked(&self, inode: &Inode) -> Result<()> {
        self.load_listing(inode, usize::MAX)?;
        let dir = Self::dir_part(inode)?;
        match dir.listing.lock().as_ref() {
            Some(listing) if listing.is_empty() => Ok(()),
            _ => Err(Error::Errno(libc::ENOTEMPTY)),
        }
    }

    /// A directory that was removed: nothing can be made in it, and it is found no more.
    pub(crate) fn bury(&self, inode: &Inode, parent: &Arc<Inode>, name: &OsStr) {
        {
            let mut state = inode.state.write();
            state.remove_name(parent, name);
            state.dead = true;
        }
        self.note_no_name(inode, parent, name);
        if let Some(dir) = &inode.dir {
            dir.impure.store(false, Ordering::Relaxed);
        }
    }
}
