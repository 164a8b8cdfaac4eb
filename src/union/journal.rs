//! What the next process that serves a mount has to know: which node stands for which file, what is open, and what was
//! being done.
//!
//! A worker appends a record to a [`SharedLog`] before it answers the request that made it true, so that what the kernel
//! was told is always in the log. What is in the log need not have reached the kernel: lookups are rather counted too often than
//! too seldom, and a name that is told may be out of date, which whoever reads it finds out by looking.
//!
//! A record is its length (4 bytes), its kind (1) and its fields, in the machine's own byte order: the reader runs on the same
//! machine. [`FORM`] changes with the form.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::book::Book;
use super::listing::Cookies;
use super::types::{HandleId, NodeId};
use crate::sys::panics::caught;
use crate::sys::shared_log::{SharedLog, Word};
use crate::sys::sync::{AtomicBool, Mutex, MutexGuard};

/// The form of the records: a process of another form must not read them.
pub const FORM: u32 = 1;

/// The log is condensed when it is so much longer than it was after the last time, and twice as long.
const CONDENSE_ABOVE: usize = 8 << 20;

/// The same when another process takes it over, which reads it.
const SHORTEN_ABOVE: usize = 128 << 10;

/// So many requests that were begun are remembered then.
const INTENTS: usize = 4096;

/// See [`Journal::order_of`].
const ORDERS: usize = 64;

/// The bit by which the kernel marks a request that it sends again (`FUSE_UNIQUE_RESEND`).
const RESENT: u64 = 1 << 63;

/// A lower part of a file without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LowerPlace {
    /// The path in the layer.
    Path(Vec<u8>),
    /// The number in an indexed layer.
    Index(u64),
}

/// How a file is reached that has lost its last name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Grave {
    /// The upper part: a descriptor that stays open, and the inode number that it must have.
    pub(super) upper: Option<(RawFd, u64)>,
    /// A removed directory.
    pub(super) dead: bool,
    /// The upper part holds attributes only.
    pub(super) metacopy: bool,
    /// The lower parts, topmost first, with the number of their layer.
    pub(super) lowers: Vec<(u16, LowerPlace)>,
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenFile {
    pub(super) node: NodeId,
    pub(super) flags: i32,
    pub(super) passthrough: bool,
    pub(super) mapper: bool,
    /// It was opened on the upper's file.
    pub(super) upper: bool,
    /// The registered file, with passthrough.
    pub(super) backing: u32,
}

/// One change of what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// A node that the kernel did not know before: one lookup.
    Node {
        node: NodeId,
        ino: u64,
        file_type: u32,
        /// Inode number of the upper part on disk; 0 without one.
        real: u64,
        /// How many lookups.
        lookups: u64,
    },
    Lookup(NodeId),
    Forget(NodeId, u64),
    Name {
        ino: u64,
        parent: u64,
        name: &'a [u8],
    },
    Unname {
        ino: u64,
        parent: u64,
        name: &'a [u8],
    },
    Grave {
        ino: u64,
        file_type: u32,
        grave: Grave,
    },
    Open(HandleId, OpenFile),
    Release(HandleId),
    Backing(u32),
    Unbacked(u32),
    /// What a request that must not be done twice is about to do: its number, and an inode number that tells afterwards
    /// whether it was done.
    Intent(u64, u64),
    /// The cookies of a directory's entries, by its inode number.
    Listing(u64, Cookies),
}

/// Writes a record's fields.
struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }
    fn bytes(&mut self, value: &[u8]) {
        self.u32(value.len() as u32);
        self.0.extend_from_slice(value);
    }
}

/// Reads a record's fields.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.take(8)?.try_into().ok()?))
    }
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }
}

impl<'a> Record<'a> {
    /// Appends the record to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let mut to = Writer(out);
        to.u32(0);
        match self {
            Record::Node {
                node,
                ino,
                file_type,
                real,
                lookups,
            } => {
                to.u8(1);
                to.u64(*node);
                to.u64(*ino);
                to.u32(*file_type);
                to.u64(*real);
                to.u64(*lookups);
            }
            Record::Lookup(node) => {
                to.u8(2);
                to.u64(*node);
            }
            Record::Forget(node, count) => {
                to.u8(3);
                to.u64(*node);
                to.u64(*count);
            }
            Record::Name { ino, parent, name } | Record::Unname { ino, parent, name } => {
                to.u8(if matches!(self, Record::Name { .. }) {
                    4
                } else {
                    5
                });
                to.u64(*ino);
                to.u64(*parent);
                to.bytes(name);
            }
            Record::Grave {
                ino,
                file_type,
                grave,
            } => {
                to.u8(6);
                to.u64(*ino);
                to.u32(*file_type);
                encode_grave(grave, &mut to);
            }
            Record::Open(handle, open) => {
                to.u8(7);
                to.u64(*handle);
                to.u64(open.node);
                to.u32(open.flags as u32);
                to.u8(u8::from(open.passthrough)
                    | u8::from(open.mapper) << 1
                    | u8::from(open.upper) << 2);
                to.u32(open.backing);
            }
            Record::Release(handle) => {
                to.u8(8);
                to.u64(*handle);
            }
            Record::Backing(id) => {
                to.u8(9);
                to.u32(*id);
            }
            Record::Unbacked(id) => {
                to.u8(10);
                to.u32(*id);
            }
            Record::Intent(unique, subject) => {
                to.u8(11);
                to.u64(*unique);
                to.u64(*subject);
            }
            Record::Listing(ino, cookies) => {
                to.u8(12);
                to.u64(*ino);
                to.u64(cookies.next);
                to.u64(cookies.names.len() as u64);
                for (cookie, name) in &cookies.names {
                    to.u64(*cookie);
                    to.bytes(name);
                }
            }
        }
        let length = ((out.len() - start) as u32).to_ne_bytes();
        out[start..start + 4].copy_from_slice(&length);
    }

    /// The first record, and what follows it; `None` at the end, or where no record can be read.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<(Record<'a>, &'a [u8])> {
        let length = Reader(bytes).u32()? as usize;
        let (whole, rest) = bytes.split_at_checked(length)?;
        let mut from = Reader(whole.get(4..)?);
        let record = match from.u8()? {
            1 => Record::Node {
                node: from.u64()?,
                ino: from.u64()?,
                file_type: from.u32()?,
                real: from.u64()?,
                lookups: from.u64()?,
            },
            2 => Record::Lookup(from.u64()?),
            3 => Record::Forget(from.u64()?, from.u64()?),
            4 => Record::Name {
                ino: from.u64()?,
                parent: from.u64()?,
                name: from.bytes()?,
            },
            5 => Record::Unname {
                ino: from.u64()?,
                parent: from.u64()?,
                name: from.bytes()?,
            },
            6 => Record::Grave {
                ino: from.u64()?,
                file_type: from.u32()?,
                grave: decode_grave(&mut from)?,
            },
            7 => {
                let handle = from.u64()?;
                let (node, flags, bits) = (from.u64()?, from.u32()? as i32, from.u8()?);
                let open = OpenFile {
                    node,
                    flags,
                    passthrough: bits & 1 != 0,
                    mapper: bits & 2 != 0,
                    upper: bits & 4 != 0,
                    backing: from.u32()?,
                };
                Record::Open(handle, open)
            }
            8 => Record::Release(from.u64()?),
            9 => Record::Backing(from.u32()?),
            10 => Record::Unbacked(from.u32()?),
            11 => Record::Intent(from.u64()?, from.u64()?),
            12 => {
                let ino = from.u64()?;
                let mut cookies = Cookies {
                    next: from.u64()?,
                    names: Vec::new(),
                };
                for _ in 0..from.u64()? {
                    let cookie = from.u64()?;
                    cookies.names.push((cookie, from.bytes()?.to_vec()));
                }
                Record::Listing(ino, cookies)
            }
            _ => return None,
        };
        Some((record, rest))
    }
}

fn encode_grave(grave: &Grave, to: &mut Writer<'_>) {
    to.u8(u8::from(grave.dead)
        | u8::from(grave.metacopy) << 1
        | u8::from(grave.upper.is_some()) << 2);
    let (fd, real) = grave.upper.unwrap_or((-1, 0));
    to.u32(fd as u32);
    to.u64(real);
    to.u32(grave.lowers.len() as u32);
    for (layer, place) in &grave.lowers {
        to.u32(u32::from(*layer));
        match place {
            LowerPlace::Path(path) => {
                to.u8(0);
                to.bytes(path);
            }
            LowerPlace::Index(index) => {
                to.u8(1);
                to.u64(*index);
            }
        }
    }
}

fn decode_grave(from: &mut Reader<'_>) -> Option<Grave> {
    let bits = from.u8()?;
    let (fd, real) = (from.u32()? as RawFd, from.u64()?);
    let mut grave = Grave {
        upper: (bits & 4 != 0).then_some((fd, real)),
        dead: bits & 1 != 0,
        metacopy: bits & 2 != 0,
        lowers: Vec::new(),
    };
    for _ in 0..from.u32()? {
        let layer = u16::try_from(from.u32()?).ok()?;
        let place = match from.u8()? {
            0 => LowerPlace::Path(from.bytes()?.to_vec()),
            _ => LowerPlace::Index(from.u64()?),
        };
        grave.lowers.push((layer, place));
    }
    Some(grave)
}

/// Writes the log of one mount.
#[derive(Debug)]
pub struct Journal {
    /// Its own lock.
    log: Arc<SharedLog>,
    /// A thread condenses the log. Atomic.
    condensing: AtomicBool,
    /// Held while lookups of a node are counted or given back and that is written down, so that the log tells it in the order in
    /// which it was done. By the node's low bits. Taken before the leaves.
    orders: [Mutex<()>; ORDERS],
    /// What the log told when it was taken up, until it is adopted. A leaf lock.
    taken: Mutex<Option<Book>>,
    /// Requests under way that must not be done twice. A leaf lock.
    under_way: Mutex<HashSet<u64>>,
    /// A record could not be written: nobody can take the mount over any more. Atomic.
    broken: AtomicBool,
}

impl Journal {
    /// Goes on with a log.
    pub fn new(log: Arc<SharedLog>) -> Arc<Journal> {
        Arc::new(Journal {
            log,
            condensing: AtomicBool::new(false),
            orders: std::array::from_fn(|_| Mutex::default()),
            taken: Mutex::default(),
            under_way: Mutex::default(),
            broken: AtomicBool::new(false),
        })
    }

    /// Goes on with the log of a process that has died. However short the lives of such processes are, it does not grow.
    pub fn take_up(log: Arc<SharedLog>) -> Arc<Journal> {
        let journal = Journal::new(log);
        let mut book = Book::read(&journal.log.read());
        if journal.has_grown_by(SHORTEN_ABOVE) {
            // Which of them the kernel sends again is not known yet: the last, or some that take long.
            let mut last: Vec<u64> = book.intents.keys().copied().collect();
            last.sort_unstable_by(|a, b| b.cmp(a));
            last.truncate(INTENTS);
            let kept: HashSet<u64> = last.into_iter().collect();
            book.intents.retain(|unique, _| kept.contains(unique));
            journal.replace(|_| book.to_log());
            *journal.under_way.lock() = kept;
        }
        *journal.taken.lock() = Some(book);
        journal
    }

    /// Whether the log is so much longer than it was after it was condensed last, and twice as long.
    fn has_grown_by(&self, grown: usize) -> bool {
        let condensed = self.log.get(Word::Condensed) as usize;
        self.log.len() > condensed.saturating_mul(2).max(condensed + grown)
    }

    pub(super) fn put(self: &Arc<Self>, records: &[Record<'_>]) {
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        #[cfg(test)]
        super::deaths::place();
        let written = BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            for record in records {
                record.encode(buffer);
            }
            self.log.append(buffer)
        });
        #[cfg(test)]
        super::deaths::place();
        if let Err(e) = written
            && !self.broken.swap(true, Ordering::Relaxed)
        {
            self.log.set(Word::Phase, BROKEN);
            log::error!("no other process can take this mount over any more: its journal: {e}");
        }
        if self.has_grown_by(CONDENSE_ABOVE) && !self.condensing.swap(true, Ordering::Relaxed) {
            let journal = self.clone();
            let started = std::thread::Builder::new()
                .name("condense".into())
                .spawn(move || {
                    if let Err(text) = caught(|| journal.condense()) {
                        log::error!("condensing the journal panicked: {text}");
                    }
                    journal.condensing.store(false, Ordering::Relaxed);
                });
            if let Err(e) = started {
                log::debug!("the journal is not condensed: {e}");
                self.condensing.store(false, Ordering::Relaxed);
            }
        }
    }

    /// To be held while the lookups of a node are counted or given back and that is written down.
    pub(super) fn order_of(&self, node: NodeId) -> MutexGuard<'_, ()> {
        self.orders[node as usize % ORDERS].lock()
    }

    /// Makes the log as short as what it tells.
    fn condense(&self) {
        let kept: HashSet<u64> = self.under_way.lock().clone();
        self.replace(|old| {
            let mut book = Book::read(old);
            book.intents.retain(|unique, _| kept.contains(unique));
            book.to_log()
        });
    }

    fn replace(&self, condense: impl FnOnce(&[u8]) -> Vec<u8>) {
        if let Err(e) = self.log.rewrite(condense) {
            log::warn!("the journal is not condensed: {e}");
        }
        self.log.set(Word::Condensed, self.log.len() as u64);
    }

    /// What the log tells, where it was taken up: once.
    pub(super) fn take_book(&self) -> Book {
        let taken = self.taken.lock().take();
        taken.unwrap_or_else(|| Book::read(&self.log.read()))
    }

    /// The descriptors that the process before left open for files without a name, with the inode numbers that they must
    /// have.
    pub fn left_open(&self) -> HashMap<RawFd, u64> {
        let taken = self.taken.lock();
        let left = taken.as_ref().map(Book::left_open);
        left.into_iter().flatten().collect()
    }

    /// Says what a request is about to do that must not be done twice. `subject`: see [`Record::Intent`]. It must be followed by
    /// [`Journal::answered`].
    pub(super) fn begin(self: &Arc<Self>, unique: u64, subject: u64) {
        let unique = unique & !RESENT;
        self.under_way.lock().insert(unique);
        self.put(&[Record::Intent(unique, subject)]);
    }

    /// The request was answered.
    pub fn answered(&self, unique: u64) {
        self.under_way.lock().remove(&(unique & !RESENT));
    }

    /// A request was served.
    pub fn count(&self) {
        self.log.count(Word::Progress);
    }

    /// A file was registered for passthrough.
    pub fn backing(self: &Arc<Self>, id: u32) {
        self.put(&[Record::Backing(id)]);
    }

    /// A registered file is about to be closed.
    pub fn unbacked(self: &Arc<Self>, id: u32) {
        self.put(&[Record::Unbacked(id)]);
    }
}

/// Whether the kernel sends a request again, of which nobody knows how far it came.
pub fn is_resent(unique: u64) -> bool {
    unique & RESENT != 0
}

/// The number that a request had when it was sent first.
pub(super) fn first_number(unique: u64) -> u64 {
    unique & !RESENT
}

/// [`Word::Phase`] of a log that lacks a record.
pub const BROKEN: u64 = u64::MAX;

/// A name as it is written down.
pub(super) fn name(ino: u64, parent: u64, name: &OsStr) -> Record<'_> {
    Record::Name {
        ino,
        parent,
        name: name.as_bytes(),
    }
}

/// The log as it is left to the next process.
pub(super) fn log_of(journal: &Journal) -> io::Result<&SharedLog> {
    if journal.broken.load(Ordering::Relaxed) {
        return Err(io::Error::other("a record is missing"));
    }
    Ok(&journal.log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let records = [
            Record::Node {
                node: 5,
                ino: 6,
                file_type: libc::S_IFREG,
                real: 7,
                lookups: 1,
            },
            Record::Lookup(5),
            Record::Forget(5, 2),
            Record::Name {
                ino: 6,
                parent: 1,
                name: b"a\n\xff",
            },
            Record::Unname {
                ino: 6,
                parent: 1,
                name: b"",
            },
            Record::Grave {
                ino: 6,
                file_type: libc::S_IFREG,
                grave: Grave {
                    upper: Some((9, 77)),
                    dead: true,
                    metacopy: true,
                    lowers: vec![
                        (1, LowerPlace::Path(b"x/y".to_vec())),
                        (2, LowerPlace::Index(8)),
                    ],
                },
            },
            Record::Open(
                3,
                OpenFile {
                    node: 5,
                    flags: libc::O_RDWR,
                    passthrough: true,
                    mapper: false,
                    upper: true,
                    backing: 4,
                },
            ),
            Record::Release(3),
            Record::Backing(4),
            Record::Unbacked(4),
            Record::Intent(10, 6),
            Record::Listing(
                6,
                Cookies {
                    next: 9,
                    names: vec![(3, b"a".to_vec()), (5, b"b".to_vec())],
                },
            ),
        ];
        let mut bytes = Vec::new();
        for record in &records {
            record.encode(&mut bytes);
        }
        let mut rest = &bytes[..];
        for record in &records {
            let (read, after) = Record::decode(rest).unwrap();
            assert_eq!(read, *record);
            rest = after;
        }
        assert!(Record::decode(rest).is_none());
        // Cut anywhere, what is left is read or refused, and nothing else.
        for end in 0..bytes.len() {
            let mut rest = &bytes[..end];
            while let Some((_, after)) = Record::decode(rest) {
                rest = after;
            }
        }
    }

    #[test]
    fn the_log_of_processes_that_live_shortly_does_not_grow() {
        let log = Arc::new(SharedLog::new().unwrap());
        let node = Record::Node {
            node: 5,
            ino: 5,
            file_type: libc::S_IFREG,
            real: 7,
            lookups: 1,
        };
        for life in 0..50 {
            let journal = Journal::take_up(log.clone());
            assert!(log.len() < 2 * SHORTEN_ABOVE, "{life}: {}", log.len());
            if life == 0 {
                journal.put(std::slice::from_ref(&node));
            }
            journal.begin(life, 5);
            for _ in 0..2000 {
                journal.put(&[Record::Lookup(5), Record::Forget(5, 1)]);
            }
        }
        let book = Journal::take_up(log).take_book();
        assert_eq!(book.nodes[&5].lookups, 1);
        assert!(book.intents.contains_key(&49));
    }
}
