//! A copy of what is read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::error::ImageError;

/// How much is written before its writeback is begun.
const WINDOW: u64 = 8 << 20;

/// Reads, and writes what was read into a file.
#[derive(Debug)]
pub(crate) struct Tee<R> {
    inner: R,
    copy: Option<File>,
    written: u64,
    /// Up to where writeback was begun.
    begun: u64,
}

impl<R: Read> Tee<R> {
    /// Copies into a new file at `path`; without one it only reads.
    pub(crate) fn new(inner: R, path: Option<&Path>) -> Result<Tee<R>, ImageError> {
        let copy = match path {
            Some(path) => Some(File::create_new(path).map_err(ImageError::io("create", path))?),
            None => None,
        };
        Ok(Tee {
            inner,
            copy,
            written: 0,
            begun: 0,
        })
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buf[..n]).map_err(|e| {
                io::Error::new(e.kind(), format!("a copy of it cannot be written: {e}"))
            })?;
            self.written += n as u64;
            if self.written - self.begun >= WINDOW {
                begin_writeback(copy, self.begun);
                self.begun = self.written;
            }
        }
        Ok(n)
    }
}

/// Has the kernel begin to write a file's data from `offset` on, so that the sync at the end has little left to wait for.
pub(crate) fn begin_writeback(file: &File, offset: u64) {
    // The advice that the pages are not needed begins their writeback at once, and keeps those that are dirty.
    if let Err(e) = rustix::fs::fadvise(file, offset, None, rustix::fs::Advice::DontNeed) {
        log::debug!("no early writeback: {e}");
    }
}
