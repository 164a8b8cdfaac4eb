//! A log in memory that outlives the process that writes it: a `memfd`, mapped by several processes in turn.
//!
//! One process writes at a time. A record is there once the length that is kept beside the records says so, which is
//! stored after its last byte: a writer that dies at any moment leaves whole records and nothing else. The log is rewritten
//! into the other half of the memory, and the word that says which half counts is stored last.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, MemfdFlags};

/// What stands before the halves.
const HEAD: usize = 4096;

/// Addresses kept for each half; memory is used only as far as it is written.
const HALF: usize = 1 << 30;

const SIZE: usize = HEAD + 2 * HALF;

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
const LENGTHS: usize = 1;

/// The word that tells the length of the note, and where that stands.
const NOTE_LENGTH: usize = 8;
const NOTE: usize = 256;

/// A note is no longer.
const LONGEST_NOTE: usize = HEAD - NOTE;

/// See the module.
pub struct SharedLog {
    start: NonNull<u8>,
    memory: OwnedFd,
    /// Held while a record is written, and while the halves are exchanged.
    writing: Mutex<()>,
}

// SAFETY: the head is only touched as atomics, and the halves only under `writing`, or below a length that was read from
// the head, where nothing changes before the halves are exchanged twice.
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

    fn half(&self, half: u64) -> *mut u8 {
        // SAFETY: both halves lie within the mapping.
        unsafe { self.start.as_ptr().add(HEAD + half as usize * HALF) }
    }

    fn length_of(&self, half: u64) -> &AtomicU64 {
        self.word(LENGTHS + half as usize)
    }

    /// Whatever stands there, it is no more than there is.
    fn length(&self, half: u64) -> usize {
        let length = self.length_of(half).load(Ordering::Acquire);
        usize::try_from(length).unwrap_or(HALF).min(HALF)
    }

    fn active(&self) -> u64 {
        self.word(ACTIVE).load(Ordering::Acquire) & 1
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
        let half = self.active();
        self.append_locked(half, record)
    }

    /// Precondition: `writing` is held.
    fn append_locked(&self, half: u64, record: &[u8]) -> io::Result<()> {
        let (length, at) = (self.length_of(half), self.length(half));
        if record.len() > HALF - at {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // SAFETY: the bytes lie within the half, nobody reads beyond the length, and nobody else writes under the lock.
        unsafe {
            std::ptr::copy_nonoverlapping(record.as_ptr(), self.half(half).add(at), record.len());
        }
        length.store((at + record.len()) as u64, Ordering::Release);
        Ok(())
    }

    /// A copy of all records.
    pub fn read(&self) -> Vec<u8> {
        let _writing = self.writing.lock();
        let half = self.active();
        self.copy_locked(half, 0, self.length(half))
    }

    /// Precondition: `writing` is held, or the half is not exchanged meanwhile and the range lies below its length.
    fn copy_locked(&self, half: u64, from: usize, to: usize) -> Vec<u8> {
        // SAFETY: the range was written whole and does not change.
        unsafe { std::slice::from_raw_parts(self.half(half).add(from), to - from) }.to_vec()
    }

    /// Replaces the records by what `condense` makes of them; what is appended meanwhile is kept behind. Must not be called by
    /// two threads at once.
    pub fn rewrite(&self, condense: impl FnOnce(&[u8]) -> Vec<u8>) -> io::Result<()> {
        let half = self.active();
        let until = self.length(half);
        let new = condense(&self.copy_locked(half, 0, until));
        let other = 1 - half;
        let _writing = self.writing.lock();
        self.length_of(other).store(0, Ordering::Release);
        self.append_locked(other, &new)?;
        let meanwhile = self.copy_locked(half, until, self.length(half).max(until));
        self.append_locked(other, &meanwhile)?;
        self.word(ACTIVE).store(other, Ordering::Release);
        rustix::fs::fallocate(
            &self.memory,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            (HEAD + half as usize * HALF) as u64,
            HALF as u64,
        )?;
        Ok(())
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
        assert_eq!(log.read(), b"12three");
        log.rewrite(|old| old[..2].to_vec()).unwrap();
        assert_eq!(log.read(), b"12");
        assert_eq!(log.len(), 2);
    }

    #[test]
    fn words_are_beside_the_records() {
        let log = SharedLog::new().unwrap();
        log.append(&[7; 5000]).unwrap();
        assert_eq!(log.get(Word::Phase), 0);
        log.set(Word::Phase, 3);
        log.count(Word::Progress);
        assert_eq!(log.read(), [7; 5000]);
        assert_eq!((log.get(Word::Phase), log.get(Word::Progress)), (3, 1));
        assert_eq!(log.note(), b"");
        log.set_note(&[5; 100]).unwrap();
        assert!(log.set_note(&[5; HEAD]).is_err());
        let other = SharedLog::of(log.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!((other.note(), other.read()), (vec![5; 100], vec![7; 5000]));
    }
}
