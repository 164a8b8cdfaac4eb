//! What the filesystem of the upper keeps over a power cut, and in which order.
//!
//! ext4 and xfs replay their journals in the order of the changes. btrfs commits all changes at once, but an fsync takes what one
//! file needs ahead of the commit, by its log: that a neighbour exists, with its xattrs and the size 0; and that a file
//! was renamed, without the whiteout that the rename left, or the other way round. So on btrfs names are committed before any
//! fsync, and copies are not fsynced but written: a commit has their data along with their names (found by cutting the
//! power).
//!
//! A copy has to be on the disk when its name is. An fsync of each would do, but it commits the journal, for which whoever changes
//! anything there waits, and the name that follows is not durable by it. Where the order is kept it is enough that the data has
//! been written and the file's blocks are recorded as such before the name is given: that is one transaction with the name, or an
//! earlier one, and a journal on the same device flushes the device's cache before each of its commits, so also the data that the
//! device had taken by then. ext4 and xfs end the writeback of a page only after they have recorded its block as
//! written, in a transaction that is open at least. So the guarantee is that of the kernel's overlayfs, which fsyncs: the lower file or
//! all of the copy. It takes a journal, which ext4 may lack, on the device of the data, and with ext4 one whose commits wait for that
//! flush (`journal_async_commit` does not); where either cannot be seen to be so, copies are fsynced.
//!
//! What a file holds after a power cut where its data was not synced tells of what was written only if blocks are recorded as
//! written after they are. ext4 does that with `data=ordered` and `data=journal`; with `data=writeback` it depends on
//! how the blocks were allocated, and without a journal on nothing. An ext4 tells its options in force in `/proc`; one that does
//! not is taken for the worst.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Upper;
use crate::sys::{mountinfo, writeback};

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
    /// Data that was written is durable once a later change of a name is (see above). Immutable.
    follows_data: bool,
    /// See [`Upper::shows_written`]. Immutable.
    shows_written: bool,
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
        let found = rustix::fs::fstatfs(root).map(|fs| fs.f_type);
        let dev = rustix::fs::fstat(root).map(|stat| stat.st_dev).ok();
        let (kind, follows_data, shows_written) = match found {
            Ok(EXT4) => {
                let name = dev.and_then(device_name);
                let options = name.as_deref().map(ext4_options).unwrap_or_default();
                let follows = name.is_some_and(|name| ext4_follows_data(&options, &name));
                (Kind::Journal, follows, ext4_shows_written(&options))
            }
            Ok(XFS) => (Kind::Journal, dev.is_some_and(xfs_follows_data), true),
            Ok(BTRFS) => (Kind::Log, false, true),
            Ok(_) | Err(_) => (Kind::Other, false, false),
        };
        Order {
            kind,
            follows_data,
            shows_written,
            // Those of the mount before.
            names: AtomicBool::new(true),
        }
    }

    /// Whether data that was written is durable once a later change of a name is.
    pub(super) fn follows_data(&self) -> bool {
        self.follows_data
    }

    /// To be held while names are changed.
    pub(super) fn name_change(&self) -> NameChange<'_> {
        NameChange(self)
    }
}

impl Upper {
    /// Whether the filesystem keeps the order of changes of metadata over a power cut, so that a file without data of its own
    /// need not be synced before it is named. An ext4 without a journal does not, but has to be repaired after a power cut
    /// anyway, which no sync of single files spares it: nothing is gained by one, and the kernel's overlayfs makes none either.
    pub fn keeps_order(&self) -> bool {
        matches!(self.order.kind, Kind::Journal | Kind::Log)
    }

    /// Sees to it that a file's data is never missing where its later name survives a power cut.
    pub fn sync_copy(&self, file: &File) -> io::Result<()> {
        if self.order.follows_data() {
            return writeback::write_out(file.as_fd());
        }
        if self.order.kind == Kind::Log {
            match writeback::finish_btrfs(file.as_fd()) {
                Ok(()) => return Ok(()),
                Err(e) => log::debug!("a copy is synced: {e}"),
            }
            self.settle_names()?;
        }
        file.sync_all()
    }

    /// Whether the filesystem tells of data in a file, after a power cut, only where it was written: ext4 with ordered data and xfs
    /// have no more than room there before, btrfs a hole. And whether a hole that was made is as durable as an xattr set afterwards.
    pub fn shows_written(&self) -> bool {
        self.order.shows_written
    }

    /// Whether a sync takes names ahead of others, unless [`Upper::settle_names`] was called before it: one that the kernel makes by
    /// itself is then none to rely on.
    pub fn must_settle_names(&self) -> bool {
        self.order.kind == Kind::Log && !self.options.volatile
    }

    /// Makes the names durable that an fsync might take ahead of others; to be called before it.
    pub fn settle_names(&self) -> io::Result<()> {
        if !self.must_settle_names() || !self.order.names.swap(false, Ordering::AcqRel) {
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

/// What the kernel calls a block device.
fn device_name(dev: u64) -> Option<OsString> {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let device = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    device.file_name().map(OsStr::to_owned)
}

/// The options that are in force for the ext4 on a device, a line each; none where they cannot be seen.
fn ext4_options(device: &OsStr) -> Vec<u8> {
    let path = Path::new("/proc/fs/ext4").join(device).join("options");
    std::fs::read(&path).unwrap_or_else(|e| {
        log::debug!("{}: {e}", path.display());
        Vec::new()
    })
}

fn has_option(options: &[u8], name: &str) -> bool {
    options
        .split(|b| *b == b'\n')
        .any(|line| line == name.as_bytes())
}

/// Whether an ext4 with these options has its journal on its own device, flushes that before it commits, and the kernel leaves out
/// nothing that it is to write.
fn ext4_follows_data(options: &[u8], device: &OsStr) -> bool {
    if options.is_empty() || has_option(options, "journal_async_commit") || !writes_all_here() {
        return false;
    }
    // Only an ext4 with a journal has an entry there.
    std::fs::read_dir("/proc/fs/jbd2").is_ok_and(|journals| {
        journals
            .flatten()
            .any(|journal| lies_on(journal.file_name().as_bytes(), device.as_bytes()))
    })
}

/// See [`Upper::shows_written`]. An ext4 without a journal has no option `data`.
fn ext4_shows_written(options: &[u8]) -> bool {
    has_option(options, "data=ordered") || has_option(options, "data=journal")
}

/// Whether the xfs on a device has its log there too, and the kernel leaves out nothing that it is to write.
fn xfs_follows_data(dev: u64) -> bool {
    if !writes_all_here() {
        return false;
    }
    let mounts = std::fs::read("/proc/self/mountinfo");
    let options = mounts
        .ok()
        .and_then(|mounts| mountinfo::filesystem_options(&mounts, dev));
    options.is_some_and(|options| has_one_device(&options))
}

fn writes_all_here() -> bool {
    writes_all(rustix::system::uname().release().to_bytes())
}

/// Whether a kernel of this release has `SYNC_FILE_RANGE_WRITE_AND_WAIT`: 5.2 and later.
fn writes_all(release: &[u8]) -> bool {
    let mut numbers = release
        .split(|b| !b.is_ascii_digit())
        .map(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= (5, 2),
        _ => false,
    }
}

/// Whether a journal is an inode of the filesystem on this device: that is told by the inode's number behind the device's name.
/// A journal on a device of its own is called like that device.
fn lies_on(journal: &[u8], device: &[u8]) -> bool {
    let inode = journal
        .strip_prefix(device)
        .and_then(|rest| rest.strip_prefix(b"-"));
    inode.is_some_and(|inode| !inode.is_empty() && inode.iter().all(u8::is_ascii_digit))
}

/// Whether an xfs that was mounted with these options has its log and all of its data on one device.
fn has_one_device(options: &[Vec<u8>]) -> bool {
    let elsewhere =
        |option: &Vec<u8>| option.starts_with(b"logdev=") || option.starts_with(b"rtdev=");
    !options.iter().any(elsewhere)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_journal_of_its_own_device_is_not_taken_for_one_of_the_data() {
        assert!(lies_on(b"vda1-8", b"vda1"));
        assert!(lies_on(b"dm-0-8", b"dm-0"));
        for journal in [
            &b"vda1"[..],
            b"vda1-",
            b"vda11-8",
            b"vda1-8x",
            b"loop1",
            b"dm-0",
        ] {
            assert!(!lies_on(journal, b"vda1"), "{journal:?}");
        }
        assert!(!lies_on(b"dm-0", b"dm-0"));
    }

    #[test]
    fn an_ext4_without_a_journal_or_with_data_behind_it_tells_of_nothing_written() {
        for (options, shows) in [
            (&b"rw\ndelalloc\ndata=ordered\ncommit=5\n"[..], true),
            (b"rw\nnodelalloc\ndata=journal\n", true),
            (b"rw\ndelalloc\ndioread_nolock\ndata=writeback\n", false),
            (b"rw\ndelalloc\ndioread_nolock\n", false),
            (b"", false),
        ] {
            let text = String::from_utf8_lossy(options);
            assert_eq!(ext4_shows_written(options), shows, "{text}");
        }
        let options = b"rw\njournal_async_commit\ndata=writeback\n";
        assert!(has_option(options, "journal_async_commit"));
        assert!(!has_option(
            b"rw\nnojournal_async_commit\n",
            "journal_async_commit"
        ));
        assert!(!ext4_follows_data(b"", OsStr::new("vda1")));
    }

    #[test]
    fn kernels_that_leave_pages_out_are_told_apart() {
        for release in [&b"5.2.0"[..], b"6.18.44-x", b"5.10", b"10.0.1"] {
            assert!(writes_all(release), "{release:?}");
        }
        for release in [&b"5.1.21"[..], b"4.19.0-6-amd64", b"", b"6", b"x.y"] {
            assert!(!writes_all(release), "{release:?}");
        }
    }

    #[test]
    fn an_xfs_on_several_devices_is_told_apart() {
        let options = |text: &str| {
            text.split(',')
                .map(|o| o.as_bytes().to_vec())
                .collect::<Vec<_>>()
        };
        assert!(has_one_device(&options(
            "rw,attr2,inode64,logbufs=8,noquota"
        )));
        assert!(!has_one_device(&options("rw,logdev=/dev/sdb")));
        assert!(!has_one_device(&options("rw,rtdev=/dev/sdb")));
    }
}
