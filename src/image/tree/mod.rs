//! Trees as tars: what a layer, an exported image or an imported folder is written as.
//!
//! ```text
//! changes (an upper, seen through its mount) | stack (the layers of an image) | plain (a folder)
//!    -> emit (one node: attributes, links, data) -> writer (headers and PAX records)
//! ```
//!
//! Everything is streamed: what is remembered are directories and the nodes that have several names.

mod changes;
mod emit;
mod plain;
mod stack;
mod writer;

pub(crate) use changes::{seen_root, write_changes};
pub(crate) use plain::{Dots, write_folder};
pub(crate) use stack::write_stack;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::error::ImageError;
use crate::layer::{Stat, to_stat};

/// Opens the root of a tree.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, ImageError> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(ImageError::io("open", path))
}

/// `lstat` of a name in a directory; of the directory itself for an empty name.
fn stat_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, rustix::io::Errno> {
    let raw = if name.is_empty() {
        rustix::fs::fstat(dir)?
    } else {
        rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)?
    };
    Ok(to_stat(&raw))
}

/// A directory below one that is open, never through a symlink.
fn open_dir_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, rustix::io::Errno> {
    rustix::fs::openat(
        dir,
        OsStr::from_bytes(name),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// The names in a directory, sorted, so that the same tree gives the same bytes.
fn names_in(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, rustix::io::Errno> {
    // A descriptor of its own: reading moves its position.
    let own = rustix::fs::openat(
        dir.as_fd(),
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(own)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
