//! Copying a file's data as a whole: by reflink, else the data between the holes.
//!
//! Written data goes to the disk in steps while the copy runs. Left in memory until the sync at the end, it would be
//! written at once, and every commit of the journal, so every `fsync` and many a create elsewhere, would wait for
//! gigabytes.
//!
//! A copy ends early when the program that caused it is killed, and holds nothing but the inode's own copy-up lock
//! meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::cause::Cause;
use super::error::{Error, Result};
use crate::layer::RealFile;
use crate::sys::writeback;

/// One step of the fall-back copy, in bytes.
const CHUNK: usize = 1 << 20;

/// So many bytes are handed to the disk at once, and as many may be under way.
const STEP: u64 = 8 << 20;

/// How often a copy looks whether anybody waits for it.
const CHECK: Duration = Duration::from_millis(20);

/// What a copy took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Copied {
    /// How many bytes of data were written; none where they were shared.
    pub bytes: u64,
}

/// How a copy behaves.
pub(crate) struct Pace<'a> {
    /// What is written need not reach the disk.
    pub lazy: bool,
    /// Asked before each step for whom it is.
    pub cause: &'a Cause,
}

/// Copies `len` bytes and keeps holes. By reflink where the filesystem can.
pub(crate) fn copy_data(
    source: &RealFile,
    target: &File,
    len: u64,
    pace: Pace<'_>,
) -> Result<Copied> {
    if let Some(fd) = source.as_fd()
        && rustix::fs::ioctl_ficlone(target.as_fd(), fd).is_ok()
    {
        return Ok(Copied::default());
    }
    let mut copied = Copied::default();
    if len > STEP {
        // It may have waited long for its turn.
        pace.cause.check()?;
    }
    let mut checked = Instant::now();
    let mut at = 0;
    while at < len {
        let Some((start, end)) = next_data(source, at, len)? else {
            break;
        };
        at = start;
        while at < end {
            // Asking takes a few system calls, and there may be many small runs.
            if checked.elapsed() >= CHECK {
                pace.cause.check()?;
                checked = Instant::now();
            }
            let to = end.min(at + STEP);
            copy_range(source, target, at, to)?;
            if !pace.lazy && len > STEP {
                writeback::begin(target.as_fd(), at, to - at)?;
                if let Some(before) = at.checked_sub(STEP) {
                    writeback::finish(target.as_fd(), before, STEP)?;
                }
            }
            copied.bytes += to - at;
            at = to;
        }
    }
    // Also makes the hole at the end.
    target.set_len(len)?;
    Ok(copied)
}

/// The next run of data at or after `at`; `None` when only a hole is left.
fn next_data(source: &RealFile, at: u64, len: u64) -> Result<Option<(u64, u64)>> {
    let Some(fd) = source.as_fd() else {
        return Ok(Some((at, len)));
    };
    let start = match rustix::fs::seek(fd, rustix::fs::SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        // A filesystem without holes.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(Some((at, len))),
        Err(e) => return Err(io::Error::from(e).into()),
    };
    if start >= len {
        return Ok(None);
    }
    let end = match rustix::fs::seek(fd, rustix::fs::SeekFrom::Hole(start)) {
        Ok(end) => end.min(len),
        Err(_) => len,
    };
    Ok(Some((start, end)))
}

fn copy_range(source: &RealFile, target: &File, start: u64, end: u64) -> Result<()> {
    let mut at = start;
    if let Some(fd) = source.as_fd() {
        while at < end {
            let (mut from, mut to) = (at, at);
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(
                fd,
                Some(&mut from),
                target.as_fd(),
                Some(&mut to),
                want,
            ) {
                Ok(0) => break,
                Ok(n) => at += n as u64,
                Err(rustix::io::Errno::INTR) => {}
                Err(
                    e @ (rustix::io::Errno::NOSPC
                    | rustix::io::Errno::DQUOT
                    | rustix::io::Errno::IO),
                ) => return Err(io::Error::from(e).into()),
                // Across filesystems and where it is not supported: by hand.
                Err(_) => break,
            }
        }
    }
    if at >= end {
        return Ok(());
    }
    let mut buf = vec![0; CHUNK.min((end - at) as usize)];
    while at < end {
        let want = buf.len().min((end - at) as usize);
        let n = source.read_at(&mut buf[..want], at)?;
        if n == 0 {
            // Shorter than its size said: it changed underneath, or the disk is bad.
            return Err(Error::Errno(libc::EIO));
        }
        target.write_all_at(&buf[..n], at)?;
        at += n as u64;
    }
    Ok(())
}
