//! Whether what was found on disk of a file is out of date.
//!
//! Who looks a name up asks the disk without a lock. Until an inode is made of what was found, the file may have been copied up
//! by another inode that was written to, closed and forgotten: what was found would show the lower file again.

use std::sync::atomic::{Ordering, fence};

use crate::sys::sync::AtomicU64;

/// Into so many classes inode numbers are put.
const CLASSES: usize = 64;

/// When data or attributes of inodes were moved to the upper. Atomics.
#[derive(Debug)]
pub(crate) struct Moves {
    /// How many there were.
    count: AtomicU64,
    /// The last of them for the inode numbers of each class.
    last: [AtomicU64; CLASSES],
}

impl Moves {
    pub(crate) fn new() -> Moves {
        Moves {
            count: AtomicU64::new(0),
            last: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// The moment at which somebody begins to look at the disk.
    pub(crate) fn now(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// To be called after the disk was changed, while the inode is held.
    pub(crate) fn note(&self, ino: u64) {
        let now = self.count.fetch_add(1, Ordering::AcqRel) + 1;
        self.last[ino as usize % CLASSES].fetch_max(now, Ordering::AcqRel);
    }

    /// Whether there may have been one of this inode number since a moment, by an inode that is gone.
    pub(crate) fn any_since(&self, begin: u64, ino: u64) -> bool {
        // Whoever held that inode last let go of it after the move.
        fence(Ordering::Acquire);
        self.last[ino as usize % CLASSES].load(Ordering::Acquire) > begin
    }
}
