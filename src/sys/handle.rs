//! File handles and filesystem identities.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::Stat;

use super::elsewhere;

/// The longest handle that any filesystem makes (`MAX_HANDLE_SZ`).
pub(super) const MAX_HANDLE: usize = 128;

/// The kernel's `struct file_handle` with room for the longest handle.
#[repr(C, align(8))]
struct Buffer {
    bytes: u32,
    kind: i32,
    data: [u8; MAX_HANDLE],
}

/// A file handle as the filesystem made it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle {
    /// How the filesystem reads the bytes.
    pub kind: i32,
    /// The bytes.
    pub data: Vec<u8>,
}

/// The handle of `name` in `dir`, or of `dir` itself for an empty name; a symlink is not followed. `None` where the filesystem has no handles.
pub fn name_to_handle(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<FileHandle>> {
    let mut buffer = Buffer {
        bytes: MAX_HANDLE as u32,
        kind: 0,
        data: [0; MAX_HANDLE],
    };
    let mut mount_id = 0;
    let flags = if name.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        0
    };
    let name = CString::new(name.as_bytes())?;
    // SAFETY: `buffer` has the layout of `struct file_handle` and says truthfully how much room follows its header;
    // `name` is terminated and both pointers outlive the call.
    let result = unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            name.as_ptr(),
            (&raw mut buffer).cast(),
            &mut mount_id,
            flags,
        )
    };
    if result == 0 {
        let len = (buffer.bytes as usize).min(MAX_HANDLE);
        return Ok(Some(FileHandle {
            kind: buffer.kind,
            data: buffer.data[..len].to_vec(),
        }));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EOVERFLOW | libc::ENOSYS) => Ok(None),
        _ => Err(error),
    }
}

/// Attributes of what a handle names in the filesystem of `mount`, which must not be an `O_PATH` descriptor. Needs
/// `CAP_DAC_READ_SEARCH`.
pub fn stat_by_handle(mount: BorrowedFd<'_>, kind: i32, data: &[u8]) -> io::Result<Stat> {
    match elsewhere::stat_by_handle(mount, kind, data) {
        Some(found) => found,
        None => stat_here(mount, kind, data),
    }
}

/// The same, whatever this process may have others do for it.
pub(super) fn stat_here(mount: BorrowedFd<'_>, kind: i32, data: &[u8]) -> io::Result<Stat> {
    Ok(rustix::fs::fstat(open_by_handle(mount, kind, data)?)?)
}

/// Opens what a handle names with `O_PATH`, in the filesystem of `mount`.
fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, data: &[u8]) -> io::Result<OwnedFd> {
    if data.len() > MAX_HANDLE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut buffer = Buffer {
        bytes: data.len() as u32,
        kind,
        data: [0; MAX_HANDLE],
    };
    buffer.data[..data.len()].copy_from_slice(data);
    // SAFETY: `buffer` has the layout of `struct file_handle`, its length lies within it, and it outlives the call.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut buffer).cast(),
            libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The answer of `FS_IOC_GETFSUUID` (`struct fsuuid2`).
#[repr(C)]
struct FsUuid {
    len: u8,
    uuid: [u8; 16],
}

/// `_IOR(0x15, 0, struct fsuuid2)`.
const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;

/// The uuid that the kernel knows a filesystem by; zeros where it has none or the kernel (before 6.9) cannot tell.
/// `fd` must not be an `O_PATH` descriptor.
pub fn filesystem_uuid(fd: impl AsFd) -> io::Result<[u8; 16]> {
    let mut answer = FsUuid {
        len: 0,
        uuid: [0; 16],
    };
    // SAFETY: the request writes a `struct fsuuid2`, whose layout `FsUuid` has, and the pointer outlives the call.
    let result = unsafe {
        libc::ioctl(
            fd.as_fd().as_raw_fd(),
            FS_IOC_GETFSUUID as libc::Ioctl,
            &raw mut answer,
        )
    };
    if result == 0 {
        return Ok(answer.uuid);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) => Ok([0; 16]),
        _ => Err(error),
    }
}
