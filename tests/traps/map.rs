//! Memory maps of files, which no safe interface offers.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A mapping of a file's first bytes, unmapped on drop.
#[derive(Debug)]
pub struct Map {
    address: *mut libc::c_void,
    length: usize,
}

// SAFETY: the mapping belongs to this value alone, and every access goes through `&self` or `&mut self`.
unsafe impl Send for Map {}

impl Map {
    fn new(file: &File, length: usize, protection: i32, flags: i32) -> io::Result<Map> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                flags,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Map { address, length })
    }

    /// A shared mapping that can be written.
    pub fn shared(file: &File, length: usize) -> io::Result<Map> {
        Map::new(
            file,
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
        )
    }

    /// A shared mapping to read from.
    pub fn read_only(file: &File, length: usize) -> io::Result<Map> {
        Map::new(file, length, libc::PROT_READ, libc::MAP_SHARED)
    }

    /// Writes into the mapping.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.length);
        // SAFETY: the range was just checked to lie within the mapping, which is writable and ours.
        unsafe {
            let to = self.address.cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
    }

    /// Copies out of the mapping.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.length);
        let mut out = vec![0; length];
        // SAFETY: the range lies within the mapping, and `out` has room for it.
        unsafe {
            let from = self.address.cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), length);
        }
        out
    }

    /// Writes the changed pages back and waits for it.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is exactly this mapping.
        match unsafe { libc::msync(self.address, self.length, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is exactly this mapping, and nothing refers to it any more.
        unsafe { libc::munmap(self.address, self.length) };
    }
}
