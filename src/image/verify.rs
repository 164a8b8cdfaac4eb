//! Reading everything in the store again: blobs against their digests, trees against their blobs.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::AsFd;

use oci_spec::image::{Descriptor, Digest};

use super::compare;
use super::error::ImageError;
use super::hash::{self, Hasher, HashingReader};
use super::lock::{Hold, Lock, TempDir};
use super::store::Store;
use super::unpack::{self, LayerSource};

/// Something in the store that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The blob, layer or image.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// The images that need it, by a name or id.
    pub images: Vec<String>,
}

/// What [`Store::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Images of the index.
    pub images: usize,
    /// Blobs that were read.
    pub blobs: usize,
    /// Trees that were compared.
    pub layers: usize,
    /// Trees whose blob the store does not have: of images that were mounted from an archive and not loaded.
    pub unverified: usize,
    /// What is wrong.
    pub damages: Vec<Damage>,
}

impl Store {
    /// Reads everything again. To compare a tree with its blob, the blob is unpacked once more, below `tmp`. An index that
    /// says something else than its tree is made anew.
    pub fn verify(&self) -> Result<Verified, ImageError> {
        let _blobs = self.lock_blobs(Hold::Shared)?;
        let mut report = Verified::default();
        // Blob or diff id, to the images that need it.
        let mut users: HashMap<String, Vec<String>> = HashMap::new();
        let mut trees: BTreeMap<String, (Digest, Digest)> = BTreeMap::new();
        for entry in self.read_index()?.manifests() {
            report.images += 1;
            self.verify_image(entry, &mut users, &mut trees, &mut report);
        }
        for digest in self.digests_in(&self.root().join("blobs"))? {
            report.blobs += 1;
            if let Err(e) = self.verify_blob(&digest) {
                report.damage(format!("blob {digest}"), &e, users.get(digest.as_ref()));
            }
        }
        for diff_id in self.digests_in(&self.root().join("layers"))? {
            let what = format!("layer {diff_id}");
            let blob = match trees.get(diff_id.as_ref()) {
                Some((_, blob)) if self.blob_path(blob).exists() => blob,
                _ => {
                    report.unverified += 1;
                    continue;
                }
            };
            report.layers += 1;
            // The index of a damaged tree stays what it is: one that is made of the damage would hide it.
            let found = match self.verify_tree(&diff_id, blob) {
                Ok(None) => self.verify_index(&diff_id),
                found => found,
            };
            match found {
                Ok(None) => {}
                Ok(Some(why)) => report.damages.push(Damage {
                    what,
                    why,
                    images: users.get(diff_id.as_ref()).cloned().unwrap_or_default(),
                }),
                Err(e) => report.damage(what, &e, users.get(diff_id.as_ref())),
            }
        }
        Ok(report)
    }

    fn verify_image(
        &self,
        entry: &Descriptor,
        users: &mut HashMap<String, Vec<String>>,
        trees: &mut BTreeMap<String, (Digest, Digest)>,
        report: &mut Verified,
    ) {
        let image = match self.stored_image(&[entry]) {
            Ok(image) => image,
            Err(e) => {
                let name = super::catalog::name_of(entry).cloned();
                let name = name.unwrap_or_else(|| entry.digest().to_string());
                report.damage(format!("image {name}"), &e, Some(&vec![name.clone()]));
                return;
            }
        };
        let name = image.shown();
        let diff_ids = image.config.rootfs().diff_ids();
        for (diff_id, layer) in diff_ids.iter().zip(image.manifest.layers()) {
            for key in [diff_id.clone(), layer.digest().to_string()] {
                let names = users.entry(key).or_default();
                if !names.contains(&name) {
                    names.push(name.clone());
                }
            }
            if let Ok(digest) = hash::parse(diff_id, "the config") {
                trees.insert(diff_id.clone(), (digest, layer.digest().clone()));
            }
            if !self.blob_path(layer.digest()).exists() {
                report.damages.push(Damage {
                    what: format!("blob {}", layer.digest()),
                    why: "it is missing".to_owned(),
                    images: vec![name.clone()],
                });
            }
        }
        for digest in [&image.digest, &image.id] {
            users
                .entry(digest.to_string())
                .or_default()
                .push(name.clone());
        }
    }

    fn verify_blob(&self, digest: &Digest) -> Result<(), ImageError> {
        let path = self.blob_path(digest);
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        let got = HashingReader::new(file, Some(Hasher::for_digest(digest)?))
            .drain()
            .map_err(ImageError::io("read", &path))?
            .unwrap_or_default();
        if got == digest.as_ref() {
            return Ok(());
        }
        Err(ImageError::digest(path.display().to_string(), digest, got))
    }

    /// What is wrong with a tree; nothing, when it has been removed meanwhile.
    fn verify_tree(&self, diff_id: &Digest, blob: &Digest) -> Result<Option<String>, ImageError> {
        let _lock = Lock::wait(&self.layer_lock(diff_id), Hold::Shared, self.limits().wait)?;
        if self.layer_info(diff_id)?.is_none() {
            return Ok(None);
        }
        let tmp = TempDir::new(&self.tmp())?;
        let again = tmp.path().join("diff");
        std::fs::create_dir(&again).map_err(ImageError::io("create", &again))?;
        let path = self.blob_path(blob);
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        let source = LayerSource {
            name: format!("the blob {blob}"),
            blob: Some(blob.clone()),
            diff_id: diff_id.clone(),
        };
        unpack::unpack(file, &source, &again, self.ownership(), self.limits())?;
        let tree = self.layer_tree(diff_id);
        let right = File::open(&again).map_err(ImageError::io("open", &again))?;
        let found = File::open(&tree).map_err(ImageError::io("open", &tree))?;
        compare::first_difference(right.as_fd(), found.as_fd())
            .map_err(ImageError::io("read", &tree))
    }

    /// Bytes of a layer's tar; `None` when it is not unpacked.
    pub fn layer_size(&self, diff_id: &str) -> Result<Option<u64>, ImageError> {
        let digest = hash::parse(diff_id, "the config")?;
        Ok(self.layer_info(&digest)?.map(|info| info.size))
    }
}

impl Verified {
    fn damage(&mut self, what: String, why: &ImageError, images: Option<&Vec<String>>) {
        self.damages.push(Damage {
            what,
            why: why.to_string(),
            images: images.cloned().unwrap_or_default(),
        });
    }
}
