//! Files whose inode has another number than what lies in the upper tells.
//!
//! A copy without an origin is such a file: a broken hard link, or one of a layer that has no file handles. As long as its inode
//! lives, it keeps the number that it had before the copy-up; who comes to the copy by another name, or after the directory's
//! listing was forgotten, would take the upper's number for it and make a second inode of the same file, with a state of its own.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::inode::Inode;
use crate::sys::sync::{AtomicBool, Mutex};

/// So many are kept before those that are gone are looked for.
const SWEEP_AT: usize = 64;

#[derive(Debug, Default)]
struct Known {
    /// By the inode number in the upper's filesystem.
    by_real: HashMap<u64, Weak<Inode>>,
    /// How many there are when those that are gone are looked for next.
    sweep_at: usize,
}

/// The inodes of such files. A leaf lock.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    known: Mutex<Known>,
    /// There was one. Atomic.
    any: AtomicBool,
}

impl Strays {
    /// An inode stands for the upper's file of this number, or will as soon as that is published. To be called before it is.
    pub(crate) fn put(&self, real: u64, inode: &Arc<Inode>) {
        self.any.store(true, Ordering::Release);
        let mut known = self.known.lock();
        if known.by_real.len() >= known.sweep_at.max(SWEEP_AT) {
            known.by_real.retain(|_, inode| inode.strong_count() > 0);
            known.sweep_at = known.by_real.len() * 2;
        }
        known.by_real.insert(real, Arc::downgrade(inode));
    }

    /// The upper's number is that of another file from now on.
    pub(crate) fn forget(&self, real: u64) {
        if self.any.load(Ordering::Acquire) {
            self.known.lock().by_real.remove(&real);
        }
    }

    /// The inode that was put for the upper's file of this number, where it lives.
    pub(crate) fn find(&self, real: u64) -> Option<Arc<Inode>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.known.lock().by_real.get(&real)?.upgrade()
    }
}

#[cfg(test)]
mod tests {
    use super::super::inode::State;
    use super::*;

    #[test]
    fn those_that_are_gone_take_no_room() {
        let strays = Strays::default();
        let lives = Arc::new(Inode::new(1, 1, libc::S_IFREG, State::default()));
        strays.put(0, &lives);
        for real in 1..10_000 {
            let inode = Arc::new(Inode::new(2, 2, libc::S_IFREG, State::default()));
            strays.put(real, &inode);
            assert!(Arc::ptr_eq(&strays.find(real).unwrap(), &inode));
        }
        assert!(strays.find(9_999).is_none());
        assert!(Arc::ptr_eq(&strays.find(0).unwrap(), &lives));
        assert!(strays.known.lock().by_real.len() <= SWEEP_AT * 2);
        strays.forget(0);
        assert!(strays.find(0).is_none());
    }
}
