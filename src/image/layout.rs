//! OCI image layouts: an index, manifests and blobs, all named by digest.

use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::ImageError;
use super::files::{Files, Section};
use super::hash;
use super::limits::Limits;
use super::platform::{self, Wanted};
use super::reference::Reference;
use super::resolve::Resolved;
use super::store::LayerBytes;

/// The annotation under which an index keeps an image's name or tag.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation under which containerd and docker keep the whole name.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Indexes inside indexes.
const MAX_DEPTH: u32 = 8;

/// A layout and what is wanted of it.
pub(crate) struct Layout<'a> {
    pub(crate) files: &'a Files,
    pub(crate) limits: &'a Limits,
}

/// What a document is, by its own account.
#[derive(Deserialize)]
struct Probe {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<IgnoredAny>,
}

/// An image of the index, before its platform is chosen.
#[derive(Clone, Debug)]
struct Candidate {
    names: Vec<String>,
    descriptor: Descriptor,
}

impl Layout<'_> {
    /// Finds the image that `tag` and the platform choose.
    pub(crate) fn resolve(
        &self,
        tag: Option<&str>,
        wanted: &Wanted,
    ) -> Result<Resolved, ImageError> {
        let chosen = self.by_name(self.candidates()?, tag)?;
        self.choose(chosen, wanted)
    }

    /// All images of the index, or all that `tag` names: one for each name, and one for those without.
    pub(crate) fn resolve_all(
        &self,
        tag: Option<&str>,
        wanted: &Wanted,
    ) -> Result<Vec<Resolved>, ImageError> {
        let mut candidates = self.candidates()?;
        if let Some(tag) = tag {
            candidates = self.by_name(candidates, Some(tag))?;
        }
        let mut groups: Vec<Vec<Candidate>> = Vec::new();
        for candidate in candidates {
            let same = groups.iter_mut().find(|group| {
                let first = &group[0];
                match (&first.names[..], &candidate.names[..]) {
                    ([], []) => first.descriptor.platform().is_some(),
                    (a, b) => a == b,
                }
            });
            match same {
                Some(group) => group.push(candidate),
                None => groups.push(vec![candidate]),
            }
        }
        let mut images: Vec<Resolved> = Vec::new();
        for group in groups {
            if group.iter().all(|c| is_attestation(&c.descriptor)) {
                continue;
            }
            let image = self.choose(group, wanted)?;
            match images.iter_mut().find(|other| other.same_manifest(&image)) {
                Some(other) => other.names.extend(image.names),
                None => images.push(image),
            }
        }
        Ok(images)
    }

    fn candidates(&self) -> Result<Vec<Candidate>, ImageError> {
        let candidates: Vec<Candidate> = self
            .index()?
            .manifests()
            .iter()
            .map(|descriptor| Candidate {
                names: names_of(descriptor),
                descriptor: descriptor.clone(),
            })
            .collect();
        if candidates.is_empty() {
            return Err(self.no_image("its index is empty"));
        }
        Ok(candidates)
    }

    fn choose(&self, chosen: Vec<Candidate>, wanted: &Wanted) -> Result<Resolved, ImageError> {
        // Where an entry has a whole name and a tag, the name says it all.
        let mut names: Vec<String> = Vec::new();
        for candidate in &chosen {
            if let Some(name) = candidate.names.first()
                && !names.contains(name)
            {
                names.push(name.clone());
            }
        }
        let descriptors = chosen.into_iter().map(|c| c.descriptor).collect();
        let (manifest, bytes) = self.manifest(descriptors, wanted, 0)?;
        self.image(names, &manifest, bytes)
    }

    fn no_image(&self, why: impl Into<String>) -> ImageError {
        ImageError::NotAnImage {
            name: self.files.name().to_owned(),
            why: why.into(),
        }
    }

    fn what(&self, document: impl std::fmt::Display) -> String {
        format!("{document} of {}", self.files.name())
    }

    pub(crate) fn index(&self) -> Result<ImageIndex, ImageError> {
        let bytes = self
            .files
            .document(b"index.json", self.limits)?
            .ok_or_else(|| self.no_image("it has no index.json"))?;
        serde_json::from_slice(&bytes).map_err(ImageError::json(self.what("the index.json")))
    }

    /// The candidates that a name leaves. Without one they must all be the same image, or platforms of one.
    fn by_name(
        &self,
        candidates: Vec<Candidate>,
        tag: Option<&str>,
    ) -> Result<Vec<Candidate>, ImageError> {
        let mut have: Vec<String> = candidates
            .iter()
            .map(|c| {
                c.names
                    .first()
                    .cloned()
                    .unwrap_or_else(|| c.descriptor.digest().to_string())
            })
            .collect();
        have.sort();
        have.dedup();
        let Some(tag) = tag else {
            let digests: std::collections::HashSet<_> = candidates
                .iter()
                .map(|c| c.descriptor.digest().to_string())
                .collect();
            let named: std::collections::HashSet<_> =
                candidates.iter().filter_map(|c| c.names.first()).collect();
            if digests.len() > 1 && (named.len() > 1 || candidates.iter().any(unplaced)) {
                return Err(ImageError::SeveralImages {
                    name: self.files.name().to_owned(),
                    have,
                });
            }
            return Ok(candidates);
        };
        let matching: Vec<Candidate> = candidates.into_iter().filter(|c| matches(c, tag)).collect();
        if matching.is_empty() {
            return Err(ImageError::NoSuchTag {
                name: self.files.name().to_owned(),
                tag: tag.to_owned(),
                have,
            });
        }
        Ok(matching)
    }

    /// Descends through indexes to the manifest of the wanted platform.
    fn manifest(
        &self,
        descriptors: Vec<Descriptor>,
        wanted: &Wanted,
        depth: u32,
    ) -> Result<(ImageManifest, ManifestBytes), ImageError> {
        if depth > MAX_DEPTH {
            return Err(self.no_image(format!("its indexes lie in one another {depth} deep")));
        }
        let Some(descriptor) = best_platform(&descriptors, wanted, depth == 0) else {
            return Err(self.no_platform(&descriptors, wanted));
        };
        let bytes = self.checked_document(descriptor, "manifest")?;
        let what = self.what(format_args!("the manifest {}", descriptor.digest()));
        let probe: Probe = serde_json::from_slice(&bytes).map_err(ImageError::json(&what))?;
        match (probe.manifests.is_some(), probe.layers.is_some()) {
            // Two programs could see two images in it.
            (true, true) => Err(ImageError::Inconsistent {
                what,
                why: "it is an index and a manifest at once".to_owned(),
            }),
            (true, false) => {
                let index: ImageIndex =
                    serde_json::from_slice(&bytes).map_err(ImageError::json(&what))?;
                self.manifest(index.manifests().clone(), wanted, depth + 1)
            }
            (false, true) => {
                let manifest =
                    serde_json::from_slice(&bytes).map_err(ImageError::json(&what))?;
                let media_type = probe
                    .media_type
                    .unwrap_or_else(|| descriptor.media_type().to_string());
                Ok((
                    manifest,
                    ManifestBytes {
                        digest: descriptor.digest().clone(),
                        media_type,
                        bytes,
                        explicit: wanted.explicit.then(|| wanted.clone()),
                    },
                ))
            }
            (false, false) if probe.fs_layers.is_some() => Err(self.no_image(
                "its manifest is of docker's first schema, which is not supported: convert it with skopeo",
            )),
            (false, false) => Err(self.no_image(format!("{what} has no layers"))),
        }
    }

    fn no_platform(&self, descriptors: &[Descriptor], wanted: &Wanted) -> ImageError {
        no_platform(self.files.name(), descriptors, wanted)
    }

    /// What a manifest says, each part checked.
    fn image(
        &self,
        names: Vec<String>,
        manifest: &ImageManifest,
        bytes: ManifestBytes,
    ) -> Result<Resolved, ImageError> {
        let config = manifest.config();
        let is_config = match config.media_type() {
            MediaType::ImageConfig => true,
            other => other.as_ref() == "application/vnd.docker.container.image.v1+json",
        };
        if !is_config {
            return Err(self.no_image(format!(
                "its manifest is of an artifact of type {}",
                config.media_type()
            )));
        }
        let config_bytes = self.checked_document(config, "config")?;
        let mut blobs = Vec::with_capacity(manifest.layers().len());
        for layer in manifest.layers() {
            let blob = self.blob(layer, "manifest")?;
            let blob = blob.map(LayerBytes::Section);
            blobs.push((Some(layer.clone()), blob, layer.digest().to_string()));
        }
        let explicit = bytes.explicit.clone();
        Resolved::new(
            self.files.name(),
            names,
            config.digest().clone(),
            config_bytes,
            blobs,
            Some((bytes.digest, bytes.media_type, bytes.bytes)),
            explicit.as_ref(),
            self.limits,
        )
    }

    /// A blob that has the size which its descriptor says; `None` where it is missing.
    fn blob(
        &self,
        descriptor: &Descriptor,
        by: &'static str,
    ) -> Result<Option<Section>, ImageError> {
        let digest = hash::parse(descriptor.digest().as_ref(), by)?;
        let Some(section) = self.files.get(&blob_path(&digest))? else {
            return Ok(None);
        };
        if section.len() != descriptor.size() {
            return Err(ImageError::WrongSize {
                what: self.what(format_args!("the blob {digest}")),
                expected: descriptor.size(),
                got: section.len(),
            });
        }
        Ok(Some(section))
    }

    /// A small blob as a whole, its digest checked.
    fn checked_document(
        &self,
        descriptor: &Descriptor,
        what: &'static str,
    ) -> Result<Vec<u8>, ImageError> {
        let missing = || ImageError::MissingBlob {
            name: self.files.name().to_owned(),
            blob: descriptor.digest().to_string(),
            by: if what == "config" {
                "manifest"
            } else {
                "index"
            },
        };
        self.blob(descriptor, what)?.ok_or_else(missing)?;
        let path = blob_path(descriptor.digest());
        let bytes = self
            .files
            .document(&path, self.limits)?
            .ok_or_else(missing)?;
        let shown = self.what(format_args!("the {what} {}", descriptor.digest()));
        hash::check(&bytes, descriptor.digest(), shown)?;
        Ok(bytes)
    }
}

/// The descriptor of an index that fits the wanted platform best. `outermost`: the index is in no other one.
pub(crate) fn best_platform<'a>(
    descriptors: &'a [Descriptor],
    wanted: &Wanted,
    outermost: bool,
) -> Option<&'a Descriptor> {
    let real: Vec<&Descriptor> = descriptors.iter().filter(|d| !is_attestation(d)).collect();
    let alone = real.len() == 1;
    let mut best: Option<(u32, &Descriptor)> = None;
    for descriptor in real {
        let rank = match descriptor.platform() {
            // Its configuration tells the platform; or, for an index, what is in it.
            None => Some(0),
            Some(p) => {
                let arch = p.architecture().to_string();
                wanted.rank(&p.os().to_string(), &arch, p.variant().as_deref())
            }
        };
        // One manifest that is all there is will do, when no other platform was asked for.
        let rank = rank.or((alone && outermost && !wanted.explicit).then_some(u32::MAX));
        if let Some(rank) = rank
            && best.is_none_or(|(best, _)| rank < best)
        {
            best = Some((rank, descriptor));
        }
    }
    best.map(|(_, descriptor)| descriptor)
}

/// Says that none of these is for the wanted platform; `name` is the source.
pub(crate) fn no_platform(name: &str, descriptors: &[Descriptor], wanted: &Wanted) -> ImageError {
    let mut have: Vec<String> = descriptors
        .iter()
        .filter(|d| !is_attestation(d))
        .filter_map(|d| d.platform().as_ref().map(platform::describe))
        .collect();
    have.sort();
    have.dedup();
    if have.is_empty() {
        return ImageError::NotAnImage {
            name: name.to_owned(),
            why: "its index is empty".to_owned(),
        };
    }
    ImageError::NoSuchPlatform {
        name: name.to_owned(),
        wanted: wanted.to_string(),
        have,
    }
}

/// A manifest as it is written, to be kept to the byte.
struct ManifestBytes {
    digest: Digest,
    media_type: String,
    bytes: Vec<u8>,
    explicit: Option<Wanted>,
}

fn blob_path(digest: &Digest) -> Vec<u8> {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest()).into_bytes()
}

fn names_of(descriptor: &Descriptor) -> Vec<String> {
    let Some(annotations) = descriptor.annotations() else {
        return Vec::new();
    };
    [CONTAINERD_NAME, REF_NAME]
        .iter()
        .filter_map(|key| annotations.get(*key).cloned())
        .collect()
}

/// Neither a name nor a platform tells this image from another one.
fn unplaced(candidate: &Candidate) -> bool {
    candidate.descriptor.platform().is_none() && !is_attestation(&candidate.descriptor)
}

/// Provenance that build tools store beside an image.
fn is_attestation(descriptor: &Descriptor) -> bool {
    let unknown = descriptor
        .platform()
        .as_ref()
        .is_some_and(|p| p.os().to_string() == "unknown");
    unknown
        || descriptor
            .annotations()
            .as_ref()
            .is_some_and(|a| a.contains_key("vnd.docker.reference.type"))
}

/// An index may hold a tag or a whole name, and users may write either.
fn matches(candidate: &Candidate, tag: &str) -> bool {
    let digest = candidate.descriptor.digest();
    if digest.as_ref() == tag || digest.digest() == tag {
        return true;
    }
    let full = Reference::parse(tag).ok();
    candidate.names.iter().any(|name| {
        name == tag || full.is_some() && Reference::parse(name).ok() == full && name.contains('/')
    })
}
