//! One part of the inode table, behind a lock of its own.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use hashbrown::HashTable;

use crate::union::inode::Inode;
use crate::union::types::NodeId;

/// Weak entries of a shard beyond which it is searched for dangling ones.
const SWEEP_AT: usize = 1024;

/// A shard with room for so few nodes is not made smaller.
const SHRINK_ABOVE: usize = 256;

#[derive(Debug)]
pub(super) enum Held {
    Strong(Arc<Inode>),
    Weak(Weak<Inode>),
}

#[derive(Debug)]
pub(super) struct NodeEntry {
    pub held: Held,
    pub lookups: u64,
}

#[derive(Debug, Default)]
pub(super) struct Shard {
    /// The inodes that the kernel knows by a node id which is their inode number. How often, they tell themselves.
    pub own: HashTable<Arc<Inode>>,
    /// All other nodes: what the kernel was not told of yet or has forgotten, and what has another node id.
    pub others: HashMap<NodeId, NodeEntry>,
    pub weak: usize,
    hasher: RandomState,
}

/// Takes lookups of its own node id from an inode, whose shard is locked; how many are left. A count that has come to its
/// end means more than it can tell, and stays.
pub(super) fn forgotten(inode: &Inode, count: u64) -> u32 {
    let before = inode.lookups.load(Ordering::Relaxed);
    if before == u32::MAX {
        return before;
    }
    let left = before.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
    inode.lookups.store(left, Ordering::Relaxed);
    left
}

impl Shard {
    pub(super) fn find_own(&self, node: NodeId) -> Option<&Arc<Inode>> {
        self.own
            .find(self.hasher.hash_one(node), |inode| inode.ino == node)
    }

    pub(super) fn find(&self, node: NodeId) -> Option<Arc<Inode>> {
        if let Some(inode) = self.find_own(node) {
            return Some(inode.clone());
        }
        match &self.others.get(&node)?.held {
            Held::Strong(inode) => Some(inode.clone()),
            Held::Weak(inode) => inode.upgrade(),
        }
    }

    /// Lookups that the process before counted.
    pub(super) fn hold(&mut self, node: NodeId, inode: &Arc<Inode>, lookups: u64) {
        if node == inode.ino {
            self.acquire_own(inode, u32::try_from(lookups).unwrap_or(u32::MAX));
            return;
        }
        let entry = self.others.entry(node).or_insert_with(|| NodeEntry {
            held: Held::Strong(inode.clone()),
            lookups: 0,
        });
        entry.held = Held::Strong(inode.clone());
        entry.lookups += lookups;
    }

    /// More lookups of an inode by its own number. True where the kernel did not know it.
    pub(super) fn acquire_own(&mut self, inode: &Arc<Inode>, count: u32) -> bool {
        if let Some(known) = self.find_own(inode.ino) {
            let lookups = known.lookups.load(Ordering::Relaxed);
            known
                .lookups
                .store(lookups.saturating_add(count), Ordering::Relaxed);
            return false;
        }
        if self.others.remove(&inode.ino).is_some() {
            self.weak = self.weak.saturating_sub(1);
        }
        inode.lookups.store(count, Ordering::Relaxed);
        let hasher = &self.hasher;
        self.own
            .insert_unique(hasher.hash_one(inode.ino), inode.clone(), |inode| {
                hasher.hash_one(inode.ino)
            });
        true
    }

    /// The kernel knows an inode by its own number no more.
    pub(super) fn release_own(&mut self, node: NodeId) -> Option<Arc<Inode>> {
        let hash = self.hasher.hash_one(node);
        let found = self.own.find_entry(hash, |inode| inode.ino == node);
        let (inode, _) = found.ok()?.remove();
        // Or else nobody has it but who asked.
        if Arc::strong_count(&inode) > 1 {
            self.weak += 1;
            self.others.insert(
                node,
                NodeEntry {
                    held: Held::Weak(Arc::downgrade(&inode)),
                    lookups: 0,
                },
            );
        }
        self.shrink();
        Some(inode)
    }

    /// Takes no more room than four times what is needed.
    pub(super) fn shrink(&mut self) {
        let (len, capacity) = (self.own.len(), self.own.capacity());
        if capacity > SHRINK_ABOVE && len < capacity / 4 {
            let hasher = &self.hasher;
            self.own
                .shrink_to(capacity / 2, |inode| hasher.hash_one(inode.ino));
        }
        let (len, capacity) = (self.others.len(), self.others.capacity());
        if capacity > SHRINK_ABOVE && len < capacity / 4 {
            self.others.shrink_to(capacity / 2);
        }
    }

    /// Takes out entries whose inode is gone, once there may be many.
    pub(super) fn sweep(&mut self) -> Vec<NodeEntry> {
        if self.weak < SWEEP_AT {
            return Vec::new();
        }
        let gone: Vec<NodeId> = self
            .others
            .iter()
            .filter(|(_, e)| matches!(&e.held, Held::Weak(w) if w.strong_count() == 0))
            .map(|(&node, _)| node)
            .collect();
        let entries = gone
            .into_iter()
            .filter_map(|node| self.others.remove(&node))
            .collect();
        // What is still weak is counted anew from half, so that a shard full of live weak entries is not searched at
        // every insertion.
        self.weak = SWEEP_AT / 2;
        entries
    }
}
