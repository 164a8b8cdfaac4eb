//! What a journal tells, read: the records one by one, and the table that it may begin with only where something is asked for.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::ops::Deref;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use smallvec::SmallVec;

use super::checkpoint::{Base, Builder};
use super::listing::Cookies;
use super::numbered::{Numbered, Numbers};
use super::record::{Grave, OpenFile, Record};
use super::table::{is_dynamic, is_inode_number};
use super::types::{HandleId, NodeId};

/// A node that the kernel knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BookNode {
    pub(super) ino: u64,
    /// Positive once all is read: the log tells them in the order in which they were counted.
    pub(super) lookups: i64,
}

impl BookNode {
    /// Whether the kernel knows it.
    fn is_known(&self) -> bool {
        self.lookups > 0 && self.ino != 0
    }
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
#[derive(Debug)]
pub(super) struct Book<B> {
    base: Base<B>,
    /// Those that are otherwise than in the table. A node that has no lookups is one of the table that the kernel knows no more.
    nodes: Numbered<BookNode>,
    /// Those that are otherwise than in the table, by inode number.
    files: Numbered<BookFile>,
    /// Files of the table that are gone.
    gone: Numbers,
    /// Inode numbers that another node than the one of that number stands for.
    twins: HashSet<u64>,
    pub(super) opens: HashMap<HandleId, OpenFile>,
    pub(super) backings: HashSet<u32>,
    /// By the directory's inode number.
    pub(super) listings: HashMap<u64, Cookies>,
    /// What requests were about to do, by their number.
    pub(super) intents: HashMap<u64, u64>,
    /// The largest of all handles that were ever told.
    pub(super) last_handle: HandleId,
}

impl<B: Deref<Target = [u8]> + Clone> Book<B> {
    /// Reads the records of a log.
    pub(super) fn read(log: B) -> Book<B> {
        let mut book = Book {
            base: Base::of(log.clone()),
            nodes: Numbered::default(),
            files: Numbered::default(),
            gone: Numbers::default(),
            twins: HashSet::new(),
            opens: HashMap::new(),
            backings: HashSet::new(),
            listings: HashMap::new(),
            intents: HashMap::new(),
            last_handle: 0,
        };
        let from = log.len() - book.base.tail().len();
        let mut rest = log.get(from..).unwrap_or_default();
        while let Some((record, after)) = Record::decode(rest) {
            book.apply(record);
            rest = after;
        }
        let base = &book.base;
        book.nodes
            .retain(|node, entry| entry.is_known() || base.has(*node));
        // Of files that are not known there may be some more: looking for them takes longer than they are worth.
        if !book.listings.is_empty() {
            let elsewhere = book.known_elsewhere();
            let mut listings = std::mem::take(&mut book.listings);
            listings.retain(|ino, _| book.node(*ino).is_some() || elsewhere.contains(ino));
            book.listings = listings;
        }
        book
    }

    /// The log, and the table that it begins with.
    pub(super) fn base(&self) -> &Base<B> {
        &self.base
    }

    /// A node that the kernel knows.
    pub(super) fn node(&self, node: NodeId) -> Option<BookNode> {
        match self.nodes.get(&node) {
            Some(entry) => entry.is_known().then_some(*entry),
            None => self.base.node(node),
        }
    }

    /// The nodes that the kernel knows otherwise than the table tells, and those of the table that it knows no more.
    pub(super) fn changed_nodes(&self) -> impl Iterator<Item = (NodeId, BookNode)> {
        self.nodes.iter().map(|(node, entry)| (*node, *entry))
    }

    /// All nodes that the kernel knows.
    pub(super) fn all_nodes(&self) -> HashMap<NodeId, BookNode> {
        let known = |node| Some((node, self.node(node)?));
        let old = self.base.table().iter().filter_map(|e| known(e.ino));
        old.chain(self.nodes.keys().filter_map(|node| known(*node)))
            .collect()
    }

    /// A file that is known, or leads to one.
    pub(super) fn file(&self, ino: u64) -> Option<BookFile> {
        match self.files.get(&ino) {
            Some(file) => Some(file.clone()),
            None if self.gone.contains(&ino) => None,
            None => self.base.file(ino),
        }
    }

    /// The same, to be changed.
    pub(super) fn file_mut(&mut self, ino: u64) -> Option<&mut BookFile> {
        if !self.files.contains_key(&ino) {
            let file = self.file(ino)?;
            self.files.insert(ino, file);
        }
        self.files.get_mut(&ino)
    }

    /// Files that are not in the table as they are, by their inode number: among them are all without a name, and all whose number
    /// nothing on disk tells.
    pub(super) fn changed_files(&mut self) -> impl Iterator<Item = (u64, &mut BookFile)> {
        self.files.iter_mut().map(|(ino, file)| (*ino, file))
    }

    /// Whether the inode number is one that another node than the one of that number stands for.
    pub(super) fn has_twin(&self, ino: u64) -> bool {
        self.twins.contains(&ino)
    }

    /// The files that the kernel knows by another node than the one of their number.
    fn known_elsewhere(&self) -> Numbers {
        let known = self.nodes.iter().filter(|(_, entry)| entry.is_known());
        known
            .filter(|(node, entry)| **node != entry.ino)
            .map(|(_, entry)| entry.ino)
            .collect()
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
        let elsewhere = self.known_elsewhere();
        let mut left: Vec<(RawFd, u64)> = graves
            .into_iter()
            .filter(|(ino, _)| self.node(*ino).is_some() || elsewhere.contains(ino))
            .map(|(_, upper)| upper)
            .collect();
        left.sort_unstable();
        left
    }

    fn node_entry(&mut self, node: NodeId) -> &mut BookNode {
        let base = &self.base;
        let entry = self.nodes.entry(node);
        entry.or_insert_with(|| base.node(node).unwrap_or_default())
    }

    fn file_entry(&mut self, ino: u64) -> &mut BookFile {
        let (base, gone) = (&self.base, &mut self.gone);
        self.files.entry(ino).or_insert_with(|| {
            if gone.remove(&ino) {
                return BookFile::default();
            }
            base.file(ino).unwrap_or_default()
        })
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
                let entry = self.node_entry(node);
                entry.ino = ino;
                let known = entry.lookups > 0;
                let lookups = i64::try_from(lookups).unwrap_or(i64::MAX);
                entry.lookups = entry.lookups.saturating_add(lookups);
                let is_new = !known && !self.twins.contains(&ino);
                let file = self.file_entry(ino);
                if is_new {
                    // What is there is of the file that had the number before, and the names that this one has follow.
                    *file = BookFile::default();
                }
                file.file_type = file_type;
                file.real = real;
                self.listings.remove(&ino);
            }
            Record::Lookup(node) => {
                let entry = self.node_entry(node);
                entry.lookups = entry.lookups.saturating_add(1);
            }
            Record::Forget(node, count) => {
                let entry = self.node_entry(node);
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                entry.lookups = entry.lookups.saturating_sub(count).max(0);
            }
            Record::Name { ino, parent, name } => {
                let file = self.file_entry(ino);
                let name = OsString::from_vec(name.to_vec());
                if !file.names.iter().any(|(p, n)| *p == parent && *n == name) {
                    file.names.push((parent, name));
                }
            }
            Record::Unname { ino, parent, name } => {
                if let Some(file) = self.file_mut(ino) {
                    file.names
                        .retain(|(p, n)| *p != parent || n.as_bytes() != name);
                }
            }
            Record::Grave {
                ino,
                file_type,
                grave,
            } => {
                let file = self.file_entry(ino);
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
                self.listings.entry(ino).or_default().add(cookies);
            }
            // It only counts where a log begins.
            Record::Checkpoint(_) => {}
        }
    }

    /// The kernel knows the node no more.
    pub(super) fn forget(&mut self, node: NodeId) {
        let Some(entry) = self.node(node) else {
            return;
        };
        self.forget_node(node);
        // Names of directories lead to others, and of files with two nodes the other may be left.
        let is_dir = |file: BookFile| file.file_type == libc::S_IFDIR;
        if !self.twins.contains(&entry.ino) && !self.file(entry.ino).is_some_and(is_dir) {
            self.files.remove(&entry.ino);
            if self.base.has(entry.ino) {
                self.gone.insert(entry.ino);
            }
        }
    }

    /// The same, and its file is kept.
    pub(super) fn forget_node(&mut self, node: NodeId) {
        if self.base.has(node) {
            self.nodes.insert(node, BookNode::default());
        } else {
            self.nodes.remove(&node);
        }
    }

    /// Directories that the kernel does not know, and which the name of a file leads to that it knows, or of another such directory.
    fn leading(&self, elsewhere: &Numbers) -> Numbers {
        let is_known = |ino: u64| self.node(ino).is_some() || elsewhere.contains(&ino);
        let mut parents = Numbers::default();
        for entry in self.base.table().iter() {
            if entry.lookups > 0
                && !self.nodes.contains_key(&entry.ino)
                && !self.files.contains_key(&entry.ino)
            {
                parents.extend(entry.names().map(|(parent, _)| parent));
            }
        }
        for (ino, file) in &self.files {
            if is_known(*ino) {
                parents.extend(file.names.iter().map(|(parent, _)| *parent));
            }
        }
        for (node, entry) in &self.nodes {
            if entry.is_known() && *node == entry.ino && !self.files.contains_key(node) {
                let file = self.file(*node).unwrap_or_default();
                parents.extend(file.names.iter().map(|(parent, _)| *parent));
            }
        }
        let mut leading = Numbers::default();
        let mut pending: Vec<u64> = parents.into_iter().collect();
        while let Some(ino) = pending.pop() {
            if is_known(ino) || !leading.insert(ino) {
                continue;
            }
            let file = self.file(ino).unwrap_or_default();
            pending.extend(file.names.iter().map(|(parent, _)| *parent));
        }
        leading
    }

    /// The same as a log, without those of files that nobody can ask for.
    pub(super) fn to_log(&self) -> Vec<u8> {
        let elsewhere = self.known_elsewhere();
        let leading = self.leading(&elsewhere);
        let mut changed: Vec<u64> = self.files.keys().copied().collect();
        let own = self
            .nodes
            .iter()
            .filter(|(node, _)| is_inode_number(**node));
        changed.extend(own.map(|(node, _)| *node));
        changed.sort_unstable();
        changed.dedup();
        // What a table can tell goes there, in the order of the numbers, and all else is told by records.
        let mut builder = Builder::default();
        let mut others: Vec<(u64, BookFile)> = Vec::new();
        let mut old = self.base.table().iter().peekable();
        let mut copy_until = |end: Option<u64>, builder: &mut Builder| {
            while let Some(entry) = old.next_if(|entry| end.is_none_or(|end| entry.ino < end)) {
                let ino = entry.ino;
                if !self.gone.contains(&ino) && (entry.lookups > 0 || leading.contains(&ino)) {
                    builder.push_entry(&entry);
                }
            }
            // It is told anew.
            while old.next_if(|entry| end == Some(entry.ino)).is_some() {}
        };
        for ino in changed {
            copy_until(Some(ino), &mut builder);
            let known = self.node(ino).filter(|entry| entry.ino == ino);
            if known.is_none() && !elsewhere.contains(&ino) && !leading.contains(&ino) {
                continue;
            }
            let file = self.file(ino).unwrap_or_default();
            if elsewhere.contains(&ino) || file.grave.is_some() || is_dynamic(ino) {
                others.push((ino, file));
            } else {
                let lookups = known.map_or(0, |entry| entry.lookups.unsigned_abs());
                builder.push(ino, lookups, &file);
            }
        }
        copy_until(None, &mut builder);
        let mut out = Vec::new();
        if let Some(table) = builder.finish() {
            Record::Checkpoint(&table).encode(&mut out);
        }
        self.others_to_log(&others, &mut out);
        self.rest_to_log(&mut out);
        out
    }

    /// Files that are in no table, and all nodes that stand for one.
    fn others_to_log(&self, others: &[(u64, BookFile)], out: &mut Vec<u8>) {
        let told = |node: NodeId, entry: BookNode, file: &BookFile, out: &mut Vec<u8>| {
            Record::Node {
                node,
                ino: entry.ino,
                file_type: file.file_type,
                real: file.real,
                lookups: entry.lookups.unsigned_abs(),
            }
            .encode(out);
        };
        for (ino, file) in others {
            if let Some(entry) = self.node(*ino).filter(|entry| entry.ino == *ino) {
                told(*ino, entry, file, out);
            }
        }
        for (node, entry) in &self.nodes {
            if entry.is_known() && *node != entry.ino {
                told(
                    *node,
                    *entry,
                    &self.file(entry.ino).unwrap_or_default(),
                    out,
                );
            }
        }
        for (ino, file) in others {
            for (parent, name) in &file.names {
                Record::Name {
                    ino: *ino,
                    parent: *parent,
                    name: name.as_bytes(),
                }
                .encode(out);
            }
            if let Some(grave) = &file.grave {
                Record::Grave {
                    ino: *ino,
                    file_type: file.file_type,
                    grave: grave.clone(),
                }
                .encode(out);
            }
        }
    }

    /// All but nodes and files.
    fn rest_to_log(&self, out: &mut Vec<u8>) {
        for (&handle, &open) in &self.opens {
            Record::Open(handle, open).encode(out);
        }
        if !self.opens.contains_key(&self.last_handle) {
            Record::Release(self.last_handle).encode(out);
        }
        for &id in &self.backings {
            Record::Backing(id).encode(out);
        }
        for (&ino, cookies) in &self.listings {
            Record::Listing(ino, cookies.clone()).encode(out);
        }
        for (&unique, &subject) in &self.intents {
            Record::Intent(unique, subject).encode(out);
        }
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
        // Once with all records, and once with a table that all or some follow.
        for split in 0..=records.len() {
            let mut log = Vec::new();
            for record in &records[..split] {
                record.encode(&mut log);
            }
            let mut log = Book::read(&log[..]).to_log();
            for record in &records[split..] {
                record.encode(&mut log);
            }
            check(&log);
            check(&Book::read(&log[..]).to_log());
        }
    }

    fn check(log: &[u8]) {
        let book = Book::read(log);
        let names = |ino| book.file(ino).unwrap().names;
        assert_eq!(book.all_nodes().len(), 2);
        assert_eq!(book.node(9).unwrap().lookups, 1);
        assert_eq!(book.node(7), Some(BookNode { ino: 7, lookups: 2 }));
        assert_eq!((book.node(5), book.node(8)), (None, None));
        assert_eq!(names(7)[..], [(5, OsString::from("new"))]);
        assert_eq!(names(5)[..], [(1, OsString::from("dir"))]);
        assert_eq!(names(9)[..], [(5, OsString::from("of this one"))]);
        assert_eq!(book.opens.len(), 1);
        assert_eq!(book.last_handle, 2);
        assert_eq!(book.backings, HashSet::from([4]));
        assert_eq!(book.intents[&6], 7);
        // What nobody can ask for is not kept.
        let again = book.to_log();
        let again = Book::read(&again[..]);
        assert_eq!(again.file(8), None);
    }

    #[test]
    fn what_a_table_tells_is_told_otherwise_by_what_follows() {
        let mut log = Vec::new();
        for ino in 10..20 {
            node(ino, ino, libc::S_IFREG).encode(&mut log);
            Record::Name {
                ino,
                parent: 1,
                name: b"old",
            }
            .encode(&mut log);
        }
        let mut log = Book::read(&log[..]).to_log();
        let grave = Grave {
            upper: Some((77, 78)),
            ..Grave::default()
        };
        for record in [
            Record::Forget(10, 1),
            Record::Lookup(11),
            Record::Name {
                ino: 12,
                parent: 1,
                name: b"new",
            },
            Record::Unname {
                ino: 12,
                parent: 1,
                name: b"old",
            },
            Record::Unname {
                ino: 13,
                parent: 1,
                name: b"old",
            },
            Record::Grave {
                ino: 13,
                file_type: libc::S_IFREG,
                grave: grave.clone(),
            },
            // Another node for the same file, and another file of the same number.
            node(1 << 63, 14, libc::S_IFREG),
            Record::Forget(15, 1),
            node(15, 15, libc::S_IFDIR),
            Record::Name {
                ino: 15,
                parent: 16,
                name: b"other",
            },
            Record::Forget(16, 1),
            Record::Forget(14, 1),
        ] {
            record.encode(&mut log);
        }
        for _ in 0..3 {
            let book = Book::read(&log[..]);
            assert_eq!(book.node(10), None);
            assert_eq!(book.node(11).unwrap().lookups, 2);
            assert_eq!(book.file(12).unwrap().names[..], [(1, "new".into())]);
            assert_eq!(book.file(13).unwrap().grave, Some(grave.clone()));
            assert_eq!(book.left_open(), [(77, 78)]);
            assert_eq!(book.node(14), None);
            assert_eq!(
                book.node(1 << 63),
                Some(BookNode {
                    ino: 14,
                    lookups: 1
                })
            );
            assert_eq!(book.file(14).unwrap().names[..], [(1, "old".into())]);
            let other = book.file(15).unwrap();
            assert_eq!(
                (other.file_type, &other.names[..]),
                (libc::S_IFDIR, &[(16, "other".into())][..])
            );
            // It leads to another.
            assert_eq!(book.node(16), None);
            assert_eq!(book.file(16).unwrap().names[..], [(1, "old".into())]);
            assert_eq!(book.file(17), book.base.file(17));
            assert_eq!(book.all_nodes().len(), 8);
            log = book.to_log();
        }
        let mut book = Book::read(&log[..]);
        for forgotten in [17, 1 << 63] {
            book.forget(forgotten);
            assert_eq!(book.node(forgotten), None);
        }
        assert_eq!((book.file(10), book.file(17)), (None, None));
        let left = book.to_log();
        assert_eq!(Book::read(&left[..]).all_nodes().len(), 6);
    }
}
