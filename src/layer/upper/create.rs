//! Making new entries in one step, where one system call makes them just as they are to be.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::{Node, Published, Stage, Upper};
use crate::layer::Stat;
use crate::layer::node::{DotWhiteouts, PathNode};
use crate::layer::tree::{path_node, to_stat};
use crate::sys::path_fd;

/// Whom a new inode is to belong to, and what it may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewAttributes {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl Upper {
    /// Makes an entry where the upper has none, right in its place: half the work of staging and publishing it. `parent` is
    /// what `stat` says of the directory, which must have no default ACL. `None`: one call would not give
    /// it these attributes, so it must be staged.
    pub fn create(
        &self,
        dir: &Node,
        parent: &Stat,
        name: &OsStr,
        kind: Stage<'_>,
        attributes: NewAttributes,
    ) -> io::Result<Option<Published>> {
        let is_dir = matches!(kind, Stage::Dir);
        let inherits = parent.mode & libc::S_ISGID != 0;
        let gid = if inherits {
            parent.gid
        } else {
            rustix::process::getegid().as_raw()
        };
        // The kernel makes a directory set-group-id where its parent is; it may drop such bits of anything else.
        let special = if inherits && is_dir { libc::S_ISGID } else { 0 };
        let given = self.tree.override_xattr().is_none()
            && attributes.uid == rustix::process::geteuid().as_raw()
            && attributes.gid == gid
            && attributes.mode & (libc::S_ISUID | libc::S_ISGID) == special;
        if !given {
            return Ok(None);
        }
        let dir = path_node(dir)?;
        let dir_fd = dir.dir_fd()?;
        let dir_fd = dir_fd.as_fd();
        let file = make(dir_fd, name, kind, attributes.mode & !special)?;
        let completed = complete(dir_fd, name, kind, file.as_ref(), attributes);
        let stat = match completed {
            Ok(stat) => stat,
            Err(e) => {
                let flags = if is_dir {
                    AtFlags::REMOVEDIR
                } else {
                    AtFlags::empty()
                };
                rustix::fs::unlinkat(dir_fd, name, flags)?;
                return Err(e);
            }
        };
        let node = PathNode::child(dir, name, stat.ino);
        if is_dir {
            node.set_dot_whiteouts(DotWhiteouts::None);
        }
        Ok(Some(Published {
            node: Node::Path(node),
            file: file.map(File::from),
            stat: Some(stat),
        }))
    }
}

fn make(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    kind: Stage<'_>,
    mode: u32,
) -> io::Result<Option<OwnedFd>> {
    let mode = Mode::from_raw_mode(mode);
    match kind {
        Stage::File => {
            let flags =
                OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return Ok(Some(rustix::fs::openat(dir, name, flags, mode)?));
        }
        Stage::Dir => rustix::fs::mkdirat(dir, name, mode)?,
        Stage::Symlink(target) => rustix::fs::symlinkat(target, dir, name)?,
        Stage::Special(file_type, rdev) => {
            rustix::fs::mknodat(dir, name, FileType::from_raw_mode(file_type), mode, rdev)?;
        }
    }
    Ok(None)
}

/// What was made; with what the process's umask took away, and an owner other than expected, set right.
fn complete(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    kind: Stage<'_>,
    file: Option<&OwnedFd>,
    attributes: NewAttributes,
) -> io::Result<Stat> {
    let look = || -> io::Result<Stat> {
        Ok(to_stat(&match file {
            Some(file) => rustix::fs::fstat(file)?,
            None => rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?,
        }))
    };
    let stat = look()?;
    let owner = (stat.uid, stat.gid) == (attributes.uid, attributes.gid);
    let mode = matches!(kind, Stage::Symlink(_)) || stat.mode & 0o7777 == attributes.mode & 0o7777;
    if owner && mode {
        return Ok(stat);
    }
    let opened;
    let fd = match file {
        Some(file) => file.as_fd(),
        None => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            opened = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            opened.as_fd()
        }
    };
    if !owner {
        path_fd::chown(fd, Some(attributes.uid), Some(attributes.gid))?;
    }
    if !mode {
        path_fd::chmod(fd, attributes.mode)?;
    }
    look()
}
