//! Where things lie: the store, and what running mounts leave for other processes to find.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The store's root directory: what `--root` says, or `ACETATE_ROOT`, or the default of the user.
pub fn store_root(given: Option<PathBuf>) -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
    if let Some(root) = given.or_else(|| variable("ACETATE_ROOT").map(PathBuf::from)) {
        return root;
    }
    let system = Path::new("/var/lib/acetate");
    if rustix::process::geteuid().is_root() && is_writable(Path::new("/var/lib")) {
        return system.to_owned();
    }
    if let Some(data) = variable("XDG_DATA_HOME") {
        return PathBuf::from(data).join("acetate");
    }
    match variable("HOME") {
        Some(home) => PathBuf::from(home).join(".local/share/acetate"),
        None => system.to_owned(),
    }
}

/// In a user namespace the root user may be an ordinary one outside.
fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Where the records of running mounts may lie, best first.
pub(super) fn candidates() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let user = rustix::process::geteuid();
    if user.is_root() {
        found.push(PathBuf::from("/run/acetate"));
    }
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        found.push(PathBuf::from(dir).join("acetate"));
    }
    found.push(std::env::temp_dir().join(format!("acetate-{}", user.as_raw())));
    found
}

/// The first candidate that is ours, created where it is missing.
pub(super) fn create() -> io::Result<PathBuf> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for dir in candidates() {
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_ours(&dir) => return Ok(dir),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// In a directory that others may write to, somebody else may have taken the name.
pub(super) fn is_ours(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|found| {
        found.is_dir()
            && found.uid() == rustix::process::geteuid().as_raw()
            && found.mode() & 0o022 == 0
            && is_writable(dir)
    })
}
