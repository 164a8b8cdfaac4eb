//! Files that are read as memory.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// A file as a slice of bytes, shared with everyone who maps it: what is not touched costs no memory.
///
/// The file must be one that nobody writes to or shortens once it has its name, as the store's files are: they are
/// written under another name and then renamed. A page that the disk cannot give ends the process by `SIGBUS`, as with
/// a page of a program.
pub struct MappedFile {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only read, and stays mapped until the value is dropped.
unsafe impl Send for MappedFile {}
// SAFETY: as above.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps a whole file for reading. An empty one is refused.
    pub fn new(file: &File) -> io::Result<MappedFile> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping, wherever the kernel likes, of a descriptor that is open; it outlives the descriptor.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(MappedFile { start, len }),
            None => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped from `start` until the value is dropped, and nobody changes them (see the type).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and no slice of it outlives the value.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        if result != 0 {
            log::debug!("munmap: {}", io::Error::last_os_error());
        }
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedFile")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn shows_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(MappedFile::new(&file).is_err());
        file.write_all(b"acetate").unwrap();
        let mapped = MappedFile::new(&file).unwrap();
        drop(file);
        assert_eq!(&*mapped, b"acetate");
    }
}
