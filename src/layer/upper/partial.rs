//! The marks of partially copied-up files, which no other reader may take for whole ones.
//!
//! Such a file is a metacopy whose redirect leads to a path that does not exist, so that the kernel refuses it, and
//! our own mark says the rest. The same two marks stand in the other xattr namespace as far as the process may write it: a
//! kernel's mount with `userxattr` reads none of the `trusted.` marks, one without it none of the `user.` ones. While there is any, `incompat/acetate-partial` in the scratch directory makes the
//! kernel refuse the whole upper, as any entry there does.
//!
//! The orders in which a crash leaves nothing wrong, on filesystems that keep the order of metadata: the announcement
//! first, then the marks, then the blocks, then the map that claims them. Back: the blocks are made durable, then the
//! metacopy mark goes, with which the file is whole to any reader, then the other marks, and the announcement last.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::open::{INCOMPAT, boot_id};
use super::{Mark, Namespace, Upper};
use crate::layer::format::{PartialRecord, mark_name};
use crate::sys::xattr::{self, Target};

/// Where the data of a partial file is said to lie: no layer can have the path, as names with this prefix are whiteouts.
pub const NOWHERE: &str = "/.wh..wh.acetate-partial";

/// The announcement, beside that of a volatile mount.
pub(super) const PARTIAL: &str = "acetate-partial";

/// In the announcement: the next mount asks whoever is still completing files to leave off.
const YIELD: &str = "yield";

/// The marks that go once a file is whole to any reader; as long as any is left, the last one is.
const LAST_MARKS: [Mark; 3] = [Mark::Kept(None), Mark::Redirect(None), Mark::Partial(None)];

/// How many files the announcement is made for.
#[derive(Debug)]
pub(super) struct Announcement {
    /// Held while the directories are made and removed, so that neither happens for an old number.
    count: Mutex<usize>,
    /// Partial files were left by the mount or the process before. Atomic.
    left: AtomicBool,
}

impl Announcement {
    /// `left`: there is one already, for files that are to be found.
    pub(super) fn new(left: bool) -> Announcement {
        Announcement {
            count: Mutex::new(usize::from(left)),
            left: AtomicBool::new(left),
        }
    }

    /// As when it is made.
    pub(super) fn renew(&self, left: bool) {
        *self.count.lock() = usize::from(left);
        self.left.store(left, Ordering::Relaxed);
    }
}

fn announced() -> String {
    format!("{INCOMPAT}/{PARTIAL}")
}

/// Whether a scratch directory has the announcement.
pub(super) fn is_announced(scratch: &OwnedFd) -> io::Result<bool> {
    match rustix::fs::statat(scratch, announced(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => {
            remove(scratch, &format!("{}/{YIELD}", announced()), false)?;
            Ok(true)
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn remove(scratch: &OwnedFd, path: &str, dir: bool) -> io::Result<()> {
    let flags = if dir {
        AtFlags::REMOVEDIR
    } else {
        AtFlags::empty()
    };
    match rustix::fs::unlinkat(scratch, path, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Asks a daemon that goes on completing files after its mount has gone to leave off. False where there are no partial files in
/// the workdir.
pub fn ask_to_yield(work: &Path) -> io::Result<bool> {
    let dir = work.join("work").join(announced());
    match File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(YIELD))
    {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether a workdir that nobody uses tells of partial files.
pub fn partial_left(work: &Path) -> bool {
    work.join("work").join(announced()).exists()
}

impl Upper {
    /// Whether the mount before left partial files: they count as one until [`Upper::withdraw_partial`] is called for them.
    pub fn partial_left(&self) -> bool {
        self.partial.left.load(Ordering::Relaxed)
    }

    /// There is a partial file more, or is about to be.
    pub fn announce_partial(&self) -> io::Result<()> {
        let mut count = self.partial.count.lock();
        if *count == 0 {
            for path in [INCOMPAT.to_owned(), announced()] {
                match rustix::fs::mkdirat(&self.work.fd, path, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        *count += 1;
        Ok(())
    }

    /// A partial file is complete, or gone.
    pub fn withdraw_partial(&self) -> io::Result<()> {
        let mut count = self.partial.count.lock();
        *count = count.saturating_sub(1);
        if *count > 0 {
            return Ok(());
        }
        let scratch = &self.work.fd;
        remove(scratch, &format!("{}/{YIELD}", announced()), false)?;
        remove(scratch, &announced(), true)?;
        match remove(scratch, INCOMPAT, true) {
            // That of a volatile mount is beside it.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => Ok(()),
            other => other,
        }
    }

    /// Who asked while there was a mount still was refused.
    pub fn forget_yield(&self) -> io::Result<()> {
        remove(&self.work.fd, &format!("{}/{YIELD}", announced()), false)
    }

    /// Whether another mount waits for this upper.
    pub fn is_asked_to_yield(&self) -> bool {
        let path = format!("{}/{YIELD}", announced());
        rustix::fs::statat(&self.work.fd, path, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// When the machine was started, as a partial record tells it.
    pub fn boot(&self) -> io::Result<[u8; 16]> {
        let text: String = boot_id()?.chars().filter(char::is_ascii_hexdigit).collect();
        let number = u128::from_str_radix(&text, 16)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(number.to_be_bytes())
    }

    /// Writes what is to be known of a partial file.
    pub fn write_partial(&self, file: &File, record: &PartialRecord) -> io::Result<()> {
        self.set_mark_fd(file.as_fd(), &Mark::Partial(Some(record.encode())))
    }

    /// Notes attributes to be put back, or that there are none any more.
    pub fn set_kept(&self, file: &File, kept: Option<&[u8]>) -> io::Result<()> {
        self.set_mark_fd(file.as_fd(), &Mark::Kept(kept.map(<[u8]>::to_vec)))
    }

    /// What [`Upper::set_kept`] noted.
    pub fn kept_of(&self, file: &File) -> io::Result<Option<Vec<u8>>> {
        self.mark_of_fd(file.as_fd(), &Mark::Kept(None))
    }

    /// Lets the data of a partial file lie nowhere for other readers.
    pub fn hide_partial(&self, file: &File) -> io::Result<()> {
        self.set_mark_fd(file.as_fd(), &Mark::Redirect(Some(NOWHERE.into())))?;
        self.shadow_partial(file);
        Ok(())
    }

    fn shadow_names(&self) -> [OsString; 2] {
        let other = match self.options().namespace {
            Namespace::Trusted => Namespace::User,
            Namespace::User => Namespace::Trusted,
        };
        // The first is the one by whose value ours are known.
        [Mark::Redirect(None), Mark::Metacopy(false)].map(|mark| mark_name(other, &mark))
    }

    /// Hides a partial file from who reads the marks of the other xattr namespace alone. Best effort: those marks may need a
    /// privilege or room that is not there, and may be a program's own.
    pub fn shadow_partial(&self, file: &File) {
        let [redirect, metacopy] = self.shadow_names();
        let target = Target::Fd(file.as_fd());
        let set = xattr::set(target, &redirect, NOWHERE.as_bytes(), libc::XATTR_CREATE)
            .and_then(|()| xattr::set(target, &metacopy, b"", libc::XATTR_CREATE));
        if let Err(e) = set {
            log::debug!("a partial file has no marks of the other xattr namespace: {e}");
        }
    }

    /// Whether an xattr is called as those are by which a partial file is hidden in the other namespace.
    pub fn is_called_as_shadow(&self, name: &OsStr) -> bool {
        self.shadow_names().iter().any(|shadow| shadow == name)
    }

    /// Whether an xattr of a partial file is one of ours in the other namespace.
    pub fn is_shadow(&self, file: &File, name: &OsStr) -> io::Result<bool> {
        Ok(self.is_called_as_shadow(name) && self.has_shadow(file)?)
    }

    fn has_shadow(&self, file: &File) -> io::Result<bool> {
        let [redirect, _] = self.shadow_names();
        match xattr::get(Target::Fd(file.as_fd()), &redirect) {
            Ok(value) => Ok(value.is_some_and(|value| value == NOWHERE.as_bytes())),
            // A namespace that the filesystem does not keep, or that is not for this process.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPERM)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Takes the marks in the other namespace away.
    pub fn unshadow_partial(&self, file: &File) -> io::Result<()> {
        if !self.has_shadow(file)? {
            return Ok(());
        }
        let [redirect, metacopy] = self.shadow_names();
        // The one by which they are known is the last.
        for name in [metacopy, redirect] {
            match xattr::remove(Target::Fd(file.as_fd()), &name) {
                Err(e) if e.raw_os_error() == Some(libc::ENODATA) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Takes the marks away. Those of the other namespace go before the one that makes the file whole: nobody would look for
    /// them afterwards. Precondition: all blocks are here, and durable.
    pub fn unmark_partial(&self, file: &File) -> io::Result<()> {
        self.unshadow_partial(file)?;
        self.set_mark_fd(file.as_fd(), &Mark::Metacopy(false))?;
        for mark in LAST_MARKS {
            self.set_mark_fd(file.as_fd(), &mark)?;
        }
        Ok(())
    }

    /// Takes away what is left of the marks of a file that is whole, where [`Upper::unmark_partial`] did not come to its end.
    pub fn forget_partial_marks(&self, node: &super::Node) -> io::Result<()> {
        for mark in LAST_MARKS {
            self.set_mark(node, &mark)?;
        }
        Ok(())
    }

    /// Opens a regular file for the daemon's own use.
    pub fn open_own(&self, node: &super::Node) -> io::Result<File> {
        let node = crate::layer::tree::path_node(node)?;
        Ok(self.open_file(node, crate::layer::Access::Write)?.into())
    }
}

#[cfg(test)]
mod unit {
    use super::*;
    use crate::layer::upper::Namespace;
    use crate::layer::upper::tests::Fixture;

    #[test]
    fn the_announcement_stays_as_long_as_there_is_a_file() {
        let fixture = Fixture::new(Namespace::User);
        let dir = fixture.dir.join("w/work/incompat/acetate-partial");
        fixture.upper.announce_partial().unwrap();
        fixture.upper.announce_partial().unwrap();
        fixture.upper.withdraw_partial().unwrap();
        assert!(dir.exists());
        assert!(!fixture.upper.is_asked_to_yield());
        assert!(ask_to_yield(&fixture.dir.join("w")).unwrap());
        assert!(fixture.upper.is_asked_to_yield());
        fixture.upper.withdraw_partial().unwrap();
        assert!(!dir.parent().unwrap().exists());
        assert!(!ask_to_yield(&fixture.dir.join("w")).unwrap());
    }
}
