//! A mount of one's own for upper and workdir, as the kernel's overlayfs has one.
//!
//! Whoever unmounted the union may unmount at once what its upper lies on: `umount(2)` of a FUSE mount does not wait for the
//! daemon, whose descriptors would keep that mount busy. And reading changes access times as the union's own mount options say,
//! also where the kernel reads the file itself.
//!
//! Names are linked and renamed from one directory to the other, which the kernel allows within one mount alone: so it is the
//! directory above both that is cloned.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::open::mount_id;
use crate::sys::mount_clone::{AccessTimes, cover, writable_clone};

/// Both directories, opened for reading through one mount.
pub(super) struct Pair {
    pub(super) upper: OwnedFd,
    pub(super) work: OwnedFd,
    /// The root of that mount, where what is above the two could not be covered.
    pub(super) mount: Option<OwnedFd>,
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
    let (upper, work) = (open(&upper, found.0)?, open(&work, found.1)?);
    let covered = ways_up(&[&upper, &work]).and_then(|above| cover(&above));
    let mount = match covered {
        Ok(()) => None,
        Err(e) => {
            log::info!(
                "what else lies in {} is not kept from the process that serves the mount: {e}",
                above.display()
            );
            Some(mount)
        }
    };
    Ok(Pair { upper, work, mount })
}

/// All directories above these, up to the root of their mount. Each once.
fn ways_up(dirs: &[&OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let identity = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let mut known = HashSet::new();
    let mut all = Vec::new();
    for dir in dirs {
        let mut here = identity(dir)?;
        let mut above = rustix::fs::openat(dir, "..", flags, Mode::empty())?;
        loop {
            let there = identity(&above)?;
            if there == here || !known.insert(there) {
                break;
            }
            here = there;
            let next = rustix::fs::openat(&above, "..", flags, Mode::empty())?;
            all.push(std::mem::replace(&mut above, next));
        }
    }
    Ok(all)
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
    use rustix::fs::AtFlags;
    use rustix::io::Errno;

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

    /// Files are moved between the two, and from neither does a path lead to what lies beside them.
    #[test]
    fn what_lies_beside_them_is_out_of_reach() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        let (upper, work, beside) = (dir.join("a/u"), dir.join("b/c/w"), dir.join("beside"));
        for dir in [&upper.join("below"), &work, &beside] {
            std::fs::create_dir_all(dir).unwrap();
        }
        std::fs::set_permissions(&beside, PermissionsExt::from_mode(0o700)).unwrap();
        let found = |path: &Path| OwnedFd::from(std::fs::File::open(path).unwrap());
        let (up, wk) = (found(&upper), found(&work));
        let reached = reach(
            (&upper, &work),
            (up.as_fd(), wk.as_fd()),
            AccessTimes::AsBelow,
        );
        let pair = match reached {
            Ok(pair) if pair.mount.is_none() => pair,
            Ok(_) => return super::super::tests::skip("the kernel covers nothing there"),
            Err(e) => return super::super::tests::skip(&format!("no private mounts: {e}")),
        };
        for (fd, up) in [(&pair.upper, "../.."), (&pair.work, "../../..")] {
            for name in ["beside", "a", "b", "a/u"] {
                let path = format!("{up}/{name}");
                let found = rustix::fs::statat(fd, &path, AtFlags::empty());
                assert_eq!(found.err(), Some(Errno::NOENT), "{path}");
            }
            for path in ["..", "../..", "../../..", "../../../../.."] {
                let changed = rustix::fs::chmodat(fd, path, Mode::RWXU, AtFlags::empty());
                assert_eq!(changed, Err(Errno::ROFS), "{path}");
            }
        }
        let flags = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::openat(&pair.work, "new", flags, Mode::RWXU).unwrap();
        rustix::fs::renameat(&pair.work, "new", &pair.upper, "below/../moved").unwrap();
        rustix::fs::linkat(&pair.upper, "moved", &pair.work, "linked", AtFlags::empty()).unwrap();
        assert!(upper.join("moved").exists() && work.join("linked").exists());
        // Nobody else is hindered.
        std::fs::rename(dir.join("b/c"), dir.join("b/d")).unwrap();
        std::fs::remove_dir_all(dir.join("b")).unwrap();
        let found = rustix::fs::statat(&pair.work, "../../../beside", AtFlags::empty());
        assert_eq!(found.err(), Some(Errno::NOENT));
    }
}
