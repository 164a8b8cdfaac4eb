//! A layer whose metadata are read from an index instead of its tree.
//!
//! The tree stays what it is: a plain directory that every tool reads, and whose files are opened for their data. What
//! there is to know of it without opening a file lies beside it in one file, which is mapped into memory and shared by
//! all mounts of the layer: lookup, attributes, listings, link targets and xattrs cost no system call.
//!
//! # The file
//!
//! All numbers are little-endian.
//!
//! ```text
//! header     128 bytes   "acetpack", version, checksum, counts, and which tree it tells of (`Identity`)
//! checksums  4 each      the CRC-32 of each 4096 bytes of what follows
//! inodes     128 each    attributes, parent, names, link target or marks, xattrs; 0 is the root, parents before children
//! dentries   12 each     name and inode, or a whiteout; those of one directory in a row, sorted by their bytes
//! names                  the bytes of the names
//! blobs                  link targets, redirects, xattrs (name's length, name, value's length, value)
//! ```
//!
//! The checksum of the header covers the other checksums and is compared when the index is opened, those of the blocks
//! when a block is first used, so that opening costs the same whatever the size, and what the disk has forgotten becomes
//! an error instead of wrong owners or modes. Checksums are against accidents: nothing read is trusted because of them.
//!
//! # Whose index it is
//!
//! An inode is the same in both forms, as the index has the inode numbers of the tree: `st_ino`, hard links and origins
//! (file handles of copied-up files) do not depend on the form. So an index tells of one tree only: it records the inode
//! number and the last change of the root directory, which no copy of the tree shares. It also records how the tree was
//! seen: the maps of user and group ids, and whether `trusted.` xattrs were visible. Where any of that is different the
//! layer is read as a plain one. A file that is not the one that the index describes when it is opened gives `EIO`.

mod build;
mod index;
mod record;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use nix::sys::statvfs::Statvfs;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::dir::DirLayer;
use super::format::OverrideXattr;
use super::node::PathNode;
use super::tree::to_stat;
use super::upper::Namespace;
use super::{
    Access, EntryKind, Found, Layer, LayerEntry, LayerLookup, Marks, Node, OverlayHandle, RealFile,
    Stat,
};
use crate::sys::caps;
use crate::sys::mount::in_initial_user_namespace;

pub use build::{PackError, Packed};
pub use index::{Index, seal};

use index::damaged;
use record::{Identity, InodeRecord, WHITEOUT};

/// Directories whose way is remembered, for files in them that are opened.
const KNOWN_DIRS: usize = 1024;

/// The POSIX ACLs; the first is one that files of every kind may have.
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// There is none.
    #[error("it is missing")]
    Missing,
    /// It was written by another version of the program.
    #[error("it has version {0}, which is not known here")]
    Version(u32),
    /// It contradicts itself.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It tells of another tree, or of this one before it was changed or copied.
    #[error("it was made of another tree")]
    OtherTree,
    /// It tells of the tree as a process with other ids, rights or options sees it.
    #[error("it was made by a process that sees the layer otherwise")]
    OtherView,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[source] io::Error),
}

impl IndexError {
    /// An index that is made anew would be one that can be used.
    pub fn can_be_mended(&self) -> bool {
        match self {
            IndexError::Missing
            | IndexError::Version(_)
            | IndexError::Damaged(_)
            | IndexError::OtherTree => true,
            // It is right for others, who would make theirs again.
            IndexError::OtherView | IndexError::Io(_) => false,
        }
    }
}

/// A read-only layer with an index.
#[derive(Debug)]
pub struct PackedLayer {
    /// Immutable: the tree.
    plain: DirLayer,
    /// Immutable.
    index: Index,
    /// The way to directories, by their number. A leaf lock.
    dirs: Mutex<HashMap<u32, Arc<PathNode>>>,
}

/// Which tree a layer is, and how this process sees it.
fn identity_of(layer: &DirLayer) -> io::Result<Identity> {
    let root = to_stat(&rustix::fs::fstat(layer.root_fd())?);
    let tree = layer.tree();
    let has_xattrs = match crate::sys::xattr::list(crate::sys::xattr::Target::Fd(layer.root_fd())) {
        Ok(_) => Identity::XATTRS,
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => 0,
        Err(e) => return Err(e),
    };
    let kept = tree.override_xattr().and_then(|kept| {
        let number = OverrideXattr::ALL.iter().position(|x| *x == kept)?;
        u32::try_from(number + 1).ok()
    });
    // Any answer but that there are none.
    let acl = tree.get_xattr(layer.root_node(), OsStr::new(ACLS[0]));
    let has_acls = match acl {
        Ok(_) => Identity::ACLS,
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => 0,
        Err(e) => return Err(e),
    };
    let option = |set: bool, bit: u32| if set { bit } else { 0 };
    let mut view = Sha256::new();
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        view.update(std::fs::read(map)?);
    }
    view.update([u8::from(
        caps::has_sys_admin()? && in_initial_user_namespace(),
    )]);
    Ok(Identity {
        ino: root.ino,
        ctime: root.ctime,
        owner: (root.uid, root.gid),
        options: option(tree.looks_for_metacopies(), Identity::METACOPY)
            | option(tree.has_dot_whiteouts(), Identity::DOT_WHITEOUTS)
            | option(tree.is_privileged(), Identity::PRIVILEGED)
            | has_xattrs
            | has_acls
            | kept.unwrap_or(0) << Identity::OVERRIDE_SHIFT,
        view: view.finalize().into(),
    })
}

/// Whether an index tells of this layer.
pub fn check_identity(layer: &DirLayer, index: &Index) -> Result<(), IndexError> {
    let (now, then) = (
        identity_of(layer).map_err(IndexError::Io)?,
        index.identity(),
    );
    if (now.ino, now.ctime) != (then.ino, then.ctime) {
        return Err(IndexError::OtherTree);
    }
    if now != *then || layer.tree().maps_owners() {
        return Err(IndexError::OtherView);
    }
    Ok(())
}

impl PackedLayer {
    /// Puts an index before a layer; gives the layer back where the index is of no use for it.
    pub fn new(plain: DirLayer, index: Index) -> Result<PackedLayer, (Box<DirLayer>, IndexError)> {
        if let Err(e) = check_identity(&plain, &index) {
            return Err((Box::new(plain), e));
        }
        Ok(PackedLayer {
            plain,
            index,
            dirs: Mutex::default(),
        })
    }

    fn inode(&self, number: u32) -> io::Result<InodeRecord> {
        self.index.inode(number, self.plain.dev())
    }

    fn record(&self, node: &Node) -> io::Result<InodeRecord> {
        self.inode(number(node)?)
    }

    fn dir_record(&self, number: u32) -> io::Result<InodeRecord> {
        let record = self.inode(number)?;
        if !record.stat.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        Ok(record)
    }

    /// The way to a node in the tree.
    fn path(&self, number: u32) -> io::Result<Arc<PathNode>> {
        // The directories from the node's up to the nearest that is known.
        let mut above: Vec<(u32, InodeRecord)> = Vec::new();
        let mut at = number;
        let mut node = loop {
            if at == 0 {
                break self.plain.root_node().clone();
            }
            if let Some(known) = self.dirs.lock().get(&at) {
                break known.clone();
            }
            let record = self.inode(at)?;
            // Parents come before what is in them; anything else could go round for ever.
            if record.parent >= at {
                return Err(damaged("a parent that is none"));
            }
            above.push((at, record));
            at = record.parent;
        };
        while let Some((number, record)) = above.pop() {
            let dentry = self.index.dentry(record.dentry)?;
            let name = self.index.name(&dentry)?;
            node = PathNode::child(&node, name, record.stat.ino);
            if record.stat.is_dir() {
                self.remember(number, &node);
            }
        }
        Ok(node)
    }

    fn remember(&self, number: u32, node: &Arc<PathNode>) {
        // What is thrown out is dropped after the lock.
        let _old = {
            let mut dirs = self.dirs.lock();
            let old = (dirs.len() >= KNOWN_DIRS).then(|| std::mem::take(&mut *dirs));
            dirs.insert(number, node.clone());
            old
        };
    }

    fn plain_node(&self, node: &Node) -> io::Result<Node> {
        Ok(Node::Path(self.path(number(node)?)?))
    }

    /// The error for a node that is not what the index says.
    fn changed(&self, node: &Node, why: &str) -> io::Error {
        let path = number(node).and_then(|number| self.shown(number));
        log::error!(
            "{}: {}: {why}: the layer was changed since its index was made; mount it with layer_index=off, or have the \
             image verified",
            self.plain.describe(),
            path.unwrap_or_default().display(),
        );
        io::Error::from_raw_os_error(libc::EIO)
    }

    /// The path of a node, for messages.
    fn shown(&self, mut number: u32) -> io::Result<std::path::PathBuf> {
        let mut names = Vec::new();
        while number != 0 {
            let record = self.inode(number)?;
            if record.parent >= number {
                return Err(damaged("a parent that is none"));
            }
            let dentry = self.index.dentry(record.dentry)?;
            names.push(self.index.name(&dentry)?.to_owned());
            number = record.parent;
        }
        Ok(names.iter().rev().collect())
    }
}

fn number(node: &Node) -> io::Result<u32> {
    match node {
        Node::Index(number) => {
            u32::try_from(*number).map_err(|_| io::Error::from_raw_os_error(libc::EXDEV))
        }
        Node::Path(_) | Node::Child(_) => Err(io::Error::from_raw_os_error(libc::EXDEV)),
    }
}

/// Whether an xattr that is not in the index is absent. Of other kinds only the filesystem knows whether it has them, and
/// of a prefix alone, what is wrong with it.
fn is_listed(name: &OsStr, stat: &Stat, options: u32) -> bool {
    if ACLS.iter().any(|acl| name == OsStr::new(acl)) {
        return options & Identity::ACLS != 0 && stat.file_type() != libc::S_IFLNK;
    }
    options & Identity::XATTRS != 0
        && ["user.", "trusted.", "security."]
            .into_iter()
            .any(|prefix| {
                let rest = name.as_bytes().strip_prefix(prefix.as_bytes());
                rest.is_some_and(|rest| !rest.is_empty())
            })
}

impl Layer for PackedLayer {
    fn root(&self) -> Node {
        Node::Index(0)
    }

    fn lookup(&self, dir: &Node, name: &OsStr, _xwhiteouts: bool) -> io::Result<LayerLookup> {
        if matches!(name.as_bytes(), b"" | b"." | b"..") || name.as_bytes().contains(&b'/') {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let dir_number = number(dir)?;
        let dir = self.dir_record(dir_number)?;
        let Some((at, dentry)) = self.index.find(&dir, name)? else {
            return Ok(LayerLookup::Missing);
        };
        if dentry.inode == WHITEOUT {
            return Ok(LayerLookup::Whiteout);
        }
        Ok(LayerLookup::Found(Found {
            node: Node::Index(u64::from(dentry.inode)),
            stat: self
                .index
                .child(dir_number, at, &dentry, self.plain.dev())?
                .stat,
            beside_whiteout: dentry.beside_whiteout,
        }))
    }

    fn stat(&self, node: &Node) -> io::Result<Stat> {
        Ok(self.record(node)?.stat)
    }

    fn marks(&self, node: &Node, _stat: &Stat) -> io::Result<Marks> {
        let record = self.record(node)?;
        let data = if record.flags.has_data() {
            self.index.blob(record.data)?
        } else {
            &[]
        };
        let marks = record.flags.marks(data);
        marks.ok_or_else(|| damaged("marks that are cut off"))
    }

    fn read_dir(
        &self,
        dir: &Node,
        _xwhiteouts: bool,
        sink: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let dir_number = number(dir)?;
        let dir = self.dir_record(dir_number)?;
        for at in self.index.names_of(&dir)? {
            let dentry = self.index.dentry(at)?;
            let (ino, kind) = if dentry.inode == WHITEOUT {
                (0, EntryKind::Whiteout)
            } else {
                let child = self
                    .index
                    .child(dir_number, at, &dentry, self.plain.dev())?;
                (child.stat.ino, EntryKind::Node(child.stat.file_type()))
            };
            let entry = LayerEntry {
                name: self.index.name(&dentry)?,
                ino,
                kind,
            };
            if sink(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, node: &Node) -> io::Result<OsString> {
        let record = self.record(node)?;
        if record.stat.file_type() != libc::S_IFLNK {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(OsString::from_vec(self.index.blob(record.data)?.to_vec()))
    }

    fn list_xattr(&self, node: &Node) -> io::Result<Vec<OsString>> {
        let record = self.record(node)?;
        record::xattrs(self.index.blob(record.xattrs)?)
            .filter_map(|xattr| match xattr {
                Some((name, _)) => {
                    let name = OsStr::from_bytes(name).to_owned();
                    self.plain.name_told(name).map(Ok)
                }
                None => Some(Err(damaged("xattrs that are cut off"))),
            })
            .collect()
    }

    fn get_xattr(&self, node: &Node, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        let record = self.record(node)?;
        let Some(stored) = self.plain.name_found(name) else {
            return Ok(None);
        };
        for xattr in record::xattrs(self.index.blob(record.xattrs)?) {
            match xattr {
                Some((found, value)) if found == stored.as_bytes() => {
                    return Ok(Some(value.to_vec()));
                }
                Some(_) => {}
                None => return Err(damaged("xattrs that are cut off")),
            }
        }
        if is_listed(&stored, &record.stat, self.index.identity().options) {
            return Ok(None);
        }
        self.plain.get_xattr(&self.plain_node(node)?, name)
    }

    fn is_mark(&self, namespace: Namespace, name: &OsStr) -> bool {
        self.plain.is_mark(namespace, name)
    }

    fn open(&self, node: &Node, access: Access) -> io::Result<RealFile> {
        let record = self.record(node)?;
        let file = match self.plain.open(&self.plain_node(node)?, access) {
            Ok(file) => file,
            Err(e) => {
                return Err(match e.raw_os_error() {
                    Some(libc::ESTALE | libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => {
                        self.changed(node, "another file, or none, stands there")
                    }
                    _ => e,
                });
            }
        };
        if let Some(fd) = file.as_fd() {
            let now = to_stat(&rustix::fs::fstat(fd)?);
            if (now.size, now.mtime) != (record.stat.size, record.stat.mtime) {
                return Err(self.changed(node, "it has another size or time"));
            }
        }
        Ok(file)
    }

    fn handle(&self, node: &Node) -> io::Result<Option<OverlayHandle>> {
        self.plain.handle(&self.plain_node(node)?)
    }

    fn stat_by_handle(&self, handle: &OverlayHandle) -> io::Result<Option<Stat>> {
        self.plain.stat_by_handle(handle)
    }

    fn ino_of_handle(&self, handle: &OverlayHandle) -> Option<u64> {
        self.plain.ino_of_handle(handle)
    }

    fn is_protected(&self) -> bool {
        self.plain.is_protected()
    }

    fn statfs(&self) -> io::Result<Statvfs> {
        self.plain.statfs()
    }

    fn describe(&self) -> String {
        self.plain.describe()
    }

    fn dev(&self) -> u64 {
        self.plain.dev()
    }
}

#[cfg(test)]
mod tests;
