//! Calls on what a descriptor names, also when it was opened with `O_PATH`, whether or not it still has a name.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timestamps, Uid};

/// The path by which the process reaches what a descriptor names.
pub fn proc_path(fd: BorrowedFd<'_>) -> CString {
    let text = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // A decimal number holds no NUL, so the empty default is never used.
    CString::new(text).unwrap_or_default()
}

/// Opens it anew. `O_NOFOLLOW` must not be among the flags.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        proc_path(fd.as_fd()).as_c_str(),
        flags | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Sets the permission bits.
pub fn chmod(fd: impl AsFd, mode: u32) -> io::Result<()> {
    // SAFETY: the path is terminated and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fchmodat2,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            mode & 0o7777,
            libc::AT_EMPTY_PATH,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Before Linux 6.6, or a sandbox that does not know the call.
        Some(libc::ENOSYS | libc::EPERM | libc::EINVAL) => Ok(rustix::fs::chmodat(
            CWD,
            proc_path(fd.as_fd()).as_c_str(),
            Mode::from_raw_mode(mode & 0o7777),
            AtFlags::empty(),
        )?),
        _ => Err(error),
    }
}

/// Sets owner and group.
pub fn chown(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    Ok(rustix::fs::chownat(
        fd,
        "",
        uid.map(Uid::from_raw),
        gid.map(Gid::from_raw),
        AtFlags::EMPTY_PATH,
    )?)
}

/// Sets times.
pub fn set_times(fd: impl AsFd, times: &Timestamps) -> io::Result<()> {
    Ok(rustix::fs::utimensat(fd, "", times, AtFlags::EMPTY_PATH)?)
}

/// Gives it another name.
pub fn link(fd: impl AsFd, dir: impl AsFd, name: &std::ffi::OsStr) -> io::Result<()> {
    match rustix::fs::linkat(fd.as_fd(), "", dir.as_fd(), name, AtFlags::EMPTY_PATH) {
        Ok(()) => Ok(()),
        // Without CAP_DAC_READ_SEARCH the kernel answers ENOENT; the way through /proc needs no capability.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::PERM) => Ok(rustix::fs::linkat(
            CWD,
            proc_path(fd.as_fd()).as_c_str(),
            dir,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )?),
        Err(e) => Err(e.into()),
    }
}
