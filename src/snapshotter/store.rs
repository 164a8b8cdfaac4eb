//! The snapshots of a root.
//!
//! One lock guards the records in memory; a change is written to disk before it shows. What takes long (counting, making
//! data durable, deleting) happens outside of the lock: a snapshot that is being committed is marked meanwhile.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use parking_lot::Mutex;

use super::error::{ServeError, SnapshotError};
use super::filter::Filters;
use super::idmap::IdMapping;
use super::mounts::{MountBy, Mounter, Stack};
use super::proto::Mount;
use super::record::{Labels, Record, Root, Sequence, SnapshotKind, Time, Usage, root_path};
use super::sweep;
use super::usage;
use crate::image::lock::{Hold, Lock};

/// What is asked for.
#[derive(Debug)]
pub(super) struct NewSnapshot {
    /// A view or an active one.
    pub(super) kind: SnapshotKind,
    pub(super) key: String,
    pub(super) parent: Option<String>,
    pub(super) labels: Labels,
}

/// What an update changes.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// All labels are replaced.
    AllLabels(Labels),
    /// One is set, or taken away.
    Label(String, Option<String>),
}

/// The snapshots of one root, which no other process has meanwhile.
#[derive(Debug)]
pub(super) struct Snapshots {
    /// Immutable.
    pub(super) root: Root,
    /// Immutable.
    mounter: Mounter,
    /// Immutable: the labels of id maps become options of the mount.
    remap_ids: bool,
    /// Immutable: held until the server ends.
    _lock: Lock,
    /// Guards the records on disk as well.
    pub(super) state: Mutex<State>,
    /// Held while a tree is deleted; `state` is never taken under it.
    pub(super) deleting: Mutex<()>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) records: BTreeMap<String, Record>,
    sequence: Sequence,
    /// Numbers of those that are being committed.
    committing: HashSet<u64>,
}

impl State {
    fn get(&self, name: &str) -> Result<&Record, SnapshotError> {
        self.records
            .get(name)
            .ok_or_else(|| SnapshotError::NotFound(name.to_owned()))
    }

    fn free(&self, name: &str) -> Result<(), SnapshotError> {
        if self.records.contains_key(name) {
            return Err(SnapshotError::AlreadyExists(name.to_owned()));
        }
        Ok(())
    }

    /// The numbers of a snapshot and those below it.
    fn chain(&self, top: Option<&str>) -> Result<Vec<u64>, SnapshotError> {
        let mut chain = Vec::new();
        let mut next = top;
        while let Some(name) = next {
            let record = self.get(name)?;
            if chain.contains(&record.id) {
                let text = format!("snapshot {name:?} is its own parent");
                return Err(SnapshotError::FailedPrecondition(text));
            }
            chain.push(record.id);
            next = record.parent.as_deref();
        }
        Ok(chain)
    }
}

impl Snapshots {
    /// Opens a root, and repairs what a crash left.
    pub(super) fn open(path: &Path, by: MountBy, remap_ids: bool) -> Result<Snapshots, ServeError> {
        let path = root_path(path)?;
        let lock = Lock::attempt(&path.join("lock"), Hold::Exclusive)?;
        let lock = lock.ok_or_else(|| ServeError::RootInUse(path.clone()))?;
        let root = Root::open(path.clone())?;
        root.clear_tmp()?;
        let records = root.read_all()?;
        for record in records.values() {
            repair(&root, record)?;
            if let Some(parent) = &record.parent
                && !records.contains_key(parent)
            {
                log::error!(
                    "snapshot {:?} stands on {parent:?}, which is missing",
                    record.name
                );
            }
        }
        let highest = sweep::numbers(&root.snapshots()).map_err(ServeError::io("read", &path))?;
        let highest = highest
            .into_iter()
            .chain(records.values().map(|r| r.id))
            .max();
        let sequence = Sequence::open(&root, highest.unwrap_or(0))?;
        let mounter = Mounter::new(by).map_err(ServeError::io("find the program of", &path))?;
        log::info!(
            "{}: {} snapshots; {}",
            path.display(),
            records.len(),
            mounter.describe()
        );
        Ok(Snapshots {
            root,
            mounter,
            remap_ids,
            _lock: lock,
            state: Mutex::new(State {
                records,
                sequence,
                committing: HashSet::new(),
            }),
            deleting: Mutex::new(()),
        })
    }

    fn stack(&self, state: &State, record: &Record) -> Result<Stack, SnapshotError> {
        let mapping = IdMapping::of(&record.labels)?;
        Ok(Stack {
            id: record.id,
            name: record.name.clone(),
            kind: record.kind,
            parents: state.chain(record.parent.as_deref())?,
            mapping: mapping.filter(|_| self.remap_ids),
        })
    }

    /// Makes a view or an active snapshot, and says how to mount it.
    pub(super) fn create(&self, new: NewSnapshot) -> Result<Vec<Mount>, SnapshotError> {
        let mapping = IdMapping::of(&new.labels)?;
        let mapped_root = mapping.as_ref().map(IdMapping::root).transpose()?;
        let stack = {
            let mut state = self.state.lock();
            if let Some(parent) = &new.parent
                && state.get(parent)?.kind != SnapshotKind::Committed
            {
                let text = format!("the parent {parent:?} is not committed");
                return Err(SnapshotError::InvalidArgument(text));
            }
            state.free(&new.key)?;
            let parents = state.chain(new.parent.as_deref())?;
            let id = state.sequence.take(&self.root)?;
            make_directories(&self.root, id, new.kind)?;
            let top = parents.first().map(|id| self.root.fs(*id));
            // With ids mapped by the mount the container's own ids lie on disk.
            let owner = mapped_root.filter(|_| top.is_none() || !self.remap_ids);
            dress(&self.root.fs(id), top.as_deref(), owner)?;
            let now = Time::now();
            let record = Record {
                id,
                name: new.key,
                parent: new.parent,
                kind: new.kind,
                created: now,
                updated: now,
                labels: new.labels,
                usage: None,
            };
            self.root.write(&record)?;
            let stack = self.stack(&state, &record)?;
            state.records.insert(record.name.clone(), record);
            stack
        };
        log::debug!("{:?} {:?} is number {}", stack.kind, stack.name, stack.id);
        let mounts = self.mounter.mounts(&self.root, &stack);
        // What could not be mounted was not made: the client asks again under the same key.
        if mounts.is_err()
            && let Err(e) = self.remove(&stack.name)
        {
            log::warn!("{e}");
        }
        mounts
    }

    /// How to mount a view or an active snapshot.
    pub(super) fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let stack = {
            let state = self.state.lock();
            let record = state.get(key)?;
            if record.kind == SnapshotKind::Committed {
                let text = format!("snapshot {key:?} is committed: neither active nor a view");
                return Err(SnapshotError::FailedPrecondition(text));
            }
            self.stack(&state, record)?
        };
        self.mounter.mounts(&self.root, &stack)
    }

    /// Makes a layer of an active snapshot, under a new name.
    pub(super) fn commit(
        &self,
        key: &str,
        name: &str,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<(), SnapshotError> {
        let mut record = {
            let mut state = self.state.lock();
            state.free(name)?;
            let record = committable(&state, key, parent)?;
            if !state.committing.insert(record.id) {
                let text = format!("snapshot {key:?} is being committed");
                return Err(SnapshotError::FailedPrecondition(text));
            }
            record
        };
        let sealed = self.seal(&record);
        let mut state = self.state.lock();
        state.committing.remove(&record.id);
        let (seal, usage) = sealed?;
        state.free(name)?;
        if let Some(parent) = &record.parent {
            state.get(parent)?;
        }
        let now = Time::now();
        record.name = name.to_owned();
        record.kind = SnapshotKind::Committed;
        record.created = now;
        record.updated = now;
        record.labels = labels;
        record.usage = Some(usage);
        self.root.write(&record)?;
        state.records.remove(key);
        let id = record.id;
        state.records.insert(record.name.clone(), record);
        drop(state);
        seal.keep();
        self.let_go(id);
        log::debug!("{key:?} is committed as {name:?}");
        Ok(())
    }

    /// Removes a snapshot that none stands on.
    pub(super) fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let id = {
            let mut state = self.state.lock();
            let id = state.get(key)?.id;
            if let Some(child) = state
                .records
                .values()
                .find(|record| record.parent.as_deref() == Some(key))
            {
                let text = format!(
                    "cannot remove snapshot {key:?}: {:?} stands on it",
                    child.name
                );
                return Err(SnapshotError::FailedPrecondition(text));
            }
            if state.committing.contains(&id) {
                let text = format!("cannot remove snapshot {key:?}: it is being committed");
                return Err(SnapshotError::FailedPrecondition(text));
            }
            self.root.erase(id)?;
            state.records.remove(key);
            id
        };
        log::debug!("{key:?}, number {id}, is removed");
        // It is gone for containerd; what is left of it is swept later where it cannot be deleted now.
        if let Err(e) = self.discard(id) {
            log::warn!("{e}");
        }
        Ok(())
    }

    /// A snapshot's record.
    pub(super) fn stat(&self, key: &str) -> Result<Record, SnapshotError> {
        Ok(self.state.lock().get(key)?.clone())
    }

    /// Changes labels.
    pub(super) fn update(&self, key: &str, changes: Vec<Change>) -> Result<Record, SnapshotError> {
        let mut state = self.state.lock();
        let mut record = state.get(key)?.clone();
        for change in changes {
            match change {
                Change::AllLabels(labels) => record.labels = labels,
                Change::Label(key, Some(value)) => {
                    record.labels.insert(key, value);
                }
                Change::Label(key, None) => {
                    record.labels.remove(&key);
                }
            }
        }
        if state.committing.contains(&record.id) {
            let text = format!("snapshot {key:?} is being committed");
            return Err(SnapshotError::FailedPrecondition(text));
        }
        record.updated = Time::now();
        self.root.write(&record)?;
        state.records.insert(record.name.clone(), record.clone());
        Ok(record)
    }

    /// The snapshots that the filters let through, by name.
    pub(super) fn list(&self, filters: &Filters) -> Vec<Record> {
        let state = self.state.lock();
        let shown = state.records.values().filter(|r| filters.matches(r));
        shown.cloned().collect()
    }

    /// What a snapshot takes beside its parents.
    pub(super) fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let record = self.stat(key)?;
        match (record.kind, record.usage) {
            (_, Some(usage)) => Ok(usage),
            (SnapshotKind::View, None) => Ok(Usage::default()),
            (_, None) => usage::of_tree(&self.root.fs(record.id)),
        }
    }
}

/// The record of what is to be committed, on its new parent.
fn committable(state: &State, key: &str, parent: Option<String>) -> Result<Record, SnapshotError> {
    let mut record = state.get(key)?.clone();
    if record.kind != SnapshotKind::Active {
        let text = format!("snapshot {key:?} is not active");
        return Err(SnapshotError::FailedPrecondition(text));
    }
    match (&record.parent, parent) {
        (Some(old), Some(new)) if *old != new => {
            let text = format!("snapshot {key:?} stands on {old:?}, which a commit cannot change");
            return Err(SnapshotError::InvalidArgument(text));
        }
        (None, Some(new)) => {
            if state.get(&new)?.kind != SnapshotKind::Committed {
                let text = format!("the parent {new:?} is not committed");
                return Err(SnapshotError::FailedPrecondition(text));
            }
            record.parent = Some(new);
        }
        _ => {}
    }
    Ok(record)
}

fn make(dir: &Path, mode: u32) -> Result<(), SnapshotError> {
    fs::create_dir(dir).map_err(SnapshotError::io("create", dir))?;
    fs::set_permissions(dir, Permissions::from_mode(mode))
        .map_err(SnapshotError::io("set the mode of", dir))
}

fn make_directories(root: &Root, id: u64, kind: SnapshotKind) -> Result<(), SnapshotError> {
    make(&root.snapshot(id), 0o711)?;
    make(&root.fs(id), 0o755)?;
    if kind == SnapshotKind::Active {
        make(&root.work(id), 0o700)?;
    }
    Ok(())
}

/// The root of a union is what its topmost layer says, so a new one takes after the layer below.
fn dress(fs: &Path, top: Option<&Path>, owner: Option<(u32, u32)>) -> Result<(), SnapshotError> {
    let mut owner = owner;
    if let Some(top) = top {
        let below = fs::symlink_metadata(top).map_err(SnapshotError::io("read", top))?;
        fs::set_permissions(fs, below.permissions())
            .map_err(SnapshotError::io("set the mode of", fs))?;
        owner = owner.or(Some((below.uid(), below.gid())));
    }
    if let Some((uid, gid)) = owner {
        lchown(fs, Some(uid), Some(gid)).map_err(SnapshotError::io("set the owner of", fs))?;
    }
    Ok(())
}

/// Directories become durable after the record: a power cut may have taken those of a snapshot that nothing was written
/// to. A committed one has made them durable.
fn repair(root: &Root, record: &Record) -> Result<(), ServeError> {
    let mut wanted = vec![
        (root.snapshot(record.id), 0o711),
        (root.fs(record.id), 0o755),
    ];
    if record.kind == SnapshotKind::Active {
        wanted.push((root.work(record.id), 0o700));
    }
    for (dir, mode) in wanted {
        if dir.is_dir() {
            continue;
        }
        if record.kind == SnapshotKind::Committed {
            log::error!("snapshot {:?} has lost {}", record.name, dir.display());
            continue;
        }
        log::warn!("making {} again, which a crash took", dir.display());
        make(&dir, mode).map_err(|e| ServeError::ForeignRoot {
            path: dir,
            what: format!("cannot be repaired: {e}"),
        })?;
    }
    Ok(())
}
