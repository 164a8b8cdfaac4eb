//! A copy of what is read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::error::ImageError;

/// Reads, and writes what was read into a file.
#[derive(Debug)]
pub(crate) struct Tee<R> {
    inner: R,
    copy: Option<File>,
}

impl<R: Read> Tee<R> {
    /// Copies into a new file at `path`; without one it only reads.
    pub(crate) fn new(inner: R, path: Option<&Path>) -> Result<Tee<R>, ImageError> {
        let copy = match path {
            Some(path) => Some(File::create_new(path).map_err(ImageError::io("create", path))?),
            None => None,
        };
        Ok(Tee { inner, copy })
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buf[..n]).map_err(|e| {
                io::Error::new(e.kind(), format!("a copy of it cannot be written: {e}"))
            })?;
        }
        Ok(n)
    }
}
