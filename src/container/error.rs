//! What can be wrong with a container: one line each, naming the culprit.

use std::io;
use std::path::{Path, PathBuf};

use crate::image::ImageError;
use crate::mount::MountError;

/// Why a container cannot be made, run, found or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// Its image.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// Its mount.
    #[error("{0}")]
    Mount(#[from] MountError),
    /// A file of the container, or a call on it.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the container that another program wrote, or that is damaged.
    #[error("{} cannot be understood: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// Nobody has that name or id.
    #[error("no such container: {0}")]
    NoSuchContainer(String),
    /// The beginning of several ids.
    #[error("{prefix} is ambiguous: it fits {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// What it fits.
        candidates: Vec<String>,
    },
    /// A name that cannot be one.
    #[error("invalid container name {0:?}: only [a-zA-Z0-9][a-zA-Z0-9_.-]+ are allowed")]
    InvalidName(String),
    /// Another container has it.
    #[error(
        "the container name {name:?} is already in use by container {id}: remove or rename that container to reuse the name"
    )]
    NameInUse {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// There is no such volume.
    #[error("no such volume: {0}")]
    NoSuchVolume(String),
    /// A name that cannot be a volume's.
    #[error(
        "invalid volume name {0:?}: only [a-zA-Z0-9][a-zA-Z0-9_.-]+ are allowed; a directory of the host is written with a slash, such as ./data"
    )]
    InvalidVolumeName(String),
    /// A container has it.
    #[error("volume {volume} is in use by container {user}: remove that first")]
    VolumeInUse {
        /// The volume.
        volume: String,
        /// The container.
        user: String,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The image's configuration cannot be followed.
    #[error("the configuration of image {image}: {why}")]
    ImageConfig {
        /// The image.
        image: String,
        /// What is wrong in it.
        why: String,
    },
    /// It can only be done with a container in another state.
    #[error("container {name} {is}{}", if hint.is_empty() { String::new() } else { format!(": {hint}") })]
    State {
        /// The container.
        name: String,
        /// What it is: `is running`, `is not running`.
        is: String,
        /// What to do.
        hint: &'static str,
    },
    /// There is no runtime.
    #[error("{0}: install crun or runc, or name a runtime by --runtime")]
    NoRuntime(String),
    /// The runtime refused.
    #[error("{runtime}: {text}")]
    Runtime {
        /// The runtime.
        runtime: String,
        /// What it said.
        text: String,
    },
    /// The command of the container is not there.
    #[error("{0}")]
    NotFound(String),
    /// The command of the container cannot be executed.
    #[error("{0}")]
    NotExecutable(String),
    /// The process that looks after the container said why it failed.
    #[error("{text}")]
    Monitor {
        /// The exit code that goes with it.
        code: u8,
        /// The error.
        text: String,
    },
}

impl ContainerError {
    /// Used as `map_err(ContainerError::io("read", path))`.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> ContainerError {
        move |source| ContainerError::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        }
    }

    /// The exit code of `run` and `exec`, as docker has them: 125 where the container could not be had at all.
    pub fn run_code(&self) -> u8 {
        match self {
            ContainerError::NotFound(_) => 127,
            ContainerError::NotExecutable(_) => 126,
            ContainerError::Monitor { code, .. } => *code,
            _ => 125,
        }
    }

    /// The exit code of every other command: 2 for what was asked wrongly, 1 for what failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            ContainerError::Usage(_)
            | ContainerError::InvalidName(_)
            | ContainerError::InvalidVolumeName(_) => 2,
            ContainerError::Mount(e) => e.exit_code(),
            ContainerError::NotFound(_)
            | ContainerError::NotExecutable(_)
            | ContainerError::Monitor { .. } => self.run_code(),
            _ => 1,
        }
    }
}
