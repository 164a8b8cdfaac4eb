//! Removal of trees that may be hostile: by descriptor, without following anything, at any depth.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Removes `name` in `dir` and everything below it. What is not there is no error.
///
/// A tree deeper than the process may have descriptors is removed too: where a directory lies too deep, it is renamed up
/// to the top first.
pub(crate) fn remove_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    remove_dir(dir, name)
}

/// Directories that are held open at a time.
const DEPTH: usize = 64;

fn remove_dir(top: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let mut moved = 0u64;
    let mut stack: Vec<(OwnedFd, OsString)> = vec![(open_dir(top, name)?, name.to_owned())];
    while let Some((fd, _)) = stack.last() {
        let mut below = None;
        for entry in Dir::read_from(fd)? {
            let entry = entry?;
            let child = OsStr::from_bytes(entry.file_name().to_bytes());
            if child == "." || child == ".." {
                continue;
            }
            match rustix::fs::unlinkat(fd, child, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    below = Some(child.to_owned());
                    break;
                }
                Err(e) => return Err(e.into()),
            }
        }
        match below {
            Some(child) if stack.len() < DEPTH => {
                let opened = open_dir(fd.as_fd(), &child)?;
                stack.push((opened, child));
            }
            Some(child) => {
                // Into the topmost directory, where the walk meets it again. Its mode is made to allow that.
                drop(open_dir(fd.as_fd(), &child)?);
                let first = &stack[0].0;
                loop {
                    moved += 1;
                    let aside = OsString::from(format!(".acetate-removed-{moved}"));
                    match rustix::fs::renameat(fd, &child, first, &aside) {
                        Ok(()) => break,
                        Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
            }
            None => {
                if let Some((_, name)) = stack.pop() {
                    let parent = stack.last().map_or(top, |(fd, _)| fd.as_fd());
                    rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR)?;
                }
            }
        }
    }
    Ok(())
}

/// Opens a directory, also one of ours whose mode forbids it.
fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let writable = |fd: &OwnedFd| -> Result<(), Errno> {
        let stat = rustix::fs::fstat(fd)?;
        if stat.st_mode & 0o700 != 0o700 {
            rustix::fs::fchmod(fd, Mode::RWXU)?;
        }
        Ok(())
    };
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(fd) => {
            writable(&fd)?;
            Ok(fd)
        }
        Err(Errno::ACCESS) => {
            // `unlinkat` has told that this is a directory, and nobody else writes here.
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_and_closed_trees_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let top = rustix::fs::open(
            dir.path(),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        // Deeper than a path may be long, and than descriptors may be open.
        let mut fd = rustix::io::dup(&top).unwrap();
        for depth in 0..3000 {
            let name = if depth == 0 { "tree" } else { "deep" };
            rustix::fs::mkdirat(&fd, name, Mode::RWXU).unwrap();
            let below =
                rustix::fs::openat(&fd, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
            let below = below.unwrap();
            for file in ["a", "z"] {
                rustix::fs::openat(&below, file, OFlags::CREATE | OFlags::WRONLY, Mode::empty())
                    .unwrap();
            }
            fd = below;
        }
        drop(fd);
        std::os::unix::fs::symlink("/", dir.path().join("tree/link")).unwrap();
        remove_at(top.as_fd(), OsStr::new("tree")).unwrap();
        remove_at(top.as_fd(), OsStr::new("never there")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
