//! New inodes in the workdir.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags};

use super::{Mark, Stage, TimeSet, Upper};
use crate::layer::format::{OverrideValue, OverrideXattr};
use crate::layer::node::{DotWhiteouts, PathNode};
use crate::layer::tree::to_stat;
use crate::layer::{Node, Stat};
use crate::sys::xattr::{self, Target};

/// A new inode in the workdir that no one sees yet. Dropped without [`Upper::publish`] it is removed again.
#[derive(Debug)]
pub struct Staged {
    upper: Arc<Upper>,
    /// Stands at `name` in the scratch directory.
    node: Node,
    name: OsString,
    /// `None` once it has got its place.
    fd: Option<StagedFd>,
    /// Owner and group at present. A leaf lock.
    owner: Mutex<(u32, u32)>,
    is_dir: bool,
}

/// An inode that has got its place.
#[derive(Debug)]
pub struct Published {
    /// The node.
    pub node: Node,
    /// The file, still open for reading and writing, where it was staged as one.
    pub file: Option<File>,
    /// Its attributes, where they are known already.
    pub stat: Option<Stat>,
}

/// The descriptor of a new inode.
#[derive(Debug)]
pub(super) enum StagedFd {
    /// Open for reading and writing.
    File(File),
    /// Opened with `O_PATH`.
    Path(OwnedFd),
}

impl Upper {
    /// Makes a new inode in the workdir: a file of mode 0600, a directory of mode 0700, until set otherwise.
    pub fn stage(self: &Arc<Self>, kind: Stage<'_>) -> io::Result<Staged> {
        let temp = self.work.temp();
        let (fd, made) = self.make_staged(kind, &temp.name)?;
        let is_dir = matches!(kind, Stage::Dir);
        let node = PathNode::child(&self.work.scratch, &temp.name, made.ino);
        if is_dir {
            node.set_dot_whiteouts(DotWhiteouts::None);
        }
        let name = temp.name.clone();
        temp.keep();
        Ok(Staged {
            upper: self.clone(),
            node: Node::Path(node),
            name,
            fd: Some(fd),
            owner: Mutex::new((made.uid, made.gid)),
            is_dir,
        })
    }

    /// Makes an inode in the scratch directory; returns it with its real attributes.
    pub(super) fn make_staged(
        &self,
        kind: Stage<'_>,
        name: &OsStr,
    ) -> io::Result<(StagedFd, Stat)> {
        // Where modes are kept in xattrs the real one only has to let the process, and other tools, in.
        let kept = self.tree.override_xattr();
        let mode = |mode| Mode::from_raw_mode(if kept.is_some() { 0o755 } else { mode });
        let dir = &self.work.fd;
        let create = || {
            let flags =
                OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, name, flags, mode(0o600))
        };
        let mut special = None;
        match kind {
            Stage::File => {
                let fd = create()?;
                let stat = to_stat(&rustix::fs::fstat(&fd)?);
                return Ok((StagedFd::File(fd.into()), stat));
            }
            Stage::Special(file_type, rdev) if kept.is_some() => {
                create()?;
                special = Some((file_type, rdev));
            }
            Stage::Dir => rustix::fs::mkdirat(dir, name, mode(0o700))?,
            Stage::Symlink(target) => rustix::fs::symlinkat(target, dir, name)?,
            Stage::Special(file_type, rdev) => rustix::fs::mknodat(
                dir,
                name,
                FileType::from_raw_mode(file_type),
                mode(0o600),
                rdev,
            )?,
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        let stat = to_stat(&rustix::fs::fstat(&fd)?);
        if let (Some(kept), Some(special)) = (kept, special) {
            keep_special(fd.as_fd(), kept, &stat, special)?;
        }
        Ok((StagedFd::Path(fd), stat))
    }
}

fn keep_special(
    fd: BorrowedFd<'_>,
    kept: OverrideXattr,
    stat: &Stat,
    special: (u32, u64),
) -> io::Result<()> {
    let value = OverrideValue {
        mode: 0o600,
        kind: Some(special),
        ..OverrideValue::of(stat)
    };
    xattr::set(Target::Fd(fd), kept.name(), value.encode().as_bytes(), 0)
}

impl StagedFd {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            StagedFd::File(file) => file.as_fd(),
            StagedFd::Path(fd) => fd.as_fd(),
        }
    }
}

impl Staged {
    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }
    /// The open file, for [`Stage::File`].
    pub fn file(&self) -> Option<&File> {
        match &self.fd {
            Some(StagedFd::File(file)) => Some(file),
            Some(StagedFd::Path(_)) | None => None,
        }
    }
    fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.fd {
            Some(fd) => Ok(fd.as_fd()),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }
    /// Attributes at present.
    pub fn stat(&self) -> io::Result<Stat> {
        self.upper.stat_fd(self.fd()?)
    }
    /// Sets owner and group.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let before = *self.owner.lock();
        let after = (uid.unwrap_or(before.0), gid.unwrap_or(before.1));
        if before == after && self.upper.tree.override_xattr().is_none() {
            return Ok(());
        }
        self.upper.chown_fd(self.fd()?, uid, gid)?;
        *self.owner.lock() = after;
        Ok(())
    }
    /// Sets the permission bits.
    pub fn chmod(&self, mode: u32) -> io::Result<()> {
        self.upper.chmod_fd(self.fd()?, mode)
    }
    /// Sets times; `None` leaves one as it is.
    pub fn set_times(&self, atime: Option<TimeSet>, mtime: Option<TimeSet>) -> io::Result<()> {
        self.upper.set_times_fd(self.fd()?, atime, mtime)
    }
    /// Sets an xattr by its name on disk.
    pub fn set_xattr(&self, disk_name: &OsStr, value: &[u8], flags: i32) -> io::Result<()> {
        self.upper
            .set_program_xattr_fd(self.fd()?, disk_name, value, flags)
    }
    /// Writes a private mark.
    pub fn set_mark(&self, mark: &Mark) -> io::Result<()> {
        self.upper.set_mark_fd(self.fd()?, mark)
    }
    pub(super) fn is_dir(&self) -> bool {
        self.is_dir
    }
    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }
    /// It has got its place.
    pub(super) fn published(mut self) -> Published {
        let file = match self.fd.take() {
            Some(StagedFd::File(file)) => Some(file),
            Some(StagedFd::Path(_)) | None => None,
        };
        Published {
            node: self.node.clone(),
            file,
            stat: None,
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.fd.is_none() {
            return;
        }
        self.upper.work.discard(&self.name);
        if let Node::Path(node) = &self.node {
            node.remove_place(&self.upper.work.scratch, &self.name);
        }
    }
}
