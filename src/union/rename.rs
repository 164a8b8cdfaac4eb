//! Renaming.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use super::Union;
use super::cause::Cause;
use super::copy_up::Copy;
use super::dir::At;
use super::error::{Error, Result};
use super::inode::Inode;
use super::lock::RankedGuard;
use super::params::RedirectDir;
use super::types::{Caller, NodeId, RenameMode};
use crate::layer::upper::{Mark, Replace, Upper};

/// One end of a rename.
struct End<'a> {
    parent: &'a Arc<Inode>,
    name: &'a OsStr,
}

impl Union {
    pub(crate) fn do_rename(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        new_parent: NodeId,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        let parent = self.node(parent)?;
        let new_parent = self.node(new_parent)?;
        Self::check_new_name(new_name)?;
        self.writable()?;
        let from = End {
            parent: &parent,
            name,
        };
        let to = End {
            parent: &new_parent,
            name: new_name,
        };
        let inode = self
            .find_inode(&parent, name)?
            .ok_or(Error::Errno(libc::ENOENT))?;
        let target = self.find_inode(&new_parent, new_name)?;
        self.complete_names(&inode)?;
        if let Some(target) = &target {
            self.complete_names(target)?;
        }
        match (mode, &target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Error::Errno(libc::EEXIST)),
            (RenameMode::Exchange, None) => return Err(Error::Errno(libc::ENOENT)),
            (RenameMode::Replace, Some(target)) => {
                if Arc::ptr_eq(target, &inode) {
                    // Two names of one file: POSIX says that nothing happens.
                    return Ok(());
                }
                match (inode.is_dir(), target.is_dir()) {
                    (true, false) => return Err(Error::Errno(libc::ENOTDIR)),
                    (false, true) => return Err(Error::Errno(libc::EISDIR)),
                    _ => {}
                }
            }
            _ => {}
        }
        self.copy_up(&parent, Copy::Meta, "rename of an entry")?;
        self.copy_up(&new_parent, Copy::Meta, "rename of an entry")?;
        let cause = Cause::new("rename", caller);
        self.copy_up(&inode, Copy::Move, cause)?;
        match (&target, mode) {
            (Some(target), RenameMode::Exchange) => self.copy_up(target, Copy::Move, cause)?,
            (Some(target), _) => self.copy_up_linked(target, "unlink of one of its names")?,
            (None, _) => {}
        }
        // Within one directory nothing can change who is whose parent.
        let _rename = (!Arc::ptr_eq(&parent, &new_parent)).then(|| self.rename_lock.lock());
        let _ops = self.lock_dirs(&parent, &new_parent, target.as_ref())?;
        if new_parent.state.read().dead {
            return Err(Error::Errno(libc::ENOENT));
        }
        match (mode, &target) {
            (RenameMode::Exchange, Some(target)) => {
                self.exchange_locked(&from, &inode, &to, target)
            }
            (_, target) => self.rename_locked(&from, &inode, &to, target.as_ref()),
        }
    }

    /// Locks the directories of a rename: a parent before its child, else by number. Precondition: the rename lock is held
    /// unless both are one, so that who is whose parent stands still.
    fn lock_dirs<'a>(
        &self,
        a: &'a Arc<Inode>,
        b: &'a Arc<Inode>,
        target: Option<&'a Arc<Inode>>,
    ) -> Result<Vec<RankedGuard<'a, ()>>> {
        let mut dirs: Vec<&'a Arc<Inode>> = vec![a];
        if !Arc::ptr_eq(a, b) {
            dirs.push(b);
        }
        if let Some(target) = target
            && target.is_dir()
            && !dirs.iter().any(|d| Arc::ptr_eq(d, target))
        {
            dirs.push(target);
        }
        // Depth orders parents before children; directories of one depth are no relatives.
        let mut keyed: Vec<(usize, u64, &'a Arc<Inode>)> = dirs
            .into_iter()
            .map(|d| (Self::depth(d), d.ino, d))
            .collect();
        keyed.sort_by_key(|&(depth, ino, _)| (depth, ino));
        keyed
            .into_iter()
            .map(|(_, _, d)| Ok(Self::dir_part(d)?.ops.lock()))
            .collect()
    }

    fn depth(inode: &Arc<Inode>) -> usize {
        let mut depth = 0;
        let mut at = inode.clone();
        loop {
            let parent = at.state.read().dentries.first().map(|d| d.parent.clone());
            match parent {
                Some(parent) => {
                    depth += 1;
                    at = parent;
                }
                None => return depth,
            }
        }
    }

    /// Preconditions: both parents' and a directory target's `ops` locks are held, and the rename lock where the
    /// parents differ; both parents and the inode are in the upper.
    fn rename_locked(
        &self,
        from: &End<'_>,
        inode: &Arc<Inode>,
        to: &End<'_>,
        target: Option<&Arc<Inode>>,
    ) -> Result<()> {
        let upper = self.upper()?;
        let mut old = self.at_locked(from.parent, from.name)?;
        self.check_still(&old)?;
        let _names = match target {
            Some(target) => self.names_of(&[inode, target]),
            None => self.names_of(&[inode]),
        };
        self.ensure_named(upper, inode, from, &mut old)?;
        let mut new = self.at_locked(to.parent, to.name)?;
        if let Some(target) = target {
            self.check_still(&new)?;
            if target.is_dir() {
                self.check_empty_locked(target)?;
            } else {
                self.ensure_named(upper, target, to, &mut new)?;
            }
        }
        if inode.is_dir() {
            self.mark_moved(upper, inode, from, to)?;
        }
        let node = inode.upper().ok_or(Error::Errno(libc::EIO))?.node;
        let from_dir = from.parent.upper().ok_or(Error::Errno(libc::EIO))?;
        let to_dir = to.parent.upper().ok_or(Error::Errno(libc::EIO))?;
        if inode.state.read().has_origin {
            self.mark_impure(upper, to.parent, &to_dir)?;
        }
        let mut replaced = None;
        if let Some(target) = target {
            self.fix_nlink(upper, target)?;
            self.pin_last(upper, target)?;
            replaced = target.upper().map(|part| part.node);
        }
        let replace = match (new.upper, new.whiteout) {
            (true, _) if target.is_some_and(|t| t.is_dir()) => Replace::EmptyDir,
            (true, _) => Replace::File,
            (false, true) => Replace::Whiteout,
            (false, false) => Replace::Nothing,
        };
        upper.rename(
            (&from_dir.node, from.name),
            &node,
            (&to_dir.node, to.name),
            replaced.as_ref().filter(|_| new.upper),
            replace,
            old.lower,
        )?;
        self.moved(inode, from, to, old.lower)?;
        if let Some(target) = target {
            if target.is_dir() {
                self.bury(target, to.parent, to.name);
            } else {
                target.state.write().remove_name(to.parent, to.name);
                self.note_no_name(target, to.parent, to.name);
                self.unindex(upper, target)?;
                self.forget_nameless(target);
            }
        }
        Ok(())
    }

    /// Preconditions as of `rename_locked`; the target is in the upper too.
    fn exchange_locked(
        &self,
        from: &End<'_>,
        inode: &Arc<Inode>,
        to: &End<'_>,
        target: &Arc<Inode>,
    ) -> Result<()> {
        let upper = self.upper()?;
        if Arc::ptr_eq(inode, target) {
            return Ok(());
        }
        let mut old = self.at_locked(from.parent, from.name)?;
        let mut new = self.at_locked(to.parent, to.name)?;
        self.check_still(&old)?;
        self.check_still(&new)?;
        let _names = self.names_of(&[inode, target]);
        self.ensure_named(upper, inode, from, &mut old)?;
        self.ensure_named(upper, target, to, &mut new)?;
        if inode.is_dir() {
            self.mark_moved(upper, inode, from, to)?;
        }
        if target.is_dir() {
            self.mark_moved(upper, target, to, from)?;
        }
        let a = inode.upper().ok_or(Error::Errno(libc::EIO))?.node;
        let b = target.upper().ok_or(Error::Errno(libc::EIO))?.node;
        let a_dir = from.parent.upper().ok_or(Error::Errno(libc::EIO))?;
        let b_dir = to.parent.upper().ok_or(Error::Errno(libc::EIO))?;
        if inode.state.read().has_origin {
            self.mark_impure(upper, to.parent, &b_dir)?;
        }
        if target.state.read().has_origin {
            self.mark_impure(upper, from.parent, &a_dir)?;
        }
        upper.exchange((&a_dir.node, from.name, &a), (&b_dir.node, to.name, &b))?;
        let from_name = from.parent.shared_name(from.name);
        let to_name = to.parent.shared_name(to.name);
        {
            let mut state = inode.state.write();
            state.remove_name(from.parent, from.name);
            state.add_name(to.parent, to_name);
        }
        {
            let mut state = target.state.write();
            state.remove_name(to.parent, to.name);
            state.add_name(from.parent, from_name);
        }
        for (inode, end, other) in [(inode, to, from), (target, from, to)] {
            self.note_name(inode, end.parent, end.name);
            self.note_no_name(inode, other.parent, other.name);
        }
        if let Some(listing) = Self::dir_part(from.parent)?.listing.lock().as_mut() {
            listing.insert_upper(from.name, target.file_type(), target.ino);
        }
        if let Some(listing) = Self::dir_part(to.parent)?.listing.lock().as_mut() {
            listing.insert_upper(to.name, inode.file_type(), inode.ino);
        }
        Ok(())
    }

    fn check_still(&self, at: &At) -> Result<()> {
        if !at.upper && (at.whiteout || !at.lower) {
            return Err(Error::Errno(libc::ENOENT));
        }
        Ok(())
    }

    /// A name of an indexed file that only a lower has so far gets its upper entry.
    fn ensure_named(
        &self,
        upper: &Upper,
        inode: &Arc<Inode>,
        end: &End<'_>,
        at: &mut At,
    ) -> Result<()> {
        if !at.upper && !inode.is_dir() && inode.state.read().indexed().is_some() {
            self.link_up_locked(upper, inode, end.parent, end.name)?;
            at.upper = true;
        }
        Ok(())
    }

    /// The names and listings after a rename.
    fn moved(&self, inode: &Inode, from: &End<'_>, to: &End<'_>, whiteout: bool) -> Result<()> {
        let to_name = to.parent.shared_name(to.name);
        {
            let mut state = inode.state.write();
            state.remove_name(from.parent, from.name);
            state.add_name(to.parent, to_name);
        }
        self.note_name(inode, to.parent, to.name);
        self.note_no_name(inode, from.parent, from.name);
        if let Some(listing) = Self::dir_part(from.parent)?.listing.lock().as_mut() {
            listing.remove(from.name, whiteout);
        }
        if let Some(listing) = Self::dir_part(to.parent)?.listing.lock().as_mut() {
            listing.insert_upper(to.name, inode.file_type(), inode.ino);
        }
        Ok(())
    }

    /// Makes sure that a directory keeps its lower parts, and gets no others, under its new name: by a redirect where it has lower
    /// parts, else by the opaque mark.
    fn mark_moved(
        &self,
        upper: &Upper,
        inode: &Arc<Inode>,
        from: &End<'_>,
        to: &End<'_>,
    ) -> Result<()> {
        let part = inode.upper().ok_or(Error::Errno(libc::EIO))?;
        let (has_lowers, redirect) = {
            let state = inode.state.read();
            (
                !state.lowers.is_empty(),
                state.redirect().map(OsStr::to_owned),
            )
        };
        if !has_lowers {
            if !to.parent.state.read().lowers.is_empty() {
                upper.set_mark(&part.node, &Mark::Opaque)?;
            }
            return Ok(());
        }
        if self.params.redirect_dir != RedirectDir::On {
            return Err(Error::Errno(libc::EXDEV));
        }
        let same_dir = Arc::ptr_eq(from.parent, to.parent);
        let path = match redirect {
            // Still true from wherever it is read.
            Some(redirect) if same_dir || redirect.as_bytes().starts_with(b"/") => return Ok(()),
            None if same_dir => from.name.to_owned(),
            _ => self.lower_path(inode).ok_or_else(|| {
                Error::Corrupt(format!("no path to the lower parts of {:?}", from.name))
            })?,
        };
        upper.set_mark(&part.node, &Mark::Redirect(Some(path.clone())))?;
        inode
            .state
            .write()
            .set_redirect(Some(path.into_boxed_os_str()));
        Ok(())
    }

    /// The path of an inode's lower parts, from the root of the layers: each element by its redirect, where it has one.
    pub(crate) fn lower_path(&self, inode: &Inode) -> Option<OsString> {
        let mut parts: Vec<OsString> = Vec::new();
        let mut next = {
            let state = inode.state.read();
            (
                state.redirect().map(OsStr::to_owned),
                state.dentries.first().cloned(),
            )
        };
        let mut prefix = Vec::new();
        while let (redirect, Some(dentry)) = next {
            match redirect {
                Some(path) if path.as_bytes().starts_with(b"/") => {
                    prefix = path.as_bytes().to_vec();
                    break;
                }
                Some(name) => parts.push(name),
                None => parts.push(dentry.name.to_os_string()),
            }
            let state = dentry.parent.state.read();
            next = (
                state.redirect().map(OsStr::to_owned),
                state.dentries.first().cloned(),
            );
        }
        if parts.is_empty() && prefix.is_empty() {
            return None;
        }
        for part in parts.iter().rev() {
            prefix.push(b'/');
            prefix.extend_from_slice(part.as_bytes());
        }
        Some(OsString::from_vec(prefix))
    }
}
