//! Images from archives and layouts into the store, to stay there under their names.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};

use oci_spec::image::{
    Descriptor, DescriptorBuilder, Digest, ImageManifestBuilder, MediaType, PlatformBuilder,
};

use super::archive;
use super::catalog::StoredImage;
use super::compress::{self, Compression};
use super::durable;
use super::error::ImageError;
use super::files::Files;
use super::hash::{self, Hasher, HashingReader};
use super::layout::Layout;
use super::lock::TempDir;
use super::platform::Wanted;
use super::reference::Reference;
use super::resolve::Resolved;
use super::source::{self, Source};
use super::store::{Keep, LayerBytes, Store};

impl Store {
    /// Loads all images of an archive or layout, or the one that the source names.
    pub fn load(
        &self,
        source: &OsStr,
        platform: Option<&str>,
    ) -> Result<Vec<StoredImage>, ImageError> {
        let wanted = Wanted::new(platform)?;
        match Source::parse(source)? {
            Source::Path { path, tag } => {
                let files = source::open(&path, &self.tmp(), self.limits())?;
                self.load_files(&files, tag.as_deref(), &wanted)
            }
            Source::Name(name) => Err(ImageError::io("open", &name)(std::io::Error::from(
                std::io::ErrorKind::NotFound,
            ))),
        }
    }

    /// Loads all images of an archive that is read from a descriptor, such as standard input.
    pub fn load_from(
        &self,
        file: File,
        name: &str,
        platform: Option<&str>,
    ) -> Result<Vec<StoredImage>, ImageError> {
        let wanted = Wanted::new(platform)?;
        let tmp = self.tmp();
        // A redirected file is read where it is.
        let whole = file.metadata().is_ok_and(|meta| meta.is_file())
            && (&file)
                .stream_position()
                .is_ok_and(|position| position == 0);
        let files = source::open_stream(file, whole, name.to_owned(), &tmp, self.limits())?;
        self.load_files(&files, None, &wanted)
    }

    fn load_files(
        &self,
        files: &Files,
        tag: Option<&str>,
        wanted: &Wanted,
    ) -> Result<Vec<StoredImage>, ImageError> {
        let limits = self.limits();
        let found = if files.get(b"index.json")?.is_some() {
            Layout { files, limits }.resolve_all(tag, wanted)?
        } else if files.get(b"manifest.json")?.is_some() {
            archive::resolve_all(files, tag, wanted, limits)?
        } else {
            // Says what is missing.
            vec![self.find_in(files, tag, wanted)?]
        };
        let mut ids = Vec::new();
        for image in found {
            ids.push(self.keep(image)?);
        }
        let images = self.images()?;
        Ok(ids
            .iter()
            .filter_map(|digest| images.iter().find(|i| i.digest == *digest).cloned())
            .collect())
    }

    /// Puts one image into the store and gives the digest of its manifest.
    pub(crate) fn keep(&self, mut image: Resolved) -> Result<Digest, ImageError> {
        let names = stored_names(&image.names)?;
        describe_layers(&mut image)?;
        let (digest, media_type, bytes) = match image.manifest.take() {
            Some(manifest) => manifest,
            None => make_manifest(&image)?,
        };
        // Until the index has the image.
        let _lease = self.lease_image(&image, &digest)?;
        let _guard = self.ensure_layers(&image.layers, Keep::TreeAndBlob)?;
        let tmp = TempDir::new(&self.tmp())?;
        self.write_blob(&image.id, &image.config_bytes, &tmp)?;
        self.write_blob(&digest, &bytes, &tmp)?;
        let descriptor = DescriptorBuilder::default()
            .media_type(MediaType::from(media_type.as_str()))
            .digest(digest.clone())
            .size(bytes.len() as u64)
            .platform(
                PlatformBuilder::default()
                    .os(image.config.os().clone())
                    .architecture(image.config.architecture().clone())
                    .build()
                    .map_err(built("the platform"))?,
            )
            .build()
            .map_err(built("the index entry"))?;
        self.enter(&descriptor, &names)?;
        Ok(digest)
    }

    /// Writes a small blob, unless it is there.
    pub(crate) fn write_blob(
        &self,
        digest: &Digest,
        bytes: &[u8],
        tmp: &TempDir,
    ) -> Result<(), ImageError> {
        let path = self.blob_path(digest);
        // One that is there but damaged is replaced.
        if self.read_blob(digest).is_ok_and(|have| have == bytes) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(ImageError::io("create", parent))?;
        }
        durable::write_file(&path, bytes, tmp.path())
    }
}

fn built(what: &'static str) -> impl FnOnce(oci_spec::OciSpecError) -> ImageError {
    move |e| ImageError::Inconsistent {
        what: what.to_owned(),
        why: e.to_string(),
    }
}

/// The names under which an image is kept. A layout may know only a tag: podman calls such an image `localhost/TAG`.
fn stored_names(names: &[String]) -> Result<Vec<Reference>, ImageError> {
    let mut references = Vec::new();
    for name in names {
        let whole = if name.contains(['/', ':']) {
            name.clone()
        } else {
            format!("localhost/{}", name.to_ascii_lowercase())
        };
        let reference = Reference::parse(&whole)?;
        if !references.contains(&reference) {
            references.push(reference);
        }
    }
    Ok(references)
}

/// Describes the layers of an archive, which has only their bytes. Plain ones are known by their diff id already.
fn describe_layers(image: &mut Resolved) -> Result<(), ImageError> {
    for (layer, descriptor) in image.layers.iter_mut().zip(&mut image.descriptors) {
        let Some(LayerBytes::Section(section)) = layer.blob.clone() else {
            continue;
        };
        if descriptor.is_some() {
            continue;
        }
        let size = section.len();
        let name = layer.source.name.clone();
        let (compression, peeked) =
            compress::peek(section).map_err(ImageError::io("read", &name))?;
        let (digest, media_type) = match compression {
            Compression::Gzip => (None, MediaType::ImageLayerGzip),
            Compression::Zstd => (None, MediaType::ImageLayerZstd),
            // What is of another kind is refused when it is unpacked.
            _ => (Some(layer.source.diff_id.clone()), MediaType::ImageLayer),
        };
        let digest = match digest {
            Some(digest) => digest,
            None => blob_digest(peeked, &name)?,
        };
        layer.source.blob = Some(digest.clone());
        *descriptor = Some(Descriptor::new(media_type, size, digest));
    }
    Ok(())
}

fn blob_digest(reader: impl Read, name: &str) -> Result<Digest, ImageError> {
    let digest = HashingReader::new(reader, Some(Hasher::sha256()))
        .drain()
        .map_err(ImageError::io("read", name))?
        .unwrap_or_default();
    hash::parse(&digest, name)
}

/// The manifest of an image that came without one.
fn make_manifest(image: &Resolved) -> Result<(Digest, String, Vec<u8>), ImageError> {
    let config = Descriptor::new(
        MediaType::ImageConfig,
        image.config_bytes.len() as u64,
        image.id.clone(),
    );
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(
            image
                .descriptors
                .iter()
                .flatten()
                .cloned()
                .collect::<Vec<_>>(),
        )
        .build()
        .map_err(built("the manifest"))?;
    let bytes = serde_json::to_vec(&manifest).map_err(ImageError::json("the manifest"))?;
    let digest = hash::parse(&hash::sha256(&bytes), "the manifest")?;
    Ok((digest, MediaType::ImageManifest.to_string(), bytes))
}
