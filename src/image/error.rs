//! What can be wrong with an image or with the store: one line each, naming the culprit.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::Digest;

use super::tarball::TarError;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file of the store or of the source cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither a file nor an image of the store.
    #[error("no such image: {name}: it is no file or folder here, and the store {} has no image of that name", store.display())]
    NoSuchImage {
        /// What was asked for.
        name: String,
        /// The root of the store.
        store: PathBuf,
    },
    /// A name that cannot be a reference.
    #[error("invalid reference format: {reference}: {why}")]
    InvalidReference {
        /// The text.
        reference: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The image below a mount or container cannot be found again.
    #[error("the image {id} that lies below is gone: {}", match path {
        Some(path) => format!("neither the store has it nor {path}; load it again by acetate image load"),
        None => "the store does not have it any more; load or pull it again".to_owned(),
    })]
    BaseGone {
        /// The digest of its configuration.
        id: String,
        /// The archive that it came from.
        path: Option<String>,
    },
    /// A condition that cannot be understood.
    #[error("invalid filter {filter}: {why}")]
    InvalidFilter {
        /// The condition.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// An instruction that changes no configuration.
    #[error("invalid change {change:?}: {why}")]
    InvalidChange {
        /// The instruction.
        change: String,
        /// What is wrong with it.
        why: String,
    },
    /// A short id or digest that fits several images.
    #[error("{prefix} is ambiguous: it fits {}", candidates.join(", "))]
    AmbiguousId {
        /// The prefix.
        prefix: String,
        /// What it fits.
        candidates: Vec<String>,
    },
    /// A file that is neither a docker archive nor an OCI layout.
    #[error("{name} is no image: {why}")]
    NotAnImage {
        /// The source.
        name: String,
        /// What is missing or unexpected.
        why: String,
    },
    /// The archive or one of its files ends too early.
    #[error("{name} is truncated: {why}")]
    Truncated {
        /// The file.
        name: String,
        /// Where it ends.
        why: String,
    },
    /// A compression that is known but not supported.
    #[error(
        "{name} is compressed with {format}, which is not supported: recompress it with gzip or zstd"
    )]
    UnsupportedCompression {
        /// The file.
        name: String,
        /// The format's name.
        format: &'static str,
    },
    /// A file that the manifest names is not there.
    #[error("{name} lacks {blob}, which its {by} names")]
    MissingBlob {
        /// The source.
        name: String,
        /// The missing file or digest.
        blob: String,
        /// What refers to it.
        by: &'static str,
    },
    /// Bytes whose digest is not the promised one.
    #[error("wrong digest of {what}: expected {expected}, got {got}")]
    WrongDigest {
        /// What was hashed.
        what: String,
        /// The digest that was promised.
        expected: String,
        /// The digest of the bytes.
        got: String,
    },
    /// A blob whose length is not the promised one.
    #[error("wrong size of {what}: expected {expected} bytes, got {got}")]
    WrongSize {
        /// What was measured.
        what: String,
        /// The size that was promised.
        expected: u64,
        /// The size it has.
        got: u64,
    },
    /// A digest that cannot be checked here.
    #[error("unsupported digest {digest}: only sha256 and sha512 can be checked")]
    UnsupportedDigest {
        /// The digest.
        digest: String,
    },
    /// JSON that is not what it should be.
    #[error("{what} cannot be understood: {source}")]
    Json {
        /// Which document.
        what: String,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A document that contradicts itself or another one.
    #[error("{what} makes no sense: {why}")]
    Inconsistent {
        /// Which document.
        what: String,
        /// What contradicts.
        why: String,
    },
    /// A limit that guards against hostile images.
    #[error("{what} is over the limit of {limit} {unit}: {hint}")]
    OverLimit {
        /// What is too large.
        what: String,
        /// The limit.
        limit: u64,
        /// What the limit counts.
        unit: &'static str,
        /// How to raise it.
        hint: &'static str,
    },
    /// No image for the wanted platform.
    #[error("{name} has no image for {wanted}: it has {}", have.join(", "))]
    NoSuchPlatform {
        /// The source.
        name: String,
        /// The platform.
        wanted: String,
        /// The platforms that there are.
        have: Vec<String>,
    },
    /// A platform that cannot be understood.
    #[error(
        "invalid platform {platform}: write it as OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64/v8"
    )]
    InvalidPlatform {
        /// The text.
        platform: String,
    },
    /// The archive has images, but not under this name.
    #[error("{name} has no image named {tag}: it has {}", have.join(", "))]
    NoSuchTag {
        /// The source.
        name: String,
        /// The name asked for.
        tag: String,
        /// The names that there are.
        have: Vec<String>,
    },
    /// The archive has several images and none was named.
    #[error("{name} has several images: choose one by {name}:NAME, where NAME is one of {}", have.join(", "))]
    SeveralImages {
        /// The source.
        name: String,
        /// The names that there are.
        have: Vec<String>,
    },
    /// A layer that cannot be read as a tar.
    #[error("layer {layer}: {source}")]
    Tar {
        /// The layer's digest or file.
        layer: String,
        /// What the reader met.
        source: TarError,
    },
    /// A layer with an entry that is refused.
    #[error("layer {layer}: entry {entry:?}: {why}")]
    Entry {
        /// The layer's diff id.
        layer: String,
        /// The path in the layer, lossily shown.
        entry: String,
        /// Why it is refused.
        why: String,
    },
    /// A layer with an entry that the system refuses.
    #[error("layer {layer}: cannot {action} {entry:?}: {source}")]
    EntryIo {
        /// The layer's diff id.
        layer: String,
        /// The path in the layer, lossily shown.
        entry: String,
        /// What was tried, as an infinitive.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// An image or layer that a mount, a container or another image needs.
    #[error("{what} is in use{}", by.as_deref().map(|by| format!(" by {by}")).unwrap_or_default())]
    InUse {
        /// The image or layer.
        what: String,
        /// By what, where that is known.
        by: Option<String>,
    },
    /// A registry that cannot be used, or that refuses.
    #[cfg(feature = "registry")]
    #[error("{0}")]
    Registry(#[from] super::registry::RegistryError),
    /// An image that the store does not have and that no registry gives.
    #[cfg(feature = "registry")]
    #[error("no such image: {name}: it is no file or folder here, the store {} has no image of that name, and it cannot be pulled: {why}", store.display())]
    NotPulled {
        /// What was asked for.
        name: String,
        /// The root of the store.
        store: PathBuf,
        /// What the registry said.
        why: String,
    },
    /// The store was written by a program that this one does not understand.
    #[error("{} is no store of this version: {why}", path.display())]
    ForeignStore {
        /// The root of the store.
        path: PathBuf,
        /// What was found.
        why: String,
    },
}

impl ImageError {
    /// An error of the system about `path`; used as `map_err(ImageError::io("read", path))`.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> ImageError {
        move |source| ImageError::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        }
    }
    /// A JSON document that cannot be read.
    pub(crate) fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> ImageError {
        move |source| ImageError::Json {
            what: what.into(),
            source,
        }
    }
    /// Bytes that do not have the digest `expected`.
    pub(crate) fn digest(what: impl Into<String>, expected: &Digest, got: String) -> ImageError {
        ImageError::WrongDigest {
            what: what.into(),
            expected: expected.to_string(),
            got,
        }
    }
}

/// Shows a name that may be any bytes.
pub(crate) fn shown(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}
