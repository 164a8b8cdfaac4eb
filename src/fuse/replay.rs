//! Requests that must not be done twice.
//!
//! When the process that serves a mount has died, the kernel sends what it had not answered to the next one, marked as sent
//! again. What can be done twice is done again. The others are written down before they are begun, with what tells
//! afterwards whether they were done; meanwhile the kernel lets nobody else at the names that they change. So of a
//! request that was begun, the disk tells how far it came.

use std::ffi::OsStr;

use crate::union::{Entry, Error, Lookup, NodeId, RenameMode, Result, Union, is_resent};

/// What a request was to change, where that could not be found out: nothing is taken for its doing then.
const UNKNOWN: u64 = u64::MAX;

/// A request that must not be done twice, until it is answered.
pub(super) struct Once<'a> {
    union: &'a Union,
    unique: u64,
    /// The name that is made, removed or moved, in its directory.
    name: Option<(NodeId, &'a OsStr)>,
    /// It is sent again, and had been begun: what it was to change, as of then (see the users).
    begun: Option<u64>,
}

impl<'a> Once<'a> {
    fn new(
        union: &'a Union,
        unique: u64,
        name: Option<(NodeId, &'a OsStr)>,
        subject: impl FnOnce() -> Result<u64>,
    ) -> Once<'a> {
        let begun = is_resent(unique).then(|| union.intent(unique)).flatten();
        if union.journal().is_some() {
            // What counts is how things were before the first attempt.
            let subject = begun.map_or_else(subject, Ok);
            union.begin(unique, subject.unwrap_or(UNKNOWN));
        }
        Once {
            union,
            unique,
            name,
            begun,
        }
    }

    /// One that makes or removes a name.
    pub(super) fn name(union: &'a Union, unique: u64, parent: NodeId, name: &'a OsStr) -> Once<'a> {
        let subject = || union.number_at(parent, name);
        Once::new(union, unique, Some((parent, name)), subject)
    }

    /// One that sets or removes an extended attribute.
    pub(super) fn xattr(union: &'a Union, unique: u64, node: NodeId, name: &OsStr) -> Once<'a> {
        Once::new(union, unique, None, || match union.getxattr(node, name) {
            Ok(_) => Ok(1),
            Err(e) if e.errno() == libc::ENODATA => Ok(0),
            Err(e) => Err(e),
        })
    }

    /// One that moves a name.
    pub(super) fn rename(
        union: &'a Union,
        unique: u64,
        from: (NodeId, &'a OsStr),
        to: (NodeId, &OsStr),
        mode: RenameMode,
    ) -> Once<'a> {
        let once = Once::new(union, unique, Some(from), || {
            union.number_at(from.0, from.1)
        });
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
                let made = match self.name {
                    Some((dir, name)) => self.union.number_at(dir, name)?,
                    None => 0,
                };
                remove()?;
                if made != 0 {
                    self.union.disown(made);
                }
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
            Err(e) if e.errno() == gone && self.had_what_it_changes() => {
                self.lost_name();
                Ok(())
            }
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
        let Some(before) = self.begun.filter(|_| self.had_what_it_changes()) else {
            return rename();
        };
        if mode == RenameMode::Exchange && self.union.number_at(parent, name)? == before {
            return Ok(());
        }
        match rename() {
            Err(Error::Errno(libc::ENOENT))
                if mode != RenameMode::Exchange && self.union.number_at(parent, name)? != 0 =>
            {
                self.lost_name();
                Ok(())
            }
            done => done,
        }
    }

    /// It was begun when there was something to remove or to move.
    fn had_what_it_changes(&self) -> bool {
        self.begun
            .is_some_and(|before| before != 0 && before != UNKNOWN)
    }

    /// The name is gone, which the process before may not have written down.
    fn lost_name(&self) {
        if let (Some(before), Some((dir, name))) = (self.begun, self.name) {
            self.union.note_lost_name(before, dir, name);
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

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
