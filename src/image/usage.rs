//! How much room the store takes, and for what.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::ImageError;
use super::lock::{Hold, Lock};
use super::store::Store;

/// Things of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many there are.
    pub total: usize,
    /// How many of them a mount or container uses; of blobs, an image.
    pub active: usize,
    /// Bytes that they take.
    pub size: u64,
    /// Bytes that [`Store::prune`] of everything would give back.
    pub reclaimable: u64,
}

/// What lies in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Images; their size is that of their manifests and configurations.
    pub images: Usage,
    /// The layers of images as they came, to be saved and pushed again.
    pub blobs: Usage,
    /// Unpacked layers, as they lie on the disk.
    pub layers: Usage,
    /// Writable layers that are thrown away with their mounts.
    pub uppers: Usage,
}

impl Store {
    /// Measures the store. Reads attributes of every unpacked file, no data.
    pub fn usage(&self) -> Result<StoreUsage, ImageError> {
        let _blobs = self.lock_blobs(Hold::Shared)?;
        let mut usage = StoreUsage::default();
        let (mut needed, mut kept) = (HashSet::new(), HashSet::new());
        let mut documents = HashSet::new();
        for image in self.images()? {
            let used = self.in_use(&image, &[])?;
            usage.images.total += 1;
            usage.images.active += usize::from(used);
            for digest in [&image.id, &image.digest] {
                if documents.insert(digest.to_string()) {
                    let size = disk(&self.blob_path(digest))?;
                    usage.images.size += size;
                    usage.images.reclaimable += if used { 0 } else { size };
                }
            }
            let blobs = image
                .manifest
                .layers()
                .iter()
                .map(|l| l.digest().to_string());
            let trees = image.config.rootfs().diff_ids().iter().cloned();
            for digest in blobs.chain(trees) {
                if used {
                    kept.insert(digest.clone());
                }
                needed.insert(digest);
            }
        }
        for digest in self.digests_in(&self.root().join("blobs"))? {
            if documents.contains(digest.as_ref()) {
                continue;
            }
            let size = disk(&self.blob_path(&digest))?;
            usage.blobs.total += 1;
            usage.blobs.size += size;
            usage.blobs.active += usize::from(needed.contains(digest.as_ref()));
            if !kept.contains(digest.as_ref()) {
                usage.blobs.reclaimable += size;
            }
        }
        for digest in self.digests_in(&self.root().join("layers"))? {
            let size = disk(&self.layer_dir(&digest))?;
            let held = Lock::attempt(&self.layer_lock(&digest), Hold::Exclusive)?.is_none();
            usage.layers.total += 1;
            usage.layers.size += size;
            usage.layers.active += usize::from(held);
            if !held && !kept.contains(digest.as_ref()) {
                usage.layers.reclaimable += size;
            }
        }
        let private = self.root().join("private");
        if private.is_dir() {
            let entries = std::fs::read_dir(&private).map_err(ImageError::io("read", &private))?;
            for entry in entries {
                let path = entry.map_err(ImageError::io("read", &private))?.path();
                if path.is_dir() {
                    usage.uppers.total += 1;
                    usage.uppers.active += usize::from(is_held(&path.join("lock")));
                    usage.uppers.size += disk(&path)?;
                }
            }
        }
        Ok(usage)
    }
}

fn is_held(path: &Path) -> bool {
    path.exists() && Lock::attempt(path, Hold::Exclusive).is_ok_and(|lock| lock.is_none())
}

/// Bytes that a file or tree takes on the disk, hard links once. What goes away meanwhile does not count.
fn disk(path: &Path) -> Result<u64, ImageError> {
    let mut seen = HashSet::new();
    let mut total = 0;
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let meta = match std::fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(ImageError::io("measure", &path)(e)),
        };
        if !meta.is_dir() && meta.nlink() > 1 && !seen.insert((meta.dev(), meta.ino())) {
            continue;
        }
        total += meta.blocks() * 512;
        if !meta.is_dir() {
            continue;
        }
        match std::fs::read_dir(&path) {
            Ok(entries) => {
                for entry in entries {
                    left.push(entry.map_err(ImageError::io("measure", &path))?.path());
                }
            }
            // A plain user cannot read all of his own.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                log::debug!("{} is not measured: {e}", path.display());
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(ImageError::io("measure", &path)(e)),
        }
    }
    Ok(total)
}
