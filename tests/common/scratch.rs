//! Scratch directories.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::connection;

/// A directory that is removed when the test ends, mounts in it included. It lies in `ACETATE_TEST_DIR`, or
/// in the system's temporary folder, and everyone may enter it.
#[derive(Debug)]
pub struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    /// Creates one; `name` shows up in its path.
    pub fn new(name: &str) -> Scratch {
        let base =
            std::env::var_os("ACETATE_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        Scratch::new_in(&base, name)
    }

    /// Creates one below `base`.
    pub fn new_in(base: &Path, name: &str) -> Scratch {
        let base = fs::canonicalize(base).unwrap();
        let dir = tempfile::Builder::new()
            .prefix(&format!("acetate-{name}-"))
            .tempdir_in(base)
            .unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Scratch { dir }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it, which need not exist.
    pub fn join(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.dir.path().join(name.as_ref())
    }

    /// Makes a directory in it, with its parents.
    pub fn dir(&self, name: impl AsRef<OsStr>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A mount that a failed test left behind would be emptied along with the directory.
        let mut left: Vec<PathBuf> = connection::mounts()
            .into_iter()
            .map(|m| m.target)
            .filter(|target| target.starts_with(self.dir.path()))
            .collect();
        left.reverse();
        for target in left {
            eprintln!("left mounted: {}", target.display());
            if let Err(e) = nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH) {
                eprintln!("umount {}: {e}", target.display());
            }
        }
    }
}
