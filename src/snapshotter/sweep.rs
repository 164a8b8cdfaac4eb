//! Deleting what no record names, unless a mount uses it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::error::SnapshotError;
use super::mounts;
use super::store::Snapshots;
use crate::image::lock::remove_tree;
use crate::mount::{self, MountState};

/// How long a removal waits for a daemon whose mount has just gone away. What cannot be deleted then is swept later.
const PATIENCE: Duration = Duration::from_secs(2);

/// A workdir that no mount can take meanwhile.
#[derive(Debug)]
pub(super) struct Workdir {
    /// Holds the lock that every mount of the workdir needs.
    _lock: Option<File>,
}

impl Workdir {
    /// Takes it unless a mount has it.
    pub(super) fn attempt(work: &Path) -> Result<Option<Workdir>, SnapshotError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = match rustix::fs::open(work, flags, Mode::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::NOENT) => return Ok(Some(Workdir { _lock: None })),
            Err(e) => return Err(SnapshotError::io("open", work)(e)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Workdir { _lock: Some(file) })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(SnapshotError::io("lock", work)(e)),
        }
    }
}

impl Workdir {
    /// Takes it as soon as a daemon that is about to end lets go of it; `None` while it is mounted.
    fn hold(work: &Path) -> Result<Option<Workdir>, SnapshotError> {
        let start = Instant::now();
        loop {
            if let Some(held) = Workdir::attempt(work)? {
                return Ok(Some(held));
            }
            if start.elapsed() > PATIENCE || is_mounted(work) {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Whether a mount that is not about to end uses something below the parent of `dir`.
pub(super) fn is_mounted(dir: &Path) -> bool {
    let Some(snapshot) = dir.parent() else {
        return false;
    };
    match mount::list() {
        Ok(all) => all.iter().any(|(record, state)| {
            let used = |path: &String| Path::new(path).starts_with(snapshot);
            *state != MountState::Dead
                && (record.layers.iter().any(used) || record.upper.iter().any(used))
        }),
        Err(e) => {
            log::warn!("{e}");
            true
        }
    }
}

/// Where the mount lies that has a directory as its upper.
pub(super) fn mountpoint_of(fs: &Path) -> Option<PathBuf> {
    let all = mount::list().inspect_err(|e| log::warn!("{e}")).ok()?;
    let has = |upper: &String| Path::new(upper) == fs;
    all.into_iter()
        .find(|(record, state)| {
            *state == MountState::Mounted && record.upper.as_ref().is_some_and(has)
        })
        .map(|(record, _)| record.mountpoint)
}

/// The entries of a directory that are numbers.
pub(super) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    Ok(found)
}

impl Snapshots {
    /// Deletes a snapshot's directory, which no record names any more, unless a mount uses it.
    pub(super) fn discard(&self, id: u64) -> Result<(), SnapshotError> {
        // One after the other: a second one would take the first one's lock for a mount, and stumble over its deletion.
        let _alone = self.deleting.lock();
        mounts::end(&self.root.mount(id))?;
        let dir = self.root.snapshot(id);
        let fs = self.root.fs(id);
        if Workdir::hold(&self.root.work(id))?.is_none() || is_mounted(&fs) {
            log::info!("{} is still mounted, and deleted later", dir.display());
            return Ok(());
        }
        let trash = self.root.trash().join(id.to_string());
        match fs::rename(&dir, &trash) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(SnapshotError::io("remove", &dir)(e)),
        }
        Snapshots::delete_locked(&trash)
    }

    /// Deletes what lies in the trash. The caller holds `deleting`.
    fn delete_locked(dir: &Path) -> Result<(), SnapshotError> {
        match remove_tree(dir) {
            // The one before did it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(SnapshotError::io("remove", dir)),
        }
    }

    /// Deletes all that no record names: what a crash left, and what was in use when it was removed.
    pub(super) fn sweep(&self) -> Result<(), SnapshotError> {
        let orphans = |dir: &Path| -> Result<Vec<u64>, SnapshotError> {
            // Under the lock each directory that is being made has its record.
            let state = self.state.lock();
            let found = numbers(dir).map_err(SnapshotError::io("read", dir))?;
            let named = |id: &u64| state.records.values().any(|record| record.id == *id);
            Ok(found.into_iter().filter(|id| !named(id)).collect())
        };
        for id in orphans(&self.root.mounts())? {
            mounts::end(&self.root.mount(id))?;
        }
        for id in orphans(&self.root.snapshots())? {
            log::info!("deleting number {id}, which no snapshot has");
            self.discard(id)?;
        }
        let trash = self.root.trash();
        for id in numbers(&trash).map_err(SnapshotError::io("read", &trash))? {
            let _alone = self.deleting.lock();
            Snapshots::delete_locked(&trash.join(id.to_string()))?;
        }
        Ok(())
    }
}
