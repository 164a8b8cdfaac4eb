//! The images that the store has: the entries of its `index.json`, which is an OCI layout's, and what they lead to.
//!
//! An image stands there once for each of its names, and once without one when it has none. All changes are made under
//! the index lock, by writing a new file in the place of the old.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;

use oci_spec::image::{
    Descriptor, Digest, ImageConfiguration, ImageIndex, ImageIndexBuilder, ImageManifest,
};

use super::durable;
use super::error::ImageError;
use super::hash;
use super::layout::{CONTAINERD_NAME, REF_NAME};
use super::lock::TempDir;
use super::reference::Reference;
use super::store::Store;

/// Images that a thread of its own pays for.
const WORTH_A_THREAD: usize = 50;

/// An image of the store.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// The digest of its configuration: what docker calls the image id.
    pub id: Digest,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its names, complete, in order.
    pub references: Vec<String>,
    /// Its manifest.
    pub manifest: ImageManifest,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// The configuration as it is written.
    pub config_bytes: Vec<u8>,
    /// Its entry in the index, without a name.
    pub(crate) descriptor: Descriptor,
}

impl StoredImage {
    /// The id as people write it.
    pub fn short_id(&self) -> &str {
        self.id.digest().get(..12).unwrap_or(self.id.digest())
    }
    /// Bytes of its layers as they are stored.
    pub fn stored_size(&self) -> u64 {
        self.manifest.layers().iter().map(|l| l.size()).sum()
    }
    /// True where `text` is the digest of its manifest, and so means this form of the image alone.
    pub(crate) fn has_digest(&self, text: &str) -> bool {
        text.strip_prefix("sha256:").unwrap_or(text) == self.digest.digest()
    }
    /// What to call it in a message.
    pub fn shown(&self) -> String {
        match self.references.first() {
            Some(name) => name.clone(),
            None => self.short_id().to_owned(),
        }
    }
}

impl StoredImage {
    /// The one of its names that `text` is, if it is one. podman and buildah call what they build `localhost/NAME`,
    /// and users leave that out.
    pub(crate) fn named_by(&self, text: &str) -> Option<String> {
        [text.to_owned(), format!("localhost/{text}")]
            .iter()
            .filter_map(|name| Reference::parse(name).ok())
            .map(|reference| reference.to_string())
            .find(|name| self.references.contains(name))
    }
}

/// The name that an entry of the index bears.
pub(crate) fn name_of(descriptor: &Descriptor) -> Option<&String> {
    descriptor.annotations().as_ref()?.get(REF_NAME)
}

impl Store {
    /// All images, in the order of their first names, those without one last.
    pub fn images(&self) -> Result<Vec<StoredImage>, ImageError> {
        let index = self.read_index()?;
        let mut order: Vec<&Digest> = Vec::new();
        let mut entries: HashMap<&str, Vec<&Descriptor>> = HashMap::new();
        for descriptor in index.manifests() {
            let same = entries.entry(descriptor.digest().as_ref()).or_default();
            if same.is_empty() {
                order.push(descriptor.digest());
            }
            same.push(descriptor);
        }
        let read = |digests: &[&Digest]| {
            let mut images = Vec::with_capacity(digests.len());
            for digest in digests {
                match self.stored_image(&entries[digest.as_ref()]) {
                    Ok(image) => images.push(image),
                    // One damaged image does not hide the others; `verify` tells more.
                    Err(e) => log::warn!("{e}"),
                }
            }
            images
        };
        let workers = std::thread::available_parallelism()
            .map_or(1, |n| n.get())
            .min(order.len() / WORTH_A_THREAD);
        let mut images: Vec<StoredImage> = if workers < 2 {
            read(&order)
        } else {
            std::thread::scope(|scope| {
                let share = order.len().div_ceil(workers);
                let running: Vec<_> = order
                    .chunks(share)
                    .map(|part| (part, scope.spawn(|| read(part))))
                    .collect();
                running
                    .into_iter()
                    // What a thread could not do is done here.
                    .flat_map(|(part, thread)| thread.join().unwrap_or_else(|_| read(part)))
                    .collect()
            })
        };
        images.sort_by(|a, b| {
            let key = |i: &StoredImage| (i.references.is_empty(), i.references.first().cloned());
            key(a).cmp(&key(b))
        });
        Ok(images)
    }

    pub(crate) fn stored_image(&self, entries: &[&Descriptor]) -> Result<StoredImage, ImageError> {
        let descriptor = entries[0];
        let what = format!("the manifest {}", descriptor.digest());
        let bytes = self.read_blob(descriptor.digest())?;
        let manifest: ImageManifest =
            serde_json::from_slice(&bytes).map_err(ImageError::json(&what))?;
        let id = manifest.config().digest().clone();
        let config_bytes = self.read_blob(&id)?;
        let config = serde_json::from_slice(&config_bytes)
            .map_err(ImageError::json(format!("the config {id}")))?;
        let mut references: Vec<String> =
            entries.iter().filter_map(|d| name_of(d).cloned()).collect();
        references.sort();
        let mut plain = descriptor.clone();
        plain.set_annotations(None);
        Ok(StoredImage {
            id,
            digest: descriptor.digest().clone(),
            references,
            manifest,
            config,
            config_bytes,
            descriptor: plain,
        })
    }

    /// The image that `text` names: by reference, by digest, or by a unique beginning of its id.
    pub fn image(&self, text: &str) -> Result<StoredImage, ImageError> {
        self.select(self.images()?, text)
    }

    pub(crate) fn select(
        &self,
        images: Vec<StoredImage>,
        text: &str,
    ) -> Result<StoredImage, ImageError> {
        let missing = || ImageError::NoSuchImage {
            name: text.to_owned(),
            store: self.root().to_owned(),
        };
        let reference = Reference::parse(text);
        if let Ok(reference) = &reference {
            let by_digest = |image: &StoredImage| {
                reference.digest() == Some(image.digest.as_ref())
                    && image.references.iter().any(|name| {
                        Reference::parse(name).is_ok_and(|r| r.name() == reference.name())
                    })
            };
            let complete = reference.to_string();
            let found = images
                .iter()
                .find(|i| i.references.contains(&complete) || by_digest(i))
                .or_else(|| images.iter().find(|i| i.named_by(text).is_some()));
            if let Some(image) = found {
                return Ok(image.clone());
            }
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(reference.err().unwrap_or_else(missing));
        }
        let mut fitting: Vec<&StoredImage> = images
            .iter()
            .filter(|i| i.id.digest().starts_with(hex) || i.has_digest(hex))
            .collect();
        // The same configuration may stand in several manifests: to whoever names its id they are one image, and the
        // first by name stands for them.
        let mut seen = HashSet::new();
        fitting.retain(|image| seen.insert(image.id.as_ref()));
        match fitting[..] {
            [] => Err(missing()),
            [image] => Ok(image.clone()),
            _ => Err(ImageError::AmbiguousId {
                prefix: text.to_owned(),
                candidates: fitting
                    .iter()
                    .map(|i| match i.references.first() {
                        Some(name) => format!("{} ({name})", &i.id.digest()[..16]),
                        None => i.id.digest()[..16].to_owned(),
                    })
                    .collect(),
            }),
        }
    }

    /// The index as it is now.
    pub(crate) fn read_index(&self) -> Result<ImageIndex, ImageError> {
        let path = self.root().join("index.json");
        let bytes = std::fs::read(&path).map_err(ImageError::io("read", &path))?;
        serde_json::from_slice(&bytes).map_err(ImageError::json(path.display().to_string()))
    }

    /// Replaces the index. The caller holds the index lock.
    pub(crate) fn write_index_locked(
        &self,
        manifests: Vec<Descriptor>,
        tmp: &TempDir,
    ) -> Result<(), ImageError> {
        let path = self.root().join("index.json");
        let what = || path.display().to_string();
        let index = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(oci_spec::image::MediaType::ImageIndex)
            .manifests(manifests)
            .build()
            .map_err(|e| ImageError::Inconsistent {
                what: what(),
                why: e.to_string(),
            })?;
        let bytes = serde_json::to_vec(&index).map_err(ImageError::json(what()))?;
        durable::write_file(&path, &bytes, tmp.path())
    }

    /// Enters an image under these names, taking them from whichever images had them. An image that loses its last
    /// name stays, without one.
    pub(crate) fn enter(
        &self,
        descriptor: &Descriptor,
        names: &[Reference],
    ) -> Result<(), ImageError> {
        let tmp = TempDir::new(&self.tmp())?;
        let _lock = self.lock_index()?;
        let names: Vec<String> = names.iter().map(Reference::to_string).collect();
        let before = self.read_index()?.manifests().clone();
        let mut after: Vec<Descriptor> = Vec::with_capacity(before.len() + names.len());
        let mut bereft: Vec<Descriptor> = Vec::new();
        for entry in before {
            match name_of(&entry) {
                Some(name) if names.contains(name) => bereft.push(entry),
                None if entry.digest() == descriptor.digest() => bereft.push(entry),
                _ => after.push(entry),
            }
        }
        for name in &names {
            after.push(named(descriptor, name));
        }
        bereft.push(descriptor.clone());
        for mut entry in bereft {
            if !after.iter().any(|other| other.digest() == entry.digest()) {
                entry.set_annotations(None);
                after.push(entry);
            }
        }
        self.write_index_locked(after, &tmp)
    }

    /// Gives an image another name.
    pub fn tag(&self, image: &str, name: &str) -> Result<(), ImageError> {
        let image = self.image(image)?;
        let reference = Reference::parse(name)?;
        if reference.digest().is_some() {
            return Err(ImageError::InvalidReference {
                reference: name.to_owned(),
                why: "a tag cannot contain a digest",
            });
        }
        self.enter(&image.descriptor, &[reference])
    }

    /// Where a blob lies, or would lie.
    pub(crate) fn blob_path(&self, digest: &Digest) -> std::path::PathBuf {
        self.root()
            .join("blobs")
            .join(digest.algorithm().as_ref())
            .join(digest.digest())
    }

    /// A small blob of the store, checked.
    pub(crate) fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let digest = hash::parse(digest.as_ref(), "index.json")?;
        let path = self.blob_path(&digest);
        let missing = |e: std::io::Error| {
            if e.kind() == std::io::ErrorKind::NotFound {
                return ImageError::MissingBlob {
                    name: self.root().display().to_string(),
                    blob: digest.to_string(),
                    by: "index",
                };
            }
            ImageError::io("read", &path)(e)
        };
        let mut file = File::open(&path).map_err(missing)?;
        let length = file
            .metadata()
            .map_err(ImageError::io("read", &path))?
            .len();
        if length > self.limits().document {
            return Err(ImageError::OverLimit {
                what: path.display().to_string(),
                limit: self.limits().document,
                unit: "bytes",
                hint: "no real image has so large a document",
            });
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        // One that is longer by now has another digest; one that is shorter cannot be read.
        file.read_exact(&mut bytes)
            .map_err(ImageError::io("read", &path))?;
        hash::check(&bytes, &digest, path.display().to_string())?;
        Ok(bytes)
    }
}

/// The entry of an image under a name.
fn named(descriptor: &Descriptor, name: &str) -> Descriptor {
    let mut entry = descriptor.clone();
    entry.set_annotations(Some(HashMap::from([
        (REF_NAME.to_owned(), name.to_owned()),
        (CONTAINERD_NAME.to_owned(), name.to_owned()),
    ])));
    entry
}
