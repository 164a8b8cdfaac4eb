//! What the store keeps of containers, one folder each.
//!
//! ```text
//! ROOT/containers/
//!   lock                  held while a container is made, renamed or removed
//!   ID/container.json     what was asked for (`Record`)
//!   ID/state.json         what has become of it (`State`)
//!   ID/lock               held exclusively by its monitor, or by a command that works on it while it does not run
//!   ID/upper, work        the writable layer
//!   ID/rootfs             where it is mounted while it runs
//!   ID/config.json        the bundle, written at each start
//!   ID/hosts, hostname, resolv.conf   bound over the files of these names
//!   ID/log, log.1, ...    its output
//!   ID/monitor.log        what goes wrong in its monitor and in the daemon of its mount
//!   ID/attach.sock        where its monitor listens
//!   ID/runtime/           what the runtime keeps
//!   ID.new, ID.gone       one that is being made, or removed; swept when whoever did it has died
//! ```
//!
//! Files are replaced by rename. A folder appears and goes whole, by rename too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::ContainerError;
use super::files::{overwrite, paths_in, read_json, replace, spread, to_json};
use super::names;
use crate::image::remove_tree;

/// A folder on its way into being has this suffix.
const NEW: &str = ".new";
/// The fewest characters of an id that are taken for one.
const MIN_ID: usize = 2;

/// A directory that the container sees: one of the host, or a volume of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The volume of the store; `None`: a directory of the host, or one that has not been given its name yet.
    #[serde(default)]
    pub name: Option<String>,
    /// A volume of the store that nobody gave a name.
    #[serde(default)]
    pub anonymous: bool,
    /// Absolute; empty for a volume whose container has not been made.
    pub source: String,
    /// Absolute, in the container.
    pub target: String,
    /// Such as `ro` or `rprivate`.
    pub options: Vec<String>,
    /// It is not filled with what the image has in its place.
    #[serde(default)]
    pub no_copy: bool,
}

/// A filesystem in memory that a container sees, and that goes with its run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute, in the container.
    pub target: String,
    /// As `mount` takes them, such as `size=64m`.
    pub options: Vec<String>,
}

/// A limit of resources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// As the runtime takes it, such as `RLIMIT_NOFILE`.
    pub name: String,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// How much of the output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimit {
    /// Bytes of a file, from which on a new one is begun.
    pub size: u64,
    /// How many files there are at most, at least 1.
    pub files: u32,
}

/// What a container has of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Nothing but a loopback of its own.
    #[default]
    None,
    /// The host's.
    Host,
}

/// How a container is run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// `NAME=VALUE`, the image's first.
    pub env: Vec<String>,
    /// Where the program starts.
    pub workdir: String,
    /// `USER[:GROUP]`, by name or number; empty: root.
    pub user: String,
    /// Directories of the host.
    pub volumes: Vec<Volume>,
    /// Filesystems in memory.
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// The root filesystem refuses changes.
    pub read_only: bool,
    /// The network.
    pub network: Network,
    /// Its hostname; `None`: the beginning of the id, or the host's with its network.
    pub hostname: Option<String>,
    /// Limits.
    pub ulimits: Vec<Ulimit>,
    /// It has a terminal.
    pub terminal: bool,
    /// Its standard input is kept open.
    pub interactive: bool,
    /// It is removed at its end.
    pub remove: bool,
    /// The runtime that was named.
    pub runtime: Option<PathBuf>,
    /// What asks it to stop, by number.
    pub stop_signal: i32,
    /// Labels, the image's included.
    pub labels: BTreeMap<String, String>,
    /// `None`: all of the output is kept.
    #[serde(default)]
    pub log_limit: Option<LogLimit>,
    /// Capabilities beyond the default ones.
    pub cap_add: Vec<String>,
    /// Default capabilities that it lacks.
    pub cap_drop: Vec<String>,
}

/// A container, as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Unique among the containers of the store.
    pub name: String,
    /// When it was made, in nanoseconds since the epoch.
    pub created: u64,
    /// The image, as it was named.
    pub image: String,
    /// The image's id, with its algorithm.
    pub image_id: String,
    /// Which platform of it, where one was asked for.
    pub platform: Option<String>,
    /// How it is run.
    pub settings: Settings,
}

impl Record {
    /// The id as people write it.
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }
}

/// What has become of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It has never run.
    #[default]
    Created,
    /// Its monitor is about to run it.
    Starting,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Exited,
    /// It did not end by itself: its monitor, its mount or the machine did.
    Dead,
}

impl Status {
    /// As it is written for users and in filters.
    pub fn word(self) -> &'static str {
        match self {
            Status::Created | Status::Starting => "created",
            Status::Running => "running",
            Status::Exited => "exited",
            Status::Dead => "dead",
        }
    }
}

/// The changing part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// As its monitor last wrote it.
    pub status: Status,
    /// The program's process, while it runs.
    pub pid: Option<i32>,
    /// The process that looks after it.
    pub monitor: Option<u32>,
    /// Of the last run; 128 and the number of a signal.
    pub exit_code: Option<u8>,
    /// Why it could not be run, or why it is dead.
    pub error: Option<String>,
    /// When it was last started, in nanoseconds since the epoch.
    pub started: Option<u64>,
    /// When it last ended.
    pub finished: Option<u64>,
    /// The machine's boot in which it was last started.
    pub boot: Option<String>,
}

/// All containers of a store.
#[derive(Clone, Debug)]
pub struct Containers {
    /// Immutable: the store's.
    root: PathBuf,
}

/// A container that was found.
#[derive(Clone, Debug)]
pub struct Container {
    /// Immutable: its folder.
    pub dir: PathBuf,
    /// What was asked for.
    pub record: Record,
}

/// The lock of a container; given back when dropped.
#[derive(Debug)]
pub(super) struct ContainerLock(File);

impl ContainerLock {
    /// The file that holds it.
    pub(super) fn into_file(self) -> File {
        self.0
    }
}

/// Nanoseconds since the epoch.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Tells this run of the machine from others.
pub(super) fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

fn open_lock(path: &Path) -> Result<File, ContainerError> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(ContainerError::io("open the lock", path))
}

impl Containers {
    /// Those of the store at `root`, which exists.
    pub fn new(root: &Path) -> Containers {
        Containers {
            root: root.to_owned(),
        }
    }

    /// The store's root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// Held while names are given and taken.
    pub(super) fn lock(&self) -> Result<File, ContainerError> {
        let dir = self.dir();
        if !dir.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(ContainerError::io("create", &dir))?;
            spread(&dir);
        }
        let path = dir.join("lock");
        let file = open_lock(&path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(ContainerError::io("lock", &path))?;
        Ok(file)
    }

    /// All of them, the newest first.
    pub fn list(&self) -> Result<Vec<Container>, ContainerError> {
        let mut found = Vec::new();
        for path in paths_in(&self.dir())? {
            if !path.is_dir() || path.extension().is_some() {
                continue;
            }
            match Container::open(path) {
                Ok(container) => found.push(container),
                // Removed meanwhile.
                Err(ContainerError::NoSuchContainer(_)) => {}
                // One damaged container does not hide the others.
                Err(e) => log::warn!("{e}"),
            }
        }
        found.sort_by_key(|found| std::cmp::Reverse(found.record.created));
        Ok(found)
    }

    /// The one that `text` names: by name, by id, or by the unique beginning of an id.
    pub fn find(&self, text: &str) -> Result<Container, ContainerError> {
        let mut all = self.list()?;
        if let Some(at) = all
            .iter()
            .position(|c| c.record.name == text || c.record.id == text)
        {
            return Ok(all.swap_remove(at));
        }
        let missing = || ContainerError::NoSuchContainer(text.to_owned());
        if text.len() < MIN_ID {
            return Err(missing());
        }
        all.retain(|c| c.record.id.starts_with(text));
        match all.len() {
            1 => all.pop().ok_or_else(missing),
            0 => Err(missing()),
            _ => Err(ContainerError::Ambiguous {
                prefix: text.to_owned(),
                candidates: all.iter().map(|c| c.record.short_id().to_owned()).collect(),
            }),
        }
    }

    /// Makes a container with this id, under this name or one that is invented.
    pub(super) fn create(
        &self,
        id: String,
        name: Option<&str>,
        record: impl FnOnce(String, String) -> Record,
    ) -> Result<Container, ContainerError> {
        let _lock = self.lock()?;
        self.sweep_new()?;
        let all = self.list()?;
        let name = match name {
            Some(name) => {
                free(&all, name)?;
                name.to_owned()
            }
            None => names::invent(|name| all.iter().any(|c| c.record.name == name))
                .map_err(ContainerError::io("read", "/dev/urandom"))?,
        };
        let record = record(id.clone(), name);
        let dir = self.dir().join(&id);
        let new = self.dir().join(format!("{id}{NEW}"));
        // Others than root need to pass on the way to the files that are bound into the container.
        fs::DirBuilder::new()
            .mode(0o711)
            .create(&new)
            .map_err(ContainerError::io("create", &new))?;
        let made = || {
            let rootfs = new.join("rootfs");
            fs::create_dir(&rootfs).map_err(ContainerError::io("create", &rootfs))?;
            open_lock(&new.join("lock"))?;
            let durable = !record.settings.remove;
            let path = new.join("container.json");
            replace(&path, &to_json(&record, &path)?, durable)?;
            let path = new.join("state.json");
            replace(&path, &to_json(&State::default(), &path)?, durable)?;
            fs::rename(&new, &dir).map_err(ContainerError::io("create", &dir))
        };
        if let Err(e) = made() {
            self.sweep_new()?;
            return Err(e);
        }
        Ok(Container { dir, record })
    }

    /// Takes away what was being made by commands that died. The caller holds the lock of names.
    fn sweep_new(&self) -> Result<(), ContainerError> {
        let dir = self.dir();
        for entry in fs::read_dir(&dir).map_err(ContainerError::io("read", &dir))? {
            let path = entry.map_err(ContainerError::io("read", &dir))?.path();
            if path.extension().is_some_and(|e| e == "new") {
                remove_tree(&path).map_err(ContainerError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Gives a container another name.
    pub fn rename(&self, text: &str, name: &str) -> Result<(), ContainerError> {
        let _lock = self.lock()?;
        let mut container = self.find(text)?;
        if container.record.name == name {
            return Err(ContainerError::Usage(
                "renaming a container to its own name changes nothing".into(),
            ));
        }
        free(&self.list()?, name)?;
        container.record.name = name.to_owned();
        let path = container.dir.join("container.json");
        replace(&path, &to_json(&container.record, &path)?, true)
    }
}

fn free(all: &[Container], name: &str) -> Result<(), ContainerError> {
    if !names::is_valid(name) {
        return Err(ContainerError::InvalidName(name.to_owned()));
    }
    match all.iter().find(|c| c.record.name == name) {
        Some(other) => Err(ContainerError::NameInUse {
            name: name.to_owned(),
            id: other.record.short_id().to_owned(),
        }),
        None => Ok(()),
    }
}

impl Container {
    /// Reads the one in this folder.
    pub(super) fn open(dir: PathBuf) -> Result<Container, ContainerError> {
        match read_json(&dir.join("container.json")) {
            Ok(record) => Ok(Container { dir, record }),
            Err(ContainerError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let name = dir.file_name().unwrap_or_default().to_string_lossy();
                let short = name.get(..12).unwrap_or(&name);
                Err(ContainerError::NoSuchContainer(short.to_owned()))
            }
            Err(e) => Err(e),
        }
    }

    /// A file or folder of it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What its monitor last wrote.
    pub(super) fn written_state(&self) -> Result<State, ContainerError> {
        read_json(&self.path("state.json")).map_err(|e| self.gone(e))
    }

    /// A container whose folder went meanwhile does not exist.
    fn gone(&self, error: ContainerError) -> ContainerError {
        match &error {
            ContainerError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ContainerError::NoSuchContainer(self.record.name.clone())
            }
            _ => error,
        }
    }

    /// Writes what has become of it. The caller holds its lock.
    pub(super) fn write_state(&self, state: &State) -> Result<(), ContainerError> {
        let path = self.path("state.json");
        let bytes = to_json(state, &path)?;
        let durable = !self.record.settings.remove;
        let full = |e: &ContainerError| {
            let ContainerError::Io { source, .. } = e else {
                return false;
            };
            matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        };
        match replace(&path, &bytes, durable) {
            // The container itself may have filled it, and how it ended is still to be known.
            Err(e) if full(&e) => overwrite(&path, &bytes, durable).map_err(|_| e),
            replaced => replaced,
        }
    }

    /// Whether its monitor lives, or another command works on it.
    pub fn is_held(&self) -> Result<bool, ContainerError> {
        let path = self.path("lock");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(ContainerError::io("open the lock", &path)(e)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(ContainerError::io("lock", &path)(e)),
        }
    }

    /// What has become of it, with what its monitor could not write any more.
    pub fn state(&self) -> Result<State, ContainerError> {
        // In this order: a monitor writes its last state before it gives up its lock.
        let held = self.is_held()?;
        let mut state = self.written_state()?;
        let unfinished = matches!(state.status, Status::Starting | Status::Running);
        if !held && unfinished {
            state.status = Status::Dead;
            state.error = Some(if state.boot == boot_id() {
                "its monitor was killed".into()
            } else {
                "the machine was restarted".into()
            });
            state.exit_code.get_or_insert(255);
        }
        Ok(state)
    }

    /// Takes its lock within `patience`; `None` where somebody else keeps it.
    pub(super) fn lock(&self, patience: Duration) -> Result<Option<ContainerLock>, ContainerError> {
        let path = self.path("lock");
        let begin = Instant::now();
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) => return Err(self.gone(ContainerError::io("open the lock", &path)(e))),
        };
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if begin.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(e) => return Err(ContainerError::io("lock", &path)(e)),
            }
        }
        let mine = file.metadata().map_err(ContainerError::io("read", &path))?;
        match fs::metadata(&path) {
            Ok(there) if there.ino() == mine.ino() => Ok(Some(ContainerLock(file))),
            // Its folder was removed, and the lock with it.
            _ => Err(ContainerError::NoSuchContainer(self.record.name.clone())),
        }
    }
}
