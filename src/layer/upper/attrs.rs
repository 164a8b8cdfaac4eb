//! Changing attributes, marks and sizes, and making them durable.

pub(crate) mod acl;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, Timespec, Timestamps};

use super::{Mark, Namespace, Node, TimeSet, Upper};
use crate::layer::format::{OverrideValue, mark_name, mark_value};
use crate::layer::node::PathNode;
use crate::layer::tree::{path_node, to_stat};
use crate::layer::{Access, Stat};
use crate::sys::owed;
use crate::sys::path_fd;
use crate::sys::xattr::{self, Target};

fn is_access_error(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EACCES)
}

/// Runs `f`; when the file's mode forbids it to its unprivileged owner, again with more permissions for that moment.
fn with_owner_bits<T>(
    fd: BorrowedFd<'_>,
    bits: u32,
    mut f: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let denied = match f() {
        Err(e) if is_access_error(&e) => e,
        other => return other,
    };
    let stat = rustix::fs::fstat(fd)?;
    let mode = stat.st_mode as u32;
    let wider = mode | bits;
    if wider == mode || mode & libc::S_IFMT == libc::S_IFLNK {
        return Err(denied);
    }
    // Whoever goes on when this process dies in between puts it back.
    let owed = owed::mode(fd, stat.st_ino as u64, mode);
    if path_fd::chmod(fd, wider).is_err() {
        // Not the owner: the first answer stands.
        return Err(denied);
    }
    let result = f();
    path_fd::chmod(fd, mode)?;
    drop(owed);
    result
}

/// The permission bits that a new owner leaves of a file's, as filesystems do by themselves (`setattr_should_drop_suidgid` in the
/// kernel). What sgid means without the group's execute bit is up to who asks.
fn without_suid(kept: &OverrideValue) -> u32 {
    match kept.kind {
        Some((libc::S_IFDIR, _)) => kept.mode,
        _ if kept.mode & libc::S_IXGRP != 0 => kept.mode & !(libc::S_ISUID | libc::S_ISGID),
        _ => kept.mode & !libc::S_ISUID,
    }
}

fn timespec(time: Option<TimeSet>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: libc::UTIME_OMIT,
        },
        Some(TimeSet::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: libc::UTIME_NOW,
        },
        Some(TimeSet::At(time)) => Timespec {
            tv_sec: time.sec,
            tv_nsec: i64::from(time.nsec),
        },
    }
}

impl Upper {
    /// Sets owner and group.
    pub fn chown(&self, node: &Node, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let fd = path_node(node)?.path_fd()?;
        self.chown_leaving(fd.as_fd(), (uid, gid), without_suid)
    }
    /// Sets the permission bits.
    pub fn chmod(&self, node: &Node, mode: u32) -> io::Result<()> {
        self.chmod_fd(path_node(node)?.path_fd()?.as_fd(), mode)
    }
    /// Sets times; `None` leaves one as it is.
    pub fn set_times(
        &self,
        node: &Node,
        atime: Option<TimeSet>,
        mtime: Option<TimeSet>,
    ) -> io::Result<()> {
        self.set_times_fd(path_node(node)?.path_fd()?.as_fd(), atime, mtime)
    }
    /// Sets the size of a regular file.
    pub fn truncate(&self, node: &Node, size: u64) -> io::Result<()> {
        let file = self.open_file(path_node(node)?, Access::Write)?;
        Ok(rustix::fs::ftruncate(file, size)?)
    }
    /// Sets an xattr by its name on disk; `flags` as of `setxattr(2)`.
    pub fn set_xattr(
        &self,
        node: &Node,
        disk_name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> io::Result<()> {
        self.set_program_xattr_fd(path_node(node)?.path_fd()?.as_fd(), disk_name, value, flags)
    }
    /// Removes an xattr by its name on disk.
    pub fn remove_xattr(&self, node: &Node, disk_name: &OsStr) -> io::Result<()> {
        let fd = path_node(node)?.path_fd()?;
        with_owner_bits(fd.as_fd(), 0o200, || {
            xattr::remove(Target::Fd(fd.as_fd()), disk_name)
        })
    }
    /// Writes a private mark.
    pub fn set_mark(&self, node: &Node, mark: &Mark) -> io::Result<()> {
        self.set_mark_at(path_node(node)?, mark)
    }
    pub(super) fn set_mark_at(&self, node: &Arc<PathNode>, mark: &Mark) -> io::Result<()> {
        self.set_mark_fd(node.path_fd()?.as_fd(), mark)
    }
    /// Makes a file or directory durable; does nothing when volatile.
    pub fn fsync(&self, node: &Node) -> io::Result<()> {
        if self.options.volatile {
            return Ok(());
        }
        let node = path_node(node)?;
        match node.raw_stat()?.st_mode as u32 & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFDIR => {
                Ok(rustix::fs::fsync(self.open_file(node, Access::Read)?)?)
            }
            // Nothing but a name, an inode and xattrs, which their directory's fsync makes durable.
            _ => Ok(()),
        }
    }
    /// Makes the whole filesystem durable; does nothing when volatile.
    pub fn sync(&self) -> io::Result<()> {
        if self.options.volatile {
            return Ok(());
        }
        Ok(rustix::fs::syncfs(&*self.root_fd)?)
    }

    /// Opens a file, or a directory for reading.
    pub(super) fn open_file(&self, node: &PathNode, access: Access) -> io::Result<OwnedFd> {
        let (flags, bits) = match access {
            Access::Read => (OFlags::RDONLY, 0o400),
            Access::Write => (OFlags::RDWR, 0o600),
        };
        let denied = match node.open(flags) {
            Err(e) if is_access_error(&e) => e,
            other => return other,
        };
        if access == Access::Write
            && let Ok(fd) = node.open(OFlags::WRONLY)
        {
            return Ok(fd);
        }
        let fd = node.path_fd()?;
        with_owner_bits(fd.as_fd(), bits, || node.open(flags))
            .map_err(|e| if is_access_error(&e) { denied } else { e })
    }

    /// Marks of symlinks and special files need a sidecar where they are `user.` xattrs.
    pub(super) fn needs_sidecar(&self, mode: u32) -> bool {
        // With modes in xattrs special files are regular ones, whose stat does not tell.
        let can_carry = match mode & libc::S_IFMT {
            libc::S_IFREG | libc::S_IFDIR => true,
            libc::S_IFLNK => false,
            _ => self.tree.override_xattr().is_some(),
        };
        self.options.namespace == Namespace::User && !can_carry
    }

    pub(super) fn stat_fd(&self, fd: BorrowedFd<'_>) -> io::Result<Stat> {
        let mut stat = to_stat(&rustix::fs::fstat(fd)?);
        self.tree.override_stat(&mut stat, Target::Fd(fd))?;
        Ok(stat)
    }

    /// Changes owner and mode where they are kept in an xattr; false where the inode's own count.
    fn change_kept(
        &self,
        fd: BorrowedFd<'_>,
        change: impl FnOnce(&mut OverrideValue),
    ) -> io::Result<bool> {
        let Some(kept) = self.tree.override_xattr() else {
            return Ok(false);
        };
        let real = rustix::fs::fstat(fd)?.st_mode as u32 & libc::S_IFMT;
        if real != libc::S_IFREG && real != libc::S_IFDIR {
            return Ok(false);
        }
        let mut value = OverrideValue::of(&self.stat_fd(fd)?);
        change(&mut value);
        self.set_xattr_fd(fd, kept.name(), value.encode().as_bytes(), 0)?;
        Ok(true)
    }

    /// Sets owner and group of what nobody has used yet: a kept mode stays.
    pub(super) fn chown_fd(
        &self,
        fd: BorrowedFd<'_>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> io::Result<()> {
        self.chown_leaving(fd, (uid, gid), |kept| kept.mode)
    }

    /// `left`: which permission bits a kept mode has afterwards; what the inode's own has is up to the filesystem.
    fn chown_leaving(
        &self,
        fd: BorrowedFd<'_>,
        (uid, gid): (Option<u32>, Option<u32>),
        left: impl FnOnce(&OverrideValue) -> u32,
    ) -> io::Result<()> {
        let kept = self.change_kept(fd, |value| {
            value.mode = left(value);
            value.uid = uid.unwrap_or(value.uid);
            value.gid = gid.unwrap_or(value.gid);
        })?;
        if kept {
            Ok(())
        } else {
            path_fd::chown(fd, uid, gid)
        }
    }

    pub(super) fn chmod_fd(&self, fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
        self.chmod_kept_acl(fd, mode)?;
        let kept = self.change_kept(fd, |value| value.mode = mode & 0o7777)?;
        if kept {
            Ok(())
        } else {
            path_fd::chmod(fd, mode)
        }
    }

    /// Changes the access ACL of a file along with a mode that is kept in an xattr, as filesystems do with the inode's own: its mask
    /// would go on giving what the mode takes away.
    fn chmod_kept_acl(&self, fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
        if self.tree.override_xattr().is_none() {
            return Ok(());
        }
        let acl = match xattr::get(Target::Fd(fd), acl::ACCESS.as_ref()) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => None,
            other => other?,
        };
        match acl.and_then(|acl| acl::with_mode(&acl, mode)) {
            Some(changed) => self.set_xattr_fd(fd, acl::ACCESS.as_ref(), &changed, 0),
            None => Ok(()),
        }
    }

    pub(super) fn set_times_fd(
        &self,
        fd: BorrowedFd<'_>,
        atime: Option<TimeSet>,
        mtime: Option<TimeSet>,
    ) -> io::Result<()> {
        if atime.is_none() && mtime.is_none() {
            return Ok(());
        }
        let times = Timestamps {
            last_access: timespec(atime),
            last_modification: timespec(mtime),
        };
        path_fd::set_times(fd, &times)
    }

    /// Sets an xattr that programs see. An access ACL is a mode as well: one that is kept in an xattr follows it, as the inode's own
    /// does.
    pub(super) fn set_program_xattr_fd(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> io::Result<()> {
        self.set_xattr_fd(fd, name, value, flags)?;
        if name == acl::ACCESS
            && let Some(mode) = acl::mode_of(value)
        {
            self.change_kept(fd, |kept| kept.mode = kept.mode & !0o777 | mode)?;
        }
        Ok(())
    }

    pub(super) fn set_xattr_fd(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> io::Result<()> {
        with_owner_bits(fd, 0o200, || xattr::set(Target::Fd(fd), name, value, flags))
    }

    /// The value of a mark; that of the one given does not matter.
    pub(super) fn mark_of_fd(
        &self,
        fd: BorrowedFd<'_>,
        mark: &Mark,
    ) -> io::Result<Option<Vec<u8>>> {
        let carrier: Option<File>;
        let mut target = fd;
        if self.options.namespace == Namespace::User
            && self.needs_sidecar(rustix::fs::fstat(fd)?.st_mode as u32)
        {
            carrier = self.sidecar.carrier(fd, false)?;
            match &carrier {
                Some(carrier) => target = carrier.as_fd(),
                None => return Ok(None),
            }
        }
        xattr::get(Target::Fd(target), &mark_name(self.options.namespace, mark))
    }

    pub(super) fn set_mark_fd(&self, fd: BorrowedFd<'_>, mark: &Mark) -> io::Result<()> {
        let carrier: Option<File>;
        let mut target = fd;
        if self.options.namespace == Namespace::User
            && self.needs_sidecar(rustix::fs::fstat(fd)?.st_mode as u32)
        {
            carrier = self.sidecar.carrier(fd, mark_value(mark).is_some())?;
            match &carrier {
                Some(carrier) => target = carrier.as_fd(),
                None => return Ok(()),
            }
        }
        let name = mark_name(self.options.namespace, mark);
        match mark_value(mark) {
            Some(value) => self.set_xattr_fd(target, &name, value, 0),
            None => {
                let removed =
                    with_owner_bits(target, 0o200, || xattr::remove(Target::Fd(target), &name));
                match removed {
                    Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(()),
                    other => other,
                }
            }
        }
    }
}
