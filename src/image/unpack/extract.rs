//! Entries of a tar, one after the other, as nodes of a tree.
//!
//! The treatment of what is odd, as the reference for users:
//! - An absolute path is taken from the layer's root. One with `..`, one that leads through a symlink or a file, a
//!   hard link to something that the layer does not hold, and a whiteout of `.` or `..` are errors.
//! - A whiteout hides what the layers below have, never what its own layer has, whichever comes first. A directory
//!   that is also whited out is opaque.
//! - A hard link may come before what it names; its own entry's attributes count, as for docker and podman. A second entry of a path replaces the first, except that a directory
//!   keeps its entries. A parent that has no entry of its own gets mode 0755 and the time 0.
//! - The overlay's private attributes (`trusted.overlay.`, `user.overlay.`) would be orders to whoever mounts the
//!   layer, so they are stored escaped, as a nested overlay's are; those of fuse-overlayfs and containers/storage are
//!   dropped.
//! - Device nodes, attributes and owners that the process may not set: see [`LayerInfo`] and [`Ownership`].

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::dress::{opaque_xattr, timestamps};
use super::place::{self, Dirs, Target};
use super::{LayerInfo, tar_error};
use crate::image::error::ImageError;
use crate::image::limits::Limits;
use crate::image::tarball::{Entry, Kind, Source, TarReader};
use crate::layer::Timestamp;

/// What happens to owners that the process may not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Everything belongs to the process where it may not give files away, which a plain user may not; within a user
    /// namespace this concerns ids that have no mapping. [`LayerInfo::squashed`] counts them.
    #[default]
    Squash,
    /// As with `Squash`, and the owner and mode stand in the xattr `user.containers.override_stat`, as
    /// containers/storage writes it.
    Record,
}

/// Paths whose attributes are listed in [`LayerInfo`] at most.
const LISTED: usize = 1000;

/// What a directory is to be when everything in it is written: its entries would change its times, and a plain user
/// could not write into a directory that is read-only.
#[derive(Clone, Debug, Default)]
struct DirPlan {
    /// Its entry; `None` for a parent that has none.
    entry: Option<Box<Entry>>,
    opaque: bool,
}

/// Writes one layer.
pub(crate) struct Extractor<'a> {
    pub(super) layer: String,
    pub(super) dirs: Dirs,
    plans: BTreeMap<Vec<u8>, DirPlan>,
    /// Hard links whose target has not come yet: path to target, and the link's own attributes.
    pub(super) links: BTreeMap<Vec<u8>, (Vec<u8>, Box<Entry>)>,
    pub(super) ownership: Ownership,
    /// Who new files belong to.
    pub(super) me: (u32, u32),
    opaque_xattr: &'static str,
    pub(super) info: LayerInfo,
    limits: &'a Limits,
}

impl<'a> Extractor<'a> {
    /// Into `diff`, an empty directory.
    pub(crate) fn new(
        diff: &Path,
        layer: String,
        ownership: Ownership,
        limits: &'a Limits,
    ) -> Result<Extractor<'a>, ImageError> {
        let root = rustix::fs::open(
            diff,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(ImageError::io("open", diff))?;
        let opaque_xattr = opaque_xattr(&root).map_err(ImageError::io("mark", diff))?;
        let mut plans = BTreeMap::new();
        plans.insert(Vec::new(), DirPlan::default());
        Ok(Extractor {
            layer,
            dirs: Dirs::new(root),
            plans,
            links: BTreeMap::new(),
            ownership,
            me: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            opaque_xattr,
            info: LayerInfo::default(),
            limits,
        })
    }

    /// Writes every entry of `tar`.
    pub(crate) fn run<S: Source>(
        mut self,
        tar: &mut TarReader<S>,
    ) -> Result<LayerInfo, ImageError> {
        while let Some(entry) = tar.next_entry().map_err(|e| tar_error(&self.layer, e))? {
            self.info.entries += 1;
            if self.info.entries > self.limits.layer_entries {
                return Err(ImageError::OverLimit {
                    what: format!("the number of entries of layer {}", self.layer),
                    limit: self.limits.layer_entries,
                    unit: "entries",
                    hint: "set ACETATE_MAX_LAYER_ENTRIES to allow more",
                });
            }
            self.entry(entry, tar)?;
        }
        self.finish_links()?;
        self.finish_dirs()?;
        Ok(self.info)
    }

    pub(super) fn refuse(&self, path: &[u8], why: impl Into<String>) -> ImageError {
        ImageError::Entry {
            layer: self.layer.clone(),
            entry: String::from_utf8_lossy(path).into_owned(),
            why: why.into(),
        }
    }

    pub(super) fn failed(
        &self,
        action: &'static str,
        path: &[u8],
    ) -> impl FnOnce(Errno) -> ImageError {
        let (layer, entry) = (
            self.layer.clone(),
            String::from_utf8_lossy(path).into_owned(),
        );
        move |e| ImageError::EntryIo {
            layer,
            entry,
            action,
            source: e.into(),
        }
    }

    fn entry<S: Source>(&mut self, entry: Entry, tar: &mut TarReader<S>) -> Result<(), ImageError> {
        let target = place::target(&entry.path).map_err(|why| self.refuse(&entry.path, why))?;
        for name in &entry.unread_xattrs {
            list(&mut self.info.xattrs, || lost(&entry.path, name));
        }
        match target {
            Target::Ignored => Ok(()),
            Target::Root => match entry.kind {
                Kind::Directory => {
                    let plan = self.plans.entry(Vec::new()).or_default();
                    plan.entry = Some(Box::new(entry));
                    Ok(())
                }
                _ => Err(self.refuse(&entry.path, "the layer's root is no directory")),
            },
            Target::Opaque(dir) => {
                self.parent(&dir, &entry.path)?;
                self.plans.entry(dir).or_default().opaque = true;
                Ok(())
            }
            Target::Whiteout(parent, name) => self.whiteout(&parent, &name, &entry.path),
            Target::Entry(parent, name) => self.node(entry, &parent, &name, tar),
        }
    }

    /// Hides `name` in the layers below.
    fn whiteout(&mut self, parent: &[u8], name: &[u8], entry: &[u8]) -> Result<(), ImageError> {
        let dir = self.parent(parent, entry)?;
        let path = place::join(parent, name);
        match file_type(dir.as_fd(), name) {
            Ok(Some(FileType::Directory)) => {
                self.plans.entry(path).or_default().opaque = true;
                Ok(())
            }
            // What the layer has itself, or a whiteout already.
            Ok(Some(_)) => Ok(()),
            Ok(None) if self.links.contains_key(&path) => Ok(()),
            Ok(None) => {
                make_whiteout(dir.as_fd(), name).map_err(self.failed("make a whiteout of", &path))
            }
            Err(e) => Err(self.failed("look at", &path)(e)),
        }
    }

    fn node<S: Source>(
        &mut self,
        entry: Entry,
        parent: &[u8],
        name: &[u8],
        tar: &mut TarReader<S>,
    ) -> Result<(), ImageError> {
        let path = place::join(parent, name);
        let dir = self.parent(parent, &path)?;
        self.links.remove(&path);
        let os_name = OsStr::from_bytes(name);
        match &entry.kind {
            Kind::Directory => return self.directory(entry, dir.as_fd(), name, path),
            Kind::File | Kind::Sparse { .. } => {
                let file = self.create_file(dir.as_fd(), name, &path)?;
                self.write(&file, &entry, &path, tar)?;
                return self.dress_file(&file, &entry, &path);
            }
            Kind::HardLink(target) => {
                let target = target.clone();
                return self.hard_link(dir.as_fd(), name, path, &target, entry);
            }
            Kind::Unknown(kind) => {
                let kind = char::from(*kind);
                return Err(self.refuse(&path, format!("an entry of unknown type {kind:?}")));
            }
            Kind::Symlink(target) => {
                self.make_room(dir.as_fd(), name, &path)?;
                rustix::fs::symlinkat(OsStr::from_bytes(target), &dir, os_name)
                    .map_err(self.failed("make the symlink", &path))?;
            }
            Kind::Fifo => {
                self.make_room(dir.as_fd(), name, &path)?;
                rustix::fs::mknodat(&dir, os_name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                    .map_err(self.failed("make the fifo", &path))?;
            }
            // By the kernel's convention this is a whiteout, whatever the tar calls it.
            Kind::Char(0, 0) => return self.whiteout(parent, name, &path),
            Kind::Char(major, minor) => {
                if !self.device(&dir, name, &path, FileType::CharacterDevice, *major, *minor)? {
                    return Ok(());
                }
            }
            Kind::Block(major, minor) => {
                if !self.device(&dir, name, &path, FileType::BlockDevice, *major, *minor)? {
                    return Ok(());
                }
            }
        }
        self.dress_other(dir.as_fd(), name, &entry, &path)
    }

    /// Makes a device node; false where this process may not, and a whiteout stands there instead.
    fn device(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        kind: FileType,
        major: u32,
        minor: u32,
    ) -> Result<bool, ImageError> {
        self.make_room(dir.as_fd(), name, path)?;
        let made = rustix::fs::mknodat(
            dir,
            OsStr::from_bytes(name),
            kind,
            Mode::RUSR | Mode::WUSR,
            rustix::fs::makedev(major, minor),
        );
        match made {
            Ok(()) => Ok(true),
            Err(Errno::PERM) => {
                let letter = if kind == FileType::BlockDevice {
                    'b'
                } else {
                    'c'
                };
                let shown = String::from_utf8_lossy(path);
                list(&mut self.info.devices, || {
                    format!("{shown}: {letter} {major}:{minor}")
                });
                make_whiteout(dir.as_fd(), name)
                    .map_err(self.failed("make a whiteout of", path))?;
                Ok(false)
            }
            Err(e) => Err(self.failed("make the device", path)(e)),
        }
    }

    /// The directory at `path`, made when it is not there. `entry`: who needs it, for messages.
    pub(super) fn parent(
        &mut self,
        path: &[u8],
        entry: &[u8],
    ) -> Result<std::rc::Rc<OwnedFd>, ImageError> {
        match self.dirs.get(path) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(e) => return Err(self.failed("open", path)(e)),
        }
        let mut end = 0;
        while end < path.len() {
            let start = if end == 0 { 0 } else { end + 1 };
            end = path[start..]
                .iter()
                .position(|&b| b == b'/')
                .map_or(path.len(), |slash| start + slash);
            let here = &path[..end];
            let (above, name) = place::split(here);
            let dir = self.dirs.get(above).map_err(self.failed("open", above))?;
            match file_type(dir.as_fd(), name).map_err(self.failed("look at", here))? {
                Some(FileType::Directory) => {}
                Some(FileType::Symlink) => {
                    let link = String::from_utf8_lossy(here).into_owned();
                    return Err(self.refuse(
                        entry,
                        format!("the path leads through the symlink {link:?}"),
                    ));
                }
                Some(FileType::CharacterDevice) if is_whiteout(dir.as_fd(), name) => {
                    self.make_room(dir.as_fd(), name, here)?;
                    self.make_dir(dir.as_fd(), name, here)?;
                    self.plans.entry(here.to_vec()).or_default().opaque = true;
                }
                Some(_) => {
                    let file = String::from_utf8_lossy(here).into_owned();
                    return Err(self.refuse(entry, format!("{file:?} is no directory")));
                }
                None => {
                    self.links.remove(here);
                    self.make_dir(dir.as_fd(), name, here)?;
                    self.plans.entry(here.to_vec()).or_default();
                }
            }
        }
        self.dirs.get(path).map_err(self.failed("open", path))
    }

    fn make_dir(&self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), ImageError> {
        rustix::fs::mkdirat(dir, OsStr::from_bytes(name), Mode::RWXU)
            .map_err(self.failed("make the directory", path))
    }

    fn directory(
        &mut self,
        entry: Entry,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: Vec<u8>,
    ) -> Result<(), ImageError> {
        let made = rustix::fs::mkdirat(dir, OsStr::from_bytes(name), Mode::RWXU);
        let mut opaque = false;
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let kind = file_type(dir, name).map_err(self.failed("look at", &path))?;
                if kind != Some(FileType::Directory) {
                    opaque = is_whiteout(dir, name);
                    self.make_room(dir, name, &path)?;
                    self.make_dir(dir, name, &path)?;
                }
            }
            Err(e) => return Err(self.failed("make the directory", &path)(e)),
        }
        let plan = self.plans.entry(path).or_default();
        plan.entry = Some(Box::new(entry));
        plan.opaque |= opaque;
        Ok(())
    }

    fn create_file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
    ) -> Result<File, ImageError> {
        let open = || {
            rustix::fs::openat(
                dir,
                OsStr::from_bytes(name),
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::RUSR | Mode::WUSR,
            )
        };
        match open() {
            Ok(fd) => Ok(fd.into()),
            Err(Errno::EXIST) => {
                self.make_room(dir, name, path)?;
                Ok(open().map_err(self.failed("create", path))?.into())
            }
            Err(e) => Err(self.failed("create", path)(e)),
        }
    }

    /// Removes what an earlier entry, or a whiteout, put at `name`.
    pub(super) fn make_room(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), ImageError> {
        let os_name = OsStr::from_bytes(name);
        match rustix::fs::unlinkat(dir, os_name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                crate::image::remove::remove_at(dir, os_name)
                    .map_err(|e| self.failed("replace", path)(errno(&e)))?;
                self.dirs.forget();
                let below = [path, b"/"].concat();
                self.plans.remove(path);
                remove_below(&mut self.plans, &below);
                remove_below(&mut self.links, &below);
                Ok(())
            }
            Err(e) => Err(self.failed("replace", path)(e)),
        }
    }

    /// Gives the directories their attributes, children before parents.
    fn finish_dirs(&mut self) -> Result<(), ImageError> {
        let plans = std::mem::take(&mut self.plans);
        for (path, plan) in plans.into_iter().rev() {
            let fd =
                place::open_beneath(self.dirs.root(), &path, OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(self.failed("open", &path))?;
            if plan.opaque {
                rustix::fs::fsetxattr(&fd, self.opaque_xattr, b"y", XattrFlags::empty())
                    .map_err(self.failed("make opaque", &path))?;
            }
            match plan.entry {
                Some(entry) => self.dress_file(&File::from(fd), &entry, &path)?,
                None => {
                    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))
                        .map_err(self.failed("change the mode of", &path))?;
                    rustix::fs::futimens(&fd, &timestamps(Timestamp::default(), None))
                        .map_err(self.failed("set the times of", &path))?;
                }
            }
        }
        Ok(())
    }
}

/// A line that tells of an attribute that was left out.
pub(super) fn lost(path: &[u8], name: &[u8]) -> String {
    format!(
        "{}: {}",
        String::from_utf8_lossy(path),
        String::from_utf8_lossy(name)
    )
}

/// Removes the paths that begin with `below`, without a look at the others: a layer may do this as often as it has
/// entries.
fn remove_below<T>(paths: &mut BTreeMap<Vec<u8>, T>, below: &[u8]) {
    let found = paths.range::<[u8], _>((Bound::Included(below), Bound::Unbounded));
    let found: Vec<Vec<u8>> = found
        .map(|(path, _)| path)
        .take_while(|path| path.starts_with(below))
        .cloned()
        .collect();
    for path in found {
        paths.remove(&path);
    }
}

/// Adds a line to a list of bounded length.
pub(super) fn list(lines: &mut Vec<String>, line: impl FnOnce() -> String) {
    if lines.len() < LISTED {
        lines.push(line());
    }
}

/// What stands at `name`, not following it.
fn file_type(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileType>, Errno> {
    match rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn is_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
    })
}

/// The kernel's form needs no privilege since Linux 5.8; before that, the form of the tar is kept as it is.
fn make_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let made = rustix::fs::mknodat(
        dir,
        OsStr::from_bytes(name),
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    );
    match made {
        Err(Errno::PERM) => {
            let name = [b".wh.", name].concat();
            rustix::fs::openat(
                dir,
                OsStr::from_bytes(&name),
                OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map(drop)
        }
        Ok(()) => rustix::fs::utimensat(
            dir,
            OsStr::from_bytes(name),
            &timestamps(Timestamp::default(), None),
            AtFlags::SYMLINK_NOFOLLOW,
        ),
        other => other,
    }
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}
