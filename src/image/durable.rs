//! Files that are there whole or not at all, also after a power cut.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::error::ImageError;

/// Replaces `path` by a file with this content, written in `tmp` (a folder of the same filesystem) first.
pub(crate) fn write_file(path: &Path, bytes: &[u8], tmp: &Path) -> Result<(), ImageError> {
    let mut file =
        tempfile::NamedTempFile::new_in(tmp).map_err(ImageError::io("create a file in", tmp))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(ImageError::io("write", path))?;
    file.as_file()
        .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .map_err(ImageError::io("write", path))?;
    file.persist(path)
        .map_err(|e| ImageError::io("write", path)(e.error))?;
    sync_parent(path)
}

/// Renames a file, whose content is durable, to its place.
pub(crate) fn publish(from: &Path, to: &Path) -> Result<(), ImageError> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(ImageError::io("create", parent))?;
    }
    std::fs::rename(from, to).map_err(ImageError::io("write", to))?;
    sync_parent(to)
}

/// Makes the entry `path` of its folder durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), ImageError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(ImageError::io("sync", parent))
}

/// Makes everything durable that was written on the filesystem of `path`: one call is faster than one for each file of
/// a layer.
pub(crate) fn sync_filesystem(path: &Path) -> Result<(), ImageError> {
    let fd = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(ImageError::io("open", path))?;
    rustix::fs::syncfs(&fd).map_err(ImageError::io("sync", path))
}
