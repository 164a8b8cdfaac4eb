//! Blobs that are being fetched: files below the store's `partial`, named by digest, locked by who fetches. They survive
//! their process, so that the next one goes on where it was.

use std::fs::File;
use std::io;
#[cfg(feature = "registry")]
use std::os::unix::fs::MetadataExt;
use std::path::Path;
#[cfg(feature = "registry")]
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::error::ImageError;

/// How long to sleep between two tries for a file that another process holds.
#[cfg(feature = "registry")]
const POLL: Duration = Duration::from_millis(20);

/// Opens and locks the file of a blob. Another process may hold it only while it fetches, waiting for nothing but the
/// network, so it is waited for.
#[cfg(feature = "registry")]
pub(crate) fn open(path: &Path) -> Result<File, ImageError> {
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file: File = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))
            .map_err(ImageError::io("open", path))?
            .into();
        while !lock(&file, path)? {
            std::thread::sleep(POLL);
        }
        // It may have been published or removed in between.
        let mine = file.metadata().map_err(ImageError::io("read", path))?;
        let there = std::fs::symlink_metadata(path);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino())) {
            return Ok(file);
        }
    }
}

/// Removes one.
pub(crate) fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            // The next fetch of it finds the wrong digest again.
            log::warn!("cannot remove {}: {e}", path.display());
        }
        _ => {}
    }
}

/// Removes what interrupted fetches left, except what somebody is fetching now. Gives the bytes.
pub(crate) fn sweep(folder: &Path) -> Result<u64, ImageError> {
    let mut bytes = 0;
    let entries = std::fs::read_dir(folder).map_err(ImageError::io("read", folder))?;
    for entry in entries {
        let path = entry.map_err(ImageError::io("read", folder))?.path();
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file: File = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(ImageError::io("open", &path)(e)),
        };
        if lock(&file, &path)? {
            let meta = file.metadata().map_err(ImageError::io("read", &path))?;
            bytes += meta.len();
            remove(&path);
        }
    }
    Ok(bytes)
}

/// Locks a file; false where somebody else has.
fn lock(file: &File, path: &Path) -> Result<bool, ImageError> {
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(e) => return Err(ImageError::io("lock", path)(e)),
        }
    }
}

#[cfg(all(test, feature = "registry"))]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_leaves_what_is_being_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let held = dir.path().join("held");
        let left = dir.path().join("left");
        let lock = open(&held).unwrap();
        std::fs::write(&left, "abc").unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 3);
        assert!(held.exists() && !left.exists());
        drop(lock);
        assert_eq!(sweep(dir.path()).unwrap(), 0);
        assert!(!held.exists());
    }
}
