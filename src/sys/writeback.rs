//! Handing written data to the disk, range by range.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Has the kernel begin to write a range of a file, in bytes. It makes nothing durable.
pub fn begin(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    sync_range(file, offset, len, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits until what [`begin`] began is written.
pub fn finish(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    sync_range(file, offset, len, libc::SYNC_FILE_RANGE_WAIT_BEFORE)
}

/// Writes all data of a file that is not on the device yet, and waits until it is there, and until the file's blocks are recorded as
/// written in a transaction that has at least begun. It makes nothing durable: the device may keep it in its cache. Before Linux
/// 5.2 the kernel may leave pages out that it is busy with.
pub fn write_out(file: BorrowedFd<'_>) -> io::Result<()> {
    // All three together: then the kernel writes for integrity, and passes nothing over.
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // A length of 0 leads to the end of the file.
    sync_range(file, 0, 0, flags)
}

fn sync_range(file: BorrowedFd<'_>, offset: u64, len: u64, flags: libc::c_uint) -> io::Result<()> {
    let out_of_range = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = i64::try_from(offset).map_err(out_of_range)?;
    let len = i64::try_from(len).map_err(out_of_range)?;
    // SAFETY: the call takes numbers and a descriptor that is open as long as it is borrowed; it touches no memory.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// `_IOR(0x94, 24, __u64)`.
const BTRFS_IOC_START_SYNC: libc::c_ulong = 0x8008_9418;
/// `_IOW(0x94, 22, __u64)`.
const BTRFS_IOC_WAIT_SYNC: libc::c_ulong = 0x4008_9416;

/// Commits what has happened on a btrfs so far, but for data that is not written yet. `file` is any file or directory on it.
pub fn commit_btrfs(file: BorrowedFd<'_>) -> io::Result<()> {
    let mut transaction = 0_u64;
    for request in [BTRFS_IOC_START_SYNC, BTRFS_IOC_WAIT_SYNC] {
        // SAFETY: both requests take a pointer to a 64-bit number, which the first writes and the second reads; it outlives the
        // calls.
        let result = unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                request as libc::Ioctl,
                &raw mut transaction,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xC020_660B;
const FIEMAP_FLAG_SYNC: u32 = 1;

/// `struct fiemap` without room for extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

/// Waits until all data of a file on btrfs is written and the file knows of it, so that the next commit has both. It makes nothing
/// durable, and nothing of it gets into the log.
pub fn finish_btrfs(file: BorrowedFd<'_>) -> io::Result<()> {
    let mut request = Fiemap {
        start: 0,
        length: u64::MAX,
        flags: FIEMAP_FLAG_SYNC,
        mapped: 0,
        count: 0,
        reserved: 0,
    };
    // SAFETY: the request reads and writes a `struct fiemap`, whose layout `Fiemap` has, and no extents, as there is room for
    // none; it outlives the call.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            FS_IOC_FIEMAP as libc::Ioctl,
            &raw mut request,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn ranges_of_files_are_taken_and_others_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 8192]).unwrap();
        begin(file.as_fd(), 0, 8192).unwrap();
        finish(file.as_fd(), 0, 8192).unwrap();
        write_out(file.as_fd()).unwrap();
        let err = begin(file.as_fd(), u64::MAX, 1).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::EFBIG));
        let (pipe, _other) = io::pipe().unwrap();
        for err in [begin(pipe.as_fd(), 0, 1), write_out(pipe.as_fd())] {
            assert_eq!(err.unwrap_err().raw_os_error(), Some(libc::ESPIPE));
        }
    }
}
