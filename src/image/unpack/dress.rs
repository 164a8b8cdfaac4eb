//! Owners, modes, times and extended attributes of what was written.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::extract::{Extractor, Ownership, list, lost};
use super::place;
use crate::image::error::ImageError;
use crate::image::tarball::{Entry, Kind};
use crate::layer::Timestamp;
use crate::layer::format::to_store;

impl Extractor<'_> {
    /// Owner, attributes, mode and times, in this order: a change of owner clears suid bits and capabilities.
    pub(super) fn dress_file(
        &mut self,
        file: &File,
        entry: &Entry,
        path: &[u8],
    ) -> Result<(), ImageError> {
        if (entry.uid, entry.gid) != self.me {
            let owner = rustix::fs::fchown(
                file,
                Some(Uid::from_raw(entry.uid)),
                Some(Gid::from_raw(entry.gid)),
            );
            self.owned(owner, path)?;
        }
        for (name, value) in &entry.xattrs {
            let Some(name) = self.xattr_name(name, path) else {
                continue;
            };
            let set = rustix::fs::fsetxattr(file, &*name, value, XattrFlags::empty());
            self.xattr_set(set, name.as_bytes(), path)?;
        }
        if self.ownership == Ownership::Record {
            let value = override_stat(entry);
            rustix::fs::fsetxattr(file, OVERRIDE_STAT, value.as_bytes(), XattrFlags::empty())
                .map_err(self.failed("record the owner of", path))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))
            .map_err(self.failed("change the mode of", path))?;
        rustix::fs::futimens(file, &timestamps(entry.mtime, entry.atime))
            .map_err(self.failed("set the times of", path))
    }

    /// The same for nodes that cannot be opened: symlinks, fifos and devices.
    pub(super) fn dress_other(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        path: &[u8],
    ) -> Result<(), ImageError> {
        let os_name = OsStr::from_bytes(name);
        if (entry.uid, entry.gid) != self.me {
            self.own_by_path(dir, os_name, entry, path)?;
        }
        self.set_xattrs_by_path(dir, name, entry, path)?;
        if !matches!(entry.kind, Kind::Symlink(_)) {
            // Not a symlink: nobody but this process writes here, and it made the node itself just now.
            rustix::fs::chmodat(
                dir,
                os_name,
                Mode::from_raw_mode(entry.mode),
                AtFlags::empty(),
            )
            .map_err(self.failed("change the mode of", path))?;
        }
        rustix::fs::utimensat(
            dir,
            os_name,
            &timestamps(entry.mtime, entry.atime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(self.failed("set the times of", path))
    }

    /// A hard link's own attributes, which are those of the file from then on. What is the same already is left alone: a
    /// change of owner would clear capabilities.
    pub(super) fn dress_link(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        path: &[u8],
    ) -> Result<(), ImageError> {
        let os_name = OsStr::from_bytes(name);
        let stat = rustix::fs::statat(dir, os_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.failed("look at", path))?;
        if (entry.uid, entry.gid) != (stat.st_uid, stat.st_gid) {
            self.own_by_path(dir, os_name, entry, path)?;
        }
        self.set_xattrs_by_path(dir, name, entry, path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            let mode = Mode::from_raw_mode(entry.mode);
            rustix::fs::chmodat(dir, os_name, mode, AtFlags::empty())
                .map_err(self.failed("change the mode of", path))?;
        }
        let times = timestamps(entry.mtime, entry.atime);
        rustix::fs::utimensat(dir, os_name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.failed("set the times of", path))
    }

    fn own_by_path(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        entry: &Entry,
        path: &[u8],
    ) -> Result<(), ImageError> {
        let owner = rustix::fs::chownat(
            dir,
            name,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        );
        self.owned(owner, path)
    }

    fn set_xattrs_by_path(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        path: &[u8],
    ) -> Result<(), ImageError> {
        let through = place::through_proc(dir, name);
        for (name, value) in &entry.xattrs {
            let Some(name) = self.xattr_name(name, path) else {
                continue;
            };
            let set = rustix::fs::lsetxattr(
                OsStr::from_bytes(&through),
                &*name,
                value,
                XattrFlags::empty(),
            );
            self.xattr_set(set, name.as_bytes(), path)?;
        }
        Ok(())
    }

    /// The name under which an xattr of a layer is stored; `None` for one that is not.
    fn xattr_name(&mut self, name: &[u8], path: &[u8]) -> Option<OsString> {
        // Owners and modes are kept by such names, and whatever else containers/storage may keep one day.
        if name.starts_with(b"user.containers.") || name.starts_with(b"user.fuseoverlayfs.") {
            return None;
        }
        let stored = to_store(OsStr::from_bytes(name));
        if stored.is_none() {
            // Too long once it is escaped.
            list(&mut self.info.xattrs, || lost(path, name));
        }
        stored
    }

    fn owned(&mut self, changed: Result<(), Errno>, path: &[u8]) -> Result<(), ImageError> {
        match changed {
            Ok(()) => Ok(()),
            // Without privilege; or an id that the user namespace does not map.
            Err(Errno::PERM | Errno::INVAL) => {
                self.info.squashed += 1;
                Ok(())
            }
            Err(e) => Err(self.failed("change the owner of", path)(e)),
        }
    }

    fn xattr_set(
        &mut self,
        set: Result<(), Errno>,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), ImageError> {
        match set {
            Ok(()) => Ok(()),
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ACCESS) => {
                list(&mut self.info.xattrs, || lost(path, name));
                Ok(())
            }
            Err(e) => {
                let shown = String::from_utf8_lossy(name).into_owned();
                Err(self.refuse(path, format!("cannot set the xattr {shown:?}: {e}")))
            }
        }
    }
}

/// The xattr by which containers/storage records owner and mode.
const OVERRIDE_STAT: &str = "user.containers.override_stat";

fn override_stat(entry: &Entry) -> String {
    format!("{}:{}:0{:o}", entry.uid, entry.gid, entry.mode)
}

/// The form of the opaque mark that this process may write here.
pub(super) fn opaque_xattr(root: &OwnedFd) -> Result<&'static str, Errno> {
    const TRUSTED: &str = "trusted.overlay.opaque";
    match rustix::fs::fsetxattr(root, TRUSTED, b"n", XattrFlags::empty()) {
        Ok(()) => {
            rustix::fs::fremovexattr(root, TRUSTED)?;
            Ok(TRUSTED)
        }
        Err(Errno::PERM) => Ok("user.overlay.opaque"),
        Err(e) => Err(e),
    }
}

pub(super) fn timestamps(mtime: Timestamp, atime: Option<Timestamp>) -> Timestamps {
    let convert = |t: Timestamp| rustix::fs::Timespec {
        tv_sec: t.sec,
        tv_nsec: t.nsec.into(),
    };
    Timestamps {
        last_access: convert(atime.unwrap_or(mtime)),
        last_modification: convert(mtime),
    }
}
