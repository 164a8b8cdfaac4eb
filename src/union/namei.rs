//! From a name to an inode.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::{Error, Result};
use super::inode::{DirPart, Indexed, Inode, LowerRef, State, UpperPart};
use super::links::number_of_name;
use super::listing::{Known, Listing};
use super::stack::{DirParts, Resolved};
use super::types::{Entry, Lookup, NodeId};
use super::{Union, stats};
use crate::layer::{EntryKind, Layer, Opaque, Stat, format};

/// The longest name that filesystems below take.
const NAME_MAX: usize = 255;

/// Lookups in a directory after which it is cheaper to know all of its names.
const PROBES: u32 = 3;

/// A directory with more entries is not read as a whole for a lookup.
const LOOKUP_LISTING_MAX: usize = 4096;

/// An inode found by name, with its attributes.
pub(crate) struct FoundInode {
    pub inode: Arc<Inode>,
    pub stat: Stat,
}

impl Union {
    /// See [`Union::lookup`].
    pub(crate) fn do_lookup(&self, parent: NodeId, name: &OsStr) -> Result<Lookup> {
        let parent = self.node(parent)?;
        match self.find(&parent, name)? {
            Some(found) => Ok(Lookup::Found(self.entry(&found)?)),
            None => Ok(Lookup::Absent(self.params.timeout)),
        }
    }

    /// Makes the answer that tells the kernel of an inode, and counts it.
    pub(crate) fn entry(&self, found: &FoundInode) -> Result<Entry> {
        let attr = self.attr(&found.inode, &found.stat)?;
        let node = found.inode.current_node();
        let first = {
            let _order = self.order_of(node);
            let first = self.table.acquire(node, &found.inode);
            self.note_node(node, &found.inode, first);
            first
        };
        if first
            && self.table.has_grown()
            && let Some(notify) = self.notify.get()
        {
            notify.told_many();
        }
        Ok(Entry {
            node,
            generation: 0,
            attr,
            attr_ttl: if node == found.inode.ino {
                self.attr_ttl(&found.inode, node)
            } else {
                std::time::Duration::ZERO
            },
            entry_ttl: self.params.timeout,
        })
    }

    pub(crate) fn check_name(name: &OsStr) -> Result<()> {
        if name.len() > NAME_MAX {
            return Err(Error::Errno(libc::ENAMETOOLONG));
        }
        if name.is_empty() || name.as_bytes().contains(&b'/') {
            return Err(Error::Errno(libc::EINVAL));
        }
        Ok(())
    }

    /// A name that is about to be made.
    pub(crate) fn check_new_name(name: &OsStr) -> Result<()> {
        Self::check_name(name)?;
        if format::is_reserved_name(name) {
            // It would be read back as a whiteout. The errno is fuse-overlayfs's.
            return Err(Error::Errno(libc::EINVAL));
        }
        Ok(())
    }

    pub(crate) fn dir_part(inode: &Inode) -> Result<&DirPart> {
        inode.dir.as_deref().ok_or(Error::Errno(libc::ENOTDIR))
    }

    pub(crate) fn parts(inode: &Inode) -> DirParts {
        let state = inode.state.read();
        DirParts {
            upper: state.upper.as_deref().cloned(),
            lowers: state.lowers.clone(),
        }
    }

    /// The inode of a name in a directory, with its attributes.
    pub(crate) fn find(&self, parent: &Arc<Inode>, name: &OsStr) -> Result<Option<FoundInode>> {
        let Some((inode, stat)) = self.find_by_name(parent, name)? else {
            return Ok(None);
        };
        let stat = match stat {
            Some(stat) => stat,
            None => self.stat(&inode)?,
        };
        Ok(Some(FoundInode { inode, stat }))
    }

    /// The inode of a name in a directory.
    pub(crate) fn find_inode(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
    ) -> Result<Option<Arc<Inode>>> {
        Ok(self.find_by_name(parent, name)?.map(|(inode, _)| inode))
    }

    /// The inode of a name, and its attributes where finding it has told them.
    fn find_by_name(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
    ) -> Result<Option<(Arc<Inode>, Option<Stat>)>> {
        let dir = Self::dir_part(parent)?;
        Self::check_name(name)?;
        if parent.state.read().dead {
            return Ok(None);
        }
        let found = loop {
            let begin = self.table.moves.now();
            let resolved = match self.known(parent, dir, name)? {
                Some(Known::Absent { .. }) => {
                    stats::add(&self.stats.lookup_hits, 1);
                    return Ok(None);
                }
                Some(Known::Item(item)) => {
                    if item.ino != 0
                        && let Some(inode) = self.table.find_ino(item.ino)
                        && inode.state.read().has_name(parent, name)
                    {
                        stats::add(&self.stats.lookup_hits, 1);
                        return Ok(Some((inode, None)));
                    }
                    // A copy-up may publish the name in the upper at any time, so what the listing said of a
                    // lower entry is a hint only where the upper has nothing to say.
                    let from = item.lower.map(usize::from);
                    self.stack
                        .resolve(&Self::parts(parent), name, !item.upper, from)?
                }
                None => self
                    .stack
                    .resolve(&Self::parts(parent), name, false, None)?,
            };
            stats::add(&self.stats.lookup_misses, 1);
            let Some(resolved) = resolved else {
                return Ok(None);
            };
            if let Some(found) = self.instantiate(parent, name, resolved, begin)? {
                break found;
            }
        };
        if let Some(listing) = dir.listing.lock().as_mut() {
            listing.set_ino(name, found.0.ino);
        }
        Ok(Some(found))
    }

    /// What the listing says of a name; reads the directory once it is asked often.
    fn known(&self, parent: &Arc<Inode>, dir: &DirPart, name: &OsStr) -> Result<Option<Known>> {
        if let Some(listing) = dir.listing.lock().as_ref() {
            return Ok(Some(listing.get(name)));
        }
        if dir.probes.fetch_add(1, Ordering::Relaxed) != PROBES {
            return Ok(None);
        }
        let _ops = dir.ops.lock();
        self.load_listing(parent, LOOKUP_LISTING_MAX)?;
        Ok(dir.listing.lock().as_ref().map(|l| l.get(name)))
    }

    /// Reads the merged entries unless they are known or more than `max`. Precondition: the directory's `ops` lock is held.
    pub(crate) fn load_listing(&self, inode: &Inode, max: usize) -> Result<()> {
        let dir = Self::dir_part(inode)?;
        if dir.listing.lock().is_some() {
            return Ok(());
        }
        let parts = Self::parts(inode);
        let mut listing = Listing::new();
        let mut count = 0usize;
        let mut too_many = false;
        let mut budget = |too_many: &mut bool| {
            count += 1;
            if count > max {
                *too_many = true;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        if inode.state.read().dead {
            *dir.listing.lock() = Some(listing);
            return Ok(());
        }
        if let (Some(part), Some(upper)) = (&parts.upper, &self.stack.upper) {
            let dev = upper.dev();
            // Where nothing was copied up, an entry's number is its own.
            let own = !dir.impure.load(Ordering::Relaxed);
            upper.read_dir(&part.node, part.xwhiteouts, &mut |entry| {
                let ino = match entry.kind {
                    EntryKind::Node(_) if own => {
                        self.stack.ino(dev, entry.ino, || self.table.dynamic_ino())
                    }
                    _ => 0,
                };
                listing.load_upper(entry.name, entry.kind, ino);
                budget(&mut too_many)
            })?;
        }
        let mut hidden: std::collections::HashSet<OsString> = Default::default();
        for (at, part) in parts.lowers.iter().enumerate() {
            if too_many {
                return Ok(());
            }
            let layer = self.stack.lower(part);
            let dev = layer.dev();
            let last = at + 1 == parts.lowers.len();
            let mut whiteouts = Vec::new();
            layer.read_dir(&part.node, part.xwhiteouts, &mut |entry| {
                match entry.kind {
                    EntryKind::Whiteout if last => {}
                    EntryKind::Whiteout => whiteouts.push(entry.name.to_owned()),
                    EntryKind::Node(file_type) => {
                        if !hidden.contains(entry.name) {
                            let ino = self.stack.ino(dev, entry.ino, || self.table.dynamic_ino());
                            listing.load_lower(entry.name, file_type, ino, at as u16);
                        }
                    }
                }
                budget(&mut too_many)
            })?;
            hidden.extend(whiteouts);
        }
        if !too_many {
            listing.loaded();
            self.adopt_cookies(inode, &mut listing);
            *dir.listing.lock() = Some(listing);
        }
        Ok(())
    }

    /// The inode for what the stack had under a name at the moment `begin` of the table. `None` where it may have been copied up
    /// since, and nobody knows it any more.
    fn instantiate(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
        mut resolved: Resolved,
        begin: u64,
    ) -> Result<Option<(Arc<Inode>, Option<Stat>)>> {
        let named_in_upper = resolved.upper.is_some();
        let identity = self.identify(&mut resolved)?;
        self.restore_copied(&mut resolved)?;
        let mut partial = None;
        if let Some(upper) = &resolved.upper
            && upper.marks.partial.is_some()
        {
            partial = self.attach_partial(&resolved)?;
            resolved.metacopy = false;
        }
        let Some(stat) = resolved.stat().copied() else {
            return Err(Error::Corrupt(format!("{name:?} is in no layer")));
        };
        let upper_ino = resolved.upper.as_ref().map(|u| u.stat.ino);
        let upper_node = resolved.upper.as_ref().map(|u| u.node.clone());
        let mut ino = identity.ino;
        let (computed, apart) = (identity.ino, identity.apart);
        let stray = upper_ino
            .and_then(|real| self.strays.find(real))
            .filter(|inode| self.same_file(inode, &stat, upper_ino));
        if apart {
            ino = number_of_name(parent, name);
        }
        let copied = resolved
            .upper
            .as_ref()
            .is_some_and(|upper| upper.marks.origin.is_some() || !resolved.lowers.is_empty());
        let as_before = (upper_ino.unwrap_or(0), stat.file_type(), copied);
        if let Some(stray) = &stray {
            ino = stray.ino;
        } else if let Some(before) = self.adopted_number(parent, name, as_before) {
            ino = before;
        } else if (stat.is_dir() || stat.nlink <= 1) && self.is_anothers(ino, parent, name) {
            ino = self.table.dynamic_ino();
        }
        let mut state = self.new_state(parent, name, resolved, identity.indexed);
        state.set_partial(partial);
        let mut state = Some(state);
        loop {
            let found = self.table.find_or_insert_since(begin, ino, |node| {
                Inode::new(
                    node,
                    ino,
                    stat.file_type(),
                    state.take().unwrap_or_default(),
                )
            });
            let Some((inode, new)) = found else {
                return Ok(None);
            };
            if new {
                if let Some(real) = upper_ino
                    && ino != computed
                    && !inode.is_dir()
                {
                    self.strays.put(real, &inode);
                }
                if self.took_over() {
                    // The process before may know it by other names alone.
                    self.note_name(&inode, parent, name);
                }
                // What was found may be of the moment in which blocks were filled.
                let settled = !named_in_upper || !self.has_met_partial();
                return Ok(Some((inode, settled.then_some(stat))));
            }
            let same = match apart {
                true => inode.state.read().has_name(parent, name),
                false => self.same_file(&inode, &stat, upper_ino),
            };
            if !same {
                // Two files claim one number: a stray origin, or hard links that were broken before. This one
                // gets a number of its own.
                ino = match upper_ino {
                    Some(real) if ino != self.upper_number(real) => self.upper_number(real),
                    _ => self.table.dynamic_ino(),
                };
                continue;
            }
            if !inode.state.read().has_name(parent, name) {
                let kept = parent.shared_name(name);
                inode.state.write().add_name(parent, kept);
                self.note_name(&inode, parent, name);
            }
            if let (true, Some(upper), Some(_), Some(dir), Some(part)) = (
                named_in_upper,
                &self.stack.upper,
                upper_node,
                parent.upper(),
                inode.upper(),
            ) && !inode.is_dir()
            {
                upper.add_location(&part.node, &dir.node, name);
            }
            // What was found may be older than a copy-up of this moment.
            return Ok(Some((inode, None)));
        }
    }

    /// Whether an inode in the table is the one that was found.
    fn same_file(&self, inode: &Arc<Inode>, stat: &Stat, upper_ino: Option<u64>) -> bool {
        if inode.file_type() != stat.file_type() {
            return false;
        }
        let known = |inode: &Inode| inode.upper().map(|u| u.real_ino);
        match (known(inode), upper_ino) {
            (Some(a), Some(b)) => a == b,
            // Found below while it was copied up; other names of a broken hard link stay apart.
            (Some(_), None) => inode.is_dir() || stat.nlink <= 1 || self.params.index,
            (None, None) => true,
            (None, Some(b)) => {
                // Its copy-up has published and is about to say so.
                drop(inode.copy_up.lock());
                known(inode) == Some(b)
            }
        }
    }

    fn new_state(
        &self,
        parent: &Arc<Inode>,
        name: &OsStr,
        resolved: Resolved,
        indexed: Option<Indexed>,
    ) -> State {
        let mut state = State {
            lowers: resolved.lowers,
            metacopy: resolved.metacopy && resolved.upper.is_some(),
            ..State::default()
        };
        state.set_indexed(indexed);
        if let Some(upper) = resolved.upper {
            state.set_redirect(upper.marks.redirect.map(OsString::into_boxed_os_str));
            state.has_origin = upper.marks.origin.is_some();
            state.impure = upper.marks.impure;
            state.upper = Some(Box::new(UpperPart {
                xwhiteouts: upper.marks.opaque == Opaque::XWhiteouts,
                real_ino: upper.stat.ino,
                node: upper.node,
            }));
        }
        let name = parent.shared_name(name);
        state.share_name(&name);
        state.add_name(parent, name);
        state
    }

    /// Attributes of the part that counts, as they lie on disk.
    pub(crate) fn stat(&self, inode: &Inode) -> Result<Stat> {
        let (upper, lower, metacopy) = {
            let state = inode.state.read();
            (
                state.upper.as_deref().cloned(),
                state.lowers.first().cloned(),
                state.metacopy,
            )
        };
        match (upper, lower) {
            (Some(part), _) => match inode.partial() {
                // Filling blocks changes the time of modification for a moment.
                Some(partial) => {
                    let upper = self.upper()?;
                    Ok(partial.beside_fill(|| upper.stat(&part.node))?)
                }
                None if metacopy => self.stat_settled(inode, &part),
                None => Ok(self.upper()?.stat(&part.node)?),
            },
            (None, Some(lower)) => Ok(self.stack.lower(&lower).stat(&lower.node)?),
            (None, None) => Err(Error::Corrupt(format!(
                "inode {} is in no layer",
                inode.ino
            ))),
        }
    }

    /// The layer and node that attributes and xattrs are read from.
    pub(crate) fn top(&self, inode: &Inode) -> Result<(Arc<dyn Layer>, crate::layer::Node)> {
        let (upper, lower): (Option<UpperPart>, Option<LowerRef>) = {
            let state = inode.state.read();
            (
                state.upper.as_deref().cloned(),
                state.lowers.first().cloned(),
            )
        };
        match (upper, lower) {
            (Some(part), _) => {
                let upper: Arc<dyn Layer> = self.upper()?.clone();
                Ok((upper, part.node))
            }
            (None, Some(lower)) => Ok((self.stack.lower(&lower).clone(), lower.node)),
            (None, None) => Err(Error::Corrupt(format!(
                "inode {} is in no layer",
                inode.ino
            ))),
        }
    }
}
