//! What the writing of blocks that no program wrote must leave as it is.
//!
//! It changes the times of the file and takes its capabilities away, and both are put back. In between the machine may lose its
//! power, or the daemon be killed, for as long as the background has to wait for a processor. So what is to be put back
//! stands in a mark of the file meanwhile: filesystems that keep the order of metadata have it on the disk whenever they
//! have the change.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{Timespec, Timestamps};

use super::super::error::Result;
use super::file::Partial;
use crate::sys::xattr::{self, Target};

/// What a file's capabilities are kept in; writing takes them away.
const CAPABILITY: &str = "security.capability";

/// The first byte of a mark.
const VERSION: u8 = 1;

/// Attributes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
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
}

impl Partial {
    /// Does what writes blocks, apart from all that reads or changes attributes, and puts those back that this changes: also where it
    /// fails.
    pub(super) fn keeping_attributes(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let kept = self.kept()?;
        // Where there is no room for it, the file is completed all the same.
        let marked = match self.upper.set_kept(&self.file, Some(&kept.encode())) {
            Ok(()) => true,
            Err(e) => {
                log::debug!("the times of a file are not noted while its blocks are filled: {e}");
                false
            }
        };
        let worked = work();
        let restored = self.restore(&kept);
        // What was not put back is put back by the next mount.
        if marked && restored.is_ok() {
            self.upper.set_kept(&self.file, None)?;
        }
        worked.and(restored)
    }

    /// Puts back what a daemon did not that was killed, or whose machine lost its power, while it wrote blocks.
    pub(super) fn restore_left(&self) -> Result<()> {
        let Some(mark) = self.upper.kept_of(&self.file)? else {
            return Ok(());
        };
        match Kept::decode(&mark, self.file.metadata()?.permissions().mode()) {
            Some(kept) => self.restore(&kept)?,
            None => log::warn!("the times of {:?} were noted, unreadably", self.record.path),
        }
        Ok(self.upper.set_kept(&self.file, None)?)
    }

    fn kept(&self) -> Result<Kept> {
        let meta = self.file.metadata()?;
        Ok(Kept {
            atime: (meta.atime(), meta.atime_nsec() as u32),
            mtime: (meta.mtime(), meta.mtime_nsec() as u32),
            mode: meta.permissions().mode(),
            capability: match xattr::get(Target::Fd(self.file.as_fd()), CAPABILITY.as_ref()) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => None,
                other => other?,
            },
        })
    }

    fn restore(&self, kept: &Kept) -> Result<()> {
        if let Some(value) = &kept.capability {
            xattr::set(Target::Fd(self.file.as_fd()), CAPABILITY.as_ref(), value, 0)?;
        }
        if kept.mode & 0o6000 != 0 && self.file.metadata()?.permissions().mode() != kept.mode {
            self.file
                .set_permissions(std::fs::Permissions::from_mode(kept.mode & 0o7777))?;
        }
        let times = Timestamps {
            last_access: timespec(kept.atime),
            last_modification: timespec(kept.mtime),
        };
        rustix::fs::futimens(&self.file, &times).map_err(io::Error::from)?;
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
