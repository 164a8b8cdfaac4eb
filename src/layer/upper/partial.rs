//! The marks of partially copied-up files, which no other reader may take for whole ones.
//!
//! Such a file is a metacopy whose redirect leads to a path that does not exist, so that the kernel refuses it, and
//! our own mark says the rest. While there is any, `incompat/acetate-partial` in the scratch directory makes the
//! kernel refuse the whole upper, as any entry there does.
//!
//! The orders in which a crash leaves nothing wrong, on filesystems that keep the order of metadata: the announcement
//! first, then the marks, then the blocks, then the map that claims them. Back: the blocks are made durable, then the
//! metacopy mark goes, with which the file is whole to any reader, then the other marks, and the announcement last.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::open::{INCOMPAT, boot_id};
use super::{Mark, Upper};
use crate::layer::format::PartialRecord;

/// Where the data of a partial file is said to lie: no layer can have the path, as names with this prefix are whiteouts.
pub const NOWHERE: &str = "/.wh..wh.acetate-partial";

/// The announcement, beside that of a volatile mount.
pub(super) const PARTIAL: &str = "acetate-partial";

/// In the announcement: the next mount asks whoever is still completing files to leave off.
const YIELD: &str = "yield";

/// How many files the announcement is made for.
#[derive(Debug)]
pub(super) struct Announcement {
    /// Held while the directories are made and removed, so that neither happens for an old number.
    count: Mutex<usize>,
    /// Partial files were left by the mount before. Immutable.
    left: bool,
}

impl Announcement {
    /// `left`: there is one already, for files that are to be found.
    pub(super) fn new(left: bool) -> Announcement {
        Announcement {
            count: Mutex::new(usize::from(left)),
            left,
        }
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

impl Upper {
    /// Whether the mount before left partial files: they count as one until [`Upper::withdraw_partial`] is called for them.
    pub fn partial_left(&self) -> bool {
        self.partial.left
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

    /// Lets the data of a partial file lie nowhere for other readers.
    pub fn hide_partial(&self, file: &File) -> io::Result<()> {
        self.set_mark_fd(file.as_fd(), &Mark::Redirect(Some(NOWHERE.into())))
    }

    /// Takes the marks away, of which the first makes the file whole. Precondition: all blocks are here, and durable.
    pub fn unmark_partial(&self, file: &File) -> io::Result<()> {
        for mark in [
            Mark::Metacopy(false),
            Mark::Redirect(None),
            Mark::Partial(None),
        ] {
            self.set_mark_fd(file.as_fd(), &mark)?;
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
