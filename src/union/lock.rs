//! Ranked locks.
//!
//! Every lock of the union has a [`Rank`]; a thread takes them in growing order, which debug builds check, so that no
//! two threads can wait for each other in a circle:
//!
//! 1. `Rename`: moves of directories between directories, against whoever walks up the tree.
//! 2. `CopyUp`: one inode's copy-up, the only lock held while data is copied. It comes before the directory locks
//!    because publishing the copy needs the parent's directory lock at the end of the copying, and nobody
//!    who holds a directory lock starts a copy-up.
//! 3. `Dir`: one directory's entries while they change (parent before child, else by ascending inode number).
//! 4. `Names`: of files in the index, while their number of names changes.
//! 5. `Open`: how one inode is open, against the decision to retire its node id.
//! 6. `Leaf`: tables and fields; never held across a system call.

use crate::sys::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The place of a lock in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Rename,
    CopyUp,
    Dir,
    Names,
    Open,
}

#[cfg(debug_assertions)]
mod check {
    use super::Rank;
    use crate::sys::sync::task;
    use std::cell::RefCell;

    thread_local! {
        /// By which of a model's threads.
        static HELD: RefCell<Vec<(usize, Rank)>> = const { RefCell::new(Vec::new()) };
    }

    /// What a lock keeps of its rank.
    pub(super) type Kept = Rank;

    pub(super) fn keep(rank: Rank) -> Kept {
        rank
    }

    pub(super) fn acquire(rank: Kept) {
        let task = task();
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            // Directory locks are taken several at a time, ordered among themselves by their takers.
            let ordered = held
                .iter()
                .filter(|&&(holder, _)| holder == task)
                .all(|&(_, h)| h < rank || (h == rank && rank == Rank::Dir));
            assert!(
                ordered,
                "lock order: {rank:?} wanted while holding {held:?}"
            );
            held.push((task, rank));
        });
    }

    pub(super) fn release(rank: Kept) {
        let task = task();
        HELD.with(|held| {
            let mut held = held.borrow_mut();
            if let Some(at) = held.iter().rposition(|&h| h == (task, rank)) {
                held.remove(at);
            }
        });
    }
}

#[cfg(not(debug_assertions))]
mod check {
    use super::Rank;
    /// Nothing: every inode has some of these locks.
    pub(super) type Kept = ();
    #[inline]
    pub(super) fn keep(_: Rank) -> Kept {}
    #[inline]
    pub(super) fn acquire((): Kept) {}
    #[inline]
    pub(super) fn release((): Kept) {}
}

/// A mutex with a place in the order.
#[derive(Debug)]
pub(crate) struct Ranked<T> {
    rank: check::Kept,
    inner: Mutex<T>,
}

impl<T> Ranked<T> {
    pub(crate) fn new(rank: Rank, value: T) -> Self {
        Ranked {
            rank: check::keep(rank),
            inner: Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> RankedGuard<'_, T> {
        check::acquire(self.rank);
        RankedGuard {
            rank: self.rank,
            inner: self.inner.lock(),
        }
    }

    /// As [`Ranked::lock`], but gives up waiting as soon as `void` says so.
    pub(crate) fn lock_unless(&self, void: impl Fn() -> bool) -> Option<RankedGuard<'_, T>> {
        let inner = loop {
            match self.inner.try_lock_for(IMPATIENCE) {
                Some(inner) => break inner,
                None if void() => return None,
                None => {}
            }
        };
        check::acquire(self.rank);
        Some(RankedGuard {
            rank: self.rank,
            inner,
        })
    }
}

/// How often who waits for a lock asks whether to go on.
const IMPATIENCE: Duration = Duration::from_millis(50);

/// Holds a [`Ranked`] lock.
pub(crate) struct RankedGuard<'a, T> {
    rank: check::Kept,
    inner: MutexGuard<'a, T>,
}

impl<T> std::ops::Deref for RankedGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> std::ops::DerefMut for RankedGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T> Drop for RankedGuard<'_, T> {
    fn drop(&mut self) {
        check::release(self.rank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_order_passes() {
        let a = Ranked::new(Rank::CopyUp, ());
        let b = Ranked::new(Rank::Dir, ());
        let _a = a.lock();
        let _b = b.lock();
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "lock order")]
    fn falling_order_is_caught() {
        let a = Ranked::new(Rank::CopyUp, ());
        let b = Ranked::new(Rank::Dir, ());
        let _b = b.lock();
        let _a = a.lock();
    }
}
