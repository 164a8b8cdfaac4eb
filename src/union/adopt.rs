//! Taking over what the process before told the kernel.
//!
//! At the take-over only the journal is read, and of that not the table that it may begin with. A node becomes an inode when it is first asked for, by its names or, where
//! it has none any more, by what was left open of it; an open file is opened when it is first used.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::Union;
use super::book::{Book, BookFile};
use super::checkpoint::Base;
use super::error::{Error, Result};
use super::file::Handle;
use super::inode::{Inode, LowerRef, Lowers, State, UpperPart};
use super::journal::{self, Journal};
use super::listing::Listing;
use super::open::NodeOpen;
use super::record::{Grave, LowerPlace, OpenFile};
use super::stack::{Resolved, ResolvedUpper};
use super::table::{Seed, Told, is_dynamic};
use super::types::{Backing, HandleId, NodeId, ROOT};
use crate::layer::{Access, Layer, LayerLookup, Node, Opaque};
use crate::sys::shared_log::Pinned;
use crate::sys::sync::Mutex;
use crate::sys::worker;

/// Inode numbers, by the directory's number and the name there.
type NumbersByName = HashMap<(u64, OsString), SmallVec<[u64; 1]>>;

/// What the process before left.
#[derive(Debug)]
pub(super) struct Adopted {
    /// A leaf lock.
    book: Mutex<Book<Pinned>>,
    /// Which inodes a name stood for, by the directory's number; of those whose number nothing on disk tells. The name of
    /// one may be out of date. A leaf lock.
    pub(super) numbers: Mutex<NumbersByName>,
    /// How nodes are open. Immutable.
    opens: HashMap<NodeId, Arc<NodeOpen>>,
    /// Held while a node becomes an inode, before all other locks.
    recovering: Mutex<()>,
}

impl Told for Base<Pinned> {
    fn lookups(&self, node: NodeId) -> Option<u64> {
        Some(self.node(node)?.lookups.unsigned_abs())
    }
}

/// Whether a name, or what it leads to, is out of date.
fn is_gone(error: &Error) -> bool {
    matches!(error.errno(), libc::ENOENT | libc::ENOTDIR | libc::ESTALE)
}

impl Union {
    /// Where changes are written down from now on; called once, before the first request.
    pub fn set_journal(&self, journal: Arc<Journal>) {
        if self.journal.set(journal).is_err() {
            log::error!("the journal was set twice");
        }
    }

    /// Writes down what the kernel knows without having been told: to be called by the first process.
    pub fn note_root(&self) {
        self.note_node(ROOT, &self.root, true);
    }

    /// Takes over what the journal tells; called once, before the first request. `wrap` makes a backing file of the number that it
    /// is registered with. Returns the numbers that nothing needs any more, which are to be closed.
    pub fn adopt(&self, journal: &Arc<Journal>, wrap: &dyn Fn(u32) -> Backing) -> Result<Vec<u32>> {
        let mut book = journal.take_book();
        // What was a root before is there already.
        book.forget_node(ROOT);
        for (_, file) in book.changed_files() {
            if let Some(grave) = &mut file.grave
                && let Some((fd, real)) = grave.upper
                && !worker::inode_of(fd).is_ok_and(|found| found == real)
            {
                // It is closed, or somebody else's.
                grave.upper = None;
            }
        }
        let mut opens: HashMap<NodeId, Arc<NodeOpen>> = HashMap::new();
        let mut in_use = HashSet::new();
        let mut backings: HashMap<NodeId, Backing> = HashMap::new();
        for open in book.opens.values() {
            if open.passthrough && in_use.insert(open.backing) {
                backings.insert(open.node, wrap(open.backing));
            }
            let node = opens
                .entry(open.node)
                .or_insert_with(|| Arc::new(NodeOpen::adopted(open.node)));
            node.count_adopted(open, backings.get(&open.node));
        }
        let mut numbers = NumbersByName::new();
        for (ino, file) in book.changed_files().filter(|(ino, _)| is_dynamic(*ino)) {
            self.table.keep_number(ino);
            for name in &file.names {
                numbers.entry(name.clone()).or_default().push(ino);
            }
        }
        let seed = |node: NodeId| {
            let entry = book.node(node)?;
            let open = opens.get(&node).cloned();
            let lookups = entry.lookups.unsigned_abs();
            Some((entry.ino, Seed { lookups, open }))
        };
        // A seed of its own has also what is open.
        let changed = book.changed_nodes().map(|(node, _)| node);
        let seeds = changed.chain(opens.keys().copied()).map(|node| {
            let (ino, seed) = seed(node).unzip();
            (node, ino.unwrap_or(0), seed)
        });
        let base = book.base();
        let told = (base.table().len() > 0).then(|| Arc::new(base.clone()) as Arc<dyn Told>);
        self.table.seed(seeds, told);
        self.handles.go_on_after(book.last_handle);
        let unused = book.backings.difference(&in_use).copied().collect();
        let adopted = Adopted {
            book: Mutex::new(book),
            numbers: Mutex::new(numbers),
            opens,
            recovering: Mutex::new(()),
        };
        if self.adopted.set(adopted).is_err() {
            return Err(Error::Corrupt("a mount was taken over twice".into()));
        }
        Ok(unused)
    }

    /// Reads anew what is kept of the root, which the process before may have changed; called before the first request.
    pub fn renew(&self) -> Result<()> {
        let (Some(part), Some(upper)) = (self.root.upper(), &self.stack.upper) else {
            return Ok(());
        };
        let stat = upper.stat(&part.node)?;
        let marks = upper.marks(&part.node, &stat)?;
        if let Some(dir) = &self.root.dir {
            dir.impure.store(marks.impure, Ordering::Relaxed);
        }
        if let Some(part) = &mut self.root.state.write().upper {
            part.xwhiteouts = marks.opaque == Opaque::XWhiteouts;
        }
        Ok(())
    }

    /// Whether this process took the mount over from another.
    pub(super) fn took_over(&self) -> bool {
        self.adopted.get().is_some()
    }

    /// What a request was about to do that is sent again; `None` when it had not been begun.
    pub fn intent(&self, unique: u64) -> Option<u64> {
        let unique = journal::first_number(unique);
        self.adopted
            .get()?
            .book
            .lock()
            .intents
            .get(&unique)
            .copied()
    }

    /// Says that a request is begun that must not be done twice. `subject` is what [`Union::intent`] then tells.
    pub fn begin(&self, unique: u64, subject: u64) {
        if let Some(journal) = self.journal.get() {
            journal.begin(unique, subject);
        }
    }

    /// Says that what has the one name may have the other as well from now on.
    pub fn announce_name(&self, from: (NodeId, &OsStr), to: (NodeId, &OsStr)) {
        let found = self
            .node(from.0)
            .and_then(|parent| self.find_inode(&parent, from.1));
        if let (Ok(Some(inode)), Ok(parent)) = (found, self.node(to.0)) {
            self.note_name(&inode, &parent, to.1);
        }
    }

    /// The inode number of what has a name, 0 where nothing has.
    pub fn number_at(&self, parent: NodeId, name: &OsStr) -> Result<u64> {
        let parent = self.node(parent)?;
        match self.find_inode(&parent, name) {
            Ok(found) => Ok(found.map_or(0, |inode| inode.ino)),
            Err(e) if e.errno() == libc::ENOENT => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Where changes are written down, if they are.
    pub fn journal(&self) -> Option<&Arc<Journal>> {
        self.journal.get()
    }

    /// The inode that a node id stands for.
    pub(crate) fn node(&self, node: NodeId) -> Result<Arc<Inode>> {
        match (self.table.get(node), self.adopted.get()) {
            (Err(_), Some(adopted)) => self.recover(adopted, node),
            (found, _) => found,
        }
    }

    fn recover(&self, adopted: &Adopted, node: NodeId) -> Result<Arc<Inode>> {
        let _recovering = adopted.recovering.lock();
        self.recover_locked(adopted, node)
    }

    /// Precondition: `recovering` is held.
    fn recover_locked(&self, adopted: &Adopted, node: NodeId) -> Result<Arc<Inode>> {
        if let Ok(inode) = self.table.get(node) {
            return Ok(inode);
        }
        let ino = match adopted.book.lock().node(node) {
            Some(entry) if self.table.has_seed(node) => entry.ino,
            _ => return Err(Error::Errno(libc::ESTALE)),
        };
        let inode = self.recover_inode(adopted, ino)?;
        self.table.bind(node, &inode);
        self.table.get(node)
    }

    fn live(&self, ino: u64) -> Option<Arc<Inode>> {
        if ino == self.root.ino {
            return Some(self.root.clone());
        }
        self.table.find_ino(ino)
    }

    /// Precondition: `recovering` is held.
    fn recover_inode(&self, adopted: &Adopted, ino: u64) -> Result<Arc<Inode>> {
        let mut pending = vec![ino];
        let mut tried = HashSet::new();
        // Directories that the kernel knows no more live only by what is below them.
        let mut held = Vec::new();
        while let Some(&at) = pending.last() {
            let file = match self.live(at) {
                Some(inode) => {
                    held.push(inode);
                    None
                }
                None => adopted.book.lock().file(at),
            };
            let Some(file) = file else {
                pending.pop();
                continue;
            };
            if tried.insert(at) {
                // The directories of all names: each name may be out of date, and so may be what leads to its directory.
                let above = file.names.iter().map(|(parent, _)| *parent);
                pending.extend(above.filter(|above| !tried.contains(above)));
                continue;
            }
            pending.pop();
            match self.recover_one(adopted, at, &file) {
                Ok(inode) => held.push(inode),
                Err(e) if is_gone(&e) => {}
                Err(e) => return Err(e),
            }
        }
        self.live(ino).ok_or(Error::Errno(libc::ESTALE))
    }

    /// Precondition: `recovering` is held.
    fn recover_one(&self, adopted: &Adopted, ino: u64, file: &BookFile) -> Result<Arc<Inode>> {
        let mut found = None;
        // All of them: what they show is what the union then knows of the inode.
        for (parent, name) in &file.names {
            let Some(parent) = self.live(*parent) else {
                continue;
            };
            match self.find_inode(&parent, name) {
                Ok(Some(inode)) if inode.ino == ino => found = Some(inode),
                Ok(_) => {}
                Err(e) if is_gone(&e) => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(inode) = found {
            return Ok(inode);
        }
        // Once: the descriptor goes over to the inode.
        let grave = adopted
            .book
            .lock()
            .file_mut(ino)
            .and_then(|file| file.grave.take());
        match &grave {
            Some(grave) => self.exhume(ino, file.file_type, grave),
            None => {
                log::warn!("inode {ino} is at none of its names {:?}", file.names);
                Err(Error::Errno(libc::ESTALE))
            }
        }
    }

    /// Looks for the names of a file that the process before knew of and nobody asked for here: before one goes, whether it is
    /// the last must be known. To be called without any lock.
    pub(super) fn complete_names(&self, inode: &Inode) -> Result<()> {
        let Some(adopted) = self.adopted.get() else {
            return Ok(());
        };
        if inode.is_dir() {
            return Ok(());
        }
        let _recovering = adopted.recovering.lock();
        let known = match adopted.book.lock().file(inode.ino) {
            Some(file) if file.names.len() > 1 => file.names,
            _ => return Ok(()),
        };
        for (parent, name) in &known {
            let found = self
                .recover_inode(adopted, *parent)
                .and_then(|parent| self.find_inode(&parent, name));
            match found {
                Ok(_) => {}
                Err(e) if is_gone(&e) => {}
                Err(e) => return Err(e),
            }
        }
        // Once: whatever name it gets or loses from now on is known.
        if let Some(file) = adopted.book.lock().file_mut(inode.ino) {
            file.names.clear();
        }
        Ok(())
    }

    /// An inode without a name.
    fn exhume(&self, ino: u64, file_type: u32, grave: &Grave) -> Result<Arc<Inode>> {
        let mut lowers = Lowers::new();
        for (layer, place) in &grave.lowers {
            if let Some(lower) = self.lower_at(*layer, place)? {
                lowers.push(lower);
            }
        }
        let mut state = State {
            dead: grave.dead,
            metacopy: grave.metacopy,
            ..State::default()
        };
        if let (Some((fd, real)), Some(upper)) = (grave.upper, &self.stack.upper) {
            let node = upper.adopt_pinned(worker::adopt(fd), real)?;
            let stat = upper.stat(&node)?;
            let marks = upper.marks(&node, &stat)?;
            let mut resolved = Resolved {
                metacopy: marks.metacopy,
                upper: Some(ResolvedUpper {
                    node: node.clone(),
                    stat,
                    marks,
                }),
                lowers: lowers.clone(),
                lower_stat: None,
            };
            self.restore_copied(&mut resolved)?;
            let partial = self.attach_partial(&resolved)?;
            state.metacopy = resolved.metacopy && partial.is_none();
            state.set_partial(partial);
            state.upper = Some(Box::new(UpperPart {
                real_ino: real,
                xwhiteouts: resolved
                    .upper
                    .is_some_and(|u| u.marks.opaque == Opaque::XWhiteouts),
                node,
            }));
        }
        state.lowers = lowers;
        if state.upper.is_none() && state.lowers.is_empty() {
            return Err(Error::Errno(libc::ESTALE));
        }
        let mut state = Some(state);
        let (inode, _) = self.table.find_or_insert(ino, |node| {
            Inode::new(node, ino, file_type, state.take().unwrap_or_default())
        });
        Ok(inode)
    }

    fn lower_at(&self, layer: u16, place: &LowerPlace) -> Result<Option<LowerRef>> {
        let Some(of) = self.stack.lowers.get(usize::from(layer)) else {
            return Ok(None);
        };
        let node = match place {
            LowerPlace::Index(index) => Node::Index(*index),
            LowerPlace::Path(path) => {
                let mut node = of.root();
                for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
                    match of.lookup(&node, OsStr::from_bytes(part), false)? {
                        LayerLookup::Found(found) => node = found.node,
                        _ => return Ok(None),
                    }
                }
                node
            }
        };
        Ok(Some(LowerRef {
            layer,
            node,
            xwhiteouts: false,
        }))
    }

    /// The number that the file at a name had, where nothing on disk tells it. `real`: inode number of its upper part, 0
    /// without one; `copied`: that is a copy of a lower one.
    pub(super) fn adopted_number(
        &self,
        parent: &Inode,
        name: &OsStr,
        (real, file_type, copied): (u64, u32, bool),
    ) -> Option<u64> {
        let adopted = self.adopted.get()?;
        let numbers = adopted.numbers.lock();
        if numbers.is_empty() {
            return None;
        }
        let known = numbers.get(&(parent.ino, name.to_owned()))?.clone();
        drop(numbers);
        let book = adopted.book.lock();
        known.into_iter().find(|ino| {
            book.file(*ino).is_some_and(|file| {
                file.file_type == file_type && (file.real == real || copied && file.real == 0)
            })
        })
    }

    /// Whether the kernel knows the number as that of a file that never had this name: one that was removed, whose real
    /// number another file has by now.
    pub(super) fn is_anothers(&self, ino: u64, parent: &Inode, name: &OsStr) -> bool {
        let Some(adopted) = self.adopted.get() else {
            return false;
        };
        self.table.has_seed(ino)
            && adopted.book.lock().file(ino).is_some_and(|file| {
                !(file.names.iter()).any(|(dir, known)| *dir == parent.ino && *known == *name)
            })
    }

    /// The open file that a handle stands for.
    pub(super) fn handle(&self, id: HandleId) -> Result<Arc<Handle>> {
        match (self.handles.get(id), self.adopted.get()) {
            (Err(_), Some(adopted)) => self.recover_handle(adopted, id),
            (found, _) => found,
        }
    }

    fn recover_handle(&self, adopted: &Adopted, id: HandleId) -> Result<Arc<Handle>> {
        let _recovering = adopted.recovering.lock();
        if let Ok(handle) = self.handles.get(id) {
            return Ok(handle);
        }
        let open = adopted.book.lock().opens.get(&id).copied();
        let (Some(open), Some(node)) = (open, open.and_then(|o| adopted.opens.get(&o.node))) else {
            return Err(Error::Errno(libc::EBADF));
        };
        let inode = self.recover_locked(adopted, open.node)?;
        let upper = inode.data_in_upper();
        let write = open.flags & libc::O_ACCMODE != libc::O_RDONLY || self.params.writeback;
        let access = if write && upper && !self.params.read_only {
            Access::Write
        } else {
            Access::Read
        };
        let real = Arc::new(self.open_real(&inode, access)?);
        let handle = Handle::new(
            inode,
            node.clone(),
            real,
            upper,
            open.flags,
            open.passthrough,
            open.mapper,
        );
        self.handles.insert_at(id, handle);
        adopted.book.lock().opens.remove(&id);
        self.handles.get(id)
    }

    /// A handle that was never used here is closed: the node that it was opened on, if its attributes have settled by that.
    pub(super) fn release_adopted(&self, id: HandleId) -> Option<NodeId> {
        let adopted = self.adopted.get()?;
        let open = adopted.book.lock().opens.remove(&id)?;
        let node = adopted.opens.get(&open.node)?;
        node.release(open.passthrough, open.mapper, None)
            .then_some(open.node)
    }

    /// Whether a file is open for writing by a handle that was not used here yet.
    pub(super) fn adopted_writer(&self, inode: &Inode) -> bool {
        let Some(adopted) = self.adopted.get() else {
            return false;
        };
        let book = adopted.book.lock();
        let writes = |open: &OpenFile| open.flags & libc::O_ACCMODE != libc::O_RDONLY;
        book.opens
            .values()
            .filter(|open| writes(open))
            .any(|open| book.node(open.node).is_some_and(|n| n.ino == inode.ino))
    }

    /// The kernel knows a node no more that was never asked for here.
    pub(super) fn forget_adopted(&self, node: NodeId) {
        let Some(adopted) = self.adopted.get() else {
            return;
        };
        let mut book = adopted.book.lock();
        let Some(ino) = book.node(node).map(|entry| entry.ino) else {
            return;
        };
        let grave = book.file(ino).and_then(|file| file.grave);
        book.forget(node);
        let gone = !book.has_twin(ino);
        drop(book);
        if let (true, Some((fd, _)), None) = (
            gone,
            grave.and_then(|grave| grave.upper),
            self.table.find_ino(ino),
        ) {
            drop(worker::adopt(fd));
        }
    }

    /// Forgets what the process before made for a request that it did not answer: the kernel was told nothing of it.
    pub fn disown(&self, ino: u64) {
        let handles: Vec<HandleId> = self.adopted.get().map_or_else(Vec::new, |adopted| {
            let book = adopted.book.lock();
            let opens = book.opens.iter().filter(|(_, open)| open.node == ino);
            opens.map(|(&handle, _)| handle).collect()
        });
        for handle in handles {
            self.do_release(handle);
        }
        self.do_forget(ino, u64::MAX);
    }

    /// Has a listing that was loaded now go on with the cookies that the process before gave.
    pub(super) fn adopt_cookies(&self, inode: &Inode, listing: &mut Listing) {
        let Some(adopted) = self.adopted.get() else {
            return;
        };
        // Once: what is loaded again after that was forgotten in between.
        let cookies = adopted.book.lock().listings.remove(&inode.ino);
        if let Some(cookies) = cookies {
            listing.take_cookies(&cookies);
        }
    }
}
