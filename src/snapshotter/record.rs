//! The files that say which snapshots there are.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::ServeError;
use super::proto::Timestamp;
use crate::image::ImageError;
use crate::image::durable::{sync_parent, write_file};

/// The form of what lies in a root.
const VERSION: u32 = 1;

/// So many numbers are taken from the sequence at once.
const BATCH: u64 = 64;

/// Labels, in the order of their keys.
pub(super) type Labels = BTreeMap<String, String>;

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SnapshotKind {
    View,
    Active,
    Committed,
}

/// A point in time, as the wire has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Time {
    seconds: i64,
    nanos: i32,
}

impl Time {
    pub(super) fn now() -> Time {
        // A clock before 1970 is wrong, and that is all that can be said of it.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Time {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        }
    }
}

impl From<Time> for Timestamp {
    fn from(time: Time) -> Timestamp {
        Timestamp {
            seconds: time.seconds,
            nanos: time.nanos,
        }
    }
}

/// What a snapshot takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Usage {
    /// Bytes in disk blocks.
    pub(super) size: u64,
    /// Files and directories.
    pub(super) inodes: u64,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The number of its directory.
    pub(super) id: u64,
    /// Its key, or the name it was committed by.
    pub(super) name: String,
    /// The name of the committed snapshot below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<String>,
    pub(super) kind: SnapshotKind,
    pub(super) created: Time,
    pub(super) updated: Time,
    #[serde(default)]
    pub(super) labels: Labels,
    /// Of a committed one, which does not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
}

#[derive(Serialize, Deserialize)]
struct Version {
    format: String,
    version: u32,
}

const FORMAT: &str = "acetate snapshotter";

/// A root directory, whose lock is held.
#[derive(Clone, Debug)]
pub(super) struct Root {
    /// Absolute, without symlinks.
    path: PathBuf,
}

impl Root {
    /// Prepares the root, whose lock is held, and checks that we or nobody wrote it.
    pub(super) fn open(path: PathBuf) -> Result<Root, ServeError> {
        let root = Root { path };
        let version = root.path.join("version.json");
        match fs::read(&version) {
            Ok(bytes) => root.check(&bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                for foreign in ["snapshots", "metadata.db", "records"] {
                    if root.path.join(foreign).exists() {
                        return Err(root.foreign(format!(
                            "holds {foreign:?}, which acetate's snapshotter did not write: give another --root"
                        )));
                    }
                }
                root.make("tmp")?;
                let ours = Version {
                    format: FORMAT.into(),
                    version: VERSION,
                };
                let bytes = serde_json::to_vec(&ours).map_err(io::Error::from);
                let bytes = bytes.map_err(ServeError::io("write", &version))?;
                write_file(&version, &bytes, &root.tmp())?;
            }
            Err(e) => return Err(ServeError::io("read", &version)(e)),
        }
        for dir in ["tmp", "records", "snapshots", "mounts", "trash"] {
            root.make(dir)?;
        }
        sync_parent(&root.records().join("x"))?;
        Ok(root)
    }

    fn foreign(&self, what: String) -> ServeError {
        ServeError::ForeignRoot {
            path: self.path.clone(),
            what,
        }
    }

    fn check(&self, bytes: &[u8]) -> Result<(), ServeError> {
        match serde_json::from_slice::<Version>(bytes) {
            Ok(found) if found.format == FORMAT && found.version == VERSION => Ok(()),
            Ok(found) if found.format == FORMAT => Err(self.foreign(format!(
                "was written by another version of acetate (format {}, this one knows {VERSION}): use that version, or another --root",
                found.version
            ))),
            _ => Err(self.foreign(
                "has a version.json that acetate's snapshotter did not write: give another --root".into(),
            )),
        }
    }

    fn make(&self, name: &str) -> Result<(), ServeError> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = self.path.join(name);
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(ServeError::io("create", &dir)(e))
            }
            _ => Ok(()),
        }
    }

    fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }

    fn records(&self) -> PathBuf {
        self.path.join("records")
    }

    fn record(&self, id: u64) -> PathBuf {
        self.records().join(format!("{id}.json"))
    }

    /// Where the directories of all snapshots lie.
    pub(super) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// Where mounts lie that the snapshotter keeps.
    pub(super) fn mounts(&self) -> PathBuf {
        self.path.join("mounts")
    }

    /// Where directories lie that are being deleted.
    pub(super) fn trash(&self) -> PathBuf {
        self.path.join("trash")
    }

    /// The directory of a snapshot.
    pub(super) fn snapshot(&self, id: u64) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    /// What a snapshot holds.
    pub(super) fn fs(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("fs")
    }

    /// The workdir of an active snapshot.
    pub(super) fn work(&self, id: u64) -> PathBuf {
        self.snapshot(id).join("work")
    }

    /// The place of a mount that the snapshotter keeps.
    pub(super) fn mount(&self, id: u64) -> PathBuf {
        self.mounts().join(id.to_string())
    }

    /// Makes a record, or its replacement, durable.
    pub(super) fn write(&self, record: &Record) -> Result<(), ImageError> {
        let path = self.record(record.id);
        let bytes = serde_json::to_vec(record).map_err(|e| ImageError::Io {
            action: "write",
            path: path.clone(),
            source: e.into(),
        })?;
        write_file(&path, &bytes, &self.tmp())
    }

    /// Takes a record away, durably.
    pub(super) fn erase(&self, id: u64) -> Result<(), ImageError> {
        let path = self.record(id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(ImageError::Io {
                action: "remove",
                path,
                source: e,
            }),
            _ => sync_parent(&path),
        }
    }

    /// All records, by name.
    pub(super) fn read_all(&self) -> Result<BTreeMap<String, Record>, ServeError> {
        let mut all = BTreeMap::new();
        let dir = self.records();
        for entry in fs::read_dir(&dir).map_err(ServeError::io("read", &dir))? {
            let path = entry.map_err(ServeError::io("read", &dir))?.path();
            let damaged = |why: String| ServeError::Record {
                path: path.clone(),
                why,
            };
            let bytes = fs::read(&path).map_err(ServeError::io("read", &path))?;
            let record: Record =
                serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
            if path != self.record(record.id) {
                return Err(damaged(format!("it says that it is number {}", record.id)));
            }
            if let Some(other) = all.insert(record.name.clone(), record) {
                return Err(damaged(format!("number {} has the same name", other.id)));
            }
        }
        Ok(all)
    }

    /// Files that were not complete when a server died.
    pub(super) fn clear_tmp(&self) -> Result<(), ServeError> {
        let dir = self.tmp();
        for entry in fs::read_dir(&dir).map_err(ServeError::io("read", &dir))? {
            let path = entry.map_err(ServeError::io("read", &dir))?.path();
            fs::remove_file(&path).map_err(ServeError::io("remove", &path))?;
        }
        Ok(())
    }
}

/// Gives out numbers that no snapshot of the root ever had: a mount of a removed snapshot may outlive it.
#[derive(Debug)]
pub(super) struct Sequence {
    next: u64,
    /// From here on nothing is taken from the file yet.
    end: u64,
}

impl Sequence {
    /// Continues behind all that was given out.
    pub(super) fn open(root: &Root, highest: u64) -> Result<Sequence, ServeError> {
        let path = root.path.join("sequence");
        let taken = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| ServeError::Record {
                path: path.clone(),
                why: "it holds no number".into(),
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 1,
            Err(e) => return Err(ServeError::io("read", &path)(e)),
        };
        let next = highest.saturating_add(1).max(taken);
        Ok(Sequence { next, end: next })
    }

    /// The next number.
    pub(super) fn take(&mut self, root: &Root) -> Result<u64, ImageError> {
        if self.next >= self.end {
            let end = self.next.saturating_add(BATCH);
            let path = root.path.join("sequence");
            write_file(&path, end.to_string().as_bytes(), &root.tmp())?;
            self.end = end;
        }
        let id = self.next;
        self.next += 1;
        Ok(id)
    }
}

/// The path of a root: without symlinks, and such that it can stand in mount options and in messages.
pub(super) fn root_path(given: &Path) -> Result<PathBuf, ServeError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(given)
        .map_err(ServeError::io("create", given))?;
    let path = given
        .canonicalize()
        .map_err(ServeError::io("find", given))?;
    let plain = path
        .to_str()
        .is_some_and(|text| !text.contains(|c: char| c.is_control() || ",:\\\"'".contains(c)));
    if plain {
        Ok(path)
    } else {
        Err(ServeError::RootName(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u64, name: &str) -> Record {
        Record {
            id,
            name: name.into(),
            parent: None,
            kind: SnapshotKind::Committed,
            created: Time::now(),
            updated: Time::now(),
            labels: Labels::new(),
            usage: Some(Usage::default()),
        }
    }

    #[test]
    fn records_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(root_path(dir.path()).unwrap()).unwrap();
        let hostile = record(7, "../../x\n\"ü");
        root.write(&hostile).unwrap();
        root.write(&record(8, "b")).unwrap();
        root.erase(8).unwrap();
        let again = Root::open(dir.path().canonicalize().unwrap()).unwrap();
        let all = again.read_all().unwrap();
        assert_eq!(all.into_values().collect::<Vec<_>>(), [hostile]);
    }

    #[test]
    fn a_damaged_record_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().canonicalize().unwrap()).unwrap();
        root.write(&record(7, "a")).unwrap();
        fs::copy(root.record(7), root.record(9)).unwrap();
        let text = root.read_all().unwrap_err().to_string();
        assert!(text.contains("9.json"), "{text}");
        fs::write(root.record(9), "{").unwrap();
        let text = root.read_all().unwrap_err().to_string();
        assert!(text.contains("9.json"), "{text}");
        let mut twin = record(9, "a");
        root.write(&twin).unwrap();
        assert!(root.read_all().is_err());
        twin.name = "b".into();
        root.write(&twin).unwrap();
        assert_eq!(root.read_all().unwrap().len(), 2);
    }

    #[test]
    fn another_version_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        for text in [r#"{"format":"acetate snapshotter","version":2}"#, "{}", ""] {
            fs::write(path.join("version.json"), text).unwrap();
            assert!(matches!(
                Root::open(path.clone()),
                Err(ServeError::ForeignRoot { .. })
            ));
            assert!(!path.join("records").exists());
        }
        fs::remove_file(path.join("version.json")).unwrap();
        fs::create_dir(path.join("snapshots")).unwrap();
        assert!(matches!(
            Root::open(path),
            Err(ServeError::ForeignRoot { .. })
        ));
    }

    #[test]
    fn numbers_are_never_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path().canonicalize().unwrap()).unwrap();
        let mut highest = 0;
        for _ in 0..3 {
            let mut sequence = Sequence::open(&root, 0).unwrap();
            for _ in 0..BATCH + 1 {
                let id = sequence.take(&root).unwrap();
                assert!(id > highest);
                highest = id;
            }
        }
        assert_eq!(
            Sequence::open(&root, 10_000).unwrap().take(&root).unwrap(),
            10_001
        );
    }

    #[test]
    fn roots_that_cannot_be_told_to_containerd() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a,b", "a:b", "a\\b", "a\nb"] {
            assert!(matches!(
                root_path(&dir.path().join(name)),
                Err(ServeError::RootName(_))
            ));
        }
    }
}
