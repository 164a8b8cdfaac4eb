//! A layer that is a plain directory tree.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::sys::statvfs::{Statvfs, fstatvfs};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::error::LayerError;
use super::fdcache::FdCache;
use super::format::{
    MarkNames, OverrideXattr, decode_handle, encode_handle, from_disk, from_store, ino_in_handle,
    is_mark_of_lower, to_disk, to_store,
};
use super::node::PathNode;
use super::owners::OwnerShift;
use super::tree::{Tree, TreeOptions, lower_node, to_stat};
use super::upper::Namespace;
use super::{Access, Layer, LayerEntry, LayerLookup, Marks, Node, OverlayHandle, RealFile, Stat};
use crate::sys::handle::{filesystem_uuid, stat_by_handle};
use crate::sys::mount_clone::read_only_clone;
use crate::sys::xattr::{self, Target};

/// How a [`DirLayer`] is opened.
#[derive(Clone, Debug)]
pub struct LayerOptions {
    /// Regular files may be metacopies (see [`super::Marks::metacopy`]). False spares looking, for layers that
    /// were unpacked from an archive and so hold none.
    pub metacopy: bool,
    /// Entries named `.wh.` may be whiteouts. False spares looking, for layers that are known to have whiteouts
    /// in the kernel's form alone.
    pub dot_whiteouts: bool,
    /// Where the mount that the layer is for has its own marks. [`Namespace::User`]: redirects and metacopies count that
    /// whoever owns a file may have set (`user.overlay.`). A mount with more rights than they would read them another file. Of
    /// no effect on the layers of the store, which have no such marks.
    pub namespace: Namespace,
    /// The layer is one of the store, where xattrs of the image are kept by other names (see [`to_store`]):
    /// they are told as a mount would write them that has its own marks in this namespace.
    pub names_for: Option<Namespace>,
    /// It was the upper of a mount: marks of that namespace alone count, as those of the other one belong to overlays that are
    /// nested in it.
    pub was_upper: bool,
    /// Owners and modes count that are kept in `user.` xattrs. False for a mount that is not made in a user namespace, where
    /// whoever owns a layer could make programs that run as root; such a layer is refused.
    pub user_owners: bool,
    /// The layer is reached through a mount that maps owners already: how to read them as they lie on disk.
    pub owners: Option<Arc<OwnerShift>>,
}

impl LayerOptions {
    /// For layers that the store unpacked: no metacopies, and whiteouts in the kernel's form alone.
    pub fn unpacked() -> LayerOptions {
        LayerOptions {
            metacopy: false,
            dot_whiteouts: false,
            namespace: Namespace::User,
            names_for: None,
            was_upper: false,
            user_owners: true,
            owners: None,
        }
    }
}

impl Default for LayerOptions {
    fn default() -> Self {
        LayerOptions {
            metacopy: true,
            dot_whiteouts: true,
            namespace: Namespace::User,
            names_for: None,
            was_upper: false,
            user_owners: true,
            owners: None,
        }
    }
}

/// A read-only layer that is a plain directory tree.
#[derive(Debug)]
pub struct DirLayer {
    /// Immutable.
    path: PathBuf,
    /// Immutable.
    tree: Arc<Tree>,
    /// Immutable.
    root: Arc<PathNode>,
    /// Immutable: the root directory, `O_PATH`.
    root_fd: Arc<OwnedFd>,
    /// Immutable: device of the root directory.
    dev: u64,
    /// Immutable: reached through a read-only mount clone.
    protected: bool,
    /// Immutable: see [`LayerOptions::names_for`].
    names_for: Option<Namespace>,
    /// Set once, when handles are first asked for.
    handles: OnceLock<Handles>,
}

/// What it takes to store and read file handles.
#[derive(Debug)]
pub(super) struct Handles {
    /// The root directory, open for reading: the kernel takes no `O_PATH` descriptor here.
    mount: OwnedFd,
    uuid: [u8; 16],
}

impl Handles {
    pub(super) fn open(root: &OwnedFd) -> io::Result<Handles> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mount = rustix::fs::openat(root, ".", flags, Mode::empty())?;
        let uuid = filesystem_uuid(&mount)?;
        Ok(Handles { mount, uuid })
    }

    pub(super) fn encode(&self, tree: &Tree, node: &PathNode) -> io::Result<Option<OverlayHandle>> {
        Ok(tree
            .file_handle(node)?
            .and_then(|handle| encode_handle(&self.uuid, &handle)))
    }

    pub(super) fn ino(&self, handle: &OverlayHandle) -> Option<u64> {
        let (kind, data) = decode_handle(&self.uuid, handle)?;
        ino_in_handle(kind, data)
    }

    pub(super) fn stat(&self, handle: &OverlayHandle) -> io::Result<Option<Stat>> {
        let Some((kind, data)) = decode_handle(&self.uuid, handle) else {
            return Ok(None);
        };
        match stat_by_handle(self.mount.as_fd(), kind, data) {
            Ok(stat) => Ok(Some(to_stat(&stat))),
            Err(e) => match e.raw_os_error() {
                // No privilege; no such inode any more; no handle of this filesystem after all.
                Some(
                    libc::EPERM
                    | libc::EACCES
                    | libc::ESTALE
                    | libc::ENOENT
                    | libc::EINVAL
                    | libc::EOPNOTSUPP
                    | libc::ENOSYS,
                ) => Ok(None),
                _ => Err(e),
            },
        }
    }
}

impl DirLayer {
    /// Opens a layer, through a private read-only mount clone where the process may make one.
    pub fn open(
        path: &Path,
        options: LayerOptions,
        cache: Arc<FdCache>,
    ) -> Result<DirLayer, LayerError> {
        let failed = |e: io::Error| LayerError::Io(path.to_owned(), e);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let found = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT => LayerError::Missing(path.to_owned()),
            Errno::NOTDIR => LayerError::NotADirectory(path.to_owned()),
            Errno::ACCESS => LayerError::Unreadable(path.to_owned()),
            e => failed(e.into()),
        })?;
        let (root_fd, protected, noatime) = match read_only_clone(found.as_fd()) {
            Ok(clone) => (clone.root, true, clone.noatime),
            Err(e) => {
                log::debug!("no private mount of {}: {e}", path.display());
                (found, false, false)
            }
        };
        // Everything below goes wrong without read and search permission: say so now.
        let readable = rustix::fs::accessat(
            &root_fd,
            ".",
            rustix::fs::Access::READ_OK | rustix::fs::Access::EXEC_OK,
            rustix::fs::AtFlags::EACCESS,
        );
        match readable {
            Ok(()) => {}
            Err(Errno::ACCESS) => return Err(LayerError::Unreadable(path.to_owned())),
            Err(e) => return Err(failed(e.into())),
        }
        let stat = rustix::fs::fstat(&root_fd).map_err(|e| failed(e.into()))?;
        let kept = kept_override(&root_fd).map_err(failed)?;
        if let Some(kept) = kept.filter(|kept| kept.is_users() && !options.user_owners) {
            return Err(LayerError::UserOwners(path.to_owned(), kept.name()));
        }
        let tree = Tree::new(
            cache,
            TreeOptions {
                may_hold_mounts: !protected,
                noatime_mount: noatime,
                override_xattr: kept,
                names: if options.was_upper {
                    MarkNames::Own(options.namespace)
                } else {
                    MarkNames::of_lower(options.namespace)
                },
                dot_whiteouts: options.dot_whiteouts,
                metacopy: options.metacopy,
                owners: options.owners,
            },
        );
        let root_fd = Arc::new(root_fd);
        Ok(DirLayer {
            path: path.to_owned(),
            root: PathNode::root(tree.clone(), root_fd.clone(), stat.st_ino as u64),
            tree,
            root_fd,
            dev: stat.st_dev as u64,
            protected,
            names_for: options.names_for,
            handles: OnceLock::new(),
        })
    }

    /// The name by which an xattr is asked for, from that on disk; `None` where it is a mark.
    pub(super) fn name_told(&self, found: OsString) -> Option<OsString> {
        let Some(namespace) = self.names_for else {
            return Some(found);
        };
        Some(to_disk(namespace, &from_store(&found)?)?.into_owned())
    }

    /// And back; `None` where there is none of that name.
    pub(super) fn name_found<'a>(&self, told: &'a OsStr) -> Option<Cow<'a, OsStr>> {
        let Some(namespace) = self.names_for else {
            return Some(Cow::Borrowed(told));
        };
        Some(Cow::Owned(to_store(&from_disk(namespace, told)?)?))
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(super) fn root_node(&self) -> &Arc<PathNode> {
        &self.root
    }

    /// The root directory, opened with `O_PATH`.
    pub(super) fn root_fd(&self) -> BorrowedFd<'_> {
        self.root_fd.as_fd()
    }

    fn handles(&self) -> io::Result<&Handles> {
        if let Some(handles) = self.handles.get() {
            return Ok(handles);
        }
        let handles = Handles::open(&self.root_fd)?;
        Ok(self.handles.get_or_init(|| handles))
    }
}

/// A layer whose root keeps its owner and mode in an xattr keeps all of them there.
pub(super) fn kept_override(root: &OwnedFd) -> io::Result<Option<OverrideXattr>> {
    for kept in OverrideXattr::ALL {
        match xattr::get(Target::Fd(root.as_fd()), kept.name()) {
            Ok(Some(_)) => return Ok(Some(kept)),
            Ok(None) => {}
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

impl Layer for DirLayer {
    fn root(&self) -> Node {
        Node::Path(self.root.clone())
    }
    fn lookup(&self, dir: &Node, name: &OsStr, xwhiteouts: bool) -> io::Result<LayerLookup> {
        self.tree.lookup_lower(&lower_node(dir)?, name, xwhiteouts)
    }
    fn stat(&self, node: &Node) -> io::Result<Stat> {
        self.tree.stat(&*lower_node(node)?)
    }
    fn marks(&self, node: &Node, stat: &Stat) -> io::Result<Marks> {
        self.tree.lower_marks(&*lower_node(node)?, stat)
    }
    fn read_dir(
        &self,
        dir: &Node,
        xwhiteouts: bool,
        sink: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.tree.read_dir(&lower_node(dir)?, xwhiteouts, sink)
    }
    fn read_link(&self, node: &Node) -> io::Result<OsString> {
        self.tree.read_link(&*lower_node(node)?)
    }
    fn list_xattr(&self, node: &Node) -> io::Result<Vec<OsString>> {
        let names = self.tree.list_xattr(&*lower_node(node)?)?;
        Ok(names
            .into_iter()
            .filter_map(|n| self.name_told(n))
            .collect())
    }
    fn get_xattr(&self, node: &Node, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        match self.name_found(name) {
            Some(name) => self.tree.get_xattr(&*lower_node(node)?, &name),
            None => Ok(None),
        }
    }
    fn is_mark(&self, namespace: Namespace, name: &OsStr) -> bool {
        // None of them is told.
        self.names_for.is_none() && is_mark_of_lower(namespace, name)
    }
    fn open(&self, node: &Node, access: Access) -> io::Result<RealFile> {
        if access == Access::Write {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        let fd = self.tree.open_read(&*lower_node(node)?)?;
        Ok(RealFile::from_file(fd.into()))
    }
    fn handle(&self, node: &Node) -> io::Result<Option<OverlayHandle>> {
        self.handles()?.encode(&self.tree, &*lower_node(node)?)
    }
    fn stat_by_handle(&self, handle: &OverlayHandle) -> io::Result<Option<Stat>> {
        self.handles()?.stat(handle)
    }
    fn ino_of_handle(&self, handle: &OverlayHandle) -> Option<u64> {
        self.handles().ok()?.ino(handle)
    }
    fn is_protected(&self) -> bool {
        self.protected
    }
    fn statfs(&self) -> io::Result<Statvfs> {
        Ok(fstatvfs(&*self.root_fd)?)
    }
    fn describe(&self) -> String {
        self.path.display().to_string()
    }
    fn dev(&self) -> u64 {
        self.dev
    }
}

#[cfg(test)]
mod tests;
