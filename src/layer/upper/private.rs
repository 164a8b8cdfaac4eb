//! A mount of one's own for upper and workdir, as the kernel's overlayfs has one.
//!
//! Whoever unmounted the union may unmount at once what its upper lies on: `umount(2)` of a FUSE mount does not wait for the
//! daemon, whose descriptors would keep that mount busy. And reading changes access times as the union's own mount options say,
//! also where the kernel reads the file itself.
//!
//! Names are linked and renamed from one directory to the other, which the kernel allows within one mount alone: so it is the
//! directory above both that is cloned.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::open::mount_id;
use crate::sys::mount_clone::{AccessTimes, writable_clone};

/// Both directories, opened for reading through one mount.
pub(super) struct Pair {
    pub(super) upper: OwnedFd,
    pub(super) work: OwnedFd,
    /// Keeps that mount.
    pub(super) mount: OwnedFd,
}

/// Reaches both directories by a clone of the mount that they lie on. `found`: the same, as they were opened by their paths.
pub(super) fn reach(
    (upper, work): (&Path, &Path),
    found: (BorrowedFd<'_>, BorrowedFd<'_>),
    times: AccessTimes,
) -> io::Result<Pair> {
    let (upper, work) = (upper.canonicalize()?, work.canonicalize()?);
    let above = above_both(&upper, &work);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, &above, flags, Mode::empty())?;
    if mount_id(dir.as_fd())? != mount_id(found.0)? {
        return Err(io::Error::other("a mountpoint lies between them"));
    }
    let mount = writable_clone(dir.as_fd(), times)?;
    let open = |path: &Path, found: BorrowedFd<'_>| -> io::Result<OwnedFd> {
        let below = path.strip_prefix(&above).map_err(io::Error::other)?;
        let fd = rustix::fs::openat2(
            &mount,
            below,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        )?;
        let (here, there) = (rustix::fs::fstat(&fd)?, rustix::fs::fstat(found)?);
        if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) {
            Ok(fd)
        } else {
            Err(io::Error::other("it was replaced meanwhile"))
        }
    };
    Ok(Pair {
        upper: open(&upper, found.0)?,
        work: open(&work, found.1)?,
        mount,
    })
}

/// The deepest directory that both lie in.
fn above_both(a: &Path, b: &Path) -> PathBuf {
    a.components()
        .zip(b.components())
        .take_while(|(a, b)| a == b)
        .map(|(component, _)| component)
        .collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn what_lies_above_both() {
        for (a, b, above) in [
            ("/a/u", "/a/w", "/a"),
            ("/a/b/u", "/a/c", "/a"),
            ("/u", "/w", "/"),
            ("/ab/u", "/a/w", "/"),
        ] {
            assert_eq!(above_both(a.as_ref(), b.as_ref()), Path::new(above));
        }
    }
}
