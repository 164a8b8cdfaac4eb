//! Reading directories. They are not opened: a node's listing, and the cookies in it, live as long as the kernel knows the
//! node, which it does while a program holds it open.

use std::cell::Cell;
use std::ffi::OsStr;
use std::sync::Arc;

use super::Union;
use super::error::{Error, Result};
use super::inode::Inode;
use super::links::is_of_name;
use super::listing::{COOKIE_DOT, COOKIE_DOTDOT, Item};
use super::table::Forgotten;
use super::types::{DirEntry, Entry, NodeId};
use crate::layer::Layer;
use crate::sys::memory;

/// Entries taken out of the listing under its lock at a time.
const BATCH: usize = 256;

impl Union {
    pub(crate) fn do_readdir(
        &self,
        node: NodeId,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let inode = self.node(node)?;
        self.each_entry(&inode, offset, &mut |item, cookie| {
            let Some(item) = item else {
                return Ok(sink(self.dot(&inode, cookie)));
            };
            let Some(ino) = self.item_ino(&inode, item)? else {
                return Ok(false);
            };
            Ok(sink(DirEntry {
                name: &item.name,
                ino,
                file_type: item.file_type,
                cookie,
            }))
        })
    }

    pub(crate) fn do_readdirplus(
        &self,
        node: NodeId,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<&Entry>) -> bool,
    ) -> Result<()> {
        let inode = self.node(node)?;
        let told = Cell::new(false);
        let mut sink = |entry: DirEntry<'_>, found: Option<&Entry>| {
            let full = sink(entry, found);
            told.set(told.get() || !full);
            full
        };
        self.each_entry(&inode, offset, &mut |item, cookie| {
            let Some(item) = item else {
                return Ok(sink(self.dot(&inode, cookie), None));
            };
            match self.give_entry(&inode, item, cookie, &mut sink) {
                // Of an answer that is an error the kernel sees no entry, and would never forget those that it was told. It goes on
                // behind the last of them, and is told the error then.
                Err(e) if told.get() => {
                    log::debug!("the listing is cut short before {:?}: {e}", item.name);
                    Ok(true)
                }
                other => other,
            }
        })
    }

    /// One entry with its node, if it is there still; returns whether `sink` is full.
    fn give_entry(
        &self,
        inode: &Arc<Inode>,
        item: &Item,
        cookie: u64,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<&Entry>) -> bool,
    ) -> Result<bool> {
        let found = match self.find(inode, &item.name) {
            Ok(Some(found)) => found,
            // Removed since the listing was read: no entry.
            Ok(None) => return Ok(false),
            // One damaged file does not hide the others. It is named without a node that is kept: who uses the name
            // asks for it again, and is told the error. A number that is known must not be given uncounted.
            Err(e) if item.ino != 0 && self.node(item.ino).is_err() => {
                log::warn!("{:?} cannot be looked at: {e}", item.name);
                let entry = DirEntry {
                    name: &item.name,
                    ino: item.ino,
                    file_type: item.file_type,
                    cookie,
                };
                return Ok(sink(entry, None));
            }
            Err(e) => return Err(e),
        };
        let entry = self.entry(&found)?;
        let full = sink(
            DirEntry {
                name: &item.name,
                ino: entry.attr.ino,
                file_type: found.inode.file_type(),
                cookie,
            },
            Some(&entry),
        );
        if full {
            self.do_forget(entry.node, 1);
        }
        Ok(full)
    }

    /// Gives each entry after a cookie, `None` for `.` and `..`, until `sink` says that it is full.
    fn each_entry(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        sink: &mut dyn FnMut(Option<&Item>, u64) -> Result<bool>,
    ) -> Result<()> {
        let dir = Self::dir_part(inode)?;
        if dir.listing.lock().is_none() {
            let _ops = dir.ops.lock();
            self.load_listing(inode, usize::MAX)?;
        }
        for cookie in [COOKIE_DOT, COOKIE_DOTDOT] {
            if offset < cookie && sink(None, cookie)? {
                self.note_listing(inode);
                return Ok(());
            }
        }
        let mut at = offset.max(COOKIE_DOTDOT);
        loop {
            let batch = match dir.listing.lock().as_ref() {
                Some(listing) => listing.batch_after(at, BATCH),
                None => return Ok(()),
            };
            let Some(&(last, _)) = batch.last() else {
                return Ok(());
            };
            for (cookie, item) in &batch {
                if sink(Some(item), *cookie)? {
                    self.note_listing(inode);
                    return Ok(());
                }
            }
            at = last;
        }
    }

    fn dot(&self, inode: &Arc<Inode>, cookie: u64) -> DirEntry<'static> {
        if cookie == COOKIE_DOT {
            return DirEntry {
                name: OsStr::new("."),
                ino: inode.ino,
                file_type: libc::S_IFDIR,
                cookie,
            };
        }
        let parent = inode.state.read().dentries.first().map(|d| d.parent.ino);
        DirEntry {
            name: OsStr::new(".."),
            ino: parent.unwrap_or(inode.ino),
            file_type: libc::S_IFDIR,
            cookie,
        }
    }

    /// The `d_ino` of an entry; `None` when it is gone.
    fn item_ino(&self, inode: &Arc<Inode>, item: &Item) -> Result<Option<u64>> {
        if item.ino != 0 && !is_of_name(item.ino) {
            return Ok(Some(item.ino));
        }
        let found = self.find(inode, &item.name)?;
        Ok(found.map(|found| self.shown_number(&found.inode, &found.stat)))
    }

    pub(crate) fn do_fsyncdir(&self, node: NodeId) -> Result<()> {
        if self.params.no_sync {
            return Ok(());
        }
        let inode = self.node(node)?;
        if let (Some(part), Some(upper)) = (inode.upper(), &self.stack.upper) {
            upper.settle_names()?;
            upper.fsync(&part.node)?;
        }
        Ok(())
    }

    pub(crate) fn do_forget(&self, node: NodeId, count: u64) {
        let forgotten = {
            let _order = self.order_of(node);
            self.note_forget(node, count);
            self.table.forget(node, count)
        };
        let inode = match forgotten {
            Forgotten::Inode(inode) => inode,
            Forgotten::Seed => return self.forget_adopted(node),
            Forgotten::Nothing => return,
        };
        // The kernel knows the directory no more; its names can be read again.
        if let Some(dir) = &inode.dir
            && Arc::strong_count(&inode) > 1
        {
            let listing = dir.listing.lock().take();
            drop(listing);
        }
        drop(inode);
        if self.table.has_shrunk() {
            memory::give_back();
        }
    }

    pub(crate) fn do_statfs(&self) -> Result<nix::sys::statvfs::Statvfs> {
        match (&self.stack.upper, self.stack.lowers.first()) {
            (Some(upper), _) => Ok(upper.statfs()?),
            (None, Some(lower)) => Ok(lower.statfs()?),
            (None, None) => Err(Error::Errno(libc::EIO)),
        }
    }
}
