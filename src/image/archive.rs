//! Archives of `docker save` and `podman save`: a `manifest.json` that lists images by the files that they consist of.

use oci_spec::image::Digest;
use serde::Deserialize;

use super::error::ImageError;
use super::files::Files;
use super::hash;
use super::limits::Limits;
use super::platform::Wanted;
use super::reference::Reference;
use super::resolve::Resolved;
use super::store::LayerBytes;

/// One image of a `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ArchiveImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl ArchiveImage {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
    /// A name for messages.
    fn shown(&self) -> String {
        self.tags().first().unwrap_or(&self.config).clone()
    }
}

/// Finds the image that `tag` and the platform choose.
pub(crate) fn resolve(
    files: &Files,
    tag: Option<&str>,
    wanted: &Wanted,
    limits: &Limits,
) -> Result<Resolved, ImageError> {
    let images = resolve_listed(files, tag, limits)?;
    match &images[..] {
        [image] => resolve_image(files, image, wanted, limits),
        _ => Err(ImageError::SeveralImages {
            name: files.name().to_owned(),
            have: images.iter().map(ArchiveImage::shown).collect(),
        }),
    }
}

/// All images of the archive, or all that `tag` names.
pub(crate) fn resolve_all(
    files: &Files,
    tag: Option<&str>,
    wanted: &Wanted,
    limits: &Limits,
) -> Result<Vec<Resolved>, ImageError> {
    resolve_listed(files, tag, limits)?
        .iter()
        .map(|image| resolve_image(files, image, wanted, limits))
        .collect()
}

fn resolve_image(
    files: &Files,
    image: &ArchiveImage,
    wanted: &Wanted,
    limits: &Limits,
) -> Result<Resolved, ImageError> {
    let config_bytes = files
        .document(image.config.as_bytes(), limits)?
        .ok_or_else(|| missing(files, &image.config))?;
    let computed = hash::sha256(&config_bytes);
    // The name of the configuration is its digest, in both layouts.
    if let Some(expected) = named_digest(&image.config) {
        let what = format!("the config {} of {}", image.config, files.name());
        hash::check(&config_bytes, &expected, what)?;
    }
    let id = hash::parse(&computed, "the config")?;
    let mut blobs = Vec::new();
    for layer in image.layers.iter().flatten() {
        let blob = files.get(layer.as_bytes())?;
        blobs.push((None, blob.map(LayerBytes::Section), layer.clone()));
    }
    Resolved::new(
        files.name(),
        image.tags().to_vec(),
        id,
        config_bytes,
        blobs,
        None,
        wanted.explicit.then_some(wanted),
        limits,
    )
}

fn resolve_listed(
    files: &Files,
    tag: Option<&str>,
    limits: &Limits,
) -> Result<Vec<ArchiveImage>, ImageError> {
    let bytes = files
        .document(b"manifest.json", limits)?
        .ok_or_else(|| missing(files, "manifest.json"))?;
    let what = format!("the manifest.json of {}", files.name());
    let images: Vec<ArchiveImage> =
        serde_json::from_slice(&bytes).map_err(ImageError::json(&what))?;
    if images.is_empty() {
        return Err(ImageError::NotAnImage {
            name: files.name().to_owned(),
            why: "its manifest.json lists no image".to_owned(),
        });
    }
    let Some(tag) = tag else {
        return Ok(images);
    };
    let full = Reference::parse(tag).ok();
    let have = images.iter().map(ArchiveImage::shown).collect();
    let matching: Vec<ArchiveImage> = images
        .into_iter()
        .filter(|image| {
            image.config.starts_with(tag) && tag.len() >= 12
                || image.tags().iter().any(|name| {
                    name == tag || full.is_some() && Reference::parse(name).ok() == full
                })
        })
        .collect();
    if matching.is_empty() {
        return Err(ImageError::NoSuchTag {
            name: files.name().to_owned(),
            tag: tag.to_owned(),
            have,
        });
    }
    Ok(matching)
}

fn missing(files: &Files, file: &str) -> ImageError {
    ImageError::MissingBlob {
        name: files.name().to_owned(),
        blob: file.to_owned(),
        by: "manifest.json",
    }
}

/// The digest that a file is named by: `HEX.json`, or `blobs/sha256/HEX`.
fn named_digest(file: &str) -> Option<Digest> {
    let last = file.rsplit('/').next()?;
    let hex = last.strip_suffix(".json").unwrap_or(last);
    Digest::try_from(format!("sha256:{hex}")).ok()
}
