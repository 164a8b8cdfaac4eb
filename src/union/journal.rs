//! What the next process that serves a mount has to know: which node stands for which file, what is open, and what was
//! being done.
//!
//! A worker appends a record to a [`SharedLog`] before it answers the request that made it true, so that what the kernel
//! was told is always in the log. What is in the log need not have reached the kernel: lookups are rather counted too often than
//! too seldom, and a name that is told may be out of date, which whoever reads it finds out by looking.
//!
//! Records: see `record`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::book::Book;
use super::record::Record;
use super::types::NodeId;
use crate::sys::owed;
use crate::sys::panics::caught;
use crate::sys::shared_log::{Pinned, SharedLog, Word};
use crate::sys::sync::{AtomicBool, Mutex, MutexGuard};

/// The log is condensed when it is so much longer than it was after the last time, and by an eighth: what was appended since then is
/// all that a process reads that takes the mount over.
const CONDENSE_ABOVE: usize = 2 << 20;

/// The same when another process takes it over.
const SHORTEN_ABOVE: usize = 128 << 10;

/// A log of fewer bytes is shortened by whoever takes it over, before it answers; a longer one beside those who wait.
const SHORT: usize = 1 << 20;

/// When so much was appended, no process has lived long enough to shorten it beside those who wait.
const LONGEST: usize = 64 << 20;

/// So many requests that were begun are remembered then.
const INTENTS: usize = 4096;

/// See [`Journal::order_of`].
const ORDERS: usize = 64;

/// The bit by which the kernel marks a request that it sends again (`FUSE_UNIQUE_RESEND`).
const RESENT: u64 = 1 << 63;

/// Writes the log of one mount.
#[derive(Debug)]
pub struct Journal {
    /// Its own lock.
    log: Arc<SharedLog>,
    /// A thread condenses the log. Atomic.
    condensing: AtomicBool,
    /// It is to be condensed, however long it is. Atomic.
    overdue: AtomicBool,
    /// Held while lookups of a node are counted or given back and that is written down, so that the log tells it in the order in
    /// which it was done. By the node's low bits. Taken before the leaves.
    orders: [Mutex<()>; ORDERS],
    /// What the log told when it was taken up, until it is adopted. A leaf lock.
    taken: Mutex<Option<Book<Pinned>>>,
    /// Requests under way that must not be done twice. A leaf lock.
    under_way: Mutex<HashSet<u64>>,
    /// A record could not be written: nobody can take the mount over any more. Atomic.
    broken: AtomicBool,
}

impl Journal {
    /// Goes on with a log.
    pub fn new(log: Arc<SharedLog>) -> Arc<Journal> {
        owed::keep_in(&log);
        Arc::new(Journal {
            log,
            condensing: AtomicBool::new(false),
            overdue: AtomicBool::new(false),
            orders: std::array::from_fn(|_| Mutex::default()),
            taken: Mutex::default(),
            under_way: Mutex::default(),
            broken: AtomicBool::new(false),
        })
    }

    /// Goes on with the log of a process that has died. However short the lives of such processes are, it does not grow.
    pub fn take_up(log: Arc<SharedLog>) -> Arc<Journal> {
        // Before what that one left open is closed.
        owed::pay(&log);
        let journal = Journal::new(log);
        let mut book = Book::read(journal.log.pin());
        let has_grown = journal.has_grown_by(SHORTEN_ABOVE);
        // Which of them the kernel sends again is not known yet.
        let mut begun: Vec<u64> = book.intents.keys().copied().collect();
        if has_grown {
            // The last, or some that take long.
            begun.sort_unstable_by(|a, b| b.cmp(a));
            begun.truncate(INTENTS);
        }
        let kept: HashSet<u64> = begun.into_iter().collect();
        if has_grown {
            book.intents.retain(|unique, _| kept.contains(unique));
        }
        *journal.under_way.lock() = kept;
        if has_grown {
            if journal.log.len() < SHORT || journal.grown() > LONGEST {
                journal.replace(|_| book.to_log());
            } else {
                journal.overdue.store(true, Ordering::Relaxed);
            }
        }
        *journal.taken.lock() = Some(book);
        journal
    }

    /// What was appended since the log was condensed last, in bytes.
    fn grown(&self) -> usize {
        let condensed = self.log.get(Word::Condensed) as usize;
        self.log.len().saturating_sub(condensed)
    }

    /// Whether so much was, and more than an eighth.
    fn has_grown_by(&self, much: usize) -> bool {
        let condensed = self.log.get(Word::Condensed) as usize;
        self.grown() > much.max(condensed / 8)
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
        let wanted = self.overdue.load(Ordering::Relaxed) || self.has_grown_by(CONDENSE_ABOVE);
        if wanted && !self.condensing.swap(true, Ordering::Relaxed) {
            self.overdue.store(false, Ordering::Relaxed);
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
        self.replace(|old| {
            // Not before what is read of the log is settled: what was begun by then, and is not answered, is among them.
            let kept: HashSet<u64> = self.under_way.lock().clone();
            let mut book = Book::read(old);
            book.intents.retain(|unique, _| kept.contains(unique));
            book.to_log()
        });
    }

    /// Makes a log that nobody writes as short as what it tells.
    #[cfg(test)]
    pub(crate) fn shorten(log: &SharedLog) {
        log.rewrite(|old| Book::read(old).to_log()).unwrap();
    }

    fn replace(&self, condense: impl FnOnce(&[u8]) -> Vec<u8>) {
        // What was appended meanwhile is not condensed.
        let condensed = self.log.rewrite(condense).unwrap_or_else(|e| {
            log::warn!("the journal is not condensed: {e}");
            self.log.len()
        });
        self.log.set(Word::Condensed, condensed as u64);
    }

    /// What the log tells, where it was taken up: once.
    pub(super) fn take_book(&self) -> Book<Pinned> {
        let taken = self.taken.lock().take();
        taken.unwrap_or_else(|| Book::read(self.log.pin()))
    }

    /// The same as [`Journal::left_open`], of a log that somebody else goes on with.
    pub fn left_in(log: &SharedLog) -> HashMap<RawFd, u64> {
        owed::pay(log);
        log.whole(|log| Book::read(log).left_open().into_iter().collect())
    }

    /// Keeps what was answered to the kernel's first message, which every process after this one must answer too.
    pub fn keep_answer(&self, answer: &[u8]) -> io::Result<()> {
        self.log.set_note(answer)
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

/// The log as it is left to the next process.
pub(super) fn log_of(journal: &Journal) -> io::Result<&SharedLog> {
    if journal.broken.load(Ordering::Relaxed) {
        return Err(io::Error::other("a record is missing"));
    }
    Ok(&journal.log)
}

#[cfg(test)]
mod tests {
    use super::super::record::name;
    use super::*;

    #[test]
    fn a_long_log_is_shortened_beside_those_who_wait() {
        let log = Arc::new(SharedLog::new().unwrap());
        let journal = Journal::new(log.clone());
        let long = "n".repeat(200);
        // Without the thread that shortens it.
        journal.condensing.store(true, Ordering::Relaxed);
        while log.len() <= CONDENSE_ABOVE {
            journal.put(&[name(6, 1, long.as_ref())]);
        }
        journal.put(&[Record::Intent(9, 6)]);
        let length = log.len();
        let journal = Journal::take_up(log.clone());
        assert_eq!(log.len(), length);
        assert!(journal.take_book().intents.contains_key(&9));
        journal.put(&[Record::Lookup(5)]);
        let begin = std::time::Instant::now();
        while journal.condensing.load(Ordering::Relaxed) {
            assert!(begin.elapsed().as_secs() < 120);
            std::thread::yield_now();
        }
        assert!(log.len() < 4096, "{}", log.len());
        // Whoever is next is still told what may have been done.
        let book = Journal::take_up(log).take_book();
        assert!(book.intents.contains_key(&9));
    }

    #[test]
    fn of_many_nodes_only_those_are_read_that_were_told_last() {
        const NODES: u64 = 60_000;
        let log = Arc::new(SharedLog::new().unwrap());
        let journal = Journal::new(log.clone());
        for node in 2..2 + NODES {
            let told = Record::Node {
                node,
                ino: node,
                file_type: libc::S_IFREG,
                real: 0,
                lookups: 1,
            };
            journal.put(&[told, name(node, 1, "a name of some length".as_ref())]);
        }
        let begin = std::time::Instant::now();
        while journal.has_grown_by(CONDENSE_ABOVE) || journal.condensing.load(Ordering::Relaxed) {
            assert!(begin.elapsed().as_secs() < 120);
            journal.put(&[Record::Lookup(5), Record::Forget(5, 1)]);
            std::thread::yield_now();
        }
        let book = Journal::take_up(log).take_book();
        let read = book.changed_nodes().count() as u64;
        assert!(read < NODES / 2, "{read}");
        for node in 2..2 + NODES {
            assert_eq!(book.node(node).unwrap().lookups, 1, "{node}");
            assert_eq!(book.file(node).unwrap().names.len(), 1, "{node}");
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
        assert_eq!(book.node(5).unwrap().lookups, 1);
        assert!(book.intents.contains_key(&49));
    }
}
