//! What the writing of data that no program wrote must leave as it is: of the blocks of a partial file, or of all that a metacopy
//! file has below.
//!
//! It changes the times of the file and takes its capabilities away, and both are put back. In between the machine may lose its
//! power, or the daemon be killed, for as long as the background has to wait for a processor. So what is to be put back
//! stands in a mark of the file meanwhile: filesystems that keep the order of metadata have it on the disk whenever they
//! have the change.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use rustix::fs::{Timespec, Timestamps};

use super::super::Union;
use super::super::error::Result;
use super::super::inode::{Inode, UpperPart};
use super::super::stack::Resolved;
use super::Registry;
use super::file::Partial;
use crate::layer::upper::Upper;
use crate::layer::{Layer, Stat, Timestamp};
use crate::sys::xattr::{self, Target};

/// What a file's capabilities are kept in; writing takes them away.
pub(crate) const CAPABILITY: &str = "security.capability";

/// The first byte of a mark.
const VERSION: u8 = 1;

/// Attributes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    atime: (i64, u32),
    mtime: (i64, u32),
    /// Not in the mark: suid and sgid are not to come back by a mark that somebody forged or that is out of date.
    mode: u32,
    capability: Option<Vec<u8>>,
}

impl Kept {
    /// Little-endian: the version, seconds and nanoseconds of access, those of modification, and the capabilities if any.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for (sec, nsec) in [self.atime, self.mtime] {
            bytes.extend_from_slice(&sec.to_le_bytes());
            bytes.extend_from_slice(&nsec.to_le_bytes());
        }
        bytes.extend_from_slice(self.capability.as_deref().unwrap_or_default());
        bytes
    }

    /// `None` for what is no such mark.
    fn decode(bytes: &[u8], mode: u32) -> Option<Kept> {
        let (&version, mut rest) = bytes.split_first()?;
        let mut time = || -> Option<(i64, u32)> {
            let (sec, after) = rest.split_first_chunk()?;
            let (nsec, after) = after.split_first_chunk()?;
            rest = after;
            let nsec = u32::from_le_bytes(*nsec);
            (nsec < 1_000_000_000).then_some((i64::from_le_bytes(*sec), nsec))
        };
        let (atime, mtime) = (time()?, time()?);
        (version == VERSION).then(|| Kept {
            atime,
            mtime,
            mode,
            capability: (!rest.is_empty()).then(|| rest.to_owned()),
        })
    }

    fn of(file: &File) -> Result<Kept> {
        let meta = file.metadata()?;
        Ok(Kept {
            atime: (meta.atime(), meta.atime_nsec() as u32),
            mtime: (meta.mtime(), meta.mtime_nsec() as u32),
            mode: meta.permissions().mode(),
            capability: match xattr::get(Target::Fd(file.as_fd()), CAPABILITY.as_ref()) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => None,
                other => other?,
            },
        })
    }

    fn restore(&self, file: &File) -> Result<()> {
        if let Some(value) = &self.capability {
            xattr::set(Target::Fd(file.as_fd()), CAPABILITY.as_ref(), value, 0)?;
        }
        if self.mode & 0o6000 != 0 && file.metadata()?.permissions().mode() != self.mode {
            file.set_permissions(std::fs::Permissions::from_mode(self.mode & 0o7777))?;
        }
        let times = Timestamps {
            last_access: timespec(self.atime),
            last_modification: timespec(self.mtime),
        };
        rustix::fs::futimens(file, &times).map_err(io::Error::from)?;
        Ok(())
    }

    /// Puts the times that the file is to have into what a `stat` says of it.
    fn apply(&self, stat: &mut Stat) {
        let time = |(sec, nsec)| Timestamp { sec, nsec };
        (stat.atime, stat.mtime) = (time(self.atime), time(self.mtime));
    }

    /// Runs `work`, which writes to the file, and puts back what that changes: also where it fails. Meanwhile the mark is there.
    fn around<T>(
        &self,
        (upper, file): (&Upper, &File),
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        // Where there is no room for it, the data is copied all the same.
        let marked = match upper.set_kept(file, Some(&self.encode())) {
            Ok(()) => true,
            Err(e) => {
                log::debug!("the times of a file are not noted while its data is copied: {e}");
                false
            }
        };
        let worked = work();
        let restored = self.restore(file);
        // What was not put back is put back by the next mount.
        if marked && restored.is_ok() {
            upper.set_kept(file, None)?;
        }
        worked.and_then(|done| restored.map(|()| done))
    }
}

/// Puts back what a daemon did not that was killed, or whose machine lost its power, while it wrote data. `what`: for the log.
fn restore_left(upper: &Upper, file: &File, what: &OsStr) -> Result<()> {
    let Some(mark) = upper.kept_of(file)? else {
        return Ok(());
    };
    match Kept::decode(&mark, file.metadata()?.permissions().mode()) {
        Some(kept) => kept.restore(file)?,
        None => log::warn!("the times of {what:?} were noted, unreadably"),
    }
    Ok(upper.set_kept(file, None)?)
}

impl Partial {
    /// Does what writes blocks, apart from all that reads or changes attributes, and puts those back that this changes: also where it
    /// fails.
    pub(super) fn keeping_attributes(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        Kept::of(&self.file)?.around((&self.upper, &self.file), work)
    }

    /// Puts back what a daemon did not that was killed, or whose machine lost its power, while it wrote blocks.
    pub(super) fn restore_left(&self) -> Result<()> {
        restore_left(&self.upper, &self.file, &self.record.path)
    }
}

/// A file whose data is being copied, for as long as this lives.
pub(crate) struct Copying<'a> {
    registry: &'a Registry,
    real_ino: u64,
    kept: Arc<Kept>,
}

impl Copying<'_> {
    /// Runs `work`, which writes to the file, and puts back what that changes: also where it fails.
    pub(crate) fn around<T>(
        &self,
        place: (&Upper, &File),
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.kept.around(place, work)
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        self.registry.copying.lock().remove(&self.real_ino);
    }
}

impl Union {
    /// The data of a metacopy file is about to be copied into it: who asks for its attributes is told what they will be, until the
    /// inode is known to have its data. Precondition: the inode's copy-up lock is held.
    pub(crate) fn begin_copying(&self, part: &UpperPart, file: &File) -> Result<Copying<'_>> {
        let kept = Arc::new(Kept::of(file)?);
        let mut copying = self.partials.copying.lock();
        copying.insert(part.real_ino, kept.clone());
        Ok(Copying {
            registry: &self.partials,
            real_ino: part.real_ino,
            kept,
        })
    }

    /// What the upper file of an inode is to have when the copy of its data is done, while there is one.
    fn kept_of(&self, part: &UpperPart) -> Option<Arc<Kept>> {
        self.partials.copying.lock().get(&part.real_ino).cloned()
    }

    /// The attributes of an upper file that may be a metacopy: without what the copying of its data changes for a moment.
    pub(crate) fn stat_settled(&self, inode: &Inode, part: &UpperPart) -> Result<Stat> {
        let upper = self.upper()?;
        let before = self.kept_of(part);
        let mut stat = upper.stat(&part.node)?;
        match before.or_else(|| self.kept_of(part)) {
            Some(kept) => kept.apply(&mut stat),
            // All of a copy may have lain between.
            None if !inode.state.read().metacopy => stat = upper.stat(&part.node)?,
            None => {}
        }
        Ok(stat)
    }

    /// The capabilities of a metacopy file that `get` does not find, perhaps for being asked while its data is copied.
    pub(crate) fn capability_settled(
        &self,
        inode: &Inode,
        get: impl FnOnce() -> Result<Option<Vec<u8>>>,
    ) -> Result<Option<Vec<u8>>> {
        match inode.upper().and_then(|part| self.kept_of(&part)) {
            Some(kept) => Ok(kept.capability.clone()),
            // The copy may be done by now.
            None => get(),
        }
    }

    /// Puts the attributes back that a metacopy file lost when the copying of its data was cut off by the end of the daemon or the
    /// machine.
    pub(crate) fn restore_copied(&self, resolved: &mut Resolved) -> Result<()> {
        let (Some(upper), Some(found)) = (&self.stack.upper, &mut resolved.upper) else {
            return Ok(());
        };
        if !found.marks.kept || !found.stat.is_file() || self.params.read_only {
            return Ok(());
        }
        // Held, so that no copy begins; of one that runs the mark is none to go by.
        let copying = self.partials.copying.lock();
        let marks = upper.marks(&found.node, &found.stat)?;
        let left = marks.kept && marks.metacopy && marks.partial.is_none();
        if left && !copying.contains_key(&found.stat.ino) {
            let file = upper.open_own(&found.node)?;
            restore_left(upper, &file, "a file without its data".as_ref())?;
            found.stat = upper.stat(&found.node)?;
        }
        Ok(())
    }
}

fn timespec((sec, nsec): (i64, u32)) -> Timespec {
    Timespec {
        tv_sec: sec,
        tv_nsec: nsec.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_were_written() {
        for capability in [None, Some(b"of a file".to_vec())] {
            let kept = Kept {
                atime: (-5, 999_999_999),
                mtime: (i64::MAX, 0),
                mode: 0o100_644,
                capability,
            };
            let mark = kept.encode();
            assert_eq!(Kept::decode(&mark, 0o100_644), Some(kept));
            assert_eq!(Kept::decode(&mark[..20], 0), None);
            let mut other = mark.clone();
            other[0] += 1;
            assert_eq!(Kept::decode(&other, 0), None);
            let mut wrong = mark;
            wrong[9..13].fill(0xff);
            assert_eq!(Kept::decode(&wrong, 0), None);
        }
        assert_eq!(Kept::decode(b"", 0), None);
    }
}
