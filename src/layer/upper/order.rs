//! What the filesystem of the upper keeps over a power cut, and in which order.
//!
//! ext4 and xfs replay their journals in the order of the changes. btrfs commits all changes at once, but an fsync takes what one
//! file needs ahead of the commit, by its log: that a neighbour exists, with its xattrs and the size 0; and that a file
//! was renamed, without the whiteout that the rename left, or the other way round. So on btrfs names are committed before any
//! fsync, and copies are not fsynced but written: a commit has their data along with their names (found by cutting the
//! power).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Upper;
use crate::sys::writeback;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// ext4 or xfs.
    Journal,
    /// btrfs.
    Log,
    /// One of which nothing is known.
    Other,
}

/// What an upper knows about it.
#[derive(Debug)]
pub(super) struct Order {
    /// Immutable.
    kind: Kind,
    /// Names were changed since they were last committed. Atomic.
    names: AtomicBool,
}

/// Tells that names may have been changed, when it is dropped.
pub(super) struct NameChange<'a>(&'a Order);

impl Drop for NameChange<'_> {
    fn drop(&mut self) {
        self.0.names.store(true, Ordering::Release);
    }
}

impl Order {
    /// That of the filesystem of an open directory.
    pub(super) fn of(root: &OwnedFd) -> Order {
        const EXT4: i64 = 0xEF53;
        const XFS: i64 = 0x5846_5342;
        const BTRFS: i64 = 0x9123_683E;
        let kind = match rustix::fs::fstatfs(root) {
            Ok(fs) if [EXT4, XFS].contains(&fs.f_type) => Kind::Journal,
            Ok(fs) if fs.f_type == BTRFS => Kind::Log,
            Ok(_) | Err(_) => Kind::Other,
        };
        Order {
            kind,
            // Those of the mount before.
            names: AtomicBool::new(true),
        }
    }

    /// To be held while names are changed.
    pub(super) fn name_change(&self) -> NameChange<'_> {
        NameChange(self)
    }
}

impl Upper {
    /// Whether the filesystem keeps the order of changes of metadata over a power cut, so that a file without data of its own
    /// need not be synced before it is named.
    pub fn keeps_order(&self) -> bool {
        matches!(self.order.kind, Kind::Journal | Kind::Log)
    }

    /// Sees to it that a file's data is never missing where its later name survives a power cut.
    pub fn sync_copy(&self, file: &File) -> io::Result<()> {
        if self.order.kind == Kind::Log {
            match writeback::finish_btrfs(file.as_fd()) {
                Ok(()) => return Ok(()),
                Err(e) => log::debug!("a copy is synced: {e}"),
            }
            self.settle_names()?;
        }
        file.sync_all()
    }

    /// Whether the filesystem tells of data in a file, after a power cut, only where it was written: ext4 (with ordered data) and xfs
    /// have no more than room there before, btrfs a hole. And whether a hole that was made is as durable as an xattr set afterwards.
    pub fn shows_written(&self) -> bool {
        matches!(self.order.kind, Kind::Journal | Kind::Log)
    }

    /// Makes the names durable that an fsync might take ahead of others; to be called before it.
    pub fn settle_names(&self) -> io::Result<()> {
        if self.order.kind != Kind::Log
            || self.options.volatile
            || !self.order.names.swap(false, Ordering::AcqRel)
        {
            return Ok(());
        }
        let committed = writeback::commit_btrfs(self.root_fd.as_fd()).or_else(|e| {
            log::debug!("the whole filesystem is synced: {e}");
            Ok(rustix::fs::syncfs(&*self.root_fd)?)
        });
        if committed.is_err() {
            self.order.names.store(true, Ordering::Release);
        }
        committed
    }
}
