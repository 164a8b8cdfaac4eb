//! Why a benchmark ends.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::ImageError;
use crate::mount::MountError;

/// Why a benchmark ends without figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// It was asked for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// A file, a mount or a device.
    #[error("{0} {1}: {2}")]
    Io(&'static str, PathBuf, io::Error),
    /// A program that is needed failed, and said this.
    #[error("{0}: {1}")]
    Program(String, String),
    /// A system did not do what it was to be measured at.
    #[error("{0}")]
    Wrong(String),
    /// A mount, or the question to it.
    #[error("{0}")]
    Mount(#[from] MountError),
    /// An image.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// By a signal.
    #[error("interrupted")]
    Interrupted,
}

/// Says what was tried where: `at("cannot write", path)`.
pub(super) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BenchError {
    let path = path.to_owned();
    move |e| BenchError::Io(what, path, e)
}
