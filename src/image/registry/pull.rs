//! Images from a registry into the store.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use oci_spec::image::{Descriptor, Digest, ImageIndex, MediaType};
use reqwest::{Method, header};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::error::ImageError;
use super::super::files::Files;
use super::super::hash;
use super::super::layout::{self, Layout, REF_NAME};
use super::super::lock::TempDir;
use super::super::platform::Wanted;
use super::super::reference::Reference;
use super::super::resolve::Resolved;
use super::super::source::Source;
use super::super::store::{Keep, LayerBytes, Store};
use super::Registry;
use super::blob::Download;
use super::client::Client;
use super::endpoint::Endpoint;
use super::error::{Question, RegistryError};
use super::progress::{LayerEvent, Progress};

/// What a manifest may be, the best first.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// The header in which registries give a manifest's digest.
pub(super) const DIGEST_HEADER: &str = "docker-content-digest";
/// Indexes inside indexes.
const MAX_DEPTH: u32 = 8;

/// What a pull brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The image's complete name.
    pub name: String,
    /// The digest of its configuration: docker's image id.
    pub id: String,
    /// The digest of what the registry has under the name: a manifest, or an index of them.
    pub digest: String,
    /// False where the store had this very image under this name.
    pub newer: bool,
}

/// A manifest or an index.
struct Document {
    digest: Digest,
    bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct Probe {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

/// A repository at one place, and who wants to hear of it.
struct Origin<'a> {
    registry: &'a Registry,
    client: Arc<Client>,
    reference: &'a Reference,
    progress: Arc<dyn Progress>,
}

impl Store {
    /// The image that `source` means where it is a name that the store does not know, so that it may be pulled.
    pub fn unknown(&self, source: &OsStr) -> Result<Option<Reference>, ImageError> {
        let Source::Name(name) = Source::parse(source)? else {
            return Ok(None);
        };
        let Some(text) = name.to_str() else {
            return Ok(None);
        };
        match self.image(text) {
            Err(ImageError::NoSuchImage { .. }) => Ok(Reference::parse(text).ok()),
            Ok(_) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The name by which `source` means an image of the store, where it is a name and not an id, so that it may be pulled
    /// again.
    pub fn known_as(&self, source: &OsStr) -> Result<Option<Reference>, ImageError> {
        let Source::Name(name) = Source::parse(source)? else {
            return Ok(None);
        };
        let Some(text) = name.to_str() else {
            return Ok(None);
        };
        match self.image(text)?.named_by(text) {
            Some(name) => Reference::parse(&name).map(Some),
            None => Ok(None),
        }
    }

    /// Brings an image into the store: asks the mirrors in turn, then the registry, and fetches what the store lacks.
    pub fn pull(
        &self,
        registry: &Registry,
        reference: &Reference,
        platform: Option<&str>,
        progress: &Arc<dyn Progress>,
    ) -> Result<Pulled, ImageError> {
        let wanted = Wanted::new(platform)?;
        let mut endpoints = Endpoint::all(reference.registry(), &registry.options)?.into_iter();
        let mut endpoint = endpoints.next();
        loop {
            let Some(place) = &endpoint else {
                return Err(RegistryError::Unreachable {
                    host: reference.registry().to_owned(),
                    why: "it has no address".to_owned(),
                }
                .into());
            };
            let error = match self.pull_from(registry, place, reference, &wanted, progress) {
                Ok(pulled) => return Ok(pulled),
                Err(e) => e,
            };
            let Some(next) = endpoints.next().filter(|_| !is_local(&error)) else {
                return Err(error);
            };
            progress.note(&format!("{error}: trying {}", next.name));
            endpoint = Some(next);
        }
    }

    fn pull_from(
        &self,
        registry: &Registry,
        endpoint: &Endpoint,
        reference: &Reference,
        wanted: &Wanted,
        progress: &Arc<dyn Progress>,
    ) -> Result<Pulled, ImageError> {
        let origin = Origin {
            registry,
            client: registry.connect(endpoint, reference.repository())?,
            reference,
            progress: Arc::clone(progress),
        };
        match self.pull_once(&origin, wanted) {
            // What an interrupted pull left may be damaged: it was thrown away, and all of it is fetched once more.
            Err((ImageError::WrongDigest { .. }, true)) => {
                progress.note("what an earlier pull left is damaged, and is fetched again");
                self.pull_once(&origin, wanted).map_err(|(e, _)| e)
            }
            other => other.map_err(|(e, _)| e),
        }
    }

    /// The flag beside an error: bytes of an earlier pull were used.
    fn pull_once(
        &self,
        origin: &Origin<'_>,
        wanted: &Wanted,
    ) -> Result<Pulled, (ImageError, bool)> {
        let fresh = |e| (e, false);
        let (top, mut image) = self.resolve_remote(origin, wanted).map_err(fresh)?;
        let before = self.digest_of(&image.names[0]).map_err(fresh)?;
        let downloads = self.plan(origin, &mut image).map_err(fresh)?;
        let name = image.names[0].clone();
        let id = image.id.to_string();
        let digest = self.keep(image).map_err(|error| {
            let outcomes: Vec<_> = downloads.iter().map(|d| d.outcome()).collect();
            let resumed = outcomes.iter().any(|o| o.resumed);
            match outcomes.into_iter().find_map(|o| o.failure) {
                Some(failure) => (failure.into(), resumed),
                None => (error, resumed),
            }
        })?;
        Ok(Pulled {
            name,
            id,
            digest: top.to_string(),
            newer: before.as_ref() != Some(&digest),
        })
    }

    /// The manifest's digest of the image that has this name now.
    fn digest_of(&self, name: &str) -> Result<Option<Digest>, ImageError> {
        let index = self.read_index()?;
        let entry = index
            .manifests()
            .iter()
            .find(|entry| super::super::catalog::name_of(entry).is_some_and(|n| n == name));
        Ok(entry.map(|entry| entry.digest().clone()))
    }

    /// Says where the bytes of each layer are: in the store, or at the registry.
    fn plan(
        &self,
        origin: &Origin<'_>,
        image: &mut Resolved,
    ) -> Result<Vec<Arc<Download>>, ImageError> {
        let here = Files::folder(self.root(), self.root().display().to_string())?;
        let mut downloads = Vec::new();
        let mut seen = HashSet::new();
        for (layer, descriptor) in image.layers.iter_mut().zip(&image.descriptors) {
            let Some(descriptor) = descriptor else {
                continue;
            };
            let digest = descriptor.digest();
            let event = if self.is_ready(layer, Keep::TreeAndBlob)? {
                LayerEvent::AlreadyExists
            } else {
                LayerEvent::Waiting
            };
            if seen.insert(digest.to_string()) {
                origin.progress.layer(digest, descriptor.size(), event);
            }
            let path = format!("blobs/{}/{}", digest.algorithm(), digest.digest());
            layer.blob = Some(match here.get(path.as_bytes())? {
                Some(section) if section.len() == descriptor.size() => LayerBytes::Section(section),
                _ => {
                    let download = Arc::new(Download::new(
                        origin.registry.runtime.handle().clone(),
                        Arc::clone(&origin.client),
                        origin.reference.repository(),
                        &shown(origin.reference),
                        digest,
                        descriptor.size(),
                        &self.partial(),
                        Arc::clone(&origin.progress),
                    ));
                    downloads.push(Arc::clone(&download));
                    LayerBytes::Remote(download)
                }
            });
        }
        Ok(downloads)
    }

    /// Gets the documents that lead to the image of the wanted platform, as a layout without layers, so that they are
    /// checked as those of any other source. Gives the digest of the outermost one as well.
    fn resolve_remote(
        &self,
        origin: &Origin<'_>,
        wanted: &Wanted,
    ) -> Result<(Digest, Resolved), ImageError> {
        let reference = origin.reference;
        let name = shown(reference);
        let top = match reference.digest() {
            Some(digest) => {
                let digest = hash::parse(digest, &name)?;
                self.document_by_digest(origin, &digest)?
            }
            None => self.document_by_tag(origin, reference.tag().unwrap_or_default())?,
        };
        let top_digest = top.digest.clone();
        let mut document = top;
        let mut depth = 0;
        let media_type = loop {
            let what = || format!("the manifest {} of {name}", document.digest);
            let probe: Probe =
                serde_json::from_slice(&document.bytes).map_err(ImageError::json(what()))?;
            // A document that is both is refused where the layout is read.
            if probe.manifests.is_none() || probe.layers.is_some() {
                break probe.media_type;
            }
            if depth == MAX_DEPTH {
                return Err(ImageError::NotAnImage {
                    name,
                    why: format!("its indexes lie in one another {depth} deep"),
                });
            }
            let index: ImageIndex =
                serde_json::from_slice(&document.bytes).map_err(ImageError::json(what()))?;
            let chosen = layout::best_platform(index.manifests(), wanted, depth == 0)
                .ok_or_else(|| layout::no_platform(&name, index.manifests(), wanted))?;
            let digest = hash::parse(chosen.digest().as_ref(), &what())?;
            document = self.document_by_digest(origin, &digest)?;
            depth += 1;
        };
        let staging = TempDir::new(&self.tmp())?;
        let manifest: serde_json::Value = serde_json::from_slice(&document.bytes)
            .map_err(ImageError::json(format!("the manifest of {name}")))?;
        if let Some(config) = manifest["config"]["digest"].as_str() {
            let config = hash::parse(config, &format!("the manifest of {name}"))?;
            let bytes = match self.read_blob(&config) {
                Ok(bytes) => bytes,
                Err(_) => origin.config(&config, self.limits().document)?,
            };
            stage(&staging, &config, &bytes)?;
        }
        stage(&staging, &document.digest, &document.bytes)?;
        let media_type =
            media_type.map_or(MediaType::ImageManifest, |t| MediaType::from(t.as_str()));
        let mut entry = Descriptor::new(
            media_type,
            document.bytes.len() as u64,
            document.digest.clone(),
        );
        entry.set_annotations(Some([(REF_NAME.to_owned(), stored(reference))].into()));
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
        let index = serde_json::to_vec(&index).map_err(ImageError::json("the index.json"))?;
        write(&staging.path().join("index.json"), &index)?;
        let files = Files::folder(staging.path(), name)?;
        let layout = Layout {
            files: &files,
            limits: self.limits(),
        };
        let image = layout.resolve(None, wanted)?;
        Ok((top_digest, image))
    }

    /// A manifest that a digest names: from the store where it is there.
    fn document_by_digest(
        &self,
        origin: &Origin<'_>,
        digest: &Digest,
    ) -> Result<Document, ImageError> {
        if let Ok(bytes) = self.read_blob(digest) {
            return Ok(Document {
                digest: digest.clone(),
                bytes,
            });
        }
        let (_, bytes) = origin.manifest(digest.as_ref(), self.limits().document)?;
        hash::check(
            &bytes,
            digest,
            format!("the manifest of {}", shown(origin.reference)),
        )?;
        Ok(Document {
            digest: digest.clone(),
            bytes,
        })
    }

    /// The manifest that a tag names: only its digest is asked for, where the store has the rest.
    fn document_by_tag(&self, origin: &Origin<'_>, tag: &str) -> Result<Document, ImageError> {
        if let Some(digest) = origin.digest_of_tag(tag)?
            && let Ok(bytes) = self.read_blob(&digest)
        {
            return Ok(Document { digest, bytes });
        }
        let (promised, bytes) = origin.manifest(tag, self.limits().document)?;
        let what = format!("the manifest of {}", shown(origin.reference));
        if let Some(promised) = &promised {
            hash::check(&bytes, promised, what.clone())?;
        }
        let digest = match promised {
            Some(digest) => digest,
            None => hash::parse(&hash::sha256(&bytes), &what)?,
        };
        Ok(Document { digest, bytes })
    }
}

impl Origin<'_> {
    fn scope(&self) -> String {
        format!("repository:{}:pull", self.reference.repository())
    }

    fn question(&self) -> Question {
        let name = shown(self.reference);
        Question {
            action: "pull",
            subject: self.reference.familiar_name(),
            what: format!("manifest for {name}"),
        }
    }

    fn manifest_path(&self, tag_or_digest: &str) -> String {
        format!(
            "v2/{}/manifests/{tag_or_digest}",
            self.reference.repository()
        )
    }

    /// What digest a tag stands for; `None` where the registry does not say so without the manifest.
    fn digest_of_tag(&self, tag: &str) -> Result<Option<Digest>, RegistryError> {
        let url = self.client.url(&self.manifest_path(tag))?;
        let scope = self.scope();
        let asked = self.client.send(Method::HEAD, &url, &scope, |request| {
            request.header(header::ACCEPT, ACCEPT)
        });
        let answer = self.registry.wait(asked)?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        Ok(promised(answer.headers()))
    }

    /// A manifest and the digest that the registry gives with it.
    fn manifest(
        &self,
        tag_or_digest: &str,
        limit: u64,
    ) -> Result<(Option<Digest>, Vec<u8>), RegistryError> {
        let url = self.client.url(&self.manifest_path(tag_or_digest))?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let (headers, bytes) = self.registry.wait(self.client.document(
            &url,
            &self.scope(),
            &self.question(),
            limit,
            |request| request.header(header::ACCEPT, ACCEPT),
        ))?;
        Ok((promised(&headers), bytes))
    }

    /// The configuration; the layout compares its digest.
    fn config(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let path = format!("v2/{}/blobs/{digest}", self.reference.repository());
        let url = self.client.url(&path)?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let question = Question {
            what: format!("config {digest} of {}", shown(self.reference)),
            ..self.question()
        };
        let scope = self.scope();
        let asked = self
            .client
            .document(&url, &scope, &question, limit, |request| request);
        let (_, bytes) = self.registry.wait(asked)?;
        Ok(bytes)
    }
}

fn promised(headers: &header::HeaderMap) -> Option<Digest> {
    let text = headers.get(DIGEST_HEADER)?.to_str().ok()?;
    hash::parse(text, "the answer").ok()
}

/// The name under which a pulled image is kept: a digest says more than the tag beside it.
fn stored(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => format!("{}@{digest}", reference.name()),
        None => reference.to_string(),
    }
}

/// The reference as its user wrote it, more or less.
pub(super) fn shown(reference: &Reference) -> String {
    let mut text = reference.familiar_name();
    if let Some(tag) = reference.tag() {
        text.push(':');
        text.push_str(tag);
    }
    if let Some(digest) = reference.digest() {
        text.push('@');
        text.push_str(digest);
    }
    text
}

/// What no other registry can help with.
fn is_local(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Io { .. } | ImageError::EntryIo { .. } | ImageError::InUse { .. }
    )
}

fn stage(staging: &TempDir, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
    let folder = staging
        .path()
        .join("blobs")
        .join(digest.algorithm().as_ref());
    std::fs::create_dir_all(&folder).map_err(ImageError::io("create", &folder))?;
    write(&folder.join(digest.digest()), bytes)
}

/// Only this process looks at it, and only for a moment: it need not survive anything.
fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    std::fs::write(path, bytes).map_err(ImageError::io("write", path))
}
