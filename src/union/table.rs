//! The inode table: node ids, and how often the kernel was told each.
//!
//! An entry holds its inode strongly while the kernel has lookups of it. After the last forget the entry stays weak as
//! long as someone else (a child's dentry, an open handle) holds the inode, so that a new lookup finds the same one.
//! Nearly all of them are inodes that the kernel knows by their own number; those take no more room here than a pointer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

mod shard;

use shard::{Held, NodeEntry, Shard, forgotten};

use super::error::{Error, Result};
use super::inode::Inode;
use super::links::is_of_name;
use super::lock::{Rank, Ranked};
use super::moves::Moves;
use super::numbered::{Numbered, Numbers};
use super::open::NodeOpen;
use super::types::NodeId;
use crate::sys::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, RwLock};

const SHARDS: usize = 32;

/// After so many nodes have gone, some 8 MB, memory is given back.
const GIVE_BACK_AT: usize = 1 << 14;

/// How many new nodes are reported at once.
const TOLD_EACH: usize = 2048;

/// The first of the node ids that are no inode number: given to files that need a new node at copy-up.
const RETIRED_BASE: u64 = 1 << 63;

/// The first of the inode numbers that stand for real ones which cannot be shown as they are.
const DYNAMIC_BASE: u64 = 0x7e << 56;

/// What the process before told the kernel of a node.
#[derive(Debug)]
pub(crate) struct Seed {
    pub lookups: u64,
    /// How it is open, if it is.
    pub open: Option<Arc<NodeOpen>>,
}

/// What the process before told the kernel of many nodes that have no seed of their own.
pub(crate) trait Told: std::fmt::Debug + Send + Sync {
    /// How many lookups the kernel has of a node; `None` where it does not know it.
    fn lookups(&self, node: NodeId) -> Option<u64>;
}

/// What the process before told the kernel and nobody asked for here yet.
#[derive(Debug, Default)]
struct Seeds {
    own: Numbered<Seed>,
    told: Option<Arc<dyn Told>>,
    /// Nodes that have, or had, a seed of their own.
    met: Numbers,
}

impl Seeds {
    fn told(&self, node: NodeId) -> Option<u64> {
        let told = self.told.as_ref()?;
        if self.met.contains(&node) {
            return None;
        }
        told.lookups(node)
    }

    fn has(&self, node: NodeId) -> bool {
        self.own.contains_key(&node) || self.told(node).is_some()
    }

    fn take(&mut self, node: NodeId) -> Option<Seed> {
        self.meet(node);
        self.own.remove(&node)
    }

    /// Has a node get a seed of its own, if it has any.
    fn meet(&mut self, node: NodeId) {
        if let Some(lookups) = self.told(node) {
            self.met.insert(node);
            let open = None;
            self.own.insert(node, Seed { lookups, open });
        }
    }

    fn is_empty(&self) -> bool {
        self.own.is_empty() && self.told.is_none()
    }
}

/// What is left of a node after the kernel gave lookups of it back.
#[derive(Debug)]
pub(crate) enum Forgotten {
    /// The kernel knows it still, or never did.
    Nothing,
    /// It was the last lookup of this inode by this node.
    Inode(Arc<Inode>),
    /// It was the last lookup of a node that only the process before told, and nobody asked for here.
    Seed,
}

/// Whether a node id is the inode number of what it stands for.
pub(crate) fn is_inode_number(node: NodeId) -> bool {
    node < RETIRED_BASE
}

/// Whether an inode number is none that the layers tell.
pub(crate) fn is_dynamic(ino: u64) -> bool {
    (DYNAMIC_BASE..RETIRED_BASE).contains(&ino)
}

/// The inode table. All its locks are leaves.
#[derive(Debug)]
pub(crate) struct Table {
    /// A leaf lock, taken within a shard's.
    seeds: Mutex<Seeds>,
    /// Whether there are any. Atomic.
    seeded: AtomicBool,
    shards: [Mutex<Shard>; SHARDS],
    /// Inode number to node id, for inodes whose node id is not their inode number. A leaf lock, taken within a shard's.
    renumbered: RwLock<HashMap<u64, NodeId>>,
    renumbered_len: AtomicUsize,
    next_retired: AtomicU64,
    next_dynamic: AtomicU64,
    /// Nodes that went since memory was last given back.
    gone: AtomicUsize,
    /// Nodes that the kernel was told of. Atomic.
    come: AtomicUsize,
    /// Atomics.
    pub(crate) moves: Moves,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table {
            seeds: Mutex::default(),
            seeded: AtomicBool::new(false),
            shards: std::array::from_fn(|_| Mutex::default()),
            renumbered: RwLock::default(),
            renumbered_len: AtomicUsize::new(0),
            next_retired: AtomicU64::new(RETIRED_BASE),
            next_dynamic: AtomicU64::new(DYNAMIC_BASE),
            gone: AtomicUsize::new(0),
            come: AtomicUsize::new(0),
            moves: Moves::new(),
        }
    }

    fn shard(&self, node: NodeId) -> &Mutex<Shard> {
        // Inode numbers of one directory are often consecutive: the low bits spread them.
        &self.shards[node as usize % SHARDS]
    }

    /// The inode that a node id stands for; `ESTALE` when the kernel was never told it, or gave it back.
    pub(crate) fn get(&self, node: NodeId) -> Result<Arc<Inode>> {
        self.find(node).ok_or(Error::Errno(libc::ESTALE))
    }

    fn find(&self, node: NodeId) -> Option<Arc<Inode>> {
        self.shard(node).lock().find(node)
    }

    /// The node id that an inode number has at present.
    fn node_of(&self, ino: u64) -> NodeId {
        if self.renumbered_len.load(Ordering::Acquire) == 0 {
            return ino;
        }
        self.renumbered.read().get(&ino).copied().unwrap_or(ino)
    }

    /// The live inode with this inode number.
    pub(crate) fn find_ino(&self, ino: u64) -> Option<Arc<Inode>> {
        self.find(self.node_of(ino)).filter(|i| i.ino == ino)
    }

    /// The live inode of this number, or a new one made by `make`, which is told its node id.
    pub(crate) fn find_or_insert(
        &self,
        ino: u64,
        mut make: impl FnMut(NodeId) -> Inode,
    ) -> (Arc<Inode>, bool) {
        loop {
            // Nothing is moved later than that.
            if let Some(found) = self.find_or_insert_since(u64::MAX, ino, &mut make) {
                return found;
            }
        }
    }

    /// The live inode of this number, or a new one made by `make`, which is told its node id, of what was found on disk since a
    /// moment. `None` where that may be out of date: another inode of the number may have been copied up since, and gone.
    pub(crate) fn find_or_insert_since(
        &self,
        begin: u64,
        ino: u64,
        make: impl FnOnce(NodeId) -> Inode,
    ) -> Option<(Arc<Inode>, bool)> {
        let (node, mut shard) = loop {
            let node = self.node_of(ino);
            let shard = self.shard(node).lock();
            // Its last node may have been forgotten, or a new one given to it, before the shard was locked.
            if self.node_of(ino) == node {
                break (node, shard);
            }
        };
        if let Some(inode) = shard.find(node) {
            return Some((inode, false));
        }
        if self.moves.any_since(begin, ino) {
            return None;
        }
        let mut inode = make(node);
        let seed = self.take_seed(node);
        let renumbered = seed.as_ref().and_then(|seed| self.plant(&mut inode, seed));
        let inode = Arc::new(inode);
        match seed {
            Some(seed) => shard.hold(node, &inode, seed.lookups),
            None => {
                shard.weak += 1;
                let held = Held::Weak(Arc::downgrade(&inode));
                shard.others.insert(node, NodeEntry { held, lookups: 0 });
            }
        }
        let dangling = shard.sweep();
        drop(shard);
        drop(dangling);
        if let Some(new) = renumbered {
            self.name_anew(&inode, new);
        }
        Some((inode, true))
    }

    /// Counts one more lookup of a node that was told to the kernel. True when the kernel did not know it.
    pub(crate) fn acquire(&self, node: NodeId, inode: &Arc<Inode>) -> bool {
        let mut shard = self.shard(node).lock();
        if node == inode.ino {
            return shard.acquire_own(inode, 1);
        }
        let entry = shard.others.entry(node).or_insert_with(|| NodeEntry {
            held: Held::Strong(inode.clone()),
            lookups: 0,
        });
        entry.lookups += 1;
        if matches!(entry.held, Held::Weak(_)) {
            entry.held = Held::Strong(inode.clone());
            shard.weak = shard.weak.saturating_sub(1);
            return true;
        }
        entry.lookups == 1
    }

    /// Takes over nodes, with their inode numbers, that the process before told the kernel; without a seed, those that the kernel knows
    /// no more. `told`: many more, whose inode number each is. To be called before anything is told.
    pub(crate) fn seed(
        &self,
        nodes: impl Iterator<Item = (NodeId, u64, Option<Seed>)>,
        told: Option<Arc<dyn Told>>,
    ) {
        let mut seeds = self.seeds.lock();
        seeds.told = told;
        let mut renumbered = self.renumbered.write();
        for (node, ino, seed) in nodes {
            if seeds.told.is_some() {
                seeds.met.insert(node);
            }
            let Some(seed) = seed else {
                continue;
            };
            if node >= RETIRED_BASE {
                self.next_retired.fetch_max(node + 1, Ordering::Relaxed);
                let current = renumbered.entry(ino).or_insert(node);
                *current = node.max(*current);
            }
            seeds.own.insert(node, seed);
        }
        self.renumbered_len
            .store(renumbered.len(), Ordering::Release);
        self.seeded.store(!seeds.is_empty(), Ordering::Release);
    }

    /// Has no new file get a number that stands for no real one.
    pub(crate) fn keep_number(&self, ino: u64) {
        // Those are not counted up.
        if is_of_name(ino) {
            return;
        }
        self.next_dynamic.fetch_max(ino + 1, Ordering::Relaxed);
    }

    fn take_seed(&self, node: NodeId) -> Option<Seed> {
        if !self.seeded.load(Ordering::Acquire) {
            return None;
        }
        let mut seeds = self.seeds.lock();
        let seed = seeds.take(node);
        self.seeded.store(!seeds.is_empty(), Ordering::Release);
        seed
    }

    /// Whether the kernel was told the node by the process before, and nobody asked for it here yet.
    pub(crate) fn has_seed(&self, node: NodeId) -> bool {
        self.seeds.lock().has(node)
    }

    /// The kernel gives back lookups of a node that nobody asked for here. Precondition: the lock of the node's shard is held.
    fn forget_seed_locked(&self, node: NodeId, count: u64) -> Forgotten {
        if !self.seeded.load(Ordering::Acquire) {
            return Forgotten::Nothing;
        }
        let mut seeds = self.seeds.lock();
        seeds.meet(node);
        let Some(seed) = seeds.own.get_mut(&node) else {
            return Forgotten::Nothing;
        };
        seed.lookups = seed.lookups.saturating_sub(count);
        if seed.lookups > 0 {
            return Forgotten::Nothing;
        }
        seeds.own.remove(&node);
        self.seeded.store(!seeds.is_empty(), Ordering::Release);
        Forgotten::Seed
    }

    /// Has a node that the process before told the kernel stand for an inode.
    pub(crate) fn bind(&self, node: NodeId, inode: &Arc<Inode>) {
        let mut shard = self.shard(node).lock();
        let Some(seed) = self.take_seed(node) else {
            return;
        };
        shard.hold(node, inode, seed.lookups);
    }

    /// How a new inode is known by what the process before told the kernel of it. Where the kernel goes on reading a lower file
    /// by itself, and the data is in the upper by now, the inode gets a new node id, which is returned.
    fn plant(&self, inode: &mut Inode, seed: &Seed) -> Option<NodeId> {
        let open = seed.open.as_ref()?;
        if open.is_out_of_date(inode.data_in_upper()) {
            let new = self.next_retired.fetch_add(1, Ordering::Relaxed);
            inode.current = AtomicU64::new(new);
            return Some(new);
        }
        inode.open = Ranked::new(Rank::Open, Some(open.clone()));
        None
    }

    /// The kernel gives back lookups.
    pub(crate) fn forget(&self, node: NodeId, count: u64) -> Forgotten {
        let mut shard = self.shard(node).lock();
        if let Some(own) = shard.find_own(node) {
            if forgotten(own, count) > 0 {
                return Forgotten::Nothing;
            }
            return match shard.release_own(node) {
                Some(inode) => Forgotten::Inode(inode),
                None => Forgotten::Nothing,
            };
        }
        let Some(entry) = shard.others.get_mut(&node) else {
            // Still under the lock: a lookup of this moment takes the seed with all that is counted, or finds none.
            return self.forget_seed_locked(node, count);
        };
        if entry.lookups == 0 {
            // Held by others, while the kernel knows it by what the process before told.
            return self.forget_seed_locked(node, count);
        }
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups > 0 {
            return Forgotten::Nothing;
        }
        let Held::Strong(inode) = &entry.held else {
            return Forgotten::Nothing;
        };
        let inode = inode.clone();
        // One here, one in the entry: nobody else.
        if Arc::strong_count(&inode) == 2 {
            shard.others.remove(&node);
            shard.shrink();
            // Before anybody can make an inode of this node again.
            if node != inode.ino && inode.current_node() == node {
                self.unalias(inode.ino, node);
            }
        } else {
            entry.held = Held::Weak(Arc::downgrade(&inode));
            shard.weak += 1;
        }
        Forgotten::Inode(inode)
    }

    /// Gives the inode a new node id; the old one goes on naming it until the kernel forgets it.
    pub(crate) fn renumber(&self, inode: &Arc<Inode>) -> NodeId {
        let node = self.next_retired.fetch_add(1, Ordering::Relaxed);
        self.name_anew(inode, node);
        node
    }

    fn name_anew(&self, inode: &Arc<Inode>, node: NodeId) {
        {
            let mut shard = self.shard(node).lock();
            shard.weak += 1;
            shard.others.insert(
                node,
                NodeEntry {
                    held: Held::Weak(Arc::downgrade(inode)),
                    lookups: 0,
                },
            );
        }
        let mut renumbered = self.renumbered.write();
        renumbered.insert(inode.ino, node);
        self.renumbered_len
            .store(renumbered.len(), Ordering::Release);
    }

    /// Whether so many nodes went since the last time that giving memory back is worth its cost.
    pub(crate) fn has_shrunk(&self) -> bool {
        if self.gone.fetch_add(1, Ordering::Relaxed) + 1 < GIVE_BACK_AT {
            return false;
        }
        self.gone.store(0, Ordering::Relaxed);
        true
    }

    /// To be called for each node that the kernel did not know before: whether some thousand of them have come since the last
    /// time.
    pub(crate) fn has_grown(&self) -> bool {
        self.come.fetch_add(1, Ordering::Relaxed) % TOLD_EACH == TOLD_EACH - 1
    }

    /// Of the nodes that the kernel knows by their inode number those that nobody uses here, as many as `count` says when it is
    /// told how many it knows: directories first, then files, those of one directory together, so that it can follow them.
    pub(crate) fn unused(&self, count: impl FnOnce(usize) -> usize) -> Vec<NodeId> {
        let len = |shard: &Mutex<Shard>| shard.lock().own.len();
        let count = count(self.shards.iter().map(len).sum());
        if count == 0 {
            return Vec::new();
        }
        let mut found = Vec::new();
        for shard in &self.shards {
            // Theirs are leaf locks too.
            let unused: Vec<Arc<Inode>> = {
                let shard = shard.lock();
                let unused = |inode: &&Arc<Inode>| Arc::strong_count(inode) == 1;
                shard.own.iter().filter(unused).cloned().collect()
            };
            found.extend(unused.iter().map(|inode| {
                let state = inode.state.read();
                let parent = state.dentries.first().map(|dentry| dentry.parent.ino);
                (!inode.is_dir(), parent, inode.ino)
            }));
        }
        found.sort_unstable();
        found.truncate(count);
        found.into_iter().map(|(_, _, ino)| ino).collect()
    }

    fn unalias(&self, ino: u64, node: NodeId) {
        let mut renumbered = self.renumbered.write();
        if renumbered.get(&ino) == Some(&node) {
            renumbered.remove(&ino);
            self.renumbered_len
                .store(renumbered.len(), Ordering::Release);
        }
    }

    /// A fresh inode number that no real inode has.
    pub(crate) fn dynamic_ino(&self) -> u64 {
        self.next_dynamic.fetch_add(1, Ordering::Relaxed)
    }

    /// How many nodes the kernel holds.
    pub(crate) fn len(&self) -> u64 {
        self.shards
            .iter()
            .map(|s| {
                let shard = s.lock();
                let others = shard.others.values().filter(|e| e.lookups > 0).count();
                (shard.own.len() + others) as u64
            })
            .sum()
    }

    /// Lets go of everything.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let nodes = std::mem::take(&mut *shard.lock());
            drop(nodes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inode::State;
    use super::*;

    fn inode(node: NodeId, ino: u64) -> Inode {
        Inode::new(node, ino, libc::S_IFREG, State::default())
    }

    #[test]
    fn a_node_leaves_at_its_last_forget() {
        let table = Table::new();
        let (a, new) = table.find_or_insert(7, |n| inode(n, 7));
        assert!(new);
        table.acquire(7, &a);
        table.acquire(7, &a);
        drop(a);
        assert!(matches!(table.forget(7, 1), Forgotten::Nothing));
        assert!(table.get(7).is_ok());
        assert!(matches!(table.forget(7, 1), Forgotten::Inode(_)));
        assert!(table.get(7).is_err());
    }

    #[test]
    fn an_inode_held_elsewhere_is_found_again() {
        let table = Table::new();
        let (a, _) = table.find_or_insert(7, |n| inode(n, 7));
        table.acquire(7, &a);
        table.forget(7, 1);
        let (b, new) = table.find_or_insert(7, |n| inode(n, 7));
        assert!(!new);
        assert!(Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn the_number_of_a_name_is_none_to_count_on_from() {
        let table = Table::new();
        let counted = table.dynamic_ino();
        table.keep_number(RETIRED_BASE - 1);
        assert_eq!(table.dynamic_ino(), counted + 1);
        table.keep_number(counted + 7);
        assert_eq!(table.dynamic_ino(), counted + 8);
    }

    #[test]
    fn a_renumbered_inode_is_found_by_both_nodes() {
        let table = Table::new();
        let (a, _) = table.find_or_insert(7, |n| inode(n, 7));
        table.acquire(7, &a);
        let node = table.renumber(&a);
        a.current.store(node, Ordering::Release);
        table.acquire(node, &a);
        assert!(Arc::ptr_eq(&table.get(7).unwrap(), &a));
        assert!(Arc::ptr_eq(&table.find_ino(7).unwrap(), &a));
        table.forget(7, 1);
        drop(a);
        assert_eq!(table.find_ino(7).unwrap().current_node(), node);
        table.forget(node, 1);
        assert!(table.find_ino(7).is_none());
        assert!(table.renumbered.read().is_empty());
    }
}
