//! A snapshot that is being committed: nothing writes to it meanwhile, nor afterwards.
//!
//! What is not mounted is kept from being mounted. What is mounted becomes read-only: its mounts stay, and show the layer
//! that it became. Where that cannot be had, as where a file is open for writing, nothing is committed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::SnapshotError;
use super::mounts;
use super::record::{Record, Usage};
use super::store::Snapshots;
use super::sweep::{self, Workdir};
use super::usage;
use crate::image::durable::sync_filesystem;
use crate::mount;

/// How long the daemon of a mount may take to end after its unmount.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps a snapshot as it is. Dropped before `keep`, what was made read-only is writable again.
#[derive(Debug)]
pub(super) struct Seal {
    /// Where it is not mounted.
    _workdir: Option<Workdir>,
    /// Where a mount of it was made read-only.
    frozen: Option<PathBuf>,
}

impl Seal {
    /// The snapshot is a layer now: its mount stays read-only.
    pub(super) fn keep(mut self) {
        self.frozen = None;
    }

    fn of(record: &Record, fs: &Path, work: &Path) -> Result<Seal, SnapshotError> {
        let refused = |why: &str| {
            let text = format!(
                "snapshot {:?} is still mounted, and {why}: unmount it first",
                record.name
            );
            SnapshotError::FailedPrecondition(text)
        };
        let start = Instant::now();
        loop {
            if let Some(workdir) = Workdir::attempt(work)? {
                return Ok(Seal {
                    _workdir: Some(workdir),
                    frozen: None,
                });
            }
            if let Some(mountpoint) = sweep::mountpoint_of(fs) {
                match mount::set_read_only(&mountpoint, true) {
                    Ok(()) => {
                        return Ok(Seal {
                            _workdir: None,
                            frozen: Some(mountpoint),
                        });
                    }
                    // It has gone away meanwhile, or it is as it was.
                    Err(e) if sweep::mountpoint_of(fs).is_some() => {
                        return Err(refused(&e.to_string()));
                    }
                    Err(e) => log::debug!("{e}"),
                }
            }
            // Detached or about to end: on a busy machine nobody can tell which.
            if start.elapsed() > PATIENCE {
                return Err(refused("in use where it was detached"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Seal {
    fn drop(&mut self) {
        if let Some(mountpoint) = &self.frozen
            && let Err(e) = mount::set_read_only(mountpoint, false)
        {
            log::warn!("{} stays read-only: {e}", mountpoint.display());
        }
    }
}

impl Snapshots {
    /// Seals an active snapshot, makes it durable and counts it.
    pub(super) fn seal(&self, record: &Record) -> Result<(Seal, Usage), SnapshotError> {
        let fs = self.root.fs(record.id);
        let seal = Seal::of(record, &fs, &self.root.work(record.id))?;
        sync_filesystem(&fs)?;
        let usage = usage::of_tree(&fs)?;
        Ok((seal, usage))
    }

    /// Lets go of the mount that the snapshotter keeps for a snapshot that has become a layer. Binds of it stay.
    pub(super) fn let_go(&self, id: u64) {
        if let Err(e) = mounts::end(&self.root.mount(id)) {
            log::warn!("{e}");
        }
    }
}
