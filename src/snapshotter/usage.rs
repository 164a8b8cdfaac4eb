//! What a directory tree takes on disk.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::os::unix::ffi::OsStrExt;

use super::error::SnapshotError;
use super::record::Usage;

/// `st_blocks` counts these, whatever the filesystem's blocks are.
const BLOCK: u64 = 512;

/// Counts a tree, its root included: disk blocks, each inode once. What vanishes meanwhile is not counted.
pub(super) fn of_tree(root: &Path) -> Result<Usage, SnapshotError> {
    let failed = |e: Errno| SnapshotError::io("count", root)(e);
    let mut count = Count::default();
    let top = open(CWD, root.as_os_str()).map_err(failed)?;
    let Some(top) = top else {
        return Err(SnapshotError::io("count", root)(Errno::NOENT));
    };
    count.add(&rustix::fs::fstat(&top).map_err(failed)?);
    // A tree of files that a container made may be deep: no recursion, and one open directory a level.
    let mut stack = vec![(Dir::read_from(&top).map_err(failed)?, top)];
    while let Some((dir, fd)) = stack.last_mut() {
        let Some(entry) = dir.next() else {
            stack.pop();
            continue;
        };
        let entry = entry.map_err(failed)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let stat = match rustix::fs::statat(&*fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(failed(e)),
        };
        let first = count.add(&stat);
        if first
            && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && let Some(below) = open(fd.as_fd(), name).map_err(failed)?
        {
            stack.push((Dir::read_from(&below).map_err(failed)?, below));
        }
    }
    Ok(count.usage)
}

#[derive(Default)]
struct Count {
    usage: Usage,
    /// Inodes that have several names.
    linked: HashSet<(u64, u64)>,
}

impl Count {
    /// Whether it is seen for the first time.
    fn add(&mut self, stat: &Stat) -> bool {
        let shared = stat.st_nlink > 1
            && FileType::from_raw_mode(stat.st_mode) != FileType::Directory
            && !self.linked.insert((stat.st_dev, stat.st_ino));
        if !shared {
            self.usage.inodes += 1;
            self.usage.size += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
        }
        !shared
    }
}

/// A directory; `None` where it is gone or something else now.
fn open(at: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(at, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_inode_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("d")).unwrap();
        std::fs::write(path("d/file"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(path("d/file"), path("link")).unwrap();
        std::os::unix::fs::symlink("/etc", path("symlink")).unwrap();
        let usage = of_tree(dir.path()).unwrap();
        assert_eq!(usage.inodes, 4);
        assert!((100_000..400_000).contains(&usage.size), "{usage:?}");
        std::fs::File::create(path("sparse"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert!(of_tree(dir.path()).unwrap().size < 400_000);
        assert!(of_tree(&path("missing")).is_err());
    }
}
