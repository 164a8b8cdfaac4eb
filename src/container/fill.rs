//! Copies a tree with all that belongs to it: owners, modes, xattrs, times, hard links, special files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::sys::path_fd;
use crate::sys::xattr;

/// A deeper tree is refused: each step holds two descriptors.
const DEPTH: usize = 500;

/// What was copied of an inode with several names.
type Links = HashMap<(u64, u64), OwnedFd>;

/// Copies what is in the directory `from`, and its attributes, to the empty directory `to`, of which nobody else knows.
pub(super) fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    copy_dir(from, &stat, to, &mut Links::new(), DEPTH)
}

fn copy_dir(
    from: BorrowedFd<'_>,
    stat: &Stat,
    to: BorrowedFd<'_>,
    links: &mut Links,
    depth: usize,
) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other(format!(
            "the tree is more than {DEPTH} deep"
        )));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            copy_entry(from, to, name, links, depth)?;
        }
    }
    // Last: what was made in it changed its times.
    dress(from, stat, to)
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    links: &mut Links,
    depth: usize,
) -> io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let inode = (stat.st_dev, stat.st_ino);
    let linked = stat.st_nlink > 1 && kind != FileType::Directory;
    if let Some(first) = links.get(&inode).filter(|_| linked) {
        return path_fd::link(first, to, name);
    }
    let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind {
        FileType::Directory => {
            let from = rustix::fs::openat(from, name, open | OFlags::DIRECTORY, Mode::empty())?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let to = rustix::fs::openat(to, name, open | OFlags::DIRECTORY, Mode::empty())?;
            return copy_dir(from.as_fd(), &stat, to.as_fd(), links, depth - 1);
        }
        FileType::RegularFile => {
            let from = rustix::fs::openat(from, name, open, Mode::empty())?;
            let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let made = rustix::fs::openat(to, name, new, Mode::RUSR | Mode::WUSR)?;
            io::copy(
                &mut File::from(from.try_clone()?),
                &mut File::from(made.try_clone()?),
            )?;
            dress(from.as_fd(), &stat, made.as_fd())?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, to, name)?;
            own_name(to, name, &stat)?;
        }
        FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
            own_name(to, name, &stat)?;
            // The umask has had its say.
            rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
        }
        // A socket is of no use without the process that listens.
        _ => return Ok(()),
    }
    if linked {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(to, name, flags, Mode::empty())?;
        links.insert(inode, made);
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}

/// Owner and times of what cannot be opened.
fn own_name(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> io::Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(dir, name, Some(owner), Some(group), flags)?;
    Ok(rustix::fs::utimensat(dir, name, &times(stat), flags)?)
}

/// Gives a file or directory the attributes of another, whose `stat` is given. The order matters: a new owner takes
/// suid bits and capabilities away, and everything changes times.
pub(super) fn dress(from: BorrowedFd<'_>, stat: &Stat, to: BorrowedFd<'_>) -> io::Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(owner), Some(group))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    for name in xattr::list(xattr::Target::Fd(from))? {
        let Some(value) = xattr::get(xattr::Target::Fd(from), &name)? else {
            continue;
        };
        match xattr::set(xattr::Target::Fd(to), &name, &value, 0) {
            // The store's filesystem has none of that kind.
            Err(e) if e.raw_os_error() == Some(Errno::NOTSUP.raw_os_error()) => {
                log::warn!("the xattr {name:?} is not copied: {e}");
            }
            set => set?,
        }
    }
    Ok(rustix::fs::futimens(to, &times(stat))?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_tree_is_copied_with_all_that_belongs_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub/deep")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("file"), "contents").unwrap();
        fs::set_permissions(from.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("file"), from.join("sub/again")).unwrap();
        symlink("../out", from.join("sub/link")).unwrap();
        rustix::fs::mknodat(
            File::open(&from).unwrap(),
            "fifo",
            FileType::Fifo,
            Mode::from_raw_mode(0o622),
            0,
        )
        .unwrap();
        // Whatever this process's umask is.
        fs::set_permissions(from.join("fifo"), fs::Permissions::from_mode(0o622)).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o1777)).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let set = fs::FileTimes::new().set_modified(old);
        File::open(from.join("file"))
            .unwrap()
            .set_times(set)
            .unwrap();
        File::open(&from).unwrap().set_times(set).unwrap();
        let open = |path| File::open(path).unwrap();
        copy_tree(open(&from).as_fd(), open(&to).as_fd()).unwrap();
        let meta = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!(fs::read(to.join("sub/again")).unwrap(), b"contents");
        assert_eq!(meta("file").mode() & 0o7777, 0o4751);
        assert_eq!(meta("file").ino(), meta("sub/again").ino());
        assert_eq!(
            fs::read_link(to.join("sub/link")).unwrap(),
            OsStr::new("../out")
        );
        assert!(meta("fifo").file_type().is_fifo());
        assert_eq!(meta("fifo").mode() & 0o777, 0o622);
        assert!(meta("sub/deep").is_dir());
        assert_eq!(meta("").mode() & 0o7777, 0o1777);
        assert_eq!(
            (meta("file").mtime(), meta("").mtime()),
            (1_000_000, 1_000_000)
        );
    }
}
