//! New images: a base, one layer more, and what the configuration is to say.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::{Map, Value, json};

use super::catalog::StoredImage;
use super::change;
use super::compress::CHUNK;
use super::durable;
use super::error::ImageError;
use super::files::Section;
use super::hash::{self, Hasher};
use super::lease::Lease;
use super::lock::TempDir;
use super::platform::Wanted;
use super::prepare::ImageOrigin;
use super::reference::Reference;
use super::resolve::Resolved;
use super::store::{LayerBytes, Store};
use super::time;
use super::tree::{self, Dots};
use crate::layer::upper::Namespace;

/// What a new image is to be called, and to say of itself.
#[derive(Clone, Debug, Default)]
pub struct NewImage {
    /// Its name; without one it is `<none>`, to be found by its id.
    pub reference: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// Why: the comment of its history.
    pub message: Option<String>,
    /// Instructions of a Dockerfile that change the configuration.
    pub changes: Vec<String>,
    /// How it was made, for the history.
    pub created_by: String,
    /// `OS/ARCH[/VARIANT]` of an image without a base; this machine's where it is not given.
    pub platform: Option<String>,
}

/// A writable layer, its mount, and the image below.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    /// The image below; `None` where the mount is of plain directories: all that it shows is then one layer.
    pub base: Option<&'a ImageOrigin>,
    /// The writable layer; `None` where nothing can be written.
    pub upper: Option<&'a Path>,
    /// Where the mount keeps its marks in the writable layer; `None` where that is not known, and marks of either kind count.
    pub marks: Option<Namespace>,
    /// Where the two are mounted.
    pub merged: &'a Path,
    /// Inode numbers, in the mount, of changed files that no name in the writable layer leads to: hard links whose changed names
    /// were removed while others lie in the image.
    pub unnamed: &'a [u64],
}

/// A layer's tar that lies among the blobs, uncompressed.
pub(super) struct NewLayer {
    /// Its diff id, which is also the digest of the blob.
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Keeps the blob until an image has it.
    _lease: Lease,
}

impl Store {
    /// Makes an image of what a mount shows. Takes time in proportion to what the writable layer holds.
    ///
    /// Nothing is frozen: whoever wants the state of one moment stops or pauses what writes there.
    pub fn commit(&self, what: &Commit<'_>, new: &NewImage) -> Result<StoredImage, ImageError> {
        checked_name(new)?;
        let base = what.base.map(|base| self.find_again(base)).transpose()?;
        let layer = match (&base, what.upper) {
            (None, _) => {
                let root = tree::seen_root(what.merged)?;
                let written = |output: &mut LayerFile| {
                    tree::write_folder(root, output, Dots::Refused).map(|_| ())
                };
                Some(self.new_layer(written)?.0)
            }
            (Some(_), None) => None,
            (Some(base), Some(upper)) => {
                let topmost = base.layers.last();
                let below = topmost.map(|l| self.layer_tree(&l.source.diff_id));
                // The mount may be older than its image's place in this store.
                let below = below.filter(|tree| tree.is_dir());
                let (layer, changed) = self.new_layer(|output| {
                    let seen = (what.merged, what.unnamed);
                    tree::write_changes((upper, what.marks), seen, below.as_deref(), output)
                        .map(|(_, changed)| changed)
                })?;
                changed.then_some(layer)
            }
        };
        self.make_image(base, layer, new)
    }

    /// Writes a layer's tar and puts it among the blobs, where it stays while the new layer is held.
    pub(super) fn new_layer<T>(
        &self,
        write: impl FnOnce(&mut LayerFile) -> Result<T, ImageError>,
    ) -> Result<(NewLayer, T), ImageError> {
        let tmp = TempDir::new(&self.tmp())?;
        let path = tmp.path().join("blob");
        let mut file = LayerFile::create(&path)?;
        let written = write(&mut file)?;
        let (digest, size) = file.finish(&path)?;
        let lease = self.lease([digest.as_ref()])?;
        let place = self.blob_path(&digest);
        if !place.exists() {
            durable::publish(&path, &place)?;
        }
        let layer = NewLayer {
            digest,
            size,
            _lease: lease,
        };
        Ok((layer, written))
    }

    /// Enters an image that has one layer more than `base`, or none more.
    pub(super) fn make_image(
        &self,
        base: Option<Resolved>,
        layer: Option<NewLayer>,
        new: &NewImage,
    ) -> Result<StoredImage, ImageError> {
        let names = checked_name(new)?;
        let config = self.new_config(base.as_ref(), layer.as_ref(), new)?;
        let bytes = serde_json::to_vec(&config).map_err(ImageError::json("the new config"))?;
        let id = hash::parse(&hash::sha256(&bytes), "the new config")?;
        let mut blobs = Vec::new();
        if let Some(base) = base {
            for (layer, descriptor) in base.layers.into_iter().zip(base.descriptors) {
                blobs.push((descriptor.map(as_oci), layer.blob, layer.source.name));
            }
        }
        if let Some(layer) = &layer {
            let path = self.blob_path(&layer.digest);
            let blob = File::open(&path)
                .and_then(Section::whole)
                .map_err(ImageError::io("open", &path))?;
            let name = layer.digest.to_string();
            let descriptor =
                Descriptor::new(MediaType::ImageLayer, layer.size, layer.digest.clone());
            blobs.push((Some(descriptor), Some(LayerBytes::Section(blob)), name));
        }
        let image = Resolved::new(
            "the new image",
            names.iter().map(Reference::to_string).collect(),
            id,
            bytes,
            blobs,
            None,
            Some(&Wanted::of(&config)?),
            self.limits(),
        )?;
        let digest = self.keep(image)?;
        let images = self.images()?;
        images
            .into_iter()
            .find(|image| image.digest == digest)
            .ok_or_else(|| ImageError::NoSuchImage {
                name: digest.to_string(),
                store: self.root().to_owned(),
            })
    }

    fn new_config(
        &self,
        base: Option<&Resolved>,
        layer: Option<&NewLayer>,
        new: &NewImage,
    ) -> Result<Value, ImageError> {
        let mut root = match base {
            Some(base) => {
                let what = format!("the config {}", base.id);
                serde_json::from_slice(&base.config_bytes).map_err(ImageError::json(what))?
            }
            None => fresh_config(new)?,
        };
        // These told how the base was made.
        for key in ["container", "container_config", "author"] {
            root.remove(key);
        }
        let now = time::now();
        root.insert("created".into(), now.clone().into());
        let mut config = match root.remove("config") {
            Some(Value::Object(config)) => config,
            _ => Map::new(),
        };
        change::apply(&mut config, &new.changes)?;
        root.insert("config".into(), config.into());
        let mut step = Map::new();
        step.insert("created".into(), now.into());
        step.insert("created_by".into(), new.created_by.clone().into());
        if let Some(author) = &new.author {
            root.insert("author".into(), author.clone().into());
            step.insert("author".into(), author.clone().into());
        }
        if let Some(message) = &new.message {
            step.insert("comment".into(), message.clone().into());
        }
        match layer {
            Some(layer) => push(
                &mut root,
                &["rootfs", "diff_ids"],
                layer.digest.to_string().into(),
            ),
            None => {
                step.insert("empty_layer".into(), true.into());
            }
        }
        push(&mut root, &["history"], step.into());
        Ok(Value::Object(root))
    }
}

/// A configuration without a base.
fn fresh_config(new: &NewImage) -> Result<Map<String, Value>, ImageError> {
    let wanted = Wanted::new(new.platform.as_deref())?;
    let mut root = Map::new();
    root.insert("architecture".into(), wanted.arch.into());
    root.insert("os".into(), wanted.os.into());
    if let Some(variant) = wanted.variant {
        root.insert("variant".into(), variant.into());
    }
    root.insert("rootfs".into(), json!({"type": "layers", "diff_ids": []}));
    Ok(root)
}

/// Adds to a list below an object, both of which are made where they are not there.
fn push(object: &mut Map<String, Value>, path: &[&str], value: Value) {
    let [key, rest @ ..] = path else {
        return;
    };
    if rest.is_empty() {
        let mut list = match object.remove(*key) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        list.push(value);
        object.insert((*key).to_owned(), list.into());
        return;
    }
    let mut inner = match object.remove(*key) {
        Some(Value::Object(inner)) => inner,
        _ => Map::new(),
    };
    push(&mut inner, rest, value);
    object.insert((*key).to_owned(), inner.into());
}

/// The name of a new image, checked before anything is written.
pub(super) fn checked_name(new: &NewImage) -> Result<Vec<Reference>, ImageError> {
    let Some(name) = &new.reference else {
        return Ok(Vec::new());
    };
    let reference = Reference::parse(name)?;
    if reference.digest().is_some() {
        return Err(ImageError::InvalidReference {
            reference: name.clone(),
            why: "a new image cannot be named by a digest",
        });
    }
    Ok(vec![reference])
}

/// A layer of docker's manifest as one of an OCI manifest: the bytes are the same.
fn as_oci(mut descriptor: Descriptor) -> Descriptor {
    let media_type = match descriptor.media_type().as_ref() {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => MediaType::ImageLayerGzip,
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => MediaType::ImageLayerZstd,
        "application/vnd.docker.image.rootfs.diff.tar" => MediaType::ImageLayer,
        _ => return descriptor,
    };
    descriptor.set_media_type(media_type);
    descriptor
}

/// A tar that is being written and hashed.
pub(super) struct LayerFile {
    file: BufWriter<File>,
    hasher: Hasher,
    size: u64,
}

impl LayerFile {
    fn create(path: &Path) -> Result<LayerFile, ImageError> {
        let file = File::create_new(path).map_err(ImageError::io("create", path))?;
        Ok(LayerFile {
            file: BufWriter::with_capacity(CHUNK, file),
            hasher: Hasher::sha256(),
            size: 0,
        })
    }

    /// Makes it durable, and gives its digest and size.
    fn finish(self, path: &Path) -> Result<(Digest, u64), ImageError> {
        let file = self
            .file
            .into_inner()
            .map_err(|e| ImageError::io("write", path)(e.into_error()))?;
        file.sync_all().map_err(ImageError::io("write", path))?;
        Ok((
            hash::parse(&self.hasher.finish(), "the new layer")?,
            self.size,
        ))
    }
}

impl Write for LayerFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
