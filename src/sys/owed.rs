//! Modes that files are to get back: a process that widens one for a moment may die in that moment, and the next one that serves
//! the mount puts it back.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use super::path_fd;
use super::shared_log::{OwedMode, SharedLog};

/// Where this process writes down what it owes, once there is a place.
static LOG: OnceLock<Arc<SharedLog>> = OnceLock::new();

/// What this process owes from now on is written down beside this log, which the next process reads.
pub fn keep_in(log: &Arc<SharedLog>) {
    LOG.get_or_init(|| log.clone());
}

/// A mode that this process is to put back. Dropped, it has done so.
#[derive(Debug)]
pub struct Owed(Option<usize>);

impl Drop for Owed {
    fn drop(&mut self) {
        if let (Some(slot), Some(log)) = (self.0, LOG.get()) {
            log.settle(slot);
        }
    }
}

/// The file, of this inode number, is to get `mode` back. The descriptor must stay open until what is returned is dropped.
pub fn mode(file: BorrowedFd<'_>, ino: u64, mode: u32) -> Owed {
    let owed = OwedMode {
        fd: file.as_raw_fd(),
        ino,
        mode,
    };
    Owed(LOG.get().and_then(|log| log.owe(owed)))
}

/// Puts back what a dead process owed. Precondition: this process has that one's open files.
pub fn pay(log: &SharedLog) {
    for (slot, owed) in log.owed() {
        if let Err(e) = put_back(owed) {
            log::warn!("the mode of inode {} is not put back: {e}", owed.ino);
        }
        log.settle(slot);
    }
}

fn put_back(owed: OwedMode) -> io::Result<()> {
    // SAFETY: of a number that is not open the kernel says so; nothing is closed.
    let file = unsafe { BorrowedFd::borrow_raw(owed.fd) };
    let stat = rustix::fs::fstat(file)?;
    if stat.st_ino as u64 != owed.ino {
        return Err(io::Error::other("another file has its number"));
    }
    // It may have been put back, and only that not be written down; and nothing is made wider here.
    let mode = stat.st_mode as u32 & owed.mode;
    if mode != stat.st_mode as u32 {
        path_fd::chmod(file, mode)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_mode_that_was_widened_is_put_back_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, mode: u32| {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_permissions(fs::Permissions::from_mode(mode))
                .unwrap();
            let ino = file.metadata().unwrap().ino();
            (file, ino)
        };
        let mode_of = |file: &File| file.metadata().unwrap().mode() & 0o7777;
        let log = SharedLog::new().unwrap();
        let owe = |(file, ino): &(File, u64), mode: u32| {
            let fd = file.as_raw_fd();
            let (ino, mode) = (*ino, libc::S_IFREG | mode);
            log.owe(OwedMode { fd, ino, mode }).unwrap()
        };
        let (wider, settled, other) = (file("a", 0o644), file("b", 0o644), file("c", 0o644));
        owe(&wider, 0o444);
        let slot = owe(&settled, 0o444);
        log.settle(slot);
        // Its number is another file's by now.
        owe(&(other.0.try_clone().unwrap(), other.1 + 1), 0o400);
        let next = SharedLog::of(log.as_fd().try_clone_to_owned().unwrap()).unwrap();
        pay(&next);
        assert_eq!(
            [&wider.0, &settled.0, &other.0].map(mode_of),
            [0o444, 0o644, 0o644]
        );
        assert_eq!(next.owed(), []);
        // Nothing is made wider.
        let narrow = file("d", 0o400);
        owe(&narrow, 0o644);
        pay(&next);
        assert_eq!(mode_of(&narrow.0), 0o400);
    }
}
