//! Between the union's types and those of the FUSE protocol.

use std::ffi::{OsStr, OsString};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, Generation, INodeNo, TimeOrNow};

use crate::union::{Attr, DirEntry, Entry, Error, SetTime, Timestamp};

/// The longest name of a directory entry.
const NAME_MAX: usize = 255;

/// Refuses names that no directory can hold; the kernel lets some of them through.
pub(super) fn check_name(name: &OsStr) -> Result<&OsStr, Error> {
    if name.len() > NAME_MAX {
        return Err(Error::Errno(libc::ENAMETOOLONG));
    }
    Ok(name)
}

pub(super) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

pub(super) fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn to_system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nsec));
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|t| t.checked_add(nanos))
        .unwrap_or(UNIX_EPOCH)
}

/// What the kernel sent as seconds and nanoseconds. fuser 0.18 makes of a time before 1970 the point that lies
/// `-seconds + nanoseconds` before the epoch: that is taken apart again here.
fn from_system_time(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nsec: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Timestamp {
                sec: i64::try_from(before.as_secs()).map_or(i64::MIN, |s| -s),
                nsec: before.subsec_nanos(),
            }
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(from_system_time(at)),
    }
}

pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: to_system_time(attr.atime),
        mtime: to_system_time(attr.mtime),
        ctime: to_system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The attributes of an entry reply, and how long they hold. fuser takes the node id from `attr.ino`; where that is not
/// the inode number, the attributes must not be kept, so that the kernel asks for the true ones.
pub(super) fn entry_attr(entry: &Entry) -> (FileAttr, Duration) {
    let mut converted = attr(&entry.attr);
    if entry.node == entry.attr.ino {
        return (converted, entry.attr_ttl);
    }
    converted.ino = INodeNo(entry.node);
    (converted, Duration::ZERO)
}

/// The attributes of a file that was made right now, and the one time that a create reply has for them and for the name.
///
/// That is the name's, also where the file is open in a way by which attributes change without a request: through a
/// mapping. The file is empty, and so is each mapping of it until the kernel itself has changed its size: then the kernel
/// asks for the attributes, and is told that it may not keep them. A time of zero would cost two requests for each file
/// that is made and read by the same descriptor, as `mkstemp(3)` does.
pub(super) fn created_attr(entry: &Entry) -> (FileAttr, Duration) {
    let (attr, attr_ttl) = entry_attr(entry);
    if entry.node == entry.attr.ino && entry.attr.size == 0 {
        return (attr, entry.entry_ttl);
    }
    (attr, attr_ttl.min(entry.entry_ttl))
}

/// The attributes, time and generation of an entry of `readdirplus`, which has one time for the name and the attributes.
pub(super) fn plus_attr(
    entry: &DirEntry<'_>,
    found: Option<&Entry>,
) -> (FileAttr, Duration, Generation) {
    if let Some(found) = found {
        let (attr, attr_ttl) = entry_attr(found);
        let ttl = attr_ttl.min(found.entry_ttl);
        return (attr, ttl, Generation(found.generation));
    }
    // `.` and `..`, from which the kernel takes no inode, and what cannot be looked at: that name is asked for again.
    let mut attr = no_entry();
    attr.ino = INodeNo(entry.ino);
    attr.kind = file_type(entry.file_type);
    (attr, Duration::ZERO, Generation(0))
}

/// Names as `listxattr(2)` gives them, each ended by a zero byte.
pub(super) fn name_list(names: &[OsString]) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        list.extend_from_slice(name.as_encoded_bytes());
        list.push(0);
    }
    list
}

/// The reply to the lookup of a name that does not exist: node id 0.
pub(super) fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch() {
        // The kernel's (-2, 500_000_000) is 1.5 s before the epoch.
        let time = Timestamp {
            sec: -2,
            nsec: 500_000_000,
        };
        let system = to_system_time(time);
        assert_eq!(
            UNIX_EPOCH.duration_since(system).unwrap(),
            Duration::from_millis(1500)
        );
        // What fuser makes of the same two numbers.
        let from_fuser = UNIX_EPOCH - Duration::new(2, 500_000_000);
        assert_eq!(from_system_time(from_fuser), time);
    }

    #[test]
    fn long_names_are_refused() {
        assert!(check_name(OsStr::new(&"a".repeat(255))).is_ok());
        let error = check_name(OsStr::new(&"a".repeat(256))).unwrap_err();
        assert_eq!(error.errno(), libc::ENAMETOOLONG);
    }

    #[test]
    fn an_entry_of_another_node_is_not_kept() {
        let time = Timestamp::default();
        let attr = Attr {
            ino: 7,
            mode: libc::S_IFREG | 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            blksize: 4096,
            atime: time,
            mtime: time,
            ctime: time,
        };
        let long = Duration::from_secs(60);
        let mut entry = Entry {
            node: 7,
            generation: 0,
            attr,
            attr_ttl: long,
            entry_ttl: long,
        };
        assert_eq!(entry_attr(&entry).1, long);
        entry.attr_ttl = Duration::ZERO;
        assert_eq!(created_attr(&entry).1, long);
        entry.attr.size = 1;
        assert_eq!(created_attr(&entry).1, Duration::ZERO);
        (entry.attr.size, entry.attr_ttl) = (0, long);
        entry.node = 9;
        assert_eq!(created_attr(&entry).1, Duration::ZERO);
        let (converted, ttl) = entry_attr(&entry);
        assert_eq!((converted.ino, ttl), (INodeNo(9), Duration::ZERO));
    }
}
