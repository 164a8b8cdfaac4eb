//! From what a user calls an image to the trees of its layers.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::archive;
use super::error::{ImageError, shown};
use super::files::Files;
use super::layout::Layout;
use super::lock::{Hold, Lock};
use super::platform::Wanted;
use super::resolve::Resolved;
use super::source::{self, Source};
use super::store::{Keep, LayerGuard, Store};

/// Which image was prepared, so that it can be found again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOrigin {
    /// The digest of its configuration.
    pub id: String,
    /// The archive or layout that it came from, absolute; `None` for an image of the store, or where the path is not
    /// UTF-8.
    pub path: Option<String>,
    /// Its name there.
    pub tag: Option<String>,
    /// The platform that was asked for.
    pub platform: Option<String>,
}

/// An image whose layers are there and stay there while `guard` is held.
#[derive(Debug)]
pub struct PreparedImage {
    /// How to call it: its name where it has one, else what the user called it.
    pub name: String,
    /// The trees of its layers, topmost first, each once: a layer that an image has twice shows the same when only the
    /// upper one of the two is stacked.
    pub layers: Vec<PathBuf>,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// The digests of its uncompressed layers, base first, as the configuration lists them.
    pub diff_ids: Vec<String>,
    /// Keeps the layers from being removed.
    pub guard: LayerGuard,
    /// Which image it is.
    pub origin: ImageOrigin,
}

impl Store {
    /// Finds an image and unpacks those of its layers that the store lacks.
    ///
    /// `source` is the path of an archive or layout, with `:NAME` behind it where that holds several images, and
    /// optionally one of the prefixes `oci:`, `oci-archive:` and `docker-archive:`; or the name of an image of the
    /// store. `platform` is `OS/ARCH[/VARIANT]`, this machine's where it is not given.
    pub fn prepare(
        &self,
        source: &OsStr,
        platform: Option<&str>,
    ) -> Result<PreparedImage, ImageError> {
        let wanted = Wanted::new(platform)?;
        let image = self.find(source, &wanted)?;
        let origin = origin(&image, source, platform)?;
        let mut guard = self.ensure_layers(&image.layers, Keep::Tree)?;
        for layer in &image.layers {
            self.ensure_index(&layer.source.diff_id);
        }
        let in_use = self.image_lock(&image.id);
        guard
            .locks
            .push(Lock::wait(&in_use, Hold::Shared, self.limits().wait)?);
        let mut seen = HashSet::new();
        let mut layers: Vec<PathBuf> = image
            .layers
            .iter()
            .rev()
            .map(|layer| self.layer_tree(&layer.source.diff_id))
            .filter(|path| seen.insert(path.clone()))
            .collect();
        if layers.is_empty() {
            layers.push(self.empty_layer()?);
        }
        Ok(PreparedImage {
            name: image.best_name().cloned().unwrap_or_else(|| shown(source)),
            layers,
            diff_ids: image.config.rootfs().diff_ids().clone(),
            config: image.config,
            guard,
            origin,
        })
    }

    /// Finds a prepared image again, in the store or where it came from.
    pub(crate) fn find_again(&self, origin: &ImageOrigin) -> Result<Resolved, ImageError> {
        let wanted = Wanted::new(origin.platform.as_deref())?;
        match self.find_stored(OsStr::new(&origin.id), &wanted) {
            Err(ImageError::NoSuchImage { .. }) => {}
            found => return found,
        }
        let gone = || ImageError::BaseGone {
            id: origin.id.clone(),
            path: origin.path.clone(),
        };
        let path = Path::new(origin.path.as_deref().ok_or_else(gone)?);
        if !path.exists() {
            return Err(gone());
        }
        let files = source::open(path, &self.tmp(), self.limits())?;
        let found = self.find_in(&files, origin.tag.as_deref(), &wanted)?;
        if found.id.as_ref() != origin.id {
            return Err(gone());
        }
        Ok(found)
    }

    /// Finds an image, without its layers.
    pub(crate) fn find(&self, source: &OsStr, wanted: &Wanted) -> Result<Resolved, ImageError> {
        match Source::parse(source)? {
            Source::Path { path, tag } => {
                let files = source::open(&path, &self.tmp(), self.limits())?;
                self.find_in(&files, tag.as_deref(), wanted)
            }
            Source::Name(name) => self.find_stored(&name, wanted),
        }
    }

    /// Finds an image among the files of a source.
    pub(crate) fn find_in(
        &self,
        files: &Files,
        tag: Option<&str>,
        wanted: &Wanted,
    ) -> Result<Resolved, ImageError> {
        let limits = self.limits();
        // Archives of newer versions of docker have both; only the index keeps the manifest's digest.
        if files.get(b"index.json")?.is_some() {
            return Layout { files, limits }.resolve(tag, wanted);
        }
        if files.get(b"manifest.json")?.is_some() {
            return archive::resolve(files, tag, wanted, limits);
        }
        let why = if files.get(b"repositories")?.is_some() {
            "it was saved by a docker older than 1.10: load and save it with a newer one"
        } else {
            "it has neither an index.json nor a manifest.json"
        };
        Err(ImageError::NotAnImage {
            name: files.name().to_owned(),
            why: why.to_owned(),
        })
    }

    /// Finds an image that the store has.
    fn find_stored(&self, name: &OsStr, wanted: &Wanted) -> Result<Resolved, ImageError> {
        let missing = || ImageError::NoSuchImage {
            name: shown(name),
            store: self.root().to_owned(),
        };
        let text = name.to_str().ok_or_else(missing)?;
        let image = self.image(text)?;
        let files = Files::folder(self.root(), self.root().display().to_string())?;
        let layout = Layout {
            files: &files,
            limits: self.limits(),
        };
        let mut found = layout.resolve(Some(image.digest.as_ref()), wanted)?;
        // Of its names, the one that was asked for.
        if let Some(asked) = image.named_by(text) {
            found.names = vec![asked];
        }
        Ok(found)
    }
}

fn origin(
    image: &Resolved,
    source: &OsStr,
    platform: Option<&str>,
) -> Result<ImageOrigin, ImageError> {
    let (path, tag) = match Source::parse(source)? {
        Source::Path { path, tag } => {
            let absolute = std::path::absolute(&path).map_err(ImageError::io("find", &path))?;
            (absolute.to_str().map(str::to_owned), tag)
        }
        Source::Name(_) => (None, None),
    };
    Ok(ImageOrigin {
        id: image.id.to_string(),
        path,
        tag,
        platform: platform.map(str::to_owned),
    })
}
