//! What a pull or push tells about its course.

use oci_spec::image::Digest;

/// What happens to a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerEvent {
    /// It will be fetched.
    Waiting,
    /// It will be sent, if the registry lacks it.
    Preparing,
    /// The store has it.
    AlreadyExists,
    /// The registry has it in this repository.
    AlreadyPushed,
    /// The registry took it from this repository of its own.
    MountedFrom(String),
    /// So many of its bytes are here, counted from its beginning.
    Downloading(u64),
    /// All of its bytes are here.
    Downloaded,
    /// It is unpacked and checked.
    PullComplete,
    /// So many of its bytes were sent.
    Pushing(u64),
    /// The registry has it.
    Pushed,
    /// A failure that may pass, and that is waited for.
    Retrying(String),
}

/// Takes the news of a pull or push, from several threads at once.
pub trait Progress: Send + Sync {
    /// Something happened to the layer with this digest, which has `size` bytes as it is transferred.
    fn layer(&self, digest: &Digest, size: u64, event: LayerEvent);
    /// Something happened that concerns the whole.
    fn note(&self, text: &str);
}

/// Wants no news.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn layer(&self, _: &Digest, _: u64, _: LayerEvent) {}
    fn note(&self, _: &str) {}
}
