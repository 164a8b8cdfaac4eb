//! The changes whose price is measured.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

use super::files;

/// The unit of filesystems and of the page cache.
const BLOCK: u64 = 4096;
const WRITE: u64 = 1 << 20;

/// The first change of a lower file, or of a directory of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// One byte at the end.
    Append,
    /// One block of 4 KiB somewhere.
    Block,
    /// A tenth of the blocks, here and there.
    Tenth,
    /// Every byte, without `O_TRUNC`.
    Overwrite,
    /// Opened with `O_TRUNC`.
    Truncate,
    /// The mode.
    Chmod,
    /// The owner.
    Chown,
    /// The times.
    Touch,
    /// An extended attribute.
    Setxattr,
    /// A second name.
    Link,
    /// A directory of files gets another name, by `mv`'s rule: copied where the filesystem says `EXDEV`.
    RenameDir,
}

impl Change {
    /// All of them.
    pub const ALL: [Change; 11] = [
        Change::Append,
        Change::Block,
        Change::Tenth,
        Change::Overwrite,
        Change::Truncate,
        Change::Chmod,
        Change::Chown,
        Change::Touch,
        Change::Setxattr,
        Change::Link,
        Change::RenameDir,
    ];

    /// In a few words.
    pub fn name(self) -> &'static str {
        match self {
            Change::Append => "append a byte",
            Change::Block => "write one block",
            Change::Tenth => "write a tenth",
            Change::Overwrite => "overwrite all",
            Change::Truncate => "O_TRUNC",
            Change::Chmod => "chmod",
            Change::Chown => "chown",
            Change::Touch => "touch",
            Change::Setxattr => "setxattr",
            Change::Link => "link",
            Change::RenameDir => "rename directory",
        }
    }

    /// How many bytes of a file of that size it changes.
    pub(super) fn bytes(self, size: u64) -> u64 {
        match self {
            Change::Append => 1,
            Change::Block => BLOCK.min(size),
            Change::Tenth => (size / BLOCK / 10).max(1) * BLOCK.min(size),
            Change::Overwrite => size,
            _ => 0,
        }
    }

    /// Makes the change and says how long it took, opening and closing included.
    pub(super) fn make(self, path: &Path, size: u64, seed: u64) -> io::Result<Duration> {
        let data = files::noise(seed ^ 0xC4A6, WRITE.min(size.max(BLOCK)));
        let block = data.get(..BLOCK.min(size.max(1)) as usize).unwrap_or(&data);
        let begin = Instant::now();
        match self {
            Change::Append => OpenOptions::new()
                .append(true)
                .open(path)?
                .write_all(b"+")?,
            Change::Block => {
                let file = OpenOptions::new().write(true).open(path)?;
                file.write_all_at(block, place(seed, size))?;
            }
            Change::Tenth => {
                let file = OpenOptions::new().write(true).open(path)?;
                for i in 0..(size / BLOCK / 10).max(1) {
                    file.write_all_at(block, place(seed + i, size))?;
                }
            }
            Change::Overwrite => {
                let file = OpenOptions::new().write(true).open(path)?;
                let mut done = 0;
                while done < size {
                    let part = (size - done).min(data.len() as u64);
                    file.write_all_at(data.get(..part as usize).unwrap_or(&data), done)?;
                    done += part;
                }
            }
            Change::Truncate => drop(
                OpenOptions::new()
                    .write(true)
                    .custom_flags(libc::O_TRUNC)
                    .open(path)?,
            ),
            Change::Chmod => fs::set_permissions(path, Permissions::from_mode(0o600))?,
            Change::Chown => std::os::unix::fs::chown(path, Some(1), Some(1))?,
            Change::Touch => File::open(path)?.set_modified(std::time::UNIX_EPOCH)?,
            Change::Setxattr => {
                rustix::fs::setxattr(path, "user.bench", b"1", XattrFlags::empty())?;
            }
            Change::Link => fs::hard_link(path, path.with_extension("link"))?,
            Change::RenameDir => rename(path, &path.with_extension("moved"))?,
        }
        Ok(begin.elapsed())
    }

    /// Whether the change shows.
    pub(super) fn shows(self, path: &Path, size: u64, seed: u64) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::symlink_metadata(path);
        if self == Change::RenameDir {
            let moved = path.with_extension("moved");
            return Ok(meta.is_err() && fs::read_dir(moved)?.next().is_some());
        }
        let meta = meta?;
        Ok(match self {
            Change::Append => meta.size() == size + 1 && self.rest_is_old(path, size, seed)?,
            Change::Block => {
                let mut read = vec![0; BLOCK.min(size) as usize];
                File::open(path)?.read_exact_at(&mut read, place(seed, size))?;
                let written = files::noise(seed ^ 0xC4A6, WRITE.min(size.max(BLOCK)));
                written.starts_with(&read) && self.rest_is_old(path, size, seed)?
            }
            Change::Tenth | Change::Overwrite => meta.size() == size,
            Change::Truncate => meta.size() == 0,
            Change::Chmod => meta.mode() & 0o777 == 0o600,
            Change::Chown => meta.uid() == 1 && meta.gid() == 1,
            Change::Touch => meta.mtime() == 0,
            Change::Setxattr => {
                let mut value = [0u8; 8];
                rustix::fs::getxattr(path, "user.bench", &mut value)? == 1
            }
            Change::Link => fs::metadata(path.with_extension("link"))?.ino() == meta.ino(),
            Change::RenameDir => false,
        })
    }

    /// A block that was not changed is what it was below.
    fn rest_is_old(self, path: &Path, size: u64, seed: u64) -> io::Result<bool> {
        let other = if self == Change::Block && place(seed, size) == 0 {
            BLOCK
        } else {
            0
        };
        if other + BLOCK > size {
            return Ok(true);
        }
        let mut read = vec![0; BLOCK as usize];
        File::open(path)?.read_exact_at(&mut read, other)?;
        Ok(read == files::expected(path, other, BLOCK))
    }
}

/// Where the changed block lies.
fn place(seed: u64, size: u64) -> u64 {
    let mixed = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 17;
    mixed % (size / BLOCK).max(1) * BLOCK
}

/// As `mv` does: by renaming, or by copying and removing.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let status = Command::new("mv").arg(from).arg(to).status()?;
            if status.success() {
                Ok(())
            } else {
                Err(io::Error::other(format!("mv: {status}")))
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_shows_and_none_shows_before() {
        let dir = tempfile::tempdir().unwrap();
        let size = 64 << 10;
        for change in Change::ALL {
            if change == Change::Chown && !rustix::process::geteuid().is_root() {
                continue;
            }
            let path = dir.path().join(format!("{change:?}"));
            if change == Change::RenameDir {
                fs::create_dir(&path).unwrap();
                fs::write(path.join("f"), "x").unwrap();
            } else {
                files::write_noise(&path, size).unwrap();
            }
            let before = change.shows(&path, size, 7);
            let blind = matches!(change, Change::Tenth | Change::Overwrite);
            assert!(blind || !before.unwrap_or(false), "{change:?}");
            change.make(&path, size, 7).unwrap();
            assert!(change.shows(&path, size, 7).unwrap(), "{change:?}");
        }
    }

    #[test]
    fn a_file_with_other_bytes_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        files::write_noise(&path, 64 << 10).unwrap();
        Change::Append.make(&path, 64 << 10, 1).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"?", 5).unwrap();
        assert!(!Change::Append.shows(&path, 64 << 10, 1).unwrap());
    }
}
