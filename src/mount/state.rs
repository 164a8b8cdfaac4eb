//! How other processes find a mount: one record per mount in the runtime directory, locked as long as its daemon lives.

mod record;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

pub use record::Record;
pub(super) use record::{
    Registration, path_text, record_path, remove, set_daemon, socket_path, take_back,
};

use self::record::{is_locked, read_record};
use super::error::MountError;
use super::runtime;
use crate::layer::upper::partial_left;
use crate::sys::mount::{FS_TYPE, MountEntry, mount_table, mount_table_of, unmount as sys_unmount};

/// How long a daemon may take to end after its mount is gone; discarding a large upper takes its time.
const END_LIMIT: Duration = Duration::from_secs(120);

/// How long it may take to end after its record is gone, in milliseconds.
const EXIT_LIMIT_MS: u16 = 2000;

/// What has become of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountState {
    /// It is mounted and served.
    Mounted,
    /// It was detached lazily, and is served until the last program lets go of it.
    Detached,
    /// It is still mounted, and nobody serves it.
    Dead,
}

/// A record that was found, and where.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) dir: PathBuf,
    pub(super) record: Record,
    pub(super) alive: bool,
}

/// How the id of a mount at this directory begins, so that it is found among many without reading all: a number that stands
/// for the path, in hexadecimal.
pub(super) fn place_of(mountpoint: &Path) -> String {
    let resolved = resolve(mountpoint);
    let path = resolved.as_deref().unwrap_or(mountpoint);
    let bytes = path.as_os_str().as_bytes();
    // FNV-1a. Two paths of one number are no harm.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// All records, those of dead daemons included.
fn records() -> Vec<Found> {
    records_named(|_| true)
}

/// Those of mounts at this directory, whose path has no symlinks.
fn records_at(mountpoint: &Path) -> Vec<Found> {
    let place = place_of(mountpoint);
    let mut found = records_named(|name| {
        let name = name.to_string_lossy();
        // The ids of earlier versions did not tell the place: of two parts, and not of three.
        name.starts_with(&place) || name.split('-').count() != 3
    });
    found.retain(|found| found.record.mountpoint == mountpoint);
    found
}

/// Those of files with such names.
fn records_named(wanted: impl Fn(&OsStr) -> bool) -> Vec<Found> {
    let mut found = Vec::new();
    for dir in runtime::candidates() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        if !runtime::is_ours(&dir) {
            continue;
        }
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json")
                || !wanted(&entry.file_name())
            {
                continue;
            }
            match read_record(&path) {
                Ok((record, alive)) => found.push(Found {
                    dir: dir.clone(),
                    record,
                    alive,
                }),
                // It ended meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => log::warn!("{} is not read: {e}", path.display()),
            }
        }
    }
    found.sort_by(|a, b| (a.record.since, &a.record.id).cmp(&(b.record.since, &b.record.id)));
    found
}

/// Takes away what a dead daemon left, once its mount is gone as well.
fn sweep(found: &Found) {
    for extension in ["sock", "new", "program", "answer", "json"] {
        remove(&found.dir.join(format!("{}.{extension}", found.record.id)));
    }
}

fn ours(entry: &MountEntry) -> bool {
    entry.fs_type == FS_TYPE
}

/// All mounts of this user, oldest first. A mount that nobody left a record of is not among them.
pub fn list() -> Result<Vec<(Record, MountState)>, MountError> {
    let table = table()?;
    let mut all = Vec::new();
    for found in records() {
        let is_here =
            |entry: &MountEntry| ours(entry) && entry.mountpoint == found.record.mountpoint;
        let mounted = table.iter().any(is_here)
            // Engines mount in namespaces of their own.
            || (found.alive
                && mount_table_of(found.record.outside.unwrap_or(found.record.pid))
                    .is_ok_and(|table| table.iter().any(is_here)));
        let state = match (mounted, found.alive) {
            (true, true) => MountState::Mounted,
            (true, false) => MountState::Dead,
            (false, true) if !is_ending(&found) => MountState::Detached,
            (false, _) => {
                sweep(&found);
                continue;
            }
        };
        all.push((found.record, state));
    }
    // A dead mount whose place was taken by a living one is gone for all that matters.
    let living: Vec<PathBuf> = all
        .iter()
        .filter(|(_, state)| *state == MountState::Mounted)
        .map(|(record, _)| record.mountpoint.clone())
        .collect();
    all.retain(|(record, state)| {
        *state != MountState::Dead || !living.contains(&record.mountpoint)
    });
    Ok(all)
}

/// Whether the mount that changed this upper is gone, and its daemon is not yet.
pub(super) fn is_let_go(upper: &Path) -> Result<bool, MountError> {
    let upper = upper.display().to_string();
    Ok(list()?.iter().any(|(record, state)| {
        *state == MountState::Detached && record.upper.as_ref() == Some(&upper)
    }))
}

/// A daemon lives a little longer than its mount.
fn is_ending(found: &Found) -> bool {
    const SOON: Duration = Duration::from_millis(500);
    ends_within(&record_path(&found.dir, &found.record.id), SOON).unwrap_or(false)
}

fn table() -> Result<Vec<MountEntry>, MountError> {
    mount_table().map_err(|e| MountError::Io("/proc/self/mountinfo", e))
}

/// The path without symlinks, and without asking what is mounted at its end, which may be dead.
fn resolve(path: &Path) -> Result<PathBuf, MountError> {
    let failed = |e| MountError::Path("the path", path.to_owned(), e);
    let absolute = std::path::absolute(path).map_err(failed)?;
    if let Ok(target) = fs::read_link(&absolute) {
        let parent = absolute.parent().unwrap_or(Path::new("/"));
        return parent.join(target).canonicalize().map_err(failed);
    }
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return absolute.canonicalize().map_err(failed);
    };
    Ok(parent.canonicalize().map_err(failed)?.join(name))
}

/// As far as it exists the path without symlinks, and the rest as it is.
fn resolve_inside(path: &Path) -> Result<PathBuf, MountError> {
    let failed = |e| MountError::Path("the path", path.to_owned(), e);
    let absolute = std::path::absolute(path).map_err(failed)?;
    let mut rest = Vec::new();
    let mut at = absolute.as_path();
    // The last name is never followed: a symlink has layers of its own.
    while let (Some(parent), Some(name)) = (at.parent(), at.file_name()) {
        rest.push(name);
        match parent.canonicalize() {
            Ok(mut resolved) => {
                resolved.extend(rest.iter().rev());
                return Ok(resolved);
            }
            Err(_) => at = parent,
        }
    }
    Ok(absolute)
}

/// The mount at a directory.
pub fn find(dir: &Path) -> Result<Record, MountError> {
    living(&resolve(dir)?).map(|found| found.record)
}

pub(super) fn living(mountpoint: &Path) -> Result<Found, MountError> {
    let found = records_at(mountpoint);
    match found.into_iter().max_by_key(|found| found.alive) {
        Some(found) if found.alive => Ok(found),
        Some(_) if is_mounted(mountpoint)? => Err(MountError::Dead(mountpoint.to_owned())),
        _ => Err(MountError::NotMounted(mountpoint.to_owned())),
    }
}

/// The mount that a directory is the mountpoint of.
pub(super) fn living_at(dir: &Path) -> Result<Found, MountError> {
    living(&resolve(dir)?)
}

/// The mount that a path lies in, and the path from the mount's root.
pub(super) fn living_around(path: &Path) -> Result<(Found, PathBuf), MountError> {
    let resolved = resolve_inside(path)?;
    let table = table()?;
    // A path lies in what is mounted deepest above it.
    let around = table
        .iter()
        .rev()
        .filter(|entry| resolved.starts_with(&entry.mountpoint))
        .max_by_key(|entry| entry.mountpoint.components().count());
    match around {
        Some(entry) if ours(entry) => {
            let found = living(&entry.mountpoint)?;
            let inside = resolved
                .strip_prefix(&entry.mountpoint)
                .unwrap_or(Path::new(""))
                .to_owned();
            Ok((found, inside))
        }
        _ => Err(MountError::NotMounted(path.to_owned())),
    }
}

fn is_mounted(mountpoint: &Path) -> Result<bool, MountError> {
    let table = table()?;
    let top = table
        .iter()
        .rev()
        .find(|entry| entry.mountpoint == mountpoint);
    Ok(top.is_some_and(ours))
}

/// A mount that is gone, and whose daemon may still be on its way.
#[derive(Debug)]
pub struct Ending(Vec<(Found, Option<OwnedFd>)>);

impl Ending {
    /// Waits until the daemon has ended and let go of all layers.
    pub fn wait(self) -> Result<(), MountError> {
        for (found, process) in self.0 {
            wait_for_end(&found)?;
            if let Some(process) = process {
                wait_for_exit(&process);
            }
            warn_of_partial(&found.record);
        }
        Ok(())
    }
}

/// Unmounts, and waits until the daemon has ended and let go of all layers. A dead mount is taken away.
/// `lazy`: detaches the mount at once, and does not wait.
pub fn unmount(dir: &Path, lazy: bool) -> Result<(), MountError> {
    let ending = begin_unmount(dir, lazy)?;
    if lazy { Ok(()) } else { ending.wait() }
}

/// Unmounts, or with `lazy` detaches the mount, and waits for nothing. A dead mount is taken away.
pub fn begin_unmount(dir: &Path, lazy: bool) -> Result<Ending, MountError> {
    let mountpoint = resolve(dir)?;
    if !is_mounted(&mountpoint)? {
        return Err(MountError::NotMounted(mountpoint));
    }
    let mut found = records_at(&mountpoint);
    let process = |found: &Found| {
        let pid = i32::try_from(found.record.pid).ok().and_then(Pid::from_raw);
        pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
    };
    let processes: Vec<_> = found.iter().map(process).collect();
    sys_unmount(&mountpoint, lazy).map_err(|e| match e.kind() {
        io::ErrorKind::ResourceBusy => MountError::Busy(mountpoint.clone()),
        _ => MountError::Path("unmounting", mountpoint.clone(), e),
    })?;
    found.iter().filter(|found| !found.alive).for_each(sweep);
    let ending = found.drain(..).zip(processes);
    Ok(Ending(ending.filter(|(found, _)| found.alive).collect()))
}

/// The mount is gone, which was asked for, but its upper is not yet what others can read.
fn warn_of_partial(record: &Record) {
    let left = |work: &String| partial_left(work.as_ref());
    if record.private || !record.work.as_ref().is_some_and(left) {
        return;
    }
    let upper = record.upper.as_deref().unwrap_or_default();
    let why = match &record.log {
        Some(log) => format!("; {log} tells why"),
        None => String::new(),
    };
    log::warn!(
        "not all of the files that were copied up by blocks are complete: nothing but acetate can read {upper}, and \
         the next mount goes on with them{why}"
    );
}

/// Waits for a process that has taken its record away to have ended too, which is a matter of moments.
fn wait_for_exit(process: &OwnedFd) {
    let mut exit = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    // The number in the record may be that of another process here, in a namespace of its own.
    if let Ok(0) | Err(_) = poll(&mut exit, PollTimeout::from(EXIT_LIMIT_MS)) {
        log::debug!("the daemon has let go of the mount and has not ended yet");
    }
}

/// Waits for a daemon whose mount is gone.
fn wait_for_end(found: &Found) -> Result<(), MountError> {
    let path = record_path(&found.dir, &found.record.id);
    match ends_within(&path, END_LIMIT) {
        Ok(true) => Ok(()),
        Ok(false) => Err(MountError::Lingers(
            found.record.mountpoint.clone(),
            found.record.pid,
        )),
        Err(e) => Err(MountError::Path("the record", path, e)),
    }
}

/// Whether the daemon of a record ends so soon.
fn ends_within(record: &Path, limit: Duration) -> io::Result<bool> {
    let file = match File::open(record) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e),
    };
    let start = Instant::now();
    // Mostly it is a matter of a millisecond, for which every `run` waits.
    let mut pause = Duration::from_micros(100);
    while is_locked(&file)? {
        if start.elapsed() > limit {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(Duration::from_millis(50));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_mount_is_that_of_its_path_without_symlinks() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let real = place_of(&dir.path().join("real"));
        assert_eq!(real, place_of(&dir.path().join("link")));
        assert_ne!(real, place_of(&dir.path().join("other")));
        assert_eq!(real.len(), 16);
    }

    #[test]
    fn a_path_that_is_gone_keeps_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        let inside = resolve_inside(&root.join("link/a/b")).unwrap();
        assert_eq!(inside, root.join("real/a/b"));
        // The last name is not followed.
        assert_eq!(
            resolve_inside(&root.join("link")).unwrap(),
            root.join("link")
        );
        assert_eq!(resolve(&root.join("link")).unwrap(), root.join("real"));
    }
}
