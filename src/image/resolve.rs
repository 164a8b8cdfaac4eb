//! What a source says of one image, checked for sense, before any layer is unpacked.

use oci_spec::image::{Descriptor, Digest, ImageConfiguration};

use super::error::ImageError;
use super::hash;
use super::limits::Limits;
use super::platform::Wanted;
use super::store::{LayerBytes, NeededLayer};
use super::unpack::LayerSource;

/// An image that was found in a source.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Its names, as the source tells them.
    pub(crate) names: Vec<String>,
    /// The digest of its configuration: docker's image id.
    pub(crate) id: Digest,
    /// The configuration as it is written.
    pub(crate) config_bytes: Vec<u8>,
    /// The configuration.
    pub(crate) config: ImageConfiguration,
    /// Digest, media type and bytes of its manifest, where the source has one.
    pub(crate) manifest: Option<(Digest, String, Vec<u8>)>,
    /// Its layers, base first.
    pub(crate) layers: Vec<NeededLayer>,
    /// Their descriptors, where there is a manifest.
    pub(crate) descriptors: Vec<Option<Descriptor>>,
}

impl Resolved {
    /// True where both were found by the same manifest.
    pub(crate) fn same_manifest(&self, other: &Resolved) -> bool {
        let digest = |r: &Resolved| r.manifest.as_ref().map(|(digest, _, _)| digest.clone());
        digest(self).is_some() && digest(self) == digest(other)
    }

    /// The name that tells most.
    pub(crate) fn best_name(&self) -> Option<&String> {
        self.names.iter().max_by_key(|name| name.len())
    }

    /// Brings configuration and layers together. `blobs`: descriptor, bytes and a name for each layer, base first.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts that make an image, each once"
    )]
    pub(crate) fn new(
        source: &str,
        names: Vec<String>,
        id: Digest,
        config_bytes: Vec<u8>,
        blobs: Vec<(Option<Descriptor>, Option<LayerBytes>, String)>,
        manifest: Option<(Digest, String, Vec<u8>)>,
        wanted: Option<&Wanted>,
        limits: &Limits,
    ) -> Result<Resolved, ImageError> {
        let what = format!("the config {id} of {source}");
        let config: ImageConfiguration =
            serde_json::from_slice(&config_bytes).map_err(ImageError::json(&what))?;
        let os = config.os().to_string();
        let arch = config.architecture().to_string();
        let here = Wanted::new(None)?;
        let fits = |w: &Wanted| w.rank(&os, &arch, config.variant().as_deref()).is_some();
        if let Some(wanted) = wanted
            && !fits(wanted)
        {
            return Err(ImageError::NoSuchPlatform {
                name: source.to_owned(),
                wanted: wanted.to_string(),
                have: vec![format!("{os}/{arch}")],
            });
        }
        if wanted.is_none() && !fits(&here) {
            log::warn!("{source} is for {os}/{arch}, this machine is {here}");
        }
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != blobs.len() {
            return Err(ImageError::Inconsistent {
                what,
                why: format!(
                    "it has {} diff ids for {} layers",
                    diff_ids.len(),
                    blobs.len()
                ),
            });
        }
        if blobs.len() > limits.layers {
            return Err(ImageError::OverLimit {
                what: format!("the number of layers of {source}"),
                limit: limits.layers as u64,
                unit: "layers",
                hint: "no real image has so many",
            });
        }
        let mut layers = Vec::with_capacity(blobs.len());
        let mut descriptors = Vec::with_capacity(blobs.len());
        for (diff_id, (descriptor, blob, layer)) in diff_ids.iter().zip(blobs) {
            layers.push(NeededLayer {
                source: LayerSource {
                    name: format!("layer {layer} of {source}"),
                    blob: descriptor.as_ref().map(|d| d.digest().clone()),
                    diff_id: hash::parse(diff_id, &what)?,
                },
                blob,
            });
            descriptors.push(descriptor);
        }
        Ok(Resolved {
            names,
            id,
            config_bytes,
            config,
            manifest,
            layers,
            descriptors,
        })
    }
}
