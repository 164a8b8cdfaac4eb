//! How the store's files about containers are read and written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;
use serde::{Deserialize, Serialize};

use super::error::ContainerError;
use super::runtime::remove_if_there;

/// The smallest block of a filesystem that is in use.
const SMALL: usize = 1024;

/// Opens a new file, or an emptied one, that others may not read: environments hold passwords.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    options.mode(0o600).open(path)
}

/// Writes a file in the place of another. `durable`: also after a power cut it is one of the two.
pub(super) fn replace(path: &Path, bytes: &[u8], durable: bool) -> Result<(), ContainerError> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let replaced = || -> io::Result<()> {
        let mut file = create_private(&temporary)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, path)
    };
    replaced().map_err(|e| {
        remove_if_there(&temporary);
        ContainerError::io("write", path)(e)
    })
}

/// Writes into a file that is there, for which a disk that is full has the room still: a small file has a whole block.
pub(super) fn overwrite(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    let before = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if before > SMALL || bytes.len() > SMALL {
        return Err(io::ErrorKind::StorageFull.into());
    }
    // In one call, and never cut off: the spaces behind it mean nothing.
    let mut padded = bytes.to_vec();
    padded.resize(before.max(bytes.len()), b' ');
    file.write_all(&padded)?;
    if durable {
        file.sync_all()?;
    }
    Ok(())
}

pub(super) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, ContainerError> {
    let bytes = fs::read(path).map_err(ContainerError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| ContainerError::Json {
        path: path.to_owned(),
        source,
    })
}

pub(super) fn to_json<T: Serialize>(value: &T, path: &Path) -> Result<Vec<u8>, ContainerError> {
    serde_json::to_vec_pretty(value).map_err(|source| ContainerError::Json {
        path: path.to_owned(),
        source,
    })
}

/// What lies in a directory of the store, in no order: nothing, before the first of its kind is made.
pub(super) fn paths_in(dir: &Path) -> Result<Vec<PathBuf>, ContainerError> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
    .map_err(ContainerError::io("read", dir))
}

/// Has ext4 put the folders in a directory far from each other. It never takes an inode that was removed within the last
/// minutes, and looks at all of those again for each new one: where containers come and go this took a fifth of a run.
/// Other filesystems have no need of it, and no such flag.
pub(super) fn spread(dir: &Path) {
    let set = || -> io::Result<()> {
        let dir = File::open(dir)?;
        let flags = rustix::fs::ioctl_getflags(&dir)?;
        Ok(rustix::fs::ioctl_setflags(&dir, flags | IFlags::TOPDIR)?)
    };
    if let Err(e) = set() {
        log::debug!("{} has no flag of its own: {e}", dir.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overwritten_is_whole_and_takes_no_more_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for (before, after) in [("[1, 2, 3]", "[4]"), ("[4]", "[1, 2, 3]")] {
            fs::write(&path, before).unwrap();
            overwrite(&path, after.as_bytes(), true).unwrap();
            let read: Vec<u8> = read_json(&path).unwrap();
            assert_eq!(read, serde_json::from_str::<Vec<u8>>(after).unwrap());
        }
        let long = vec![b' '; SMALL + 1];
        assert!(overwrite(&path, &long, true).is_err());
        assert!(overwrite(&dir.path().join("none"), b"1", true).is_err());
    }
}
