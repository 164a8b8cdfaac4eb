//! Reading a directory tree: what lower layers and the upper have in common.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat as RawStat};
use rustix::io::Errno;

use super::fdcache::FdCache;
use super::format::{
    DOT_OPAQUE, MarkNames, NameKind, OverrideValue, OverrideXattr, dot_whiteout_name,
    is_whiteout_device, name_kind, read_marks,
};
use super::node::{ChildNode, DotWhiteouts, PathNode, Spot};
use super::owners::OwnerShift;
use super::{EntryKind, Found, LayerEntry, LayerLookup, Marks, Node, Opaque, Stat, Timestamp};
use crate::sys::handle::{FileHandle, name_to_handle};
use crate::sys::xattr::{self, Target};

/// After so many lookups a directory is read once to learn whether `.wh.` entries need asking for at all.
const ASKS_BEFORE_SCAN: u8 = 3;
/// A directory larger than this is not read for that alone.
const SCAN_LIMIT: i64 = 64 << 10;
/// Room for the entries of one `getdents64` call.
const LISTING_BUFFER: usize = 64 << 10;

/// How one tree is read. Immutable.
#[derive(Debug)]
pub(super) struct Tree {
    cache: Arc<FdCache>,
    /// Other mounts may lie in the tree: every step has to refuse to enter them.
    may_hold_mounts: bool,
    /// `O_NOATIME` where reading would change access times.
    noatime: OFlags,
    /// Where owner and mode are kept.
    override_xattr: Option<OverrideXattr>,
    /// Whose marks count.
    names: MarkNames,
    /// `.wh.` entries are whiteouts.
    dot_whiteouts: bool,
    /// Regular files may be metacopies.
    metacopy: bool,
    /// Owners as the mount shows them are not those on disk.
    owners: Option<Arc<OwnerShift>>,
}

/// How a tree is to be read.
#[derive(Clone, Debug)]
pub(super) struct TreeOptions {
    pub(super) may_hold_mounts: bool,
    pub(super) noatime_mount: bool,
    pub(super) override_xattr: Option<OverrideXattr>,
    pub(super) names: MarkNames,
    pub(super) dot_whiteouts: bool,
    pub(super) metacopy: bool,
    pub(super) owners: Option<Arc<OwnerShift>>,
}

/// The node of a plain tree that may move.
pub(super) fn path_node(node: &Node) -> io::Result<&Arc<PathNode>> {
    match node {
        Node::Path(node) => Ok(node),
        Node::Child(_) | Node::Index(_) => Err(io::Error::from_raw_os_error(libc::EXDEV)),
    }
}

/// The node of a plain tree in which nothing moves.
pub(super) fn lower_node(node: &Node) -> io::Result<Arc<PathNode>> {
    match node {
        Node::Path(node) => Ok(node.clone()),
        Node::Child(child) => Ok(child.node()),
        Node::Index(_) => Err(io::Error::from_raw_os_error(libc::EXDEV)),
    }
}

/// As the rest of the program sees it.
pub(crate) fn to_stat(raw: &RawStat) -> Stat {
    let time = |sec: i64, nsec: u64| Timestamp {
        sec,
        nsec: nsec as u32,
    };
    Stat {
        dev: raw.st_dev,
        ino: raw.st_ino,
        mode: raw.st_mode,
        nlink: raw.st_nlink,
        uid: raw.st_uid,
        gid: raw.st_gid,
        rdev: raw.st_rdev,
        size: raw.st_size as u64,
        blocks: raw.st_blocks as u64,
        blksize: raw.st_blksize as u32,
        atime: time(raw.st_atime, raw.st_atime_nsec),
        mtime: time(raw.st_mtime, raw.st_mtime_nsec),
        ctime: time(raw.st_ctime, raw.st_ctime_nsec),
    }
}

fn is_whiteout(raw: &RawStat) -> bool {
    is_whiteout_device(raw.st_mode, raw.st_rdev)
}

/// `lstat` of a name; `None` when there is none.
fn stat_name(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<RawStat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Tree {
    pub(super) fn new(cache: Arc<FdCache>, options: TreeOptions) -> Arc<Tree> {
        Arc::new(Tree {
            cache,
            may_hold_mounts: options.may_hold_mounts,
            noatime: if options.noatime_mount {
                OFlags::empty()
            } else {
                OFlags::NOATIME
            },
            override_xattr: options.override_xattr,
            names: options.names,
            dot_whiteouts: options.dot_whiteouts,
            metacopy: options.metacopy,
            owners: options.owners,
        })
    }

    pub(super) fn cache(&self) -> &FdCache {
        &self.cache
    }

    pub(super) fn may_hold_mounts(&self) -> bool {
        self.may_hold_mounts
    }

    pub(super) fn looks_for_metacopies(&self) -> bool {
        self.metacopy
    }

    pub(super) fn has_dot_whiteouts(&self) -> bool {
        self.dot_whiteouts
    }

    /// Some marks that others count are none here.
    pub(super) fn is_privileged(&self) -> bool {
        self.names == MarkNames::Privileged
    }

    /// Owners are read through a mount that maps them.
    pub(super) fn maps_owners(&self) -> bool {
        self.owners.is_some()
    }

    pub(super) fn override_xattr(&self) -> Option<OverrideXattr> {
        self.override_xattr
    }

    /// A name in a tree whose nodes may move.
    pub(super) fn lookup(
        &self,
        dir: &Arc<PathNode>,
        name: &OsStr,
        xwhiteouts: bool,
    ) -> io::Result<LayerLookup> {
        self.lookup_as(dir, name, xwhiteouts, |stat| {
            Node::Path(PathNode::child(dir, name, stat.ino))
        })
    }

    /// A name in a tree in which nothing moves.
    pub(super) fn lookup_lower(
        &self,
        dir: &Arc<PathNode>,
        name: &OsStr,
        xwhiteouts: bool,
    ) -> io::Result<LayerLookup> {
        self.lookup_as(dir, name, xwhiteouts, |stat| {
            if stat.is_dir() {
                Node::Path(PathNode::child(dir, name, stat.ino))
            } else {
                Node::Child(ChildNode::new(dir, name, stat.ino))
            }
        })
    }

    fn lookup_as(
        &self,
        dir: &Arc<PathNode>,
        name: &OsStr,
        xwhiteouts: bool,
        node: impl FnOnce(&Stat) -> Node,
    ) -> io::Result<LayerLookup> {
        if matches!(name.as_bytes(), b"" | b"." | b"..") || name.as_bytes().contains(&b'/') {
            return Err(Errno::INVAL.into());
        }
        if self.dot_whiteouts && name_kind(name) != NameKind::Plain {
            return Ok(LayerLookup::Missing);
        }
        let dir_fd = dir.dir_fd()?;
        let dir_fd = dir_fd.as_fd();
        let Some(raw) = stat_name(dir_fd, name)? else {
            return Ok(if self.has_dot_whiteout(dir, dir_fd, name)? {
                LayerLookup::Whiteout
            } else {
                LayerLookup::Missing
            });
        };
        if self.is_whiteout(dir_fd, name, &raw, xwhiteouts)? {
            return Ok(LayerLookup::Whiteout);
        }
        let mut stat = self.to_stat(&raw);
        self.override_stat(&mut stat, Target::At(dir_fd, name))?;
        // Beside anything but a directory a whiteout changes nothing.
        let beside_whiteout = stat.is_dir() && self.has_dot_whiteout(dir, dir_fd, name)?;
        Ok(LayerLookup::Found(Found {
            node: node(&stat),
            stat,
            beside_whiteout,
        }))
    }

    fn is_whiteout(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        raw: &RawStat,
        xwhiteouts: bool,
    ) -> io::Result<bool> {
        if is_whiteout(raw) {
            return Ok(true);
        }
        let may_be_marked =
            xwhiteouts && raw.st_size == 0 && raw.st_mode & libc::S_IFMT == libc::S_IFREG;
        Ok(may_be_marked && self.names.is_whiteout(Target::At(dir, name))?)
    }

    /// Whether `.wh.NAME` stands in the directory.
    fn has_dot_whiteout(
        &self,
        dir: &PathNode,
        dir_fd: BorrowedFd<'_>,
        name: &OsStr,
    ) -> io::Result<bool> {
        if !self.may_hold_dot_whiteouts(dir, dir_fd)? {
            return Ok(false);
        }
        match dot_whiteout_name(name) {
            Some(name) => Ok(stat_name(dir_fd, &name)?.is_some()),
            None => Ok(false),
        }
    }

    fn may_hold_dot_whiteouts(&self, dir: &PathNode, dir_fd: BorrowedFd<'_>) -> io::Result<bool> {
        if !self.dot_whiteouts {
            return Ok(false);
        }
        match dir.dot_whiteouts() {
            DotWhiteouts::None => Ok(false),
            DotWhiteouts::Some => Ok(true),
            DotWhiteouts::Unknown(asked) => {
                if asked < ASKS_BEFORE_SCAN {
                    dir.set_dot_whiteouts(DotWhiteouts::Unknown(asked + 1));
                    return Ok(true);
                }
                if rustix::fs::fstat(dir_fd)?.st_size > SCAN_LIMIT {
                    return Ok(true);
                }
                let mut some = false;
                self.for_each_entry(dir_fd, |name, _, _| {
                    some = name_kind(name) != NameKind::Plain;
                    Ok(if some {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    })
                })?;
                dir.set_dot_whiteouts(if some {
                    DotWhiteouts::Some
                } else {
                    DotWhiteouts::None
                });
                Ok(some)
            }
        }
    }

    pub(super) fn stat(&self, node: &PathNode) -> io::Result<Stat> {
        let mut stat = self.to_stat(&node.raw_stat()?);
        if self.override_xattr.is_some() {
            node.reach(|spot| self.override_stat(&mut stat, spot.xattr_target()))?;
        }
        Ok(stat)
    }

    fn to_stat(&self, raw: &RawStat) -> Stat {
        let mut stat = to_stat(raw);
        if let Some(owners) = &self.owners {
            owners.unshift(&mut stat);
        }
        stat
    }

    /// Puts owner, mode and type from the xattr into a stat, where the layer keeps them there.
    pub(super) fn override_stat(&self, stat: &mut Stat, target: Target<'_>) -> io::Result<()> {
        let Some(kept) = self.override_xattr else {
            return Ok(());
        };
        // Symlinks and special files cannot carry it.
        if !stat.is_dir() && !stat.is_file() {
            return Ok(());
        }
        let value = match xattr::get(target, kept.name()) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => None,
            other => other?,
        };
        if let Some(value) = value {
            let value = OverrideValue::parse(&value).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{:?} has a value that is not understood", kept.name()),
                )
            })?;
            value.apply(stat);
        }
        Ok(())
    }

    /// The marks that a node of a lower layer can have.
    pub(super) fn lower_marks(&self, node: &PathNode, stat: &Stat) -> io::Result<Marks> {
        if stat.is_dir() {
            self.marks(node, true)
        } else if self.metacopy && (may_be_metacopy(stat) || may_be_partial(stat)) {
            self.marks(node, false)
        } else {
            Ok(Marks::default())
        }
    }

    /// All marks of a node.
    pub(super) fn marks(&self, node: &PathNode, is_dir: bool) -> io::Result<Marks> {
        let mut marks = node.reach(|spot| read_marks(spot.xattr_target(), self.names))?;
        if is_dir
            && self.dot_whiteouts
            && marks.opaque != Opaque::Yes
            && node.dot_whiteouts() != DotWhiteouts::None
        {
            // By two components from the parent, so that a directory which is only listed is not opened.
            let found = node.reach(|spot| match spot {
                Spot::Held(fd) | Spot::Dir(fd) => stat_name(fd.as_fd(), OsStr::new(DOT_OPAQUE)),
                Spot::At(dir, name) => {
                    let path = [name.as_slice(), b"/", DOT_OPAQUE.as_bytes()].concat();
                    stat_name(dir.as_fd(), OsStr::from_bytes(&path))
                }
            })?;
            if found.is_some() {
                node.set_dot_whiteouts(DotWhiteouts::Some);
                marks.opaque = Opaque::Yes;
            }
        }
        Ok(marks)
    }

    pub(super) fn read_dir(
        &self,
        dir: &Arc<PathNode>,
        xwhiteouts: bool,
        sink: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let dir_fd = dir.dir_fd()?;
        let dir_fd = dir_fd.as_fd();
        let mut hidden: Vec<OsString> = Vec::new();
        let mut any_dot = false;
        let complete = self.for_each_entry(dir_fd, |name, ino, file_type| {
            if self.dot_whiteouts {
                match name_kind(name) {
                    NameKind::Plain => {}
                    NameKind::Whiteout(name) => {
                        any_dot = true;
                        hidden.push(name.to_owned());
                        return Ok(ControlFlow::Continue(()));
                    }
                    NameKind::Opaque | NameKind::Private => {
                        any_dot = true;
                        return Ok(ControlFlow::Continue(()));
                    }
                }
            }
            let Some((kind, ino)) = self.entry_kind(dir_fd, name, (ino, file_type), xwhiteouts)?
            else {
                return Ok(ControlFlow::Continue(()));
            };
            Ok(sink(LayerEntry { name, ino, kind }))
        })?;
        if !complete {
            return Ok(());
        }
        if self.dot_whiteouts && dir.dot_whiteouts() != DotWhiteouts::Some {
            dir.set_dot_whiteouts(if any_dot {
                DotWhiteouts::Some
            } else {
                DotWhiteouts::None
            });
        }
        for name in &hidden {
            if stat_name(dir_fd, name)?.is_some() {
                continue;
            }
            let entry = LayerEntry {
                name,
                ino: 0,
                kind: EntryKind::Whiteout,
            };
            if sink(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// What an entry is, asking for no more than its type cannot tell; `None` when it has gone meanwhile.
    pub(super) fn entry_kind(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        (ino, file_type): (u64, FileType),
        xwhiteouts: bool,
    ) -> io::Result<Option<(EntryKind, u64)>> {
        let ask = match file_type {
            FileType::Unknown | FileType::CharacterDevice => true,
            FileType::RegularFile => xwhiteouts || self.override_xattr.is_some(),
            _ => false,
        };
        if !ask {
            let kind = EntryKind::Node(file_type.as_raw_mode());
            return Ok(Some((kind, ino)));
        }
        let Some(raw) = stat_name(dir, name)? else {
            return Ok(None);
        };
        if self.is_whiteout(dir, name, &raw, xwhiteouts)? {
            return Ok(Some((EntryKind::Whiteout, 0)));
        }
        let mut stat = to_stat(&raw);
        self.override_stat(&mut stat, Target::At(dir, name))?;
        Ok(Some((EntryKind::Node(stat.file_type()), stat.ino)))
    }

    /// Calls `each` with name, inode number and type of every entry but `.` and `..`; true when it never broke off.
    pub(super) fn for_each_entry(
        &self,
        dir: BorrowedFd<'_>,
        mut each: impl FnMut(&OsStr, u64, FileType) -> io::Result<ControlFlow<()>>,
    ) -> io::Result<bool> {
        let fd = self.open_at(
            dir,
            OsStr::new("."),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        )?;
        let mut buffer: Vec<u8> = Vec::with_capacity(LISTING_BUFFER);
        let mut entries = RawDir::new(&fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if each(OsStr::from_bytes(name), entry.ino(), entry.file_type())?.is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens for reading, leaving the access time alone where the owner allows that.
    fn open_at(&self, dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
        match rustix::fs::openat(dir, name, flags | self.noatime, Mode::empty()) {
            Err(Errno::PERM) if !self.noatime.is_empty() => {
                Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
            }
            other => Ok(other?),
        }
    }

    pub(super) fn open_read(&self, node: &PathNode) -> io::Result<OwnedFd> {
        match node.open(OFlags::RDONLY | self.noatime) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) && !self.noatime.is_empty() => {
                node.open(OFlags::RDONLY)
            }
            other => other,
        }
    }

    pub(super) fn read_link(&self, node: &PathNode) -> io::Result<OsString> {
        node.reach(|spot| {
            let (dir, path) = spot.at();
            let target = rustix::fs::readlinkat(dir, path, Vec::new())?;
            Ok(OsString::from_vec(target.into_bytes()))
        })
    }

    pub(super) fn list_xattr(&self, node: &PathNode) -> io::Result<Vec<OsString>> {
        node.reach(|spot| match xattr::list(spot.xattr_target()) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
            other => other,
        })
    }

    pub(super) fn get_xattr(&self, node: &PathNode, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        let value = node.reach(|spot| xattr::get(spot.xattr_target(), name))?;
        Ok(match &self.owners {
            Some(owners) => value.and_then(|value| owners.unshift_value(name, value)),
            None => value,
        })
    }

    pub(super) fn file_handle(&self, node: &PathNode) -> io::Result<Option<FileHandle>> {
        node.reach(|spot| {
            let (dir, path) = spot.at();
            name_to_handle(dir, path)
        })
    }
}

/// How many of a partial file's blocks are allocated tells nothing; but the smallest are larger than a block.
fn may_be_partial(stat: &Stat) -> bool {
    stat.is_file() && stat.size > 4096
}

/// A metacopy has a size but no data. Its xattrs may lie in a block of their own, which counts as one of the file's.
fn may_be_metacopy(stat: &Stat) -> bool {
    let one_block = u64::from(stat.blksize.max(4096)) / 512;
    stat.is_file() && stat.size > 0 && (stat.blocks <= one_block || stat.blocks * 512 < stat.size)
}
