//! The store: what lies where, and how it stays right.
//!
//! ```text
//! ROOT/
//!   oci-layout, index.json, blobs/sha256/HEX   an OCI image layout, which other tools read as it is
//!   layers/sha256/HEX/diff                     the tree of the layer with this diff id
//!   layers/sha256/HEX/layer.json               what it is (`LayerInfo`)
//!   layers/sha256/HEX/blobs/sha256-HEX         empty: this blob was found to be that layer
//!   layers/sha256/HEX/index                    its metadata, for mounts (`crate::layer::packed`); derived from the tree
//!   locks/NAME                                 lock files: one for each layer and image, one for the index, one for the blobs
//!   partial/DIGEST                             blobs that are being fetched, or whose fetch was interrupted
//!   tmp/PID-N                                  work in progress; locked by its owner, swept when that is dead
//! ```
//!
//! A layer is written below `tmp`, made durable, and renamed into `layers`: it is there whole or not at all. Who uses a
//! layer holds its lock shared; who makes or removes it, exclusively. A process that holds a lock exclusively waits for
//! no other lock, so no two processes wait for each other. Locks die with their holder.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::Digest;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::durable;
use super::error::ImageError;
use super::files::Section;
use super::limits::Limits;
use super::lock::{self, Hold, Lock, TempDir};
use super::unpack::{LayerInfo, LayerSource, Ownership};

/// The version of the layout above that this program reads and writes.
const VERSION: &str = "acetate store 1\n";

/// Directories of the store that only its owner may enter, also where others may enter the root, which may have been
/// there before: layers hold suid programs of any age, containers have passwords in their environments, and who may
/// open a lock file can hold its lock for ever.
const GUARDED: [&str; 8] = [
    "tmp",
    "locks",
    "partial",
    "blobs",
    "layers",
    "containers",
    "volumes",
    "private",
];

/// A store of images and unpacked layers. Cheap to open; any number of processes may use one at once.
#[derive(Debug)]
pub struct Store {
    /// Immutable.
    root: PathBuf,
    /// Immutable.
    limits: Limits,
    /// Immutable.
    ownership: Ownership,
}

/// Keeps layers from being removed, by any process, until it is dropped or its process dies.
#[derive(Debug, Default)]
pub struct LayerGuard {
    /// Shared locks.
    pub(super) locks: Vec<Lock>,
}

impl LayerGuard {
    /// The descriptors by which it is held.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.locks.iter().map(AsFd::as_fd)
    }
}

/// What of a layer is to be in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Its tree.
    Tree,
    /// Its tree, and its bytes as they came.
    TreeAndBlob,
}

/// A layer that an image needs.
#[derive(Debug)]
pub(crate) struct NeededLayer {
    /// What is known of it.
    pub(crate) source: LayerSource,
    /// Its bytes; `None` where the source lacks them, which does not matter when the store has the layer already.
    pub(crate) blob: Option<LayerBytes>,
}

/// Where the bytes of a layer come from.
#[derive(Clone, Debug)]
pub(crate) enum LayerBytes {
    /// A file, or a part of one.
    Section(Section),
    /// Somewhere that is asked for them only once the store knows that it needs them.
    #[cfg_attr(
        not(feature = "registry"),
        expect(dead_code, reason = "only registries are asked")
    )]
    Remote(Arc<dyn RemoteBlob>),
}

/// A blob that has to be fetched. What has arrived is kept in a file of the store's filesystem, so that a fetch that was
/// interrupted goes on where it was.
pub(crate) trait RemoteBlob: std::fmt::Debug + Send + Sync {
    /// Fetches it, from the first byte to the last. The caller holds the layer's lock.
    fn open(&self) -> Result<Box<dyn Read + Send + '_>, ImageError>;
    /// The file that holds all of it after everything was read.
    fn file(&self) -> &Path;
    /// The bytes were good, and the store has what it needs of them.
    fn accepted(&self);
    /// The bytes were not those of the blob: nothing of them is to be kept.
    fn refuse(&self);
}

impl Store {
    /// Opens the store at `root`, creating it if it is not there, and removes what killed processes left.
    pub fn open(root: &Path) -> Result<Store, ImageError> {
        let store = Store {
            root: root.to_owned(),
            limits: Limits::from_env(),
            ownership: Ownership::default(),
        };
        store.create()?;
        lock::sweep(&store.tmp())?;
        Ok(store)
    }

    /// The same store with other limits than the environment's.
    pub fn with_limits(mut self, limits: Limits) -> Store {
        self.limits = limits;
        self
    }

    /// The same store with another treatment of owners in layers that it unpacks from now on.
    pub fn with_ownership(mut self, ownership: Ownership) -> Store {
        self.ownership = ownership;
        self
    }

    /// Where the store lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Where blobs lie that are being fetched.
    pub(crate) fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn create(&self) -> Result<(), ImageError> {
        if !self.root.is_dir() {
            if let Some(parent) = self.root.parent() {
                std::fs::create_dir_all(parent).map_err(ImageError::io("create", parent))?;
            }
            make_dir(&self.root, 0o700)?;
        }
        for dir in [
            "tmp",
            "locks",
            "partial",
            "blobs",
            "blobs/sha256",
            "layers",
            "layers/sha256",
        ] {
            make_dir(&self.root.join(dir), 0o700)?;
        }
        for dir in GUARDED {
            keep_to_owner(&self.root.join(dir));
        }
        let version = self.root.join("version");
        match std::fs::read(&version) {
            Ok(found) if found == VERSION.as_bytes() => return Ok(()),
            Ok(found) => {
                return Err(ImageError::ForeignStore {
                    path: self.root.clone(),
                    why: format!(
                        "its version is {:?}",
                        String::from_utf8_lossy(&found).trim()
                    ),
                });
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(ImageError::io("read", &version)(e)),
        }
        let tmp = TempDir::new(&self.tmp())?;
        let layout = self.root.join("oci-layout");
        durable::write_file(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#, tmp.path())?;
        let _index_lock = self.lock_index()?;
        let index = self.root.join("index.json");
        if !index.exists() {
            let empty = br#"{"schemaVersion":2,"manifests":[]}"#;
            durable::write_file(&index, empty, tmp.path())?;
        }
        // Last: a store that has it is complete.
        durable::write_file(&version, VERSION.as_bytes(), tmp.path())
    }

    /// The lock under which `index.json` is changed.
    pub(crate) fn lock_index(&self) -> Result<Lock, ImageError> {
        Lock::wait(
            &self.root.join("locks/index"),
            Hold::Exclusive,
            self.limits.wait,
        )
    }

    /// The lock that whoever removes blobs and trees that no image needs holds exclusively; and shared, whoever makes a
    /// lease, for that moment, and whoever reads all of them.
    pub(crate) fn lock_blobs(&self, hold: Hold) -> Result<Lock, ImageError> {
        Lock::wait(&self.root.join("locks/blobs"), hold, self.limits.wait)
    }

    /// Where the layer with this diff id lies, or would lie.
    pub(crate) fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root
            .join("layers")
            .join(diff_id.algorithm().as_ref())
            .join(diff_id.digest())
    }

    /// The tree of a layer, or where it would be.
    pub(crate) fn layer_tree(&self, diff_id: &Digest) -> PathBuf {
        self.layer_dir(diff_id).join("diff")
    }

    pub(crate) fn layer_lock(&self, diff_id: &Digest) -> PathBuf {
        let name = format!("{}-{}", diff_id.algorithm(), diff_id.digest());
        self.root.join("locks").join(name)
    }

    /// The lock that whoever uses an image holds shared.
    pub(crate) fn image_lock(&self, id: &Digest) -> PathBuf {
        let name = format!("image-{}-{}", id.algorithm(), id.digest());
        self.root.join("locks").join(name)
    }

    /// What is recorded of a layer; `None` when the store has it not.
    pub(crate) fn layer_info(&self, diff_id: &Digest) -> Result<Option<LayerInfo>, ImageError> {
        let path = self.layer_dir(diff_id).join("layer.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ImageError::io("read", &path)(e)),
        };
        let info =
            serde_json::from_slice(&bytes).map_err(ImageError::json(path.display().to_string()))?;
        Ok(Some(info))
    }

    /// A layer without entries, for an image that has none.
    pub(crate) fn empty_layer(&self) -> Result<PathBuf, ImageError> {
        let path = self.root.join("layers/empty");
        make_dir(&path, 0o755)?;
        Ok(path)
    }
}

/// Takes the rights of others at a directory away, if it is there and this process's. Best effort: a store that cannot
/// be changed can still be read.
fn keep_to_owner(dir: &Path) {
    let kept = || -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(dir, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e),
        };
        let found = rustix::fs::fstat(&fd)?;
        if found.st_mode & 0o077 == 0 || found.st_uid != rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(found.st_mode & 0o7700))
    };
    if let Err(e) = kept() {
        log::warn!("others may enter {}: {e}", dir.display());
    }
}

/// Makes a directory, unless it is there.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), ImageError> {
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(ImageError::io("create", path)(e)),
    }
}
