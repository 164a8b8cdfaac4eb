//! What a journal tells, read.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use smallvec::SmallVec;

use super::listing::Cookies;
use super::numbered::{Numbered, Numbers};
use super::record::{Grave, OpenFile, Record};
use super::types::{HandleId, NodeId};

/// A node that the kernel knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BookNode {
    pub(super) ino: u64,
    /// Positive once all is read: the log tells them in the order in which they were counted.
    pub(super) lookups: i64,
}

/// A file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BookFile {
    pub(super) file_type: u32,
    /// Inode number of the upper part on disk when the kernel came to know the file; 0 without one.
    pub(super) real: u64,
    /// Its names, with the inode number of the directory.
    pub(super) names: SmallVec<[(u64, OsString); 1]>,
    /// How it is reached without any.
    pub(super) grave: Option<Grave>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) nodes: Numbered<BookNode>,
    /// By inode number.
    pub(super) files: Numbered<BookFile>,
    /// Inode numbers that another node than the one of that number stands for.
    pub(super) twins: HashSet<u64>,
    pub(super) opens: HashMap<HandleId, OpenFile>,
    pub(super) backings: HashSet<u32>,
    /// By the directory's inode number.
    pub(super) listings: HashMap<u64, Cookies>,
    /// What requests were about to do, by their number.
    pub(super) intents: HashMap<u64, u64>,
    /// The largest of all handles that were ever told.
    pub(super) last_handle: HandleId,
}

impl Book {
    /// Reads all records.
    pub(super) fn read(mut bytes: &[u8]) -> Book {
        let mut book = Book::default();
        while let Some((record, rest)) = Record::decode(bytes) {
            book.apply(record);
            bytes = rest;
        }
        book.nodes
            .retain(|_, node| node.lookups > 0 && node.ino != 0);
        // Of files that are not known there may be some more: looking for them takes longer than they are worth.
        if !book.listings.is_empty() {
            let known = book.known();
            book.listings.retain(|ino, _| known.contains(ino));
        }
        book
    }

    /// The files that the kernel knows.
    fn known(&self) -> Numbers {
        self.nodes.values().map(|node| node.ino).collect()
    }

    /// The descriptors that are open for files without a name which the kernel knows, with the inode numbers that they must
    /// have.
    pub(super) fn left_open(&self) -> Vec<(RawFd, u64)> {
        let graves = self.files.iter().filter_map(|(ino, file)| {
            let upper = file.grave.as_ref()?.upper?;
            Some((*ino, upper))
        });
        let graves: Vec<(u64, (RawFd, u64))> = graves.collect();
        if graves.is_empty() {
            return Vec::new();
        }
        let known = self.known();
        let mut left: Vec<(RawFd, u64)> = graves
            .into_iter()
            .filter(|(ino, _)| known.contains(ino))
            .map(|(_, upper)| upper)
            .collect();
        left.sort_unstable();
        left
    }

    fn node(&mut self, node: NodeId) -> &mut BookNode {
        self.nodes.entry(node).or_default()
    }

    fn apply(&mut self, record: Record<'_>) {
        match record {
            Record::Node {
                node,
                ino,
                file_type,
                real,
                lookups,
            } => {
                if node != ino {
                    self.twins.insert(ino);
                }
                let entry = self.node(node);
                entry.ino = ino;
                let known = entry.lookups > 0;
                let lookups = i64::try_from(lookups).unwrap_or(i64::MAX);
                entry.lookups = entry.lookups.saturating_add(lookups);
                let file = self.files.entry(ino).or_default();
                if !known && !self.twins.contains(&ino) {
                    // What is there is of the file that had the number before, and the names that this one has follow.
                    *file = BookFile::default();
                }
                file.file_type = file_type;
                file.real = real;
                self.listings.remove(&ino);
            }
            Record::Lookup(node) => {
                let entry = self.node(node);
                entry.lookups = entry.lookups.saturating_add(1);
            }
            Record::Forget(node, count) => {
                let entry = self.node(node);
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                entry.lookups = entry.lookups.saturating_sub(count).max(0);
            }
            Record::Name { ino, parent, name } => {
                let file = self.files.entry(ino).or_default();
                let name = OsString::from_vec(name.to_vec());
                if !file.names.iter().any(|(p, n)| *p == parent && *n == name) {
                    file.names.push((parent, name));
                }
            }
            Record::Unname { ino, parent, name } => {
                if let Some(file) = self.files.get_mut(&ino) {
                    file.names
                        .retain(|(p, n)| *p != parent || n.as_bytes() != name);
                }
            }
            Record::Grave {
                ino,
                file_type,
                grave,
            } => {
                let file = self.files.entry(ino).or_default();
                file.file_type = file_type;
                file.grave = Some(grave);
            }
            Record::Open(handle, open) => {
                self.last_handle = self.last_handle.max(handle);
                self.opens.insert(handle, open);
            }
            Record::Release(handle) => {
                self.last_handle = self.last_handle.max(handle);
                self.opens.remove(&handle);
            }
            Record::Backing(id) => {
                self.backings.insert(id);
            }
            Record::Unbacked(id) => {
                self.backings.remove(&id);
            }
            Record::Intent(unique, subject) => {
                self.intents.insert(unique, subject);
            }
            Record::Listing(ino, cookies) => {
                self.listings.insert(ino, cookies);
            }
        }
    }

    /// The kernel knows the node no more.
    pub(super) fn forget(&mut self, node: NodeId) {
        let Some(entry) = self.nodes.remove(&node) else {
            return;
        };
        // Names of directories lead to others, and of files with two nodes the other may be left.
        let is_dir = |file: &BookFile| file.file_type == libc::S_IFDIR;
        if !self.twins.contains(&entry.ino) && !self.files.get(&entry.ino).is_some_and(is_dir) {
            self.files.remove(&entry.ino);
        }
    }

    /// Files that a node or another such file's name leads to.
    fn needed(&self) -> Numbers {
        let mut needed = Numbers::default();
        let mut pending: Vec<u64> = self.nodes.values().map(|node| node.ino).collect();
        while let Some(ino) = pending.pop() {
            if needed.insert(ino)
                && let Some(file) = self.files.get(&ino)
            {
                pending.extend(file.names.iter().map(|(parent, _)| *parent));
            }
        }
        needed
    }

    /// The same as records, without those of files that nobody can ask for.
    pub(super) fn to_log(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (&node, entry) in &self.nodes {
            let file = self.files.get(&entry.ino);
            Record::Node {
                node,
                ino: entry.ino,
                file_type: file.map_or(0, |f| f.file_type),
                real: file.map_or(0, |f| f.real),
                lookups: entry.lookups.unsigned_abs(),
            }
            .encode(&mut out);
        }
        for ino in self.needed() {
            let Some(file) = self.files.get(&ino) else {
                continue;
            };
            for (parent, name) in &file.names {
                Record::Name {
                    ino,
                    parent: *parent,
                    name: name.as_bytes(),
                }
                .encode(&mut out);
            }
            if let Some(grave) = &file.grave {
                Record::Grave {
                    ino,
                    file_type: file.file_type,
                    grave: grave.clone(),
                }
                .encode(&mut out);
            }
        }
        for (&handle, &open) in &self.opens {
            Record::Open(handle, open).encode(&mut out);
        }
        if !self.opens.contains_key(&self.last_handle) {
            Record::Release(self.last_handle).encode(&mut out);
        }
        for &id in &self.backings {
            Record::Backing(id).encode(&mut out);
        }
        for (&ino, cookies) in &self.listings {
            Record::Listing(ino, cookies.clone()).encode(&mut out);
        }
        for (&unique, &subject) in &self.intents {
            Record::Intent(unique, subject).encode(&mut out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node: NodeId, ino: u64, file_type: u32) -> Record<'static> {
        Record::Node {
            node,
            ino,
            file_type,
            real: 0,
            lookups: 1,
        }
    }

    #[test]
    fn condensing_keeps_what_counts() {
        let name = |ino, parent, name| Record::Name { ino, parent, name };
        let open = OpenFile {
            node: 7,
            flags: 0,
            passthrough: false,
            mapper: false,
            upper: true,
            backing: 0,
        };
        let records = [
            node(5, 5, libc::S_IFDIR),
            name(5, 1, b"dir"),
            node(7, 7, libc::S_IFREG),
            name(7, 5, b"old"),
            Record::Lookup(7),
            name(7, 5, b"new"),
            Record::Unname {
                ino: 7,
                parent: 5,
                name: b"old",
            },
            // The directory is forgotten before what is in it.
            Record::Forget(5, 1),
            node(8, 8, libc::S_IFREG),
            name(8, 5, b"gone"),
            Record::Forget(8, 1),
            node(9, 9, libc::S_IFREG),
            name(9, 5, b"of the one before"),
            // All of them, however many.
            Record::Lookup(9),
            Record::Forget(9, u64::MAX),
            node(9, 9, libc::S_IFREG),
            name(9, 5, b"of this one"),
            Record::Open(1, open),
            Record::Open(2, open),
            Record::Release(2),
            Record::Backing(3),
            Record::Backing(4),
            Record::Unbacked(3),
            Record::Intent(6, 7),
        ];
        let mut log = Vec::new();
        for record in &records {
            record.encode(&mut log);
        }
        let book = Book::read(&Book::read(&log).to_log());
        assert_eq!(book.nodes.len(), 2);
        assert_eq!(book.nodes[&9].lookups, 1);
        assert_eq!(book.nodes[&7], BookNode { ino: 7, lookups: 2 });
        assert_eq!(book.files[&7].names[..], [(5, OsString::from("new"))]);
        assert_eq!(book.files[&5].names[..], [(1, OsString::from("dir"))]);
        assert_eq!(
            book.files[&9].names[..],
            [(5, OsString::from("of this one"))]
        );
        assert!(!book.files.contains_key(&8));
        assert_eq!(book.opens.len(), 1);
        assert_eq!(book.last_handle, 2);
        assert_eq!(book.backings, HashSet::from([4]));
        assert_eq!(book.intents[&6], 7);
    }
}
