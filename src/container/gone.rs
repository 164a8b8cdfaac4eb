//! Containers on their way out. A folder is renamed to `ID.gone`, by which the name is free and nobody finds the
//! container any more; then the runtime forgets it, and then its files go. Whoever dies in between leaves the rest to the
//! next command that makes or removes a container.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::error::ContainerError;
use super::files::paths_in;
use super::lifecycle::is_known_to_runtime;
use super::record::{Container, Containers};
use super::runtime::Runtime;
use crate::image::remove_tree;

/// A folder on its way out has this suffix.
const GONE: &str = ".gone";

/// What is left of a container that nobody sees any more. Dropped, it goes too; a process that dies before leaves it to
/// the next.
#[derive(Debug)]
pub struct Gone {
    /// Immutable: its folder.
    dir: PathBuf,
    /// Immutable: where it was.
    containers: Containers,
    /// Immutable: its volumes without a name go with it.
    volumes: bool,
    /// Tells others that somebody is at it.
    _held: File,
}

/// Locks a folder, by which others see that somebody is at it. `None`: another process is, or has been.
fn hold(dir: &Path) -> io::Result<Option<File>> {
    let held = match File::open(dir) {
        Ok(held) => held,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    match rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    let mine = held.metadata()?.ino();
    Ok(fs::metadata(dir)
        .is_ok_and(|there| there.ino() == mine)
        .then_some(held))
}

impl Containers {
    /// Takes a container out of sight; `volumes`: its volumes without a name go with it, and are gone when this returns. The
    /// caller holds the container's lock, and nothing is mounted there.
    pub(super) fn set_aside(
        &self,
        container: &Container,
        volumes: bool,
    ) -> Result<Gone, ContainerError> {
        let lock = self.lock()?;
        let failed = || ContainerError::io::<io::Error>("remove", &container.dir);
        let held = hold(&container.dir)
            .map_err(failed())?
            .ok_or_else(|| ContainerError::NoSuchContainer(container.record.name.clone()))?;
        let dir = self.dir().join(format!("{}{GONE}", container.record.id));
        fs::rename(&container.dir, &dir).map_err(failed())?;
        drop(lock);
        let gone = Gone {
            dir,
            containers: self.clone(),
            volumes: volumes || container.record.settings.remove,
            _held: held,
        };
        // Whoever lists volumes next is not to see them.
        gone.forget_volumes(container);
        Ok(gone)
    }

    /// What processes left that died while they removed containers.
    pub fn leftovers(&self) -> Result<Vec<Gone>, ContainerError> {
        let mut found = Vec::new();
        for dir in paths_in(&self.dir())? {
            if dir.extension().is_none_or(|extension| extension != "gone") {
                continue;
            }
            if let Some(held) = hold(&dir).map_err(ContainerError::io("lock", &dir))? {
                found.push(Gone {
                    dir,
                    containers: self.clone(),
                    volumes: false,
                    _held: held,
                });
            }
        }
        Ok(found)
    }
}

impl Gone {
    /// The runtime keeps cgroups as long as it knows the container.
    fn forget(&self) -> Result<(), ContainerError> {
        let container = Container::open(self.dir.clone())?;
        self.forget_volumes(&container);
        if is_known_to_runtime(&container) {
            Runtime::find(container.record.settings.runtime.as_deref())?
                .call(&container, &["delete", "--force"])?;
        }
        Ok(())
    }

    fn forget_volumes(&self, container: &Container) {
        if self.volumes || container.record.settings.remove {
            self.containers.remove_anonymous(container);
        }
    }

    /// Where the store's next command, whichever it is, sweeps what nobody holds.
    fn remove(&self) -> io::Result<()> {
        let name = self.dir.file_stem().unwrap_or_default().to_string_lossy();
        let short = name.get(..12).unwrap_or(&name);
        let place = self
            .containers
            .root()
            .join("tmp")
            .join(format!("container-{short}"));
        fs::rename(&self.dir, &place)?;
        remove_tree(&place)
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        if let Err(e) = self.forget() {
            log::warn!("{}: {e}", self.dir.display());
        }
        if let Err(e) = self.remove() {
            log::warn!("{} is not removed: {e}", self.dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::names;
    use super::super::record::{Record, Settings};
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_found_and_what_a_living_one_has_is_not() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("tmp")).unwrap();
        let containers = Containers::new(root.path());
        let make = |name: &str| {
            containers
                .create(names::new_id().unwrap(), Some(name), |id, name| Record {
                    id,
                    name,
                    created: 0,
                    image: String::new(),
                    image_id: String::new(),
                    platform: None,
                    settings: Settings::default(),
                })
                .unwrap()
        };
        let gone = containers.set_aside(&make("aa"), false).unwrap();
        // Its name is free.
        let again = make("aa");
        assert!(containers.leftovers().unwrap().is_empty());
        assert_eq!(containers.list().unwrap().len(), 1);
        // As a process that dies would.
        let (dir, held) = (gone.dir.clone(), gone._held.try_clone().unwrap());
        std::mem::forget(gone);
        rustix::fs::flock(&held, FlockOperation::Unlock).unwrap();
        drop(held);
        let left = containers.leftovers().unwrap();
        assert_eq!(left.len(), 1);
        drop(left);
        assert!(!dir.exists());
        assert!(again.dir.exists());
        assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
    }
}
