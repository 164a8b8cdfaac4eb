//! `acetate pull`, also as `acetate image pull`; and the pull before a mount.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::progress::{self, Show};
use super::registry::ReachArgs;
use super::{CliError, output};
use crate::image::registry::Pulled;
use crate::image::{ImageError, Reference, Store};
use crate::mount::store_root;

/// When an image is pulled that is to be mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Policy {
    /// When the store does not have it.
    #[default]
    Missing,
    /// In any case.
    Always,
    /// Not at all.
    Never,
}

/// Brings an image from a registry into the store
#[derive(Args, Debug)]
pub(super) struct PullArgs {
    /// The reference: [REGISTRY[:PORT]/]NAME[:TAG][@DIGEST]
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Which platform of the image, such as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Print the name only
    #[arg(short, long)]
    quiet: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// What was pulled, for programs.
#[derive(Serialize)]
struct PulledJson {
    name: String,
    id: String,
    digest: String,
    newer: bool,
}

impl PullArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        let reference = Reference::parse(&self.image)?;
        let registry = self.reach.registry()?;
        let store = Store::open(&store_root(root))?;
        let show = if self.quiet || self.json {
            Show::Nothing
        } else {
            Show::Output
        };
        if show == Show::Output {
            // As a reference is read, a tag is there unless a digest is.
            let named = self
                .image
                .ends_with(&format!(":{}", reference.tag().unwrap_or_default()));
            if !named && let (Some(tag), None) = (reference.tag(), reference.digest()) {
                output::line(&format!("Using default tag: {tag}"))?;
            }
            let tag = reference.digest().or(reference.tag()).unwrap_or_default();
            output::line(&format!("{tag}: Pulling from {}", reference.repository()))?;
        }
        let progress = progress::progress(show);
        let pulled = store.pull(&registry, &reference, self.platform.as_deref(), &progress)?;
        if self.json {
            return Ok(output::json(&PulledJson {
                name: pulled.name,
                id: pulled.id,
                digest: pulled.digest,
                newer: pulled.newer,
            })?);
        }
        if self.quiet {
            return Ok(output::line(&pulled.name)?);
        }
        Ok(output::lines(summary(&pulled, &self.image))?)
    }
}

fn summary(pulled: &Pulled, image: &str) -> [String; 3] {
    let status = if pulled.newer {
        "Downloaded newer image for"
    } else {
        "Image is up to date for"
    };
    [
        format!("Digest: {}", pulled.digest),
        format!("Status: {status} {image}"),
        pulled.name.clone(),
    ]
}

/// Pulls what is to be mounted, where the policy says so. What is a file or folder here is nobody's name.
pub(super) fn before_mount(
    image: &OsStr,
    policy: Policy,
    platform: Option<&str>,
    reach: &ReachArgs,
    store: &Store,
) -> Result<(), CliError> {
    let unknown = store.unknown(image)?;
    let wanted = match policy {
        Policy::Never => None,
        Policy::Missing => unknown.clone(),
        Policy::Always => match &unknown {
            Some(reference) => Some(reference.clone()),
            None => store.known_as(image)?,
        },
    };
    let Some(reference) = wanted else {
        return Ok(());
    };
    let progress = progress::progress(Show::Error);
    progress.note(&format!("Pulling {reference}"));
    let pulled = reach
        .registry()
        .and_then(|registry| store.pull(&registry, &reference, platform, &progress));
    match pulled {
        Ok(pulled) => {
            progress.note(&format!("Digest: {}", pulled.digest));
            Ok(())
        }
        Err(error) if unknown.is_some() => Err(ImageError::NotPulled {
            name: image.to_string_lossy().into_owned(),
            store: store.root().to_owned(),
            why: error.to_string(),
        }
        .into()),
        Err(error) => Err(error.into()),
    }
}
