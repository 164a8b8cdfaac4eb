//! The nodes and files of a journal as a table, in which one is found without reading the others: what a log begins with once it
//! was condensed. So a process that takes a mount over need not read all that the kernel knows before it answers.
//!
//! A table is the count of its files (8 bytes); for each of them, ascending, [`ENTRY`] bytes: inode number, inode number of the
//! upper part, lookups, where its names begin (8 bytes each), how many bytes they take, and its type (4 each); then the names:
//! for each the directory's inode number (8), the length (4) and the bytes. The node id of each is its inode number.

use std::ffi::OsString;
use std::ops::{Deref, Range};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::book::{BookFile, BookNode};
use super::record::Record;
use super::types::NodeId;

/// Bytes of an entry.
const ENTRY: usize = 40;

/// Bytes before the entries.
const HEAD: usize = 8;

/// Bytes before a name.
const NAME_HEAD: usize = 12;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let part = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    part.map_or(0, u64::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let part = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    part.map_or(0, u32::from_ne_bytes)
}

/// A table, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint<'a> {
    entries: &'a [u8],
    names: &'a [u8],
}

/// A file of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) ino: u64,
    pub(super) real: u64,
    /// 0 where the kernel does not know the file, which leads to others.
    pub(super) lookups: u64,
    pub(super) file_type: u32,
    names: &'a [u8],
}

impl<'a> Entry<'a> {
    /// The names, with the inode number of the directory.
    pub(super) fn names(&self) -> impl Iterator<Item = (u64, &'a [u8])> + use<'a> {
        let mut rest = self.names;
        std::iter::from_fn(move || {
            let (head, tail) = rest.split_at_checked(NAME_HEAD)?;
            let (name, tail) = tail.split_at_checked(u32_at(head, 8) as usize)?;
            rest = tail;
            Some((u64_at(head, 0), name))
        })
    }
}

impl<'a> Checkpoint<'a> {
    /// `None`: it is none.
    pub(super) fn of(table: &'a [u8]) -> Option<Checkpoint<'a>> {
        let (count, rest) = table.split_at_checked(HEAD)?;
        let count = usize::try_from(u64_at(count, 0)).ok()?;
        let (entries, names) = rest.split_at_checked(count.checked_mul(ENTRY)?)?;
        Some(Checkpoint { entries, names })
    }

    /// How many files.
    pub(super) fn len(&self) -> usize {
        self.entries.len() / ENTRY
    }

    fn entry(&self, index: usize) -> Entry<'a> {
        let entry = &self.entries[index * ENTRY..(index + 1) * ENTRY];
        let begin = usize::try_from(u64_at(entry, 24)).unwrap_or(usize::MAX);
        let end = begin.saturating_add(u32_at(entry, 32) as usize);
        Entry {
            ino: u64_at(entry, 0),
            real: u64_at(entry, 8),
            lookups: u64_at(entry, 16),
            file_type: u32_at(entry, 36),
            names: self.names.get(begin..end).unwrap_or_default(),
        }
    }

    pub(super) fn find(&self, ino: u64) -> Option<Entry<'a>> {
        let (mut from, mut to) = (0, self.len());
        while from < to {
            let middle = from + (to - from) / 2;
            match u64_at(self.entries, middle * ENTRY).cmp(&ino) {
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Equal => return Some(self.entry(middle)),
                std::cmp::Ordering::Greater => to = middle,
            }
        }
        None
    }

    /// All files, in the order of the table.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let table = *self;
        (0..table.len()).map(move |index| table.entry(index))
    }

    /// Whether every file of it can be found.
    pub(super) fn is_sorted(&self) -> bool {
        self.iter().is_sorted_by(|a, b| a.ino < b.ino)
    }
}

/// Makes a table.
#[derive(Debug, Default)]
pub(super) struct Builder {
    entries: Vec<u8>,
    names: Vec<u8>,
}

impl Builder {
    fn add(&mut self, (ino, real, lookups): (u64, u64, u64), file_type: u32, from: usize) {
        for word in [ino, real, lookups, from as u64] {
            self.entries.extend_from_slice(&word.to_ne_bytes());
        }
        let length = (self.names.len() - from) as u32;
        self.entries.extend_from_slice(&length.to_ne_bytes());
        self.entries.extend_from_slice(&file_type.to_ne_bytes());
    }

    /// Adds a file. Its number must be greater than that of the last one.
    pub(super) fn push(&mut self, ino: u64, lookups: u64, file: &BookFile) {
        let from = self.names.len();
        for (parent, name) in &file.names {
            self.names.extend_from_slice(&parent.to_ne_bytes());
            self.names
                .extend_from_slice(&(name.len() as u32).to_ne_bytes());
            self.names.extend_from_slice(name.as_bytes());
        }
        self.add((ino, file.real, lookups), file.file_type, from);
    }

    /// The same of one that is in another table.
    pub(super) fn push_entry(&mut self, entry: &Entry<'_>) {
        let from = self.names.len();
        self.names.extend_from_slice(entry.names);
        self.add(
            (entry.ino, entry.real, entry.lookups),
            entry.file_type,
            from,
        );
    }

    /// The table; `None` when nothing was added.
    pub(super) fn finish(self) -> Option<Vec<u8>> {
        let count = self.entries.len() / ENTRY;
        if count == 0 {
            return None;
        }
        let mut table = Vec::with_capacity(HEAD + self.entries.len() + self.names.len());
        table.extend_from_slice(&(count as u64).to_ne_bytes());
        table.extend_from_slice(&self.entries);
        table.extend_from_slice(&self.names);
        Some(table)
    }
}

/// A log, and the table that it begins with.
#[derive(Clone, Debug)]
pub(super) struct Base<B> {
    log: B,
    /// Where the table lies, if there is one.
    table: Range<usize>,
    /// Where the records begin that follow it.
    tail: usize,
}

impl<B: Deref<Target = [u8]>> Base<B> {
    pub(super) fn of(log: B) -> Base<B> {
        let (table, tail) = match Record::decode(&log) {
            Some((Record::Checkpoint(table), rest)) => {
                let tail = log.len() - rest.len();
                (tail - table.len()..tail, tail)
            }
            _ => (0..0, 0),
        };
        Base { log, table, tail }
    }

    /// The records that follow.
    pub(super) fn tail(&self) -> &[u8] {
        self.log.get(self.tail..).unwrap_or_default()
    }

    pub(super) fn table(&self) -> Checkpoint<'_> {
        let none = Checkpoint {
            entries: &[],
            names: &[],
        };
        let table = self.log.get(self.table.clone());
        table.and_then(Checkpoint::of).unwrap_or(none)
    }

    /// Whether the file is in the table.
    pub(super) fn has(&self, ino: u64) -> bool {
        self.table().find(ino).is_some()
    }

    /// A node that the kernel knows.
    pub(super) fn node(&self, node: NodeId) -> Option<BookNode> {
        let entry = self.table().find(node)?;
        let lookups = i64::try_from(entry.lookups).unwrap_or(i64::MAX);
        (lookups > 0).then_some(BookNode { ino: node, lookups })
    }

    pub(super) fn file(&self, ino: u64) -> Option<BookFile> {
        let entry = self.table().find(ino)?;
        let names = entry.names();
        Some(BookFile {
            file_type: entry.file_type,
            real: entry.real,
            names: names
                .map(|(parent, name)| (parent, OsString::from_vec(name.to_vec())))
                .collect(),
            grave: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(names: &[(u64, &str)]) -> BookFile {
        BookFile {
            file_type: libc::S_IFREG,
            real: 7,
            names: names.iter().map(|(p, n)| (*p, n.into())).collect(),
            grave: None,
        }
    }

    #[test]
    fn what_is_put_in_a_table_is_found_there() {
        let mut builder = Builder::default();
        for ino in (2..2000).step_by(3) {
            let name = format!("name-{ino}");
            let names = [(1, name.as_str()), (ino + 1, "")];
            builder.push(ino, ino % 5, &file(&names[..ino as usize % 3]));
        }
        let mut log = Vec::new();
        Record::Checkpoint(&builder.finish().unwrap()).encode(&mut log);
        Record::Lookup(5).encode(&mut log);
        let base = Base::of(&log[..]);
        assert!(base.table().is_sorted());
        assert_eq!(Record::decode(base.tail()).unwrap().0, Record::Lookup(5));
        let mut again = Builder::default();
        base.table()
            .iter()
            .for_each(|entry| again.push_entry(&entry));
        let again = again.finish().unwrap();
        assert_eq!(Checkpoint::of(&again), Some(base.table()));
        for ino in 0..2010 {
            let is_there = (2..2000).contains(&ino) && ino % 3 == 2;
            assert_eq!(base.has(ino), is_there, "{ino}");
            let lookups = base.node(ino).map(|node| node.lookups);
            let told = i64::try_from(ino % 5).unwrap();
            assert_eq!(lookups, (is_there && told > 0).then_some(told), "{ino}");
            let name = format!("name-{ino}");
            let names = [(1, name.as_str()), (ino + 1, "")];
            let expected = is_there.then(|| file(&names[..ino as usize % 3]));
            assert_eq!(base.file(ino), expected, "{ino}");
        }
        // Cut anywhere it is read or refused, and nothing else.
        for end in 0..again.len().min(3000) {
            if let Some(table) = Checkpoint::of(&again[..end]) {
                let names: usize = table.iter().map(|entry| entry.names().count()).sum();
                assert!(names <= 2 * table.len());
            }
        }
    }
}
