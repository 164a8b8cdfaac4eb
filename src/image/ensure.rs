//! Layers into the store: read, checked, made durable, and only then to be seen.
//!
//! All layers that an image lacks are read first, several at once and the largest first, each below `tmp`; then one
//! `syncfs` makes all of them durable, and each is renamed to its place. One call for all, because each waits for
//! everything that anybody wrote on the filesystem, and one for each file would be far slower.
//!
//! The sync stays, though a tree could be had again from its blob after a power cut: what a container's upper records of
//! its lowers (file handles of copied-up files, of hard links, of the rest of partly copied ones) must still be true
//! then, and a tree that is unpacked anew has other inodes.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use oci_spec::image::Digest;
use rustix::fs::CWD;
use rustix::io::Errno;

use super::durable;
use super::error::ImageError;
use super::layer_index;
use super::lock::{Hold, Lock, Pending, TempDir};
use super::store::{Keep, LayerBytes, LayerGuard, NeededLayer, Store, make_dir};
use super::tee::Tee;
use super::unpack::{self, LayerInfo, LayerSource};

/// How many layers are fetched at once, at least.
const FETCHES: usize = 3;

/// A layer that was read and checked, and is not yet in its place.
struct Made<'a> {
    source: &'a LayerSource,
    bytes: &'a LayerBytes,
    tmp: TempDir,
    tree: bool,
    blob: bool,
}

impl Made<'_> {
    fn tree(&self) -> PathBuf {
        self.tmp.path().join("layer")
    }
    /// The file that holds the blob.
    fn blob(&self) -> PathBuf {
        match self.bytes {
            LayerBytes::Section(_) => self.tmp.path().join("blob"),
            // What is fetched is in a file already, which only needs its place.
            LayerBytes::Remote(remote) => remote.file().to_owned(),
        }
    }
    fn is_remote(&self) -> bool {
        matches!(self.bytes, LayerBytes::Remote(_))
    }
}

impl Store {
    /// Unpacks the layers that the store lacks, several at once, and holds all of them. Who keeps blobs as well has a lease
    /// on them and on the trees.
    pub(crate) fn ensure_layers(
        &self,
        layers: &[NeededLayer],
        keep: Keep,
    ) -> Result<LayerGuard, ImageError> {
        // The same tree may come by several blobs, compressed in different ways: where blobs are kept, each is checked.
        let key = |layer: &NeededLayer| {
            let blob = layer.source.blob.as_ref();
            let blob = blob.filter(|_| keep == Keep::TreeAndBlob);
            (
                layer.source.diff_id.to_string(),
                blob.map(Digest::to_string),
            )
        };
        let mut seen = HashSet::new();
        let distinct: Vec<&NeededLayer> = layers
            .iter()
            .filter(|layer| seen.insert(key(layer)))
            .collect();
        // Ready layers take a lock and a look each: not worth a thread.
        let mut locks: Vec<Option<Lock>> = Vec::new();
        for layer in &distinct {
            locks.push(self.hold_ready(layer, keep)?);
        }
        let missing: Vec<&NeededLayer> = (0..distinct.len())
            .filter(|&i| locks[i].is_none())
            .map(|i| distinct[i])
            .collect();
        if keep == Keep::TreeAndBlob {
            // The caller's lease keeps what is ready. By their locks the images that have these layers would seem to be
            // in use for as long as the others are fetched.
            locks.iter_mut().for_each(|lock| *lock = None);
        }
        self.make_free(&missing, keep)?;
        // Now all are there, except those that another process was making and those that were removed since.
        for (layer, lock) in distinct.iter().zip(&mut locks) {
            if lock.is_none() {
                *lock = Some(self.ensure_layer(layer, keep)?);
            }
        }
        Ok(LayerGuard {
            locks: locks.into_iter().flatten().collect(),
        })
    }

    /// Makes those layers that no other process is making.
    fn make_free(&self, missing: &[&NeededLayer], keep: Keep) -> Result<(), ImageError> {
        let mut order: Vec<(PathBuf, &NeededLayer)> = missing
            .iter()
            .map(|layer| (self.layer_lock(&layer.source.diff_id), *layer))
            .collect();
        // A large one that came last would keep one processor waiting for it.
        order.sort_by_key(|(_, layer)| match &layer.blob {
            Some(LayerBytes::Section(section)) => std::cmp::Reverse(section.len()),
            Some(LayerBytes::Remote(_)) | None => std::cmp::Reverse(0),
        });
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let results = Mutex::new(Vec::new());
        let remote = missing
            .iter()
            .filter(|layer| matches!(layer.blob, Some(LayerBytes::Remote(_))));
        // Whoever fetches waits for the network more than for a processor.
        let workers = std::thread::available_parallelism()
            .map_or(1, |n| n.get())
            .max(FETCHES.min(remote.count()))
            .min(order.len());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some((path, layer)) = order.get(at) else {
                            break;
                        };
                        let result =
                            Lock::pending(path, self.limits().wait).and_then(|mut lock| {
                                let made = self.make_if_free(&mut lock, layer, keep)?;
                                Ok(made.map(|made| (lock, made)))
                            });
                        failed.fetch_or(result.is_err(), Ordering::Relaxed);
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        results.push(result);
                    }
                });
            }
        });
        // The locks are held until everything is in its place.
        let mut held = Vec::new();
        let mut made = Vec::new();
        let mut failure = None;
        for result in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            match result {
                Ok(Some((lock, layer))) => {
                    held.push(lock);
                    made.push(layer);
                }
                Ok(None) => {}
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        if let Some(e) = failure {
            // Of an image that is no good nothing stays, but what was fetched need not be fetched and unpacked again.
            made.retain(Made::is_remote);
            if let Err(second) = self.reveal(&made) {
                log::warn!("{second}");
            }
            return Err(e);
        }
        self.reveal(&made)
    }

    /// Makes one layer, if it is to be made and nobody else is at it, under its lock; waits for nobody.
    fn make_if_free<'a>(
        &self,
        lock: &mut Pending<'_>,
        layer: &'a NeededLayer,
        keep: Keep,
    ) -> Result<Option<Made<'a>>, ImageError> {
        // Others may hold it shared for as long as they like. Then the tree is there, and the blob may be added beside
        // them.
        if lock.attempt(Hold::Shared)? && self.has_tree(layer)? {
            if self.is_ready(layer, keep)? {
                return Ok(None);
            }
            if self.has_blob(layer) {
                self.check_pair(layer)?;
                return Ok(None);
            }
            return self.make_layer(layer, false, true).map(Some);
        }
        if !lock.attempt(Hold::Exclusive)? || self.has_tree(layer)? {
            return Ok(None);
        }
        let blob = keep == Keep::TreeAndBlob && !self.has_blob(layer);
        self.make_layer(layer, true, blob).map(Some)
    }

    /// Holds a layer that is there already.
    fn hold_ready(&self, layer: &NeededLayer, keep: Keep) -> Result<Option<Lock>, ImageError> {
        let path = self.layer_lock(&layer.source.diff_id);
        let Some(lock) = Lock::attempt(&path, Hold::Shared)? else {
            return Ok(None);
        };
        Ok(self.is_ready(layer, keep)?.then_some(lock))
    }

    /// True where nothing of the layer is missing.
    pub(crate) fn is_ready(&self, layer: &NeededLayer, keep: Keep) -> Result<bool, ImageError> {
        let tree = self.has_tree(layer)?;
        Ok(tree && (keep == Keep::Tree || self.has_blob(layer) && self.is_pair(&layer.source)))
    }

    /// Whether the blob is known to be one that gives this diff id when it is decompressed. That the store has both says
    /// nothing: a manifest can name any two, and what is sent on would not be what is run.
    fn is_pair(&self, source: &LayerSource) -> bool {
        let blob = source.blob.as_ref();
        blob.is_some_and(|blob| *blob == source.diff_id || self.pair_mark(source, blob).exists())
    }

    /// The empty file that tells of it. It stays true whatever becomes of the blob, so nothing waits for it to be durable.
    fn pair_mark(&self, source: &LayerSource, blob: &Digest) -> PathBuf {
        let name = format!("{}-{}", blob.algorithm(), blob.digest());
        self.layer_dir(&source.diff_id).join("blobs").join(name)
    }

    /// Keeps that both digests were found right. The layer's tree is in its place.
    fn mark_pair(&self, source: &LayerSource) -> Result<(), ImageError> {
        let Some(blob) = source.blob.as_ref().filter(|_| !self.is_pair(source)) else {
            return Ok(());
        };
        let mark = self.pair_mark(source, blob);
        if let Some(dir) = mark.parent() {
            make_dir(dir, 0o700)?;
        }
        let made = std::fs::File::create(&mark).map(drop);
        made.map_err(ImageError::io("create", &mark))
    }

    /// Compares the blob that the store has with the diff id of a layer that it has.
    fn check_pair(&self, layer: &NeededLayer) -> Result<(), ImageError> {
        let source = &layer.source;
        if let Some(blob) = &source.blob {
            let path = self.blob_path(blob);
            let file = std::fs::File::open(&path).map_err(ImageError::io("open", &path))?;
            unpack::check(file, source, self.limits())?;
        }
        self.mark_pair(source)
    }

    fn has_tree(&self, layer: &NeededLayer) -> Result<bool, ImageError> {
        Ok(self.layer_info(&layer.source.diff_id)?.is_some())
    }

    fn has_blob(&self, layer: &NeededLayer) -> bool {
        let blob = layer.source.blob.as_ref();
        blob.is_some_and(|digest| self.blob_path(digest).exists())
    }

    /// Holds one layer, made by whoever is first: this process, or another, for which it waits.
    fn ensure_layer(&self, layer: &NeededLayer, keep: Keep) -> Result<Lock, ImageError> {
        let path = self.layer_lock(&layer.source.diff_id);
        let mut wait = Lock::pending(&path, self.limits().wait)?;
        loop {
            if let Some(made) = self.make_if_free(&mut wait, layer, keep)? {
                self.reveal(&[made])?;
            }
            if wait.attempt(Hold::Shared)? && self.is_ready(layer, keep)? {
                return Ok(wait.into_lock());
            }
            wait.sleep()?;
        }
    }

    /// Reads one layer to make its tree, its blob or both. The caller holds its lock, exclusively if the tree is to be
    /// made.
    fn make_layer<'a>(
        &self,
        layer: &'a NeededLayer,
        tree: bool,
        blob: bool,
    ) -> Result<Made<'a>, ImageError> {
        let source = &layer.source;
        let Some(bytes) = &layer.blob else {
            return Err(ImageError::MissingBlob {
                name: source.name.clone(),
                blob: source.diff_id.to_string(),
                by: "manifest",
            });
        };
        let made = Made {
            source,
            bytes,
            tmp: TempDir::new(&self.tmp())?,
            tree,
            blob: blob && source.blob.is_some(),
        };
        let reader: Box<dyn Read + Send + '_> = match bytes {
            LayerBytes::Section(section) => {
                let copy = made.blob();
                let copy = made.blob.then_some(copy.as_path());
                Box::new(Tee::new(section.clone(), copy)?)
            }
            LayerBytes::Remote(remote) => remote.open()?,
        };
        let refuse = |e: ImageError| {
            if let LayerBytes::Remote(remote) = bytes
                && !matches!(e, ImageError::Io { .. } | ImageError::EntryIo { .. })
            {
                remote.refuse();
            }
            e
        };
        if !tree {
            unpack::check(reader, source, self.limits()).map_err(refuse)?;
            return Ok(made);
        }
        let new = made.tree();
        let diff = new.join("diff");
        make_dir(&new, 0o755)?;
        make_dir(&diff, 0o755)?;
        let info = unpack::unpack(reader, source, &diff, self.ownership(), self.limits())
            .map_err(refuse)?;
        warn_of_losses(source, &info);
        let json = serde_json::to_vec(&info).map_err(ImageError::json("layer.json"))?;
        let info_path = new.join("layer.json");
        std::fs::write(&info_path, json).map_err(ImageError::io("write", &info_path))?;
        Ok(made)
    }

    /// Makes layers durable and puts them into their places.
    fn reveal(&self, made: &[Made<'_>]) -> Result<(), ImageError> {
        if made.is_empty() {
            return Ok(());
        }
        durable::sync_filesystem(&self.tmp())?;
        let trees = made.iter().filter(|layer| layer.tree);
        let trees: Vec<PathBuf> = trees.map(|layer| layer.tree().join("diff")).collect();
        layer_index::index_new(&trees);
        for layer in made {
            if let (true, Some(digest)) = (layer.blob, &layer.source.blob) {
                durable::publish(&layer.blob(), &self.blob_path(digest))?;
            }
            if layer.tree {
                let place = self.layer_dir(&layer.source.diff_id);
                if let Some(parent) = place.parent() {
                    make_dir(parent, 0o755)?;
                }
                self.publish(&layer.tree(), &place, &layer.tmp)?;
                durable::sync_parent(&place)?;
            }
            self.mark_pair(layer.source)?;
            if let LayerBytes::Remote(remote) = layer.bytes {
                remote.accepted();
            }
        }
        Ok(())
    }

    /// Renames a layer to its place. What lies there has no `layer.json`, so it is damaged: it makes room.
    fn publish(&self, new: &Path, place: &Path, tmp: &TempDir) -> Result<(), ImageError> {
        match rustix::fs::renameat(CWD, new, CWD, place) {
            Ok(()) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                log::warn!("{} is incomplete and is replaced", place.display());
                rustix::fs::renameat(CWD, place, CWD, tmp.path().join("damaged"))
                    .and_then(|()| rustix::fs::renameat(CWD, new, CWD, place))
                    .map_err(ImageError::io("replace", place))
            }
            Err(e) => Err(ImageError::io("create", place)(e)),
        }
    }
}

fn warn_of_losses(source: &LayerSource, info: &LayerInfo) {
    let mut losses = Vec::new();
    if !info.devices.is_empty() {
        losses.push(format!("{} devices", info.devices.len()));
    }
    if !info.xattrs.is_empty() {
        losses.push(format!("{} extended attributes", info.xattrs.len()));
    }
    if info.squashed > 0 {
        losses.push(format!("the owners of {} entries", info.squashed));
    }
    if !losses.is_empty() {
        log::warn!(
            "{}: without the privilege for it, left out: {}",
            source.name,
            losses.join(", ")
        );
    }
}
