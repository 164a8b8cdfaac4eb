//! Errors of the union and their errno.

use std::io;

/// Why an operation failed. [`Error::errno`] gives what a program sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule of the union or of POSIX forbids it, with this errno.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Errno(i32),
    /// A system call on a layer failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What lies on disk contradicts itself; the text says how. Programs see `EIO`.
    #[error("{0}")]
    Corrupt(String),
}

impl Error {
    /// The error number for the program that asked.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Errno(errno) => *errno,
            Error::Io(e) => e.raw_os_error().unwrap_or(libc::EIO),
            Error::Corrupt(_) => libc::EIO,
        }
    }
}

/// The result of a union operation.
pub type Result<T> = std::result::Result<T, Error>;
