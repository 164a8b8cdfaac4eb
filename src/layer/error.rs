//! Why a layer or an upper cannot be opened: one sentence each that names the culprit and what to do.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;

/// Why a lower layer cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Nothing stands at the path.
    #[error("the layer {} does not exist", .0.display())]
    Missing(PathBuf),
    /// Something that is no directory stands there.
    #[error("the layer {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// The process may not read it.
    #[error("the layer {} cannot be read: permission denied", .0.display())]
    Unreadable(PathBuf),
    /// It keeps owners and modes in an xattr that any user could have set.
    #[error(
        "the layer {} keeps its owners in {:?}, which any user can write: mount with xattr_permissions=2 if you trust \
         whoever made it, or in a user namespace", .0.display(), .1
    )]
    UserOwners(PathBuf, &'static OsStr),
    /// Another error of a system call.
    #[error("the layer {} cannot be opened: {}", .0.display(), .1)]
    Io(PathBuf, #[source] io::Error),
}

/// Why an upper and its workdir cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// Nothing stands at the path. The first field is `upper directory` or `workdir`.
    #[error("the {} {} does not exist: create it first", .0, .1.display())]
    Missing(&'static str, PathBuf),
    /// Something that is no directory stands there.
    #[error("the {} {} is not a directory", .0, .1.display())]
    NotADirectory(&'static str, PathBuf),
    /// The process may not write there.
    #[error("the {} {} cannot be written: permission denied", .0, .1.display())]
    Unwritable(&'static str, PathBuf),
    /// It lies on a filesystem that is mounted read-only.
    #[error("the {} {} is on a read-only filesystem", .0, .1.display())]
    ReadOnly(&'static str, PathBuf),
    /// Nothing can be renamed from the workdir into the upper.
    #[error("the workdir {} is not on the same filesystem and mount as the upper directory {}: choose a workdir beside it", .work.display(), .upper.display())]
    OtherFilesystem {
        /// The upper directory.
        upper: PathBuf,
        /// The workdir.
        work: PathBuf,
    },
    /// One of the two lies inside the other, or both are the same directory.
    #[error("the upper directory {} and the workdir {} must be apart: neither may be or contain the other", .upper.display(), .work.display())]
    Nested {
        /// The upper directory.
        upper: PathBuf,
        /// The workdir.
        work: PathBuf,
    },
    /// Another mount holds it.
    #[error("the {} {} is in use by another mount: unmount that first", .0, .1.display())]
    InUse(&'static str, PathBuf),
    /// A process of another user holds a lock on it: a mount of theirs, or anybody who may open the directory.
    #[error("the {what} {} is in use: process {process} of user {user} has locked it: end that process, and keep others out by the mode of a directory above", .path.display())]
    Locked {
        /// `upper directory` or `workdir`.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// Who holds the lock.
        process: u32,
        /// Whose process that is.
        user: u32,
    },
    /// Another directory stands there than a moment ago.
    #[error("the {} {} was replaced by another directory meanwhile", .0, .1.display())]
    Replaced(&'static str, PathBuf),
    /// The filesystem stores none of the xattrs that private marks need.
    #[error("the filesystem of the upper directory {} stores no {} extended attributes: put the upper on one that does (ext4, xfs, btrfs, tmpfs)", .0.display(), .1)]
    NoXattrs(PathBuf, &'static str),
    /// No form of whiteout can be stored.
    #[error("the filesystem of the upper directory {} stores whiteouts in no form: put the upper on another one", .0.display())]
    NoWhiteouts(PathBuf),
    /// The workdir records a feature that is not known here.
    #[error("the workdir {} was used with the feature {:?}, which is not known here: mount it with the program that wrote it", .0.display(), .1)]
    Incompatible(PathBuf, String),
    /// It was mounted volatile before the machine was started anew.
    #[error("the workdir {} was mounted volatile and not unmounted before the machine went down, so what the upper holds may be incomplete: discard both, or remove {}/work/incompat/volatile to accept that", .0.display(), .0.display())]
    Volatile(PathBuf),
    /// Another error of a system call.
    #[error("the {} {} cannot be used: {}", .0, .1.display(), .2)]
    Io(&'static str, PathBuf, #[source] io::Error),
}
