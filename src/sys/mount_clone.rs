//! Private mounts of a directory: read-only ones, which no one can write through, and those of uppers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const MOUNT_ATTR_ATIME: u64 = 0x70;
const MOUNT_ATTR_NOATIME: u64 = 0x10;
const MOUNT_ATTR_STRICTATIME: u64 = 0x20;

/// The kernel's `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A detached mount of one directory, without the mounts below it.
#[derive(Debug)]
pub struct MountClone {
    /// Its root, opened with `O_PATH`.
    pub root: OwnedFd,
    /// Reading through it leaves access times alone.
    pub noatime: bool,
}

/// Makes a private, read-only and, where the mount's owner allows, noatime clone of the mount at `dir`. Needs `CAP_SYS_ADMIN` over the mount namespace.
pub fn read_only_clone(dir: BorrowedFd<'_>) -> io::Result<MountClone> {
    let root = clone_of(dir)?;
    // A clone of a shared mount belongs to its peer group: what is mounted there would appear in the clone.
    let mut attr = MountAttr {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME,
        clear: MOUNT_ATTR_ATIME,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    match mount_setattr(root.as_fd(), &attr) {
        Ok(()) => Ok(MountClone {
            root,
            noatime: true,
        }),
        // In a user namespace the access time mode of an inherited mount is locked.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            attr.set = MOUNT_ATTR_RDONLY;
            attr.clear = 0;
            mount_setattr(root.as_fd(), &attr)?;
            Ok(MountClone {
                root,
                noatime: false,
            })
        }
        Err(e) => Err(e),
    }
}

/// Takes from a detached mount, and from all those below it, the right to write, to run programs and to reach devices.
pub fn lock_down(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
        clear: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    set_attributes(mount, &attr, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE)
}

/// When reading through a mount changes access times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessTimes {
    /// As on the mount that was cloned.
    #[default]
    AsBelow,
    /// `noatime`.
    Never,
    /// `strictatime`.
    Always,
}

/// Makes a private clone of the mount at `dir` that can be written through, and that leaves the mount itself free to be
/// unmounted. Returns its root, opened with `O_PATH`. Needs `CAP_SYS_ADMIN` over the mount namespace.
pub fn writable_clone(dir: BorrowedFd<'_>, times: AccessTimes) -> io::Result<OwnedFd> {
    let root = clone_of(dir)?;
    let private = MountAttr {
        set: 0,
        clear: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    mount_setattr(root.as_fd(), &private)?;
    let set = match times {
        AccessTimes::AsBelow => return Ok(root),
        AccessTimes::Never => MOUNT_ATTR_NOATIME,
        AccessTimes::Always => MOUNT_ATTR_STRICTATIME,
    };
    let timed = MountAttr {
        set,
        clear: MOUNT_ATTR_ATIME,
        propagation: 0,
        userns_fd: 0,
    };
    match mount_setattr(root.as_fd(), &timed) {
        Ok(()) => Ok(root),
        // Locked, as above.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(root),
        Err(e) => Err(e),
    }
}

/// Puts an empty, read-only filesystem over each of these directories, which lie on a detached mount. Whoever comes there by
/// `..` is in the empty one; the descriptors of the directories themselves stay as they are. Of a kernel before Linux 6.15,
/// which mounts nothing on what is not attached, an error (`EINVAL`).
pub fn cover(dirs: &[OwnedFd]) -> io::Result<()> {
    let filesystem = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&filesystem, "mode", "0000")?;
    fsconfig_create(&filesystem)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let empty = fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    for dir in dirs {
        move_mount(clone_of(empty.as_fd())?, "", dir, "", flags)?;
    }
    Ok(())
}

fn clone_of(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(dir, "", flags)?)
}

fn mount_setattr(mount: BorrowedFd<'_>, attr: &MountAttr) -> io::Result<()> {
    set_attributes(mount, attr, libc::AT_EMPTY_PATH)
}

fn set_attributes(mount: BorrowedFd<'_>, attr: &MountAttr, flags: i32) -> io::Result<()> {
    // SAFETY: the path is terminated, `attr` has the kernel's layout and its true size is passed; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
