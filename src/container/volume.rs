//! Volumes: directories of the store that containers see and that outlive them.
//!
//! ```text
//! ROOT/volumes/
//!   NAME/volume.json   what it is (`VolumeRecord`)
//!   NAME/data          what containers see
//!   NAME/copy          what the image has there, on its way into `data`
//! ```
//!
//! They are made and removed under the lock of the containers' names, so that none goes that a container was just made
//! with.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::ContainerError;
use super::files::{paths_in, read_json, replace, to_json};
use super::record::{Container, Containers, now};
use super::{fill, names};
use crate::image::remove_tree;

/// What is on its way into being has this prefix, which no name has.
const NEW: &str = ".new-";

/// What is known of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Unique among the volumes of the store.
    pub name: String,
    /// When it was made, in nanoseconds since the epoch.
    pub created: u64,
    /// Nobody gave it a name: it goes with its container, where that is asked for.
    pub anonymous: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A volume that was found.
#[derive(Clone, Debug)]
pub struct StoredVolume {
    /// Immutable: its folder.
    dir: PathBuf,
    /// What is known of it.
    pub record: VolumeRecord,
}

impl StoredVolume {
    /// The directory that containers see.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }
}

fn dir_of(root: &Path) -> PathBuf {
    root.join("volumes")
}

/// Where the contents of a volume of this name lie, or would lie.
pub(super) fn data_of(root: &Path, name: &str) -> PathBuf {
    dir_of(root).join(name).join("data")
}

fn missing(name: &str) -> ContainerError {
    ContainerError::NoSuchVolume(name.to_owned())
}

impl Containers {
    /// All volumes, by name.
    pub fn volumes(&self) -> Result<Vec<StoredVolume>, ContainerError> {
        let mut found = Vec::new();
        for path in paths_in(&dir_of(self.root()))? {
            let name = path.file_name().and_then(OsStr::to_str);
            let Some(name) = name.filter(|name| names::is_valid(name)) else {
                continue;
            };
            match self.volume(name) {
                Ok(volume) => found.push(volume),
                // Removed meanwhile.
                Err(ContainerError::NoSuchVolume(_)) => {}
                Err(e) => log::warn!("{e}"),
            }
        }
        found.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        Ok(found)
    }

    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Result<StoredVolume, ContainerError> {
        if !names::is_valid(name) {
            return Err(missing(name));
        }
        let dir = dir_of(self.root()).join(name);
        match read_json(&dir.join("volume.json")) {
            Ok(record) => Ok(StoredVolume { dir, record }),
            Err(ContainerError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(missing(name))
            }
            Err(e) => Err(e),
        }
    }

    /// Makes a volume, or gives the one that has the name. Without a name it is given one.
    pub fn make_volume(
        &self,
        name: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<StoredVolume, ContainerError> {
        match name {
            Some(name) => self.ensure_volume(name, false, labels),
            None => {
                let name = names::new_id().map_err(ContainerError::io("read", "/dev/urandom"))?;
                self.ensure_volume(&name, true, labels)
            }
        }
    }

    /// The volume of this name, which is made where it is not there.
    pub(super) fn ensure_volume(
        &self,
        name: &str,
        anonymous: bool,
        labels: BTreeMap<String, String>,
    ) -> Result<StoredVolume, ContainerError> {
        if !names::is_valid(name) {
            return Err(ContainerError::InvalidVolumeName(name.to_owned()));
        }
        match self.volume(name) {
            Err(ContainerError::NoSuchVolume(_)) => {}
            found => return found,
        }
        let _lock = self.lock()?;
        match self.volume(name) {
            Err(ContainerError::NoSuchVolume(_)) => {}
            found => return found,
        }
        let all = dir_of(self.root());
        let new = all.join(format!("{NEW}{name}"));
        let failed = || ContainerError::io::<io::Error>("create", &new);
        // Nobody else makes one now: what is there was left by a process that died.
        remove_tree_in(&all, &new).map_err(failed())?;
        fs::create_dir_all(new.join("data")).map_err(failed())?;
        let record = VolumeRecord {
            name: name.to_owned(),
            created: now(),
            anonymous,
            labels,
        };
        let path = new.join("volume.json");
        replace(&path, &to_json(&record, &path)?, true)?;
        let dir = all.join(name);
        fs::rename(&new, &dir).map_err(failed())?;
        Ok(StoredVolume { dir, record })
    }

    /// The names of the containers that have a volume.
    pub fn users_of_volume(&self, name: &str) -> Result<Vec<String>, ContainerError> {
        let has = |container: &Container| {
            let volumes = &container.record.settings.volumes;
            volumes.iter().any(|v| v.name.as_deref() == Some(name))
        };
        let all = self.list()?;
        let users = all.into_iter().filter(has);
        Ok(users.map(|container| container.record.name).collect())
    }

    /// Removes a volume and all that is in it. One that a container has, running or not, is refused.
    pub fn remove_volume(&self, name: &str) -> Result<(), ContainerError> {
        let lock = self.lock()?;
        let volume = self.volume(name)?;
        if let Some(user) = self.users_of_volume(name)?.pop() {
            return Err(ContainerError::VolumeInUse {
                volume: name.to_owned(),
                user,
            });
        }
        let failed = || ContainerError::io::<io::Error>("remove", &volume.dir);
        let held = File::open(&volume.dir).map_err(failed())?;
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| failed()(e.into()))?;
        // Where the store's next command sweeps what nobody holds.
        let place = self.root().join("tmp").join(format!("volume-{name}"));
        fs::rename(&volume.dir, &place).map_err(failed())?;
        drop(lock);
        remove_tree(&place).map_err(failed())
    }

    /// Removes the volumes of a container that nobody gave a name. Best effort: `volume prune` takes what stays.
    pub(super) fn remove_anonymous(&self, container: &Container) {
        let volumes = &container.record.settings.volumes;
        for name in volumes.iter().filter(|v| v.anonymous).flat_map(|v| &v.name) {
            match self.remove_volume(name) {
                Ok(()) | Err(ContainerError::NoSuchVolume(_)) => {}
                Err(e) => log::warn!("{e}"),
            }
        }
    }
}

fn remove_tree_in(all: &Path, tree: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(all)?;
    remove_tree(tree)
}

/// Makes sure that the volumes of a container are there, and gives empty ones what the image has in their place, as
/// docker does.
pub(super) fn provide(root: &Path, container: &Container) -> Result<(), ContainerError> {
    let containers = Containers::new(root);
    for volume in &container.record.settings.volumes {
        let Some(name) = &volume.name else {
            continue;
        };
        let stored = containers.ensure_volume(name, volume.anonymous, BTreeMap::new())?;
        if volume.no_copy {
            continue;
        }
        // Of two containers that begin with it, one fills it.
        let held = File::open(&stored.dir).map_err(ContainerError::io("open", &stored.dir))?;
        rustix::fs::flock(&held, FlockOperation::LockExclusive)
            .map_err(ContainerError::io("lock", &stored.dir))?;
        let rootfs = container.path("rootfs");
        provide_one(&stored, &rootfs, &volume.target)
            .map_err(ContainerError::io("fill the volume", &stored.dir))?;
    }
    Ok(())
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn is_empty(dir: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The caller holds the volume's lock.
fn provide_one(volume: &StoredVolume, rootfs: &Path, target: &str) -> io::Result<()> {
    let copy = volume.dir.join("copy");
    let data = open_dir(&volume.data())?;
    if !copy.exists() {
        if !is_empty(&data)? {
            return Ok(());
        }
        let root = open_dir(rootfs)?;
        // As a program in the container finds it: a symlink of the image does not lead out.
        let found = rustix::fs::openat2(
            &root,
            target,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        let from = match found {
            Ok(from) => from,
            // The runtime makes the place, or says what is wrong with it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let unfinished = volume.dir.join("copy.new");
        remove_tree(&unfinished)?;
        fs::create_dir(&unfinished)?;
        fill::copy_tree(from.as_fd(), open_dir(&unfinished)?.as_fd())?;
        fs::rename(&unfinished, &copy)?;
    }
    // A container that has the volume already sees it come; what it has made itself since then stays.
    let whole = open_dir(&copy)?;
    for entry in Dir::read_from(&whole)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::renameat_with(&whole, name, &data, name, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
    }
    fill::dress(whole.as_fd(), &rustix::fs::fstat(&whole)?, data.as_fd())?;
    remove_tree(&copy)
}
