//! Requests that must not be done twice.
//!
//! When the process that serves a mount has died, the kernel sends what it had not answered to the next one, marked as sent
//! again. What can be done twice is done again. The others are written down before they are begun, with what tells
//! afterwards whether they were done; meanwhile the kernel lets nobody else at the names that they change. So of a
//! request that was begun, the disk tells how far it came.

use std::ffi::OsStr;

use crate::union::{Entry, Error, Lookup, NodeId, RenameMode, Result, Union, is_resent};

/// A request that must not be done twice, until it is answered.
pub(super) struct Once<'a> {
    union: &'a Union,
    unique: u64,
    /// It is sent again, and had been begun: what it was to change, as of then (see the users).
    begun: Option<u64>,
}

impl<'a> Once<'a> {
    fn new(union: &'a Union, unique: u64, subject: impl FnOnce() -> u64) -> Once<'a> {
        let begun = is_resent(unique).then(|| union.intent(unique)).flatten();
        if union.journal().is_some() {
            // What counts is how things were before the first attempt.
            union.begin(unique, begun.unwrap_or_else(subject));
        }
        Once {
            union,
            unique,
            begun,
        }
    }

    /// One that makes or removes a name.
    pub(super) fn name(union: &'a Union, unique: u64, parent: NodeId, name: &OsStr) -> Once<'a> {
        Once::new(union, unique, || union.number_at(parent, name))
    }

    /// One that sets or removes an extended attribute.
    pub(super) fn xattr(union: &'a Union, unique: u64, node: NodeId, name: &OsStr) -> Once<'a> {
        Once::new(union, unique, || {
            u64::from(union.getxattr(node, name).is_ok())
        })
    }

    /// One that moves a name.
    pub(super) fn rename(
        union: &'a Union,
        unique: u64,
        from: (NodeId, &OsStr),
        to: (NodeId, &OsStr),
        mode: RenameMode,
    ) -> Once<'a> {
        let once = Once::new(union, unique, || union.number_at(from.0, from.1));
        if union.journal().is_some() {
            union.announce_name(from, to);
            if mode == RenameMode::Exchange {
                union.announce_name(to, from);
            }
        }
        once
    }

    /// Makes a name that stood for nothing. What the first attempt made was told nobody, and is made anew.
    pub(super) fn make<T>(
        &self,
        make: impl Fn() -> Result<T>,
        remove: impl FnOnce() -> Result<()>,
    ) -> Result<T> {
        match make() {
            Err(e) if e.errno() == libc::EEXIST && self.begun == Some(0) => {
                remove()?;
                make()
            }
            made => made,
        }
    }

    /// Gives a file a name that stood for nothing.
    pub(super) fn link(
        &self,
        link: impl FnOnce() -> Result<Entry>,
        (parent, name): (NodeId, &OsStr),
    ) -> Result<Entry> {
        match link() {
            Err(e) if e.errno() == libc::EEXIST && self.begun == Some(0) => {
                match self.union.lookup(parent, name)? {
                    Lookup::Found(entry) => Ok(entry),
                    Lookup::Absent(_) => Err(e),
                }
            }
            linked => linked,
        }
    }

    /// Removes what is there.
    pub(super) fn remove(&self, remove: impl FnOnce() -> Result<()>, gone: i32) -> Result<()> {
        match remove() {
            Err(e) if e.errno() == gone && self.begun.is_some_and(|before| before != 0) => Ok(()),
            removed => removed,
        }
    }

    /// Sets what is not there.
    pub(super) fn set(&self, set: impl FnOnce() -> Result<()>) -> Result<()> {
        match set() {
            Err(e) if e.errno() == libc::EEXIST && self.begun == Some(0) => Ok(()),
            done => done,
        }
    }

    /// Moves a name.
    pub(super) fn moved(
        &self,
        mode: RenameMode,
        (parent, name): (NodeId, &OsStr),
        rename: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let Some(before) = self.begun.filter(|before| *before != 0) else {
            return rename();
        };
        let there = || self.union.number_at(parent, name);
        if mode == RenameMode::Exchange && there() == before {
            return Ok(());
        }
        match rename() {
            Err(Error::Errno(libc::ENOENT)) if mode != RenameMode::Exchange && there() != 0 => {
                Ok(())
            }
            done => done,
        }
    }
}

impl Drop for Once<'_> {
    fn drop(&mut self) {
        if let Some(journal) = self.union.journal() {
            journal.answered(self.unique);
        }
    }
}
