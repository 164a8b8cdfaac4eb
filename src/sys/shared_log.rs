//! A log in memory that outlives the process that writes it: a `memfd`, mapped by several processes in turn.
//!
//! One process writes at a time. A record is there once the length that is kept beside the records says so, which is
//! stored after its last byte: a writer that dies at any moment leaves whole records and nothing else. The memory has several
//! regions. The log is rewritten into one that nobody uses, and the word that says which region counts is stored last.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags};

/// What stands before the regions.
const HEAD: usize = 4096;

/// Addresses kept for each region; memory is used only as far as it is written.
const REGION: usize = 1 << 30;

/// The log, the one that it is rewritten to, and one that is pinned.
const REGIONS: usize = 3;

const SIZE: usize = HEAD + REGIONS * REGION;

/// A word beside the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Free for the users of the log.
    Phase = 4,
    /// Free for the users of the log.
    Progress = 5,
    /// Free for the users of the log.
    Condensed = 6,
    /// Free for the users of the log.
    Supervisor = 7,
}

const ACTIVE: usize = 0;
/// One for each region.
const LENGTHS: usize = 1;

/// The word that tells the length of the note, and where that stands.
const NOTE_LENGTH: usize = 8;
const NOTE: usize = 256;

/// The first of the words that tell what is owed: [`OWED_WORDS`] for each of [`MOST_OWED`].
const OWED: usize = HEAD / 2 / 8;
const OWED_WORDS: usize = 4;
const MOST_OWED: usize = HEAD / 2 / 8 / OWED_WORDS;

/// A note is no longer.
const LONGEST_NOTE: usize = HEAD / 2 - NOTE;

/// A mode that a file is to get back from whoever has the files of this process open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwedMode {
    /// The file.
    pub fd: RawFd,
    /// Its inode number.
    pub ino: u64,
    /// As in `st_mode`.
    pub mode: u32,
}

/// See the module.
pub struct SharedLog {
    start: NonNull<u8>,
    memory: OwnedFd,
    /// Held while a record is written, and while another region becomes the log.
    writing: Mutex<()>,
    /// How many [`Pinned`] there are of each region. Atomics; the first of a region is counted under `writing`.
    pins: [AtomicUsize; REGIONS],
    /// Which slots for what is owed are in use, by bits. A leaf lock.
    slots: Mutex<u64>,
}

// SAFETY: the head is only touched as atomics, and the regions only under `writing`, or below a length that was read from
// the head, where nothing changes while the region is the log or pinned.
unsafe impl Send for SharedLog {}
// SAFETY: as above.
unsafe impl Sync for SharedLog {}

impl SharedLog {
    /// An empty log.
    pub fn new() -> io::Result<SharedLog> {
        let memory = rustix::fs::memfd_create("acetate-journal", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, SIZE as u64)?;
        SharedLog::map(memory)
    }

    /// The log that another program left in this memory. Precondition: that program runs no more, or writes no more.
    pub fn of(memory: OwnedFd) -> io::Result<SharedLog> {
        if rustix::fs::fstat(&memory)?.st_size as u64 != SIZE as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        SharedLog::map(memory)
    }

    fn map(memory: OwnedFd) -> io::Result<SharedLog> {
        // SAFETY: a new mapping, wherever the kernel likes, of a descriptor that is open.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                memory.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(SharedLog {
                start,
                memory,
                writing: Mutex::new(()),
                pins: Default::default(),
                slots: Mutex::new(0),
            }),
            None => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: the head is mapped as long as the value lives, aligned, and only touched as atomics.
        unsafe { &*self.start.as_ptr().add(index * 8).cast::<AtomicU64>() }
    }

    /// One of the words beside the log; 0 in the beginning.
    pub fn get(&self, word: Word) -> u64 {
        self.word(word as usize).load(Ordering::Acquire)
    }

    /// Stores a word, at once visible to the other processes.
    pub fn set(&self, word: Word, value: u64) {
        self.word(word as usize).store(value, Ordering::Release);
    }

    /// Adds one to a word.
    pub fn count(&self, word: Word) {
        self.word(word as usize).fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps something short beside the records, instead of what was kept there.
    pub fn set_note(&self, note: &[u8]) -> io::Result<()> {
        let _writing = self.writing.lock();
        if note.len() > LONGEST_NOTE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.word(NOTE_LENGTH).store(0, Ordering::Release);
        // SAFETY: the bytes lie within the head, behind its words, and nobody else touches them under the lock.
        unsafe {
            std::ptr::copy_nonoverlapping(note.as_ptr(), self.start.as_ptr().add(NOTE), note.len());
        }
        self.word(NOTE_LENGTH)
            .store(note.len() as u64, Ordering::Release);
        Ok(())
    }

    /// What is kept beside the records; nothing in the beginning.
    pub fn note(&self) -> Vec<u8> {
        let _writing = self.writing.lock();
        let length = self.word(NOTE_LENGTH).load(Ordering::Acquire) as usize;
        // SAFETY: as above, and the length is cut to what lies there.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().add(NOTE), length.min(LONGEST_NOTE))
        }
        .to_vec()
    }

    /// Writes down a mode that is to be put back. `None`: there is no room.
    pub fn owe(&self, owed: OwedMode) -> Option<usize> {
        let mut slots = self.slots.lock();
        let slot = (!*slots).trailing_zeros() as usize;
        if slot >= MOST_OWED {
            return None;
        }
        *slots |= 1 << slot;
        let at = OWED + slot * OWED_WORDS;
        self.word(at + 1).store(owed.ino, Ordering::Relaxed);
        self.word(at + 2)
            .store(u64::from(owed.mode), Ordering::Relaxed);
        // Last: by it the slot counts.
        let number = u64::from(owed.fd.cast_unsigned()) + 1;
        self.word(at).store(number, Ordering::Release);
        Some(slot)
    }

    /// It was put back.
    pub fn settle(&self, slot: usize) {
        if slot < MOST_OWED {
            self.word(OWED + slot * OWED_WORDS)
                .store(0, Ordering::Release);
            *self.slots.lock() &= !(1 << slot);
        }
    }

    /// What is to be put back, with the slots.
    pub fn owed(&self) -> Vec<(usize, OwedMode)> {
        let all = (0..MOST_OWED).filter_map(|slot| {
            let at = OWED + slot * OWED_WORDS;
            let number = self.word(at).load(Ordering::Acquire).checked_sub(1)?;
            let owed = OwedMode {
                fd: RawFd::try_from(number).ok()?,
                ino: self.word(at + 1).load(Ordering::Relaxed),
                mode: self.word(at + 2).load(Ordering::Relaxed) as u32,
            };
            Some((slot, owed))
        });
        all.collect()
    }

    fn region(&self, region: usize) -> *mut u8 {
        // SAFETY: all regions lie within the mapping.
        unsafe { self.start.as_ptr().add(HEAD + region * REGION) }
    }

    fn length_of(&self, region: usize) -> &AtomicU64 {
        self.word(LENGTHS + region)
    }

    /// Whatever stands there, it is no more than there is.
    fn length(&self, region: usize) -> usize {
        let length = self.length_of(region).load(Ordering::Acquire);
        usize::try_from(length).unwrap_or(REGION).min(REGION)
    }

    fn active(&self) -> usize {
        self.word(ACTIVE).load(Ordering::Acquire) as usize % REGIONS
    }

    /// Bytes in the log.
    pub fn len(&self) -> usize {
        self.length(self.active())
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a record at the end. Fails, and changes nothing, when there is no room.
    pub fn append(&self, record: &[u8]) -> io::Result<()> {
        let _writing = self.writing.lock();
        let region = self.active();
        self.append_locked(region, record)
    }

    /// Precondition: `writing` is held.
    fn append_locked(&self, region: usize, record: &[u8]) -> io::Result<()> {
        let (length, at) = (self.length_of(region), self.length(region));
        if record.len() > REGION - at {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // SAFETY: the bytes lie within the region, nobody reads beyond the length, and nobody else writes under the lock.
        unsafe {
            let end = self.region(region).add(at);
            std::ptr::copy_nonoverlapping(record.as_ptr(), end, record.len());
        }
        length.store((at + record.len()) as u64, Ordering::Release);
        Ok(())
    }

    /// All records, for a moment in which nothing can be appended.
    pub fn whole<R>(&self, read: impl FnOnce(&[u8]) -> R) -> R {
        let _writing = self.writing.lock();
        let region = self.active();
        read(self.records_locked(region, 0, self.length(region)))
    }

    /// Precondition: `writing` is held as long as the result is used, or the region stays the log so long; the range lies below
    /// its length.
    fn records_locked(&self, region: usize, from: usize, to: usize) -> &[u8] {
        // SAFETY: the range was written whole and does not change.
        unsafe { std::slice::from_raw_parts(self.region(region).add(from), to - from) }
    }

    /// The records that there are, which are kept as they are, also when the log is rewritten. To be called by whoever goes on with
    /// the log of another process: what that one left in other regions is given back.
    pub fn pin(self: &Arc<Self>) -> Pinned {
        let _writing = self.writing.lock();
        let active = self.active();
        for region in (0..REGIONS).filter(|region| *region != active) {
            if let Err(e) = self.give_back_locked(region) {
                log::debug!("memory of the journal is not given back: {e}");
            }
        }
        self.pins[active].fetch_add(1, Ordering::Relaxed);
        Pinned {
            log: self.clone(),
            region: active,
            length: self.length(active),
        }
    }

    /// Lets go of the memory of a region that is not the log, unless it is pinned. Precondition: `writing` is held.
    fn give_back_locked(&self, region: usize) -> io::Result<()> {
        if self.pins[region].load(Ordering::Acquire) > 0 {
            return Ok(());
        }
        Ok(rustix::fs::fallocate(
            &self.memory,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            (HEAD + region * REGION) as u64,
            REGION as u64,
        )?)
    }

    /// Replaces the records by what `condense` makes of them; what is appended meanwhile is kept behind. Returns how long
    /// the new records are. Must not be called by two threads at once.
    pub fn rewrite(&self, condense: impl FnOnce(&[u8]) -> Vec<u8>) -> io::Result<usize> {
        let old = self.active();
        let until = self.length(old);
        // It stays the log: nobody else rewrites it.
        let new = condense(self.records_locked(old, 0, until));
        let _writing = self.writing.lock();
        let free =
            |region: &usize| *region != old && self.pins[*region].load(Ordering::Acquire) == 0;
        let Some(other) = (0..REGIONS).find(free) else {
            return Err(io::Error::other("all of its memory is in use"));
        };
        self.length_of(other).store(0, Ordering::Release);
        self.append_locked(other, &new)?;
        let condensed = new.len();
        drop(new);
        let meanwhile = self.records_locked(old, until, self.length(old).max(until));
        self.append_locked(other, meanwhile)?;
        self.word(ACTIVE).store(other as u64, Ordering::Release);
        if let Err(e) = self.give_back_locked(old) {
            log::debug!("memory of the journal is not given back: {e}");
        }
        Ok(condensed)
    }
}

/// Records of a log that stay what they were.
pub struct Pinned {
    log: Arc<SharedLog>,
    region: usize,
    length: usize,
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range was written whole; the region is not written anew while it is pinned, only appended to, and is
        // mapped as long as the log lives.
        unsafe { std::slice::from_raw_parts(self.log.region(self.region), self.length) }
    }
}

impl Clone for Pinned {
    fn clone(&self) -> Pinned {
        // This one keeps the region meanwhile.
        self.log.pins[self.region].fetch_add(1, Ordering::Relaxed);
        Pinned {
            log: self.log.clone(),
            region: self.region,
            length: self.length,
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.log.pins[self.region].fetch_sub(1, Ordering::Release);
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of records", self.length)
    }
}

impl AsFd for SharedLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Drop for SharedLog {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nothing of it outlives the value.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), SIZE) };
        if result != 0 {
            log::debug!("munmap: {}", io::Error::last_os_error());
        }
    }
}

impl fmt::Debug for SharedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLog")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(log: &SharedLog) -> Vec<u8> {
        log.whole(<[u8]>::to_vec)
    }

    #[test]
    fn what_is_pinned_stays_as_it_is() {
        let log = Arc::new(SharedLog::new().unwrap());
        log.append(b"one").unwrap();
        let pinned = log.pin();
        log.append(b"two").unwrap();
        for round in 0..4u8 {
            log.rewrite(|old| [old, &[b'0' + round]].concat()).unwrap();
            assert_eq!(&*pinned, b"one");
        }
        assert_eq!(read(&log), b"onetwo0123");
        let again = log.pin();
        log.rewrite(|_| b"new".to_vec()).unwrap();
        assert_eq!((&*pinned, &*again), (&b"one"[..], &b"onetwo0123"[..]));
        // There is no room left, and nothing is lost.
        assert!(log.rewrite(|_| Vec::new()).is_err());
        assert_eq!(read(&log), b"new");
        drop((pinned, again));
        log.rewrite(|old| old[..1].to_vec()).unwrap();
        assert_eq!(read(&log), b"n");
    }

    #[test]
    fn what_is_appended_while_it_is_rewritten_is_kept() {
        let log = SharedLog::new().unwrap();
        log.append(b"one").unwrap();
        log.append(b"two").unwrap();
        log.rewrite(|old| {
            assert_eq!(old, b"onetwo");
            log.append(b"three").unwrap();
            b"12".to_vec()
        })
        .unwrap();
        assert_eq!(read(&log), b"12three");
        log.rewrite(|old| old[..2].to_vec()).unwrap();
        assert_eq!(read(&log), b"12");
        assert_eq!(log.len(), 2);
    }

    #[test]
    fn words_are_beside_the_records() {
        let log = SharedLog::new().unwrap();
        log.append(&[7; 5000]).unwrap();
        assert_eq!(log.get(Word::Phase), 0);
        log.set(Word::Phase, 3);
        log.count(Word::Progress);
        assert_eq!(read(&log), [7; 5000]);
        assert_eq!((log.get(Word::Phase), log.get(Word::Progress)), (3, 1));
        assert_eq!(log.note(), b"");
        log.set_note(&[5; 100]).unwrap();
        assert!(log.set_note(&[5; HEAD]).is_err());
        let other = SharedLog::of(log.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!((other.note(), read(&other)), (vec![5; 100], vec![7; 5000]));
    }
}
