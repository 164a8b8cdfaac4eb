//! Removal: of names, of images, and of what no image needs any more.
//!
//! A name is like a hard link: the image goes with its last. A layer that a mount holds is never removed.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest};

use super::catalog::{StoredImage, name_of};
use super::error::ImageError;
use super::filter::Filter;
use super::lock::{Hold, Lock, TempDir};
use super::store::Store;

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Ids of images that are gone.
    pub images: Vec<String>,
    /// Ids of images that stay without a name, because they are in use.
    pub kept: Vec<String>,
    /// Diff ids of layers whose trees are gone.
    pub layers: Vec<String>,
    /// Bytes of blobs and, as their tars count, of trees that are gone.
    pub bytes: u64,
}

impl Store {
    /// Removes a name; or, by its id, an image with all of its names (only with `force` when it has several), in every
    /// form that the store has of it: of one configuration there may be several manifests.
    ///
    /// An image that a mount uses is refused. With `force` it loses its name, and stays without one until a prune after the
    /// mount: what is mounted can still be committed. One that a container is made of, running or not, is always
    /// refused: it could not be started again.
    pub fn remove(&self, text: &str, force: bool) -> Result<Removed, ImageError> {
        let images = self.images()?;
        let image = self.select(images.clone(), text)?;
        let by_name = image.named_by(text);
        let meant: Vec<&StoredImage> = match &by_name {
            None if !image.has_digest(text) => images.iter().filter(|i| i.id == image.id).collect(),
            _ => vec![&image],
        };
        let names: Vec<&String> = meant.iter().flat_map(|image| &image.references).collect();
        if by_name.is_none() && names.len() > 1 && !force {
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            return Err(ImageError::InUse {
                what: format!("image {}", image.short_id()),
                by: Some(format!(
                    "several names: {}; remove those, or use force",
                    names.join(", ")
                )),
            });
        }
        let goes = by_name.is_none() || names.len() <= 1;
        let free_of_containers = || match self.container_of(&image)? {
            Some(container) if goes => Err(ImageError::InUse {
                what: format!("image {}", image.shown()),
                by: Some(format!("container {container}: remove that first")),
            }),
            _ => Ok(()),
        };
        free_of_containers()?;
        let used = goes && self.in_use(&image, &images)?;
        if used && (!force || names.is_empty()) {
            return Err(ImageError::InUse {
                what: format!("image {}", image.shown()),
                by: Some("a mount, a container or another command".to_owned()),
            });
        }
        let digests: Vec<&Digest> = meant.iter().map(|image| &image.digest).collect();
        let mut removed = Removed::default();
        self.edit_index(|entries| {
            // Whoever makes a container asks for its image once more under the same lock.
            free_of_containers()?;
            let mut bereft: Vec<Descriptor> = Vec::new();
            entries.retain(|entry| {
                let name = name_of(entry);
                let hit = digests.contains(&entry.digest())
                    && (by_name.is_none() || name == by_name.as_ref());
                if hit {
                    removed.untagged.extend(name.cloned());
                    bereft.push(entry.clone());
                }
                !hit
            });
            for mut entry in bereft.into_iter().filter(|_| used) {
                if !entries.iter().any(|other| other.digest() == entry.digest()) {
                    entry.set_annotations(None);
                    entries.push(entry);
                }
            }
            Ok(())
        })?;
        if used {
            removed.kept.push(image.id.to_string());
        } else if goes {
            removed.images.push(image.id.to_string());
            self.collect(&mut removed, Some(&image))?;
        }
        Ok(removed)
    }

    /// Removes images without a name (with `all`, every image that nothing uses), and whatever no image needs.
    pub fn prune(&self, all: bool) -> Result<Removed, ImageError> {
        self.prune_filtered(all, &Filter::default())
    }

    /// The same for those images only that a filter lets through.
    pub fn prune_filtered(&self, all: bool, filter: &Filter) -> Result<Removed, ImageError> {
        let images = self.images()?;
        let mut removed = Removed::default();
        let mut gone: HashMap<&str, &StoredImage> = HashMap::new();
        for image in &images {
            let meant = (all || image.references.is_empty()) && filter.wants_image(image);
            if meant && !self.in_use(image, &[])? && self.container_of(image)?.is_none() {
                gone.insert(image.digest.as_ref(), image);
            }
        }
        let mut stays: HashSet<String> = HashSet::new();
        self.edit_index(|entries| {
            for image in &images {
                if gone.contains_key(image.digest.as_ref()) && self.container_of(image)?.is_some() {
                    gone.remove(image.digest.as_ref());
                }
            }
            entries.retain(|entry| {
                let goes =
                    gone.get(entry.digest().as_ref())
                        .is_some_and(|image| match name_of(entry) {
                            // A name that it was given since then is a reason to stay.
                            Some(name) => image.references.contains(name),
                            None => true,
                        });
                if !goes {
                    stays.insert(entry.digest().to_string());
                }
                !goes
            });
            Ok(())
        })?;
        for image in gone.values().filter(|i| !stays.contains(i.digest.as_ref())) {
            removed.untagged.extend(image.references.iter().cloned());
            removed.images.push(image.id.to_string());
        }
        removed.untagged.sort();
        removed.images.sort();
        self.collect(&mut removed, None)?;
        removed.bytes += super::partial::sweep(&self.partial())?;
        Ok(removed)
    }

    /// True when somebody holds the image, or a layer of it. A layer that one of `others` has too does not count: it stays
    /// in any case, and nobody knows for which of the images it is held.
    pub(super) fn in_use(
        &self,
        image: &StoredImage,
        others: &[StoredImage],
    ) -> Result<bool, ImageError> {
        if Lock::attempt(&self.image_lock(&image.id), Hold::Exclusive)?.is_none() {
            return Ok(true);
        }
        let shared: HashSet<&String> = others
            .iter()
            .filter(|other| other.digest != image.digest)
            .flat_map(|other| other.config.rootfs().diff_ids())
            .collect();
        let all = image.config.rootfs().diff_ids();
        for diff_id in all.iter().filter(|d| !shared.contains(d)) {
            let digest = super::hash::parse(diff_id, "the config")?;
            if Lock::attempt(&self.layer_lock(&digest), Hold::Exclusive)?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn edit_index(
        &self,
        edit: impl FnOnce(&mut Vec<Descriptor>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let tmp = TempDir::new(&self.tmp())?;
        let _lock = self.lock_index()?;
        let before = self.read_index()?.manifests().clone();
        let mut after = before.clone();
        edit(&mut after)?;
        if after == before {
            return Ok(());
        }
        self.write_index_locked(after, &tmp)
    }

    /// Removes blobs that no image needs, and trees: those of `image` that no other image has, or all that no image has.
    fn collect(
        &self,
        removed: &mut Removed,
        image: Option<&StoredImage>,
    ) -> Result<(), ImageError> {
        let _lock = self.lock_blobs(Hold::Exclusive)?;
        // Before the index: see the leases.
        let mut blobs = self.leased_locked()?;
        let mut trees = blobs.clone();
        for entry in self.read_index()?.manifests() {
            // An image that cannot be read keeps everything: nobody knows what it needs.
            let other = self.stored_image(&[entry])?;
            blobs.insert(other.digest.to_string());
            blobs.insert(other.id.to_string());
            blobs.extend(
                other
                    .manifest
                    .layers()
                    .iter()
                    .map(|l| l.digest().to_string()),
            );
            trees.extend(other.config.rootfs().diff_ids().iter().cloned());
        }
        for digest in self.digests_in(&self.root().join("blobs"))? {
            if !blobs.contains(digest.as_ref()) {
                let path = self.blob_path(&digest);
                let size = path
                    .metadata()
                    .map_err(ImageError::io("read", &path))?
                    .len();
                std::fs::remove_file(&path).map_err(ImageError::io("remove", &path))?;
                removed.bytes += size;
            }
        }
        for digest in self.digests_in(&self.root().join("layers"))? {
            let of_image = image.is_none_or(|i| {
                i.config
                    .rootfs()
                    .diff_ids()
                    .iter()
                    .any(|d| d == digest.as_ref())
            });
            if of_image && !trees.contains(digest.as_ref()) {
                self.remove_tree(&digest, removed)?;
            }
        }
        Ok(())
    }

    /// Removes a layer's tree, unless it is in use.
    fn remove_tree(&self, digest: &Digest, removed: &mut Removed) -> Result<(), ImageError> {
        let lock_path = self.layer_lock(digest);
        let Some(_lock) = Lock::attempt(&lock_path, Hold::Exclusive)? else {
            return Ok(());
        };
        let size = self.layer_info(digest)?.map_or(0, |info| info.size);
        // Out of sight at once, away when there is time: a process that dies here leaves it to the next one.
        let tmp = TempDir::new(&self.tmp())?;
        let path = self.layer_dir(digest);
        std::fs::rename(&path, tmp.path().join("removed"))
            .map_err(ImageError::io("remove", &path))?;
        super::durable::sync_parent(&path)?;
        removed.layers.push(digest.to_string());
        removed.bytes += size;
        Ok(())
    }

    /// The digests by which the files of a folder are named: `ALGORITHM/HEX`.
    pub(crate) fn digests_in(&self, dir: &Path) -> Result<Vec<Digest>, ImageError> {
        let mut digests = Vec::new();
        for algorithm in list(dir)? {
            let Some(name) = algorithm.file_name().and_then(|n| n.to_str()) else {
                continue;
            };
            if !matches!(name, "sha256" | "sha512") {
                continue;
            }
            for file in list(&algorithm)? {
                let hex = file
                    .file_name()
                    .and_then(|n| n.to_str())
                    .unwrap_or_default();
                // What is not named by a digest is not ours.
                digests.extend(Digest::try_from(format!("{name}:{hex}")));
            }
        }
        Ok(digests)
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(ImageError::io("read", dir))? {
        paths.push(entry.map_err(ImageError::io("read", dir))?.path());
    }
    paths.sort();
    Ok(paths)
}
