//! Why a call, or the server itself, fails.

use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

use crate::image::ImageError;

/// Why a call fails. containerd tells the kinds apart by their codes.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is no such snapshot.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// The name is taken.
    #[error("snapshot {0:?} exists already")]
    AlreadyExists(String),
    /// The snapshot is not in the state for it.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The call makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the metadata.
    #[error("{0}")]
    Metadata(#[from] ImageError),
    /// A mount that the snapshotter keeps.
    #[error("cannot mount snapshot {name:?}: {text}")]
    Mount {
        /// The snapshot.
        name: String,
        /// What the mount said.
        text: String,
    },
}

impl SnapshotError {
    /// Says what was tried on which path.
    pub(super) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| SnapshotError::Io {
            action,
            path,
            source: source.into(),
        }
    }
}

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Status {
        let code = match &error {
            SnapshotError::NotFound(_) => Code::NotFound,
            SnapshotError::AlreadyExists(_) => Code::AlreadyExists,
            SnapshotError::FailedPrecondition(_) => Code::FailedPrecondition,
            SnapshotError::InvalidArgument(_) => Code::InvalidArgument,
            SnapshotError::Io { source, .. }
                if source.kind() == io::ErrorKind::StorageFull
                    || source.kind() == io::ErrorKind::QuotaExceeded =>
            {
                Code::ResourceExhausted
            }
            SnapshotError::Io { .. } | SnapshotError::Metadata(_) | SnapshotError::Mount { .. } => {
                Code::Internal
            }
        };
        Status::new(code, error.to_string())
    }
}

/// Why the server does not start or ends.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another server has this root.
    #[error("{} is in use by another snapshotter", .0.display())]
    RootInUse(PathBuf),
    /// Somebody else wrote the root.
    #[error("{} {what}", path.display())]
    ForeignRoot {
        /// The root.
        path: PathBuf,
        /// What was found there.
        what: String,
    },
    /// The root cannot be named in mount options.
    #[error(
        "the root {0:?} cannot be used: a path in UTF-8 without comma, colon, quote, backslash or control characters is needed"
    )]
    RootName(PathBuf),
    /// A record cannot be understood.
    #[error("the record {} is damaged: {why}: nothing is touched until it is repaired or moved away", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another server listens there.
    #[error("the socket {} is in use by a running server", .0.display())]
    SocketInUse(PathBuf),
    /// There is something that is no socket.
    #[error("{} exists and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// Another error of a system call.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the metadata.
    #[error("{0}")]
    Metadata(#[from] ImageError),
    /// The transport.
    #[error("the server ended: {0}")]
    Transport(#[from] tonic::transport::Error),
}

impl ServeError {
    /// Says what was tried on which path.
    pub(super) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| ServeError::Io {
            action,
            path,
            source: source.into(),
        }
    }
}
