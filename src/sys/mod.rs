//! The only unsafe code: system calls that no crate wraps, and calls on descriptors that were opened with `O_PATH`.

pub mod caps;
pub mod cpu_clock;
pub mod daemon;
pub mod elsewhere;
pub mod fusedev;
pub mod handle;
pub mod mapped;
pub mod memory;
pub mod mount;
pub mod mount_clone;
pub mod mountinfo;
pub mod owed;
pub mod panics;
pub mod path_fd;
pub mod priority;
pub mod sandbox;
pub mod shared_log;
pub(crate) mod sync;
pub mod task;
pub mod worker;
pub mod writeback;
pub mod xattr;

use std::io;
use std::os::fd::AsFd;

/// Makes `target` share all data blocks of `source` (`FICLONE`).
pub fn reflink(source: impl AsFd, target: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(target, source)?)
}
