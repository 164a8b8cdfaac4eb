//! A copy of what is read.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::{Errno, ReadWriteFlags};

use super::error::ImageError;

/// How much is written before its writeback is begun.
const WINDOW: u64 = 8 << 20;
/// Linux 6.14: begin to write at once, and let the pages go then. The copy is not read again soon, and memory that is
/// used again and again is quicker to fill than memory that was never touched.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(libc::RWF_DONTCACHE as u32);

/// Reads, and writes what was read into a file.
#[derive(Debug)]
pub(crate) struct Tee<R> {
    inner: R,
    copy: Option<Copy>,
}

#[derive(Debug)]
struct Copy {
    file: File,
    written: u64,
    /// Up to where writeback was begun.
    begun: u64,
    /// Whether kernel and filesystem may know [`DONTCACHE`].
    uncached: bool,
}

impl<R: Read> Tee<R> {
    /// Copies into a new file at `path`; without one it only reads.
    pub(crate) fn new(inner: R, path: Option<&Path>) -> Result<Tee<R>, ImageError> {
        let copy = match path {
            Some(path) => Some(Copy {
                file: File::create_new(path).map_err(ImageError::io("create", path))?,
                written: 0,
                begun: 0,
                uncached: true,
            }),
            None => None,
        };
        Ok(Tee { inner, copy })
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(copy) = &mut self.copy {
            copy.append(&buf[..n]).map_err(|e| {
                io::Error::new(e.kind(), format!("a copy of it cannot be written: {e}"))
            })?;
        }
        Ok(n)
    }
}

impl Copy {
    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.uncached && !bytes.is_empty() {
            let slice = [IoSlice::new(bytes)];
            match rustix::io::pwritev2(&self.file, &slice, self.written, DONTCACHE) {
                // A file takes at least a byte, or tells why not.
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    self.written += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.uncached = false,
                Err(e) => return Err(e.into()),
            }
        }
        if self.uncached {
            return Ok(());
        }
        self.file.write_all_at(bytes, self.written)?;
        self.written += bytes.len() as u64;
        if self.written - self.begun >= WINDOW {
            begin_writeback(&self.file, self.begun);
            self.begun = self.written;
        }
        Ok(())
    }
}

/// Has the kernel begin to write a file's data from `offset` on, so that the sync at the end has little left to wait for.
pub(crate) fn begin_writeback(file: &File, offset: u64) {
    // The advice that the pages are not needed begins their writeback at once, and keeps those that are dirty.
    if let Err(e) = rustix::fs::fadvise(file, offset, None, rustix::fs::Advice::DontNeed) {
        log::debug!("no early writeback: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_whole_whatever_the_filesystem_knows() {
        let bytes: Vec<u8> = (0..3_000_017u32).map(|i| (i % 251) as u8).collect();
        // The second is a tmpfs on most machines, and tmpfs does not know uncached writes.
        for dir in [std::env::temp_dir(), "/dev/shm".into()] {
            let Ok(dir) = tempfile::tempdir_in(dir) else {
                continue;
            };
            let path = dir.path().join("copy");
            let mut tee = Tee::new(&bytes[..], Some(&path)).unwrap();
            let mut piece = vec![0; 100_000];
            while tee.read(&mut piece).unwrap() > 0 {}
            assert!(std::fs::read(&path).unwrap() == bytes);
        }
    }
}
