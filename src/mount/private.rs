//! Uppers that nobody named: they lie in the store and are thrown away with their mount.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::error::MountError;

/// What is on its way out has this prefix.
const GONE: &str = ".gone-";

/// How directories are opened.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// An upper and its workdir that this mount made.
#[derive(Debug)]
pub(super) struct PrivateUpper {
    /// Immutable: holds `upper`, `work` and `lock`.
    dir: PathBuf,
    /// Held until the end: others see by it that the directory is in use.
    lock: File,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> MountError {
    let path = path.to_owned();
    move |e| MountError::Path("the private upper directory", path, e)
}

fn lock_file(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Makes directories that only their owner may enter.
fn make(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

impl PrivateUpper {
    /// Makes one in the store at `root`, for layers of which `topmost` is the topmost.
    pub(super) fn create(root: &Path, id: &str, topmost: &Path) -> Result<Self, MountError> {
        let all = root.join("private");
        make(&all).map_err(failed(&all))?;
        let guard = whole(&all).map_err(failed(&all))?;
        let dir = all.join(id);
        let made = || -> io::Result<File> {
            make(&dir)?;
            let lock = lock_file(&dir.join("lock"))?;
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            pair(&dir, topmost)?;
            Ok(lock)
        };
        let lock = made().map_err(failed(&dir))?;
        drop(guard);
        Ok(PrivateUpper { dir, lock })
    }

    /// The one in `dir`, which `lock` holds already.
    pub(super) fn held(dir: PathBuf, lock: File) -> PrivateUpper {
        PrivateUpper { dir, lock }
    }

    /// By what it is held.
    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    pub(super) fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    pub(super) fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Where it lies.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Throws it away. Best effort: what is left over is swept by the next command.
    pub(super) fn discard(self) {
        discard(&self.dir);
        drop(self.lock);
    }
}

/// Makes `upper` and `work` in a directory, or takes those that are there, and tells which they are: device and inode number of
/// each. A new upper looks as the layer below it: its root's attributes are those of the merged root.
pub(super) fn pair(dir: &Path, topmost: &Path) -> io::Result<((u64, u64), (u64, u64))> {
    make(dir)?;
    let place = rustix::fs::open(dir, DIRECTORY, Mode::empty())?;
    make_in(&place, "work")?;
    let work = open_in(&place, "work")?;
    let upper = if make_in(&place, "upper")? {
        dress(&place, "upper", topmost)?
    } else {
        open_in(&place, "upper")?
    };
    Ok((identity(&upper)?, identity(&work)?))
}

fn identity(dir: &OwnedFd) -> io::Result<(u64, u64)> {
    let found = rustix::fs::fstat(dir)?;
    Ok((found.st_dev, found.st_ino))
}

/// Makes a directory; false where something is there.
fn make_in(place: &OwnedFd, name: &str) -> io::Result<bool> {
    match rustix::fs::mkdirat(place, name, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Opens a directory, or what a symlink of the user's own leads to. The place may belong to a user for whom root mounts: a
/// symlink of theirs would say into which of root's directories to write.
fn open_in(place: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(place, name, flags | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(dir) => return Ok(dir),
        Err(Errno::NOTDIR | Errno::LOOP) => {}
        Err(e) => return Err(e.into()),
    }
    // By its descriptor, as it may be replaced at any time.
    let link = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = rustix::fs::openat(place, name, link, Mode::empty())?;
    let found = rustix::fs::fstat(&link)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
        return Err(Errno::NOTDIR.into());
    }
    if found.st_uid != rustix::process::geteuid().as_raw() {
        let why = format!("{name} is a symlink of another user's");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
    Ok(rustix::fs::openat(place, target, flags, Mode::empty())?)
}

/// Gives a directory that was just made the attributes of `topmost`, and returns it. By descriptor, and only to one that can be
/// the one: whoever owns the place may have put another there, or a symlink.
fn dress(place: &OwnedFd, name: &str, topmost: &Path) -> io::Result<OwnedFd> {
    let new = rustix::fs::openat(place, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    let found = rustix::fs::fstat(&new)?;
    let entries = Dir::read_from(&new)?;
    let is_new = found.st_uid == rustix::process::geteuid().as_raw()
        && found.st_mode & 0o077 == 0
        && entries.take(3).filter_map(Result::ok).all(|entry| {
            let name = entry.file_name().to_bytes();
            name == b"." || name == b".."
        });
    if !is_new {
        let why = format!("somebody has put another directory in the place of {name}");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let below = fs::metadata(topmost)?;
    match std::os::unix::fs::fchown(&new, Some(below.uid()), Some(below.gid())) {
        Ok(()) => {}
        // A plain user owns what he makes.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            log::debug!("the owner of {name} stays: {e}");
        }
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            log::debug!("the owner of {} has no name here: {e}", topmost.display());
        }
        Err(e) => return Err(e),
    }
    let new = File::from(new);
    new.set_permissions(Permissions::from_mode(below.mode() & 0o7777))?;
    new.set_times(fs::FileTimes::new().set_modified(below.modified()?))?;
    Ok(new.into())
}

/// Held while a directory is made or swept, so that nothing half made is swept.
fn whole(all: &Path) -> io::Result<File> {
    // Beside it, so that it can be seen at a glance that nothing is left.
    let guard = lock_file(&all.with_extension("lock"))?;
    rustix::fs::flock(&guard, FlockOperation::LockExclusive)?;
    Ok(guard)
}

/// Takes away the private uppers of the store at `root` whose daemons were killed.
pub fn sweep(root: &Path) {
    let all = root.join("private");
    match sweep_all(&all) {
        Ok(()) => {}
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ) => {}
        Err(e) => log::info!("{} is not swept: {e}", all.display()),
    }
}

fn sweep_all(all: &Path) -> io::Result<()> {
    fs::metadata(all)?;
    let guard = whole(all)?;
    let mut gone = Vec::new();
    for entry in fs::read_dir(all)? {
        let entry = entry?;
        let path = entry.path();
        if !entry.file_type()?.is_dir() {
            continue;
        }
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(GONE.as_bytes())
        {
            gone.push(path);
            continue;
        }
        let lock = lock_file(&path.join("lock"))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            gone.extend(set_aside(&path)?);
        }
    }
    drop(guard);
    for path in gone {
        remove_tree(&path);
    }
    Ok(())
}

fn set_aside(dir: &Path) -> io::Result<Option<PathBuf>> {
    let Some(name) = dir.file_name() else {
        return Ok(None);
    };
    let mut new = OsStr::new(GONE).to_owned();
    new.push(name);
    let new = dir.with_file_name(new);
    fs::rename(dir, &new)?;
    Ok(Some(new))
}

/// Throws away the private upper in `dir`, which is held. Best effort, likewise.
pub(super) fn discard(dir: &Path) {
    match set_aside(dir) {
        Ok(Some(aside)) => remove_tree(&aside),
        Ok(None) => {}
        // Somebody threw the whole store away.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => log::warn!("{} is not thrown away: {e}", dir.display()),
    }
}

/// Best effort: another process may be removing the same, and what stays is swept later.
fn remove_tree(dir: &Path) {
    let removed = match fs::remove_dir_all(dir) {
        // A plain user's directories may lack the bits that let their owner in.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(dir).and_then(|()| fs::remove_dir_all(dir))
        }
        other => other,
    };
    match removed {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => log::warn!("{} is not removed: {e}", dir.display()),
    }
}

fn open_up(dir: &Path) -> io::Result<()> {
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_that_was_just_made_gets_attributes() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mode = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o7777;
        for (name, mode) in [("topmost", 0o1777), ("secret", 0o700), ("open", 0o750)] {
            fs::create_dir(at(name)).unwrap();
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        }
        let keep = at("keep");
        make(&keep).unwrap();
        let place = rustix::fs::open(&keep, DIRECTORY, Mode::empty()).unwrap();
        // What its owner may put there between the making and the change.
        std::os::unix::fs::symlink(at("secret"), keep.join("upper")).unwrap();
        dress(&place, "upper", &at("topmost")).unwrap_err();
        fs::remove_file(keep.join("upper")).unwrap();
        fs::rename(at("open"), keep.join("upper")).unwrap();
        dress(&place, "upper", &at("topmost")).unwrap_err();
        fs::rename(keep.join("upper"), at("open")).unwrap();
        make(&keep.join("upper")).unwrap();
        fs::write(keep.join("upper/file"), "").unwrap();
        dress(&place, "upper", &at("topmost")).unwrap_err();
        assert_eq!((mode("secret"), mode("open")), (0o700, 0o750));
        assert_eq!(mode("keep/upper"), 0o700);

        fs::remove_dir_all(keep.join("upper")).unwrap();
        pair(&keep, &at("topmost")).unwrap();
        assert_eq!((mode("keep/upper"), mode("keep/work")), (0o1777, 0o700));
        // A link of the user's own is taken; one of another user's would lead anywhere.
        fs::remove_dir(keep.join("upper")).unwrap();
        std::os::unix::fs::symlink(at("secret"), keep.join("upper")).unwrap();
        let (upper, work) = pair(&keep, &at("topmost")).unwrap();
        let id = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            (found.dev(), found.ino())
        };
        assert_eq!((upper, work), (id(&at("secret")), id(&keep.join("work"))));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(keep.join("upper"), Some(1), Some(1)).unwrap();
            pair(&keep, &at("topmost")).unwrap_err();
        }
        assert_eq!(mode("secret"), 0o700);
    }

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let layer = tempfile::tempdir().unwrap();
        fs::set_permissions(layer.path(), Permissions::from_mode(0o751)).unwrap();
        let held = PrivateUpper::create(root.path(), "held", layer.path()).unwrap();
        let left = PrivateUpper::create(root.path(), "left", layer.path()).unwrap();
        let (held_dir, left_dir) = (held.dir.clone(), left.dir.clone());
        fs::create_dir(left.upper().join("closed")).unwrap();
        fs::set_permissions(left.upper().join("closed"), Permissions::from_mode(0o0)).unwrap();
        let mode = fs::metadata(held.upper()).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o751);
        drop(left);
        sweep(root.path());
        assert!(held_dir.exists());
        assert!(!left_dir.exists());
        held.discard();
        let left = fs::read_dir(root.path().join("private")).unwrap().count();
        assert_eq!(left, 0);
    }
}
