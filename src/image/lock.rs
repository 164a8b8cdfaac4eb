//! Locks between processes that die with their holder, and temporary places that are swept when their owner is gone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::error::ImageError;
use super::remove;

/// How long to sleep between two tries for a lock that another process holds.
const POLL: Duration = Duration::from_millis(10);

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Together with other readers.
    Shared,
    /// Alone.
    Exclusive,
}

impl Hold {
    fn operation(self) -> FlockOperation {
        match self {
            Hold::Shared => FlockOperation::NonBlockingLockShared,
            Hold::Exclusive => FlockOperation::NonBlockingLockExclusive,
        }
    }
}

/// A lock file that is held; given back when dropped, or when the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Immutable; holds the lock.
    file: File,
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Lock {
    /// Opens the lock file, without locking it.
    fn open(path: &Path) -> Result<File, ImageError> {
        let fd = rustix::fs::open(
            path,
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::from_raw_mode(0o600),
        )
        .map_err(ImageError::io("open the lock", path))?;
        Ok(fd.into())
    }

    /// Takes the lock if nobody holds it in a way that forbids it.
    pub(crate) fn attempt(path: &Path, hold: Hold) -> Result<Option<Lock>, ImageError> {
        let file = Lock::open(path)?;
        match flock(&file, hold) {
            Ok(true) => Ok(Some(Lock { file })),
            Ok(false) => Ok(None),
            Err(e) => Err(ImageError::io("lock", path)(e)),
        }
    }

    /// Takes the lock, waiting for whoever holds it.
    pub(crate) fn wait(path: &Path, hold: Hold, patience: Duration) -> Result<Lock, ImageError> {
        let mut pending = Lock::pending(path, patience)?;
        while !pending.attempt(hold)? {
            pending.sleep()?;
        }
        Ok(pending.into_lock())
    }

    /// Begins to wait for the lock.
    pub(crate) fn pending(path: &Path, patience: Duration) -> Result<Pending<'_>, ImageError> {
        Ok(Pending {
            path,
            file: Lock::open(path)?,
            start: Instant::now(),
            patience,
            told: false,
        })
    }
}

/// A lock that is tried again and again.
#[derive(Debug)]
pub(crate) struct Pending<'a> {
    path: &'a Path,
    file: File,
    start: Instant,
    patience: Duration,
    told: bool,
}

impl Pending<'_> {
    /// Takes the lock in this way if it can be had now. How it was held before is given up in any case, and in between
    /// others may have had it.
    pub(crate) fn attempt(&mut self, hold: Hold) -> Result<bool, ImageError> {
        flock(&self.file, hold).map_err(ImageError::io("lock", self.path))
    }

    /// Waits a little; an error when it has been long enough.
    pub(crate) fn sleep(&mut self) -> Result<(), ImageError> {
        if self.start.elapsed() >= self.patience {
            return Err(ImageError::InUse {
                what: self.path.display().to_string(),
                by: Some("another process, for too long".to_owned()),
            });
        }
        if !self.told && self.start.elapsed() > Duration::from_secs(1) {
            log::info!(
                "waiting for another process that holds {}",
                self.path.display()
            );
            self.told = true;
        }
        std::thread::sleep(POLL);
        Ok(())
    }

    /// The lock, as it was taken last.
    pub(crate) fn into_lock(self) -> Lock {
        Lock { file: self.file }
    }
}

fn flock(file: impl AsFd, hold: Hold) -> Result<bool, Errno> {
    loop {
        match rustix::fs::flock(file.as_fd(), hold.operation()) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// A folder of this process below the store's `tmp`, removed when dropped. It is locked, so that another process tells
/// it from one that a dead process left.
#[derive(Debug)]
pub(crate) struct TempDir {
    path: PathBuf,
    /// Immutable; holds the lock.
    _lock: File,
}

impl TempDir {
    /// Makes one.
    pub(crate) fn new(tmp: &Path) -> Result<TempDir, ImageError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let name = format!(
                "{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            let path = tmp.join(name);
            match rustix::fs::mkdirat(CWD, &path, Mode::RWXU) {
                Ok(()) => {}
                // Left by a dead process of the same number, or one of another pid namespace.
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(ImageError::io("create", &path)(e)),
            }
            if let Some(lock) = lock_dir(&path)? {
                return Ok(TempDir { path, _lock: lock });
            }
            // A sweeper was faster than the lock.
        }
    }
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(e) = remove_tree(&self.path) {
            // What is left is swept by the next command.
            log::warn!("cannot remove {}: {e}", self.path.display());
        }
    }
}

/// Locks a folder if nobody has, and if it is still there afterwards.
fn lock_dir(path: &Path) -> Result<Option<File>, ImageError> {
    let opened = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(ImageError::io("open", path)(e)),
    };
    if !flock(&file, Hold::Exclusive).map_err(ImageError::io("lock", path))? {
        return Ok(None);
    }
    let mine = rustix::fs::fstat(&file).map_err(ImageError::io("read", path))?;
    match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(there) if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino) => Ok(Some(file)),
        _ => Ok(None),
    }
}

/// True where the folder of a [`TempDir`] belongs to nobody any more.
pub(crate) fn is_dead(path: &Path) -> Result<bool, ImageError> {
    let opened = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    );
    match opened {
        // Shared, so that two that look at once do not take each other for its owner.
        Ok(fd) => flock(&fd, Hold::Shared).map_err(ImageError::io("lock", path)),
        Err(Errno::NOENT) => Ok(true),
        Err(e) => Err(ImageError::io("open", path)(e)),
    }
}

/// Removes what dead processes left in `tmp`.
pub(crate) fn sweep(tmp: &Path) -> Result<(), ImageError> {
    let entries = std::fs::read_dir(tmp).map_err(ImageError::io("read", tmp))?;
    for entry in entries {
        let entry = entry.map_err(ImageError::io("read", tmp))?;
        let path = entry.path();
        let lock = match lock_dir(&path) {
            Ok(Some(lock)) => lock,
            Ok(None) => continue,
            Err(e) => {
                log::warn!("{e}");
                continue;
            }
        };
        log::info!("removing {}, left by a process that died", path.display());
        remove_tree(&path).map_err(ImageError::io("remove", &path))?;
        drop(lock);
    }
    Ok(())
}

/// Removes a tree by its path, whose parent belongs to the store.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = rustix::fs::open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    remove::remove_at(parent.as_fd(), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_folder_survives_a_sweep_only_while_it_is_held() {
        let tmp = tempfile::tempdir().unwrap();
        let held = TempDir::new(tmp.path()).unwrap();
        let left = tmp.path().join("1-1");
        std::fs::create_dir_all(left.join("a/b")).unwrap();
        std::fs::write(left.join("a/b/c"), "x").unwrap();
        sweep(tmp.path()).unwrap();
        assert!(held.path().is_dir());
        assert!(!left.exists());
        let path = held.path().to_owned();
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn locks_exclude() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let shared = Lock::attempt(&path, Hold::Shared).unwrap().unwrap();
        assert!(Lock::attempt(&path, Hold::Shared).unwrap().is_some());
        assert!(Lock::attempt(&path, Hold::Exclusive).unwrap().is_none());
        drop(shared);
        assert!(Lock::attempt(&path, Hold::Exclusive).unwrap().is_some());
    }
}
