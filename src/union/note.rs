//! Writing down what the next process that serves the mount has to know.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use super::Union;
use super::error::Result;
use super::inode::Inode;
use super::journal;
use super::record::{self, Grave, LowerPlace, OpenFile, Record};
use super::types::{HandleId, NodeId};
use crate::layer::Node;
use crate::sys::sync::MutexGuard;

/// The path of a node in its layer.
fn path_of(node: &Node) -> Option<Vec<u8>> {
    match node {
        Node::Path(node) => node.path(),
        Node::Child(child) => child.path(),
        Node::Index(_) => None,
    }
}

impl Union {
    /// Writes down that the kernel is told a node.
    pub(super) fn note_node(&self, node: NodeId, inode: &Inode, first: bool) {
        let Some(journal) = self.journal.get() else {
            return;
        };
        if !first {
            journal.put(&[Record::Lookup(node)]);
            return;
        }
        let state = inode.state.read();
        let mut records: smallvec::SmallVec<[Record<'_>; 4]> = smallvec::smallvec![Record::Node {
            node,
            ino: inode.ino,
            file_type: inode.file_type(),
            real: state.upper.as_ref().map_or(0, |part| part.real_ino),
            lookups: 1,
        }];
        for dentry in state.dentries.iter() {
            records.push(record::name(inode.ino, dentry.parent.ino, &dentry.name));
        }
        journal.put(&records);
    }

    /// Writes down that the kernel gives lookups back.
    pub(super) fn note_forget(&self, node: NodeId, count: u64) {
        if let Some(journal) = self.journal.get() {
            journal.put(&[Record::Forget(node, count)]);
        }
    }

    /// Writes down that a file has a name more.
    pub(super) fn note_name(&self, inode: &Inode, parent: &Inode, name: &OsStr) {
        if let Some(journal) = self.journal.get() {
            journal.put(&[record::name(inode.ino, parent.ino, name)]);
        }
    }

    /// Writes down that a file has a name less.
    pub(super) fn note_no_name(&self, inode: &Inode, parent: &Inode, name: &OsStr) {
        self.note_number_without(inode.ino, parent, name);
    }

    fn note_number_without(&self, ino: u64, parent: &Inode, name: &OsStr) {
        if let Some(journal) = self.journal.get() {
            journal.put(&[Record::Unname {
                ino,
                parent: parent.ino,
                name: name.as_bytes(),
            }]);
        }
        if let Some(adopted) = self.adopted.get() {
            let mut numbers = adopted.numbers.lock();
            if !numbers.is_empty() {
                numbers.remove(&(parent.ino, name.to_owned()));
            }
        }
    }

    /// Writes down that the inode of a number has lost a name, which the process before had no time for.
    pub fn note_lost_name(&self, ino: u64, parent: NodeId, name: &OsStr) {
        if let Ok(parent) = self.node(parent) {
            self.note_number_without(ino, &parent, name);
        }
    }

    /// To be held while lookups of a node are counted or given back and that is written down.
    pub(super) fn order_of(&self, node: NodeId) -> Option<MutexGuard<'_, ()>> {
        Some(self.journal.get()?.order_of(node))
    }

    /// Writes down how a file is reached that is about to lose its last name.
    pub(super) fn note_grave(&self, inode: &Inode, dead: bool) -> Result<()> {
        let upper = inode.upper().map(|part| part.node);
        self.note_grave_as(inode, upper.as_ref(), dead)
    }

    /// The same; `upper`: its upper part, which is held open.
    pub(super) fn note_grave_as(
        &self,
        inode: &Inode,
        upper: Option<&Node>,
        dead: bool,
    ) -> Result<()> {
        let (Some(journal), Some(of)) = (self.journal.get(), &self.stack.upper) else {
            return Ok(());
        };
        let (metacopy, lowers) = {
            let state = inode.state.read();
            (state.metacopy, state.lowers.clone())
        };
        let mut grave = Grave {
            upper: upper.and_then(|node| of.pinned(node)),
            dead,
            metacopy,
            lowers: Vec::new(),
        };
        for lower in lowers.iter() {
            let place = match &lower.node {
                Node::Index(index) => LowerPlace::Index(*index),
                Node::Path(_) | Node::Child(_) => match path_of(&lower.node) {
                    Some(path) => LowerPlace::Path(path),
                    None => continue,
                },
            };
            grave.lowers.push((lower.layer, place));
        }
        journal.put(&[Record::Grave {
            ino: inode.ino,
            file_type: inode.file_type(),
            grave,
        }]);
        Ok(())
    }

    /// Writes down an open file.
    pub(super) fn note_open(&self, handle: HandleId, open: OpenFile) {
        if let Some(journal) = self.journal.get() {
            journal.put(&[Record::Open(handle, open)]);
        }
    }

    /// Writes down the cookies of a listing, of which a reading was given a part.
    pub(super) fn note_listing(&self, inode: &Inode) {
        let (Some(journal), Some(dir)) = (self.journal.get(), &inode.dir) else {
            return;
        };
        let cookies = dir
            .listing
            .lock()
            .as_mut()
            .and_then(|listing| listing.written_down());
        if let Some(cookies) = cookies {
            journal.put(&[Record::Listing(inode.ino, cookies)]);
        }
    }

    /// Writes down that a file is closed.
    pub(super) fn note_release(&self, handle: HandleId) {
        if let Some(journal) = self.journal.get() {
            journal.put(&[Record::Release(handle)]);
        }
    }

    /// Whether another process can go on where this one stops.
    pub fn can_be_taken_over(&self) -> io::Result<()> {
        match self.journal.get() {
            Some(journal) => journal::log_of(journal).map(drop),
            None => Err(io::Error::other("there is no journal")),
        }
    }
}
