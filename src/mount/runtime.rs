//! Where things lie: the store, and what running mounts leave for other processes to find.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

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

/// Below the user's home.
const IN_HOME: &str = ".local/state/acetate/run";

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
    let name = format!("acetate-{}", outside(user.as_raw()));
    found.push(std::env::temp_dir().join(name));
    // Of a directory for everybody somebody else may have taken the name; this one is the user's alone.
    if let Some(home) = std::env::var_os("HOME").filter(|dir| !dir.is_empty()) {
        found.push(PathBuf::from(home).join(IN_HOME));
    }
    found
}

/// The user's id outside of a user namespace: in there, everybody may be root.
fn outside(uid: u32) -> u32 {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        Some((next()?, next()?, next()?))
    });
    ranges
        .filter(|(inside, _, count)| uid >= *inside && uid - inside < *count)
        .map(|(inside, outside, _)| outside + (uid - inside))
        .next()
        .unwrap_or(uid)
}

/// Where records of what runs lie: the first candidate that is this user's, created where it is missing.
pub fn create() -> io::Result<PathBuf> {
    create_first(candidates())
}

fn create_first(candidates: Vec<PathBuf>) -> io::Result<PathBuf> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for dir in candidates {
        match make(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_ours(&dir) => return Ok(dir),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Makes the directory, and with it what leads to one of the user's home.
fn make(dir: &Path) -> io::Result<()> {
    let new = || fs::DirBuilder::new().mode(0o700).create(dir);
    match (new(), dir.parent()) {
        (Err(e), Some(parent)) if e.kind() == io::ErrorKind::NotFound && dir.ends_with(IN_HOME) => {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(parent)?;
            new()
        }
        (made, _) => made,
    }
}

/// How long the log of a mount that ended with errors is kept.
const LOG_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Takes away old logs that no record names any more.
pub(super) fn sweep_logs(dir: &Path) {
    let swept = || -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let leftover = path
                .extension()
                .is_some_and(|extension| extension == "log" || extension == "new");
            if !leftover || path.with_extension("json").exists() {
                continue;
            }
            let age = fs::metadata(&path)?.modified()?.elapsed();
            if age.is_ok_and(|age| age > LOG_LIFE) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    };
    // Another command may be sweeping the same.
    if let Err(e) = swept() {
        log::debug!("{} is not swept: {e}", dir.display());
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn only_old_logs_without_a_record_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["old.log", "held.log", "held.json", "new.log", "old.txt"] {
            File::create(path(name)).unwrap();
        }
        let long_ago = std::time::SystemTime::now() - LOG_LIFE - Duration::from_secs(60);
        for name in ["old.log", "held.log", "old.txt"] {
            let file = File::options().write(true).open(path(name)).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        sweep_logs(dir.path());
        assert!(!path("old.log").exists());
        for name in ["held.log", "new.log", "old.txt"] {
            assert!(path(name).exists(), "{name}");
        }
    }

    #[test]
    fn where_others_took_the_name_the_users_home_has_the_place() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (squatted, home) = (dir.path().join("squatted"), dir.path().join(IN_HOME));
        fs::create_dir(&squatted).unwrap();
        fs::set_permissions(&squatted, fs::Permissions::from_mode(0o777)).unwrap();
        let all = vec![squatted.clone(), home.clone()];
        for _ in 0..2 {
            assert_eq!(create_first(all.clone()).unwrap(), home);
        }
        assert!(is_ours(&home));
        // A link to somewhere of ours is somebody else's choice as well.
        fs::remove_dir(&squatted).unwrap();
        std::os::unix::fs::symlink(dir.path(), &squatted).unwrap();
        assert_eq!(create_first(all).unwrap(), home);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_not_ours() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        assert!(is_ours(dir.path()));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!is_ours(dir.path()));
        assert!(!is_ours(&dir.path().join("missing")));
    }
}
