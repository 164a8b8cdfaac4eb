//! Inodes: the identity of a file and where its real parts lie.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::few::Few;
use super::listing::Listing;
use super::lock::{Rank, Ranked};
use super::open::NodeOpen;
use super::partial::Partial;
use super::types::NodeId;
use crate::layer::{Node, OverlayHandle, SharedName};
use crate::sys::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, RwLock};

/// A real node in one lower layer.
#[derive(Clone, Debug)]
pub(crate) struct LowerRef {
    /// Position in the stack of lower layers, 0 topmost.
    pub layer: u16,
    /// The node there.
    pub node: Node,
    /// Directories: whiteouts in it may be xattr-marked regular files.
    pub xwhiteouts: bool,
}

/// Lower parts of an inode, topmost first. A file has one, or two where the topmost is a metacopy and the last its data.
pub(crate) type Lowers = Few<LowerRef>;

/// One name of an inode.
#[derive(Clone, Debug)]
pub(crate) struct Dentry {
    pub parent: Arc<Inode>,
    /// Shared with the parent's listing, where that has it.
    pub name: SharedName,
}

/// The upper part of an inode.
#[derive(Clone, Debug)]
pub(crate) struct UpperPart {
    pub node: Node,
    /// Inode number in the upper's filesystem.
    pub real_ino: u64,
    /// Directories: whiteouts in it may be xattr-marked regular files.
    pub xwhiteouts: bool,
}

/// How the link count of the union differs from a real one (kernel: `overlay.nlink`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NlinkBase {
    /// Relative to the upper inode's link count.
    Upper(i64),
    /// Relative to the lower inode's link count.
    Lower(i64),
}

impl NlinkBase {
    /// Reads the kernel's form, such as `U+1` or `L-2`.
    pub(crate) fn parse(text: &str) -> Option<NlinkBase> {
        let value = text.get(1..)?.parse().ok()?;
        match text.as_bytes().first()? {
            b'U' => Some(NlinkBase::Upper(value)),
            b'L' => Some(NlinkBase::Lower(value)),
            _ => None,
        }
    }
    /// The kernel's form.
    pub(crate) fn to_text(self) -> String {
        match self {
            NlinkBase::Upper(v) => format!("U{v:+}"),
            NlinkBase::Lower(v) => format!("L{v:+}"),
        }
    }
}

/// What is kept of an inode whose lower has several names, so that they stay one inode (kernel: `index=on`).
#[derive(Clone, Debug)]
pub(crate) struct Indexed {
    /// The lower's handle: the key of the index.
    pub handle: OverlayHandle,
    /// Link count of the lower inode. `None`: nobody may ask for it (who has no right to open by handle knows the number of an
    /// origin, and no more).
    pub lower_nlink: Option<u64>,
    /// Where the union's link count is counted from.
    pub nlink: NlinkBase,
}

/// What few inodes have.
#[derive(Debug, Default)]
pub(super) struct Rare {
    partial: Option<Arc<Partial>>,
    redirect: Option<Box<OsStr>>,
    indexed: Option<Indexed>,
}

/// The changing part of an inode. There is one for each file that the kernel knows: what most of them lack lies elsewhere.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The upper part, once there is one.
    pub upper: Option<Box<UpperPart>>,
    /// Set at birth; never changes.
    pub lowers: Lowers,
    /// Every name that was looked up and not removed since. Directories have at most one.
    pub dentries: Few<Dentry>,
    /// By way of the methods.
    pub(super) rare: Option<Box<Rare>>,
    /// The upper file holds attributes only; the data is the last lower's.
    pub metacopy: bool,
    /// The upper part has an origin: it was copied up.
    pub has_origin: bool,
    /// Directories: the upper part was marked impure when it was found. Set at birth; never changes.
    pub impure: bool,
    /// A removed directory: nothing can be made in it.
    pub dead: bool,
}

impl State {
    /// Only some blocks of the upper file are there; the others are the last lower's.
    pub(crate) fn partial(&self) -> Option<&Arc<Partial>> {
        self.rare.as_ref()?.partial.as_ref()
    }

    /// See [`State::partial`]; returns what was there, to be dropped without a lock.
    pub(crate) fn set_partial(&mut self, partial: Option<Arc<Partial>>) -> Option<Arc<Partial>> {
        self.set_rare(partial, |rare| &mut rare.partial)
    }

    /// The redirect recorded on the upper part of a directory or a metacopy file.
    pub(crate) fn redirect(&self) -> Option<&OsStr> {
        self.rare.as_ref()?.redirect.as_deref()
    }

    /// See [`State::redirect`].
    pub(crate) fn set_redirect(&mut self, redirect: Option<Box<OsStr>>) {
        self.set_rare(redirect, |rare| &mut rare.redirect);
    }

    /// What is kept of a file that is in the index.
    pub(crate) fn indexed(&self) -> Option<&Indexed> {
        self.rare.as_ref()?.indexed.as_ref()
    }

    /// See [`State::indexed`].
    pub(crate) fn indexed_mut(&mut self) -> Option<&mut Indexed> {
        self.rare.as_mut()?.indexed.as_mut()
    }

    /// See [`State::indexed`].
    pub(crate) fn set_indexed(&mut self, indexed: Option<Indexed>) {
        self.set_rare(indexed, |rare| &mut rare.indexed);
    }

    fn set_rare<T>(
        &mut self,
        value: Option<T>,
        field: impl FnOnce(&mut Rare) -> &mut Option<T>,
    ) -> Option<T> {
        if self.rare.is_none() && value.is_none() {
            return None;
        }
        std::mem::replace(field(self.rare.get_or_insert_default()), value)
    }

    /// Keeps a name once for the union and for the real nodes that have it too.
    pub(crate) fn share_name(&mut self, name: &SharedName) {
        if let Some(upper) = &mut self.upper {
            upper.node.share_name(name);
        }
        for lower in self.lowers.iter_mut() {
            lower.node.share_name(name);
        }
    }

    pub(crate) fn has_name(&self, parent: &Arc<Inode>, name: &OsStr) -> bool {
        self.dentries
            .iter()
            .any(|d| *d.name == *name && Arc::ptr_eq(&d.parent, parent))
    }

    /// `name`: as [`Inode::shared_name`] gives it.
    pub(crate) fn add_name(&mut self, parent: &Arc<Inode>, name: SharedName) {
        if !self.has_name(parent, &name) {
            self.dentries.push(Dentry {
                parent: parent.clone(),
                name,
            });
        }
    }

    pub(crate) fn remove_name(&mut self, parent: &Arc<Inode>, name: &OsStr) {
        self.dentries
            .retain(|d| !(*d.name == *name && Arc::ptr_eq(&d.parent, parent)));
    }
}

/// The bits of a mode below those of the type (`S_IFMT`).
const KIND_SHIFT: u32 = 12;

/// What only a directory has.
#[derive(Debug)]
pub(crate) struct DirPart {
    /// Held while entries are added, removed or moved, across the system calls that do it.
    pub ops: Ranked<()>,
    /// The merged entries, once read. A leaf lock.
    pub listing: Mutex<Option<Listing>>,
    /// Lookups that had to ask the layers, until the listing is worth its cost.
    pub probes: AtomicU32,
    /// The upper part is marked impure already.
    pub impure: AtomicBool,
    /// The default ACL as stored, once asked for: outer `None` is unknown. A leaf lock.
    pub default_acl: Mutex<Option<Option<Arc<[u8]>>>>,
}

/// One file of the union.
#[derive(Debug)]
pub(crate) struct Inode {
    /// `st_ino`: constant over copy-up and remount. Immutable.
    pub ino: u64,
    /// The node id that opens are answered on; changed under the lock of `open`.
    pub current: AtomicU64,
    /// How often the kernel was told the node id that is the inode number. Changed under the lock of the table's part.
    pub(super) lookups: AtomicU32,
    /// Type bits, without the zero bits below them. Immutable.
    kind: u8,
    /// A leaf lock.
    pub state: RwLock<State>,
    /// Held while this inode is copied up.
    pub copy_up: Ranked<()>,
    /// How the current node is open, once it was. Replaced when the node is retired.
    pub open: Ranked<Option<Arc<NodeOpen>>>,
    /// Present for directories. Immutable.
    pub dir: Option<Box<DirPart>>,
}

impl Inode {
    pub(crate) fn new(node: NodeId, ino: u64, file_type: u32, state: State) -> Inode {
        let dir = (file_type == libc::S_IFDIR).then(|| {
            Box::new(DirPart {
                ops: Ranked::new(Rank::Dir, ()),
                listing: Mutex::new(None),
                probes: AtomicU32::new(0),
                impure: AtomicBool::new(state.impure),
                default_acl: Mutex::new(None),
            })
        });
        Inode {
            ino,
            current: AtomicU64::new(node),
            lookups: AtomicU32::new(0),
            kind: (file_type >> KIND_SHIFT) as u8,
            state: RwLock::new(state),
            copy_up: Ranked::new(Rank::CopyUp, ()),
            open: Ranked::new(Rank::Open, None),
            dir,
        }
    }

    /// Type bits.
    pub(crate) fn file_type(&self) -> u32 {
        u32::from(self.kind) << KIND_SHIFT
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }

    pub(crate) fn is_file(&self) -> bool {
        self.file_type() == libc::S_IFREG
    }

    /// A name of this directory to be kept, of which the listing has one copy for all.
    pub(crate) fn shared_name(&self, name: &OsStr) -> SharedName {
        let listed = self
            .dir
            .as_ref()
            .and_then(|dir| dir.listing.lock().as_ref()?.shared_name(name));
        listed.unwrap_or_else(|| SharedName::from(name))
    }

    pub(crate) fn current_node(&self) -> NodeId {
        self.current.load(Ordering::Acquire)
    }

    /// The upper part, if any.
    pub(crate) fn upper(&self) -> Option<UpperPart> {
        self.state.read().upper.as_deref().cloned()
    }

    /// The upper part, where it is only partly there.
    pub(crate) fn partial(&self) -> Option<Arc<Partial>> {
        let partial = self.state.read().partial().cloned()?;
        if !partial.is_done() {
            return Some(partial);
        }
        let old = self.state.write().set_partial(None);
        drop(old);
        None
    }

    /// True when the data is in the upper, wholly or partly (or there is no data to copy).
    pub(crate) fn data_in_upper(&self) -> bool {
        let state = self.state.read();
        state.upper.is_some() && !state.metacopy
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        // A deep path hangs on its last inode: dropped by recursion it would overflow the stack.
        let mut above = std::mem::take(&mut self.state.get_mut().dentries).into_vec();
        while let Some(dentry) = above.pop() {
            if let Some(mut parent) = Arc::into_inner(dentry.parent) {
                above.append(&mut std::mem::take(&mut parent.state.get_mut().dentries).into_vec());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nlink_has_the_kernels_form() {
        assert_eq!(NlinkBase::parse("U+1"), Some(NlinkBase::Upper(1)));
        assert_eq!(NlinkBase::parse("L-2"), Some(NlinkBase::Lower(-2)));
        assert_eq!(NlinkBase::parse("X+2"), None);
        assert_eq!(NlinkBase::parse(""), None);
        assert_eq!(NlinkBase::Upper(0).to_text(), "U+0");
        assert_eq!(NlinkBase::Lower(-3).to_text(), "L-3");
    }
}
