//! From what a user calls an image to the trees of its layers.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;

use super::archive;
use super::error::{ImageError, shown};
use super::files::Files;
use super::layout::Layout;
use super::platform::Wanted;
use super::resolve::Resolved;
use super::source::{self, Source};
use super::store::{Keep, LayerGuard, Store};

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
        let guard = self.ensure_layers(&image.layers, Keep::Tree)?;
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
        })
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
