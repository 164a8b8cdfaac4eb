//! A bounded cache of directory descriptors.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

/// The slot of a node that never had one.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// Directory descriptors shared by all layers of a mount. When it is full, the one that was not used for longest, as a
/// clock hand finds it, is closed; its directory is opened again when it is needed.
#[derive(Debug)]
pub struct FdCache {
    /// Immutable.
    capacity: usize,
    /// A leaf lock, never held across a system call.
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    entries: Vec<Slot>,
    free: Vec<u32>,
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    /// Address of the node, which clears the slot before the address can be anyone else's.
    owner: usize,
    fd: Option<Arc<OwnedFd>>,
    used: bool,
}

impl FdCache {
    /// A cache for at most `capacity` descriptors.
    pub fn new(capacity: usize) -> FdCache {
        FdCache {
            capacity: capacity.max(8),
            slots: Mutex::default(),
        }
    }

    /// A cache that takes a fair part of the files that the process may have open.
    pub fn for_this_process() -> FdCache {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .unwrap_or(1 << 20);
        FdCache::new((limit / 4).clamp(16, 4096) as usize)
    }

    /// Closes all.
    pub fn clear(&self) {
        let entries = {
            let mut slots = self.slots.lock();
            let entries = std::mem::take(&mut slots.entries);
            *slots = Slots::default();
            entries
        };
        drop(entries);
    }

    /// The descriptor that `owner` left in `slot`, unless another took its place.
    pub(super) fn get(&self, slot: u32, owner: usize) -> Option<Arc<OwnedFd>> {
        if slot == NO_SLOT {
            return None;
        }
        let mut slots = self.slots.lock();
        let entry = slots.entries.get_mut(slot as usize)?;
        if entry.owner != owner {
            return None;
        }
        entry.used = true;
        entry.fd.clone()
    }

    /// Keeps a descriptor for `owner`, which holds none, and returns its slot.
    pub(super) fn insert(&self, owner: usize, fd: Arc<OwnedFd>) -> u32 {
        let entry = Slot {
            owner,
            fd: Some(fd),
            used: false,
        };
        // Closing may block: what is thrown out is dropped after the lock.
        let (slot, _evicted) = {
            let mut slots = self.slots.lock();
            if let Some(slot) = slots.free.pop() {
                slots.entries[slot as usize] = entry;
                (slot, None)
            } else if slots.entries.len() < self.capacity {
                slots.entries.push(entry);
                (slots.entries.len() as u32 - 1, None)
            } else {
                let slot = slots.victim();
                let evicted = std::mem::replace(&mut slots.entries[slot], entry);
                (slot as u32, evicted.fd)
            }
        };
        slot
    }

    /// Lets go of the descriptor of `owner`.
    pub(super) fn remove(&self, slot: u32, owner: usize) {
        if slot == NO_SLOT {
            return;
        }
        let _closed = {
            let mut slots = self.slots.lock();
            match slots.entries.get_mut(slot as usize) {
                Some(entry) if entry.owner == owner => {
                    entry.owner = 0;
                    let fd = entry.fd.take();
                    slots.free.push(slot);
                    fd
                }
                _ => None,
            }
        };
    }
}

impl Slots {
    /// Precondition: there is at least one entry.
    fn victim(&mut self) -> usize {
        loop {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.entries.len();
            if !std::mem::take(&mut self.entries[slot].used) {
                return slot;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> Arc<OwnedFd> {
        Arc::new(std::fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn evicts_the_unused_one() {
        let cache = FdCache::new(8);
        let slots: Vec<u32> = (1..=8).map(|owner| cache.insert(owner, fd())).collect();
        for owner in 2..=8 {
            assert!(cache.get(slots[owner - 1], owner).is_some());
        }
        let new = cache.insert(99, fd());
        assert_eq!(new, slots[0]);
        assert!(cache.get(slots[0], 1).is_none());
        assert!(cache.get(slots[1], 2).is_some());
        assert!(cache.get(new, 99).is_some());
    }

    #[test]
    fn a_removed_slot_is_used_again() {
        let cache = FdCache::new(8);
        let slot = cache.insert(1, fd());
        cache.remove(slot, 2);
        assert!(cache.get(slot, 1).is_some());
        cache.remove(slot, 1);
        assert!(cache.get(slot, 1).is_none());
        assert_eq!(cache.insert(3, fd()), slot);
    }
}
