//! Why there is no mount: one sentence each that names the culprit and what to do.

use std::io;
use std::path::PathBuf;

use crate::layer::error::{LayerError, UpperError};
use crate::union;

/// What is wrong with the options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nobody knows it.
    #[error("unknown mount option {0:?}")]
    Unknown(String),
    /// It is known elsewhere, and not here.
    #[error("mount option {0:?} is not supported: {1}")]
    NotSupported(String, &'static str),
    /// Its value cannot be read.
    #[error("mount option {name}={value}: {expected} is expected")]
    Value {
        /// The option.
        name: String,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// It has two values.
    #[error("mount option {0:?} is given twice, with different values")]
    Repeated(String),
    /// Two of them cannot both be meant.
    #[error("mount options {0:?} and {1:?} contradict each other")]
    Conflict(&'static str, &'static str),
    /// One needs another.
    #[error("mount option {0:?} needs {1:?} as well")]
    Needs(&'static str, &'static str),
}

/// Why a mount could not be made, found or ended.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The options are wrong.
    #[error("{0}")]
    Option(#[from] OptionError),
    /// A lower layer cannot be used.
    #[error("{0}")]
    Layer(#[from] LayerError),
    /// The upper cannot be used.
    #[error("{0}")]
    Upper(#[from] UpperError),
    /// The image cannot be used.
    #[error("{0}")]
    Image(#[from] crate::image::ImageError),
    /// The layers together make no filesystem.
    #[error("{0}")]
    Union(#[from] union::Error),
    /// What was copied up by blocks could not be completed.
    #[error("{} has files that are only partly copied up", .0.display())]
    Incomplete(PathBuf),
    /// There is neither an image nor a layer.
    #[error("nothing to mount: name an image, or layers by --lower or lowerdir=")]
    NothingToMount,
    /// Two layers share directories.
    #[error("the {role} {} lies inside the {outer_role} {}: layers must not overlap", .path.display(), .outer.display())]
    Overlap {
        /// What the inner one is to the mount.
        role: &'static str,
        /// The inner one.
        path: PathBuf,
        /// What the outer one is to the mount.
        outer_role: &'static str,
        /// The outer one.
        outer: PathBuf,
    },
    /// One directory is two layers.
    #[error("{} is named twice, as {roles}: layers must not overlap", .path.display())]
    SameLayer {
        /// The directory.
        path: PathBuf,
        /// What it is to the mount.
        roles: String,
    },
    /// The mountpoint is missing or no directory.
    #[error("the mountpoint {} {what}", .path.display())]
    Mountpoint {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Another error of a system call on a path.
    #[error("{} {}: {}", .0, .1.display(), .2)]
    Path(&'static str, PathBuf, #[source] io::Error),
    /// `/dev/fuse` does not exist.
    #[error(
        "/dev/fuse does not exist: load the kernel module fuse, or give the container the device"
    )]
    NoDevice,
    /// `/dev/fuse` may not be opened.
    #[error(
        "/dev/fuse cannot be opened: permission denied: chmod 666 /dev/fuse as root, or give the container the device"
    )]
    DeviceDenied,
    /// Neither `mount(2)` nor `fusermount3` may mount.
    #[error("mounting on {} is not permitted: {}", .0.display(), .1)]
    NotPermitted(PathBuf, String),
    /// Too many open files.
    #[error("too many open files (the limit is {0}): raise it by ulimit -n, or use fewer layers")]
    TooManyFiles(u64),
    /// Another error.
    #[error("{}: {}", .0, .1)]
    Io(&'static str, #[source] io::Error),
    /// No mount of this program lies there.
    #[error("{} is not an acetate mount", .0.display())]
    NotMounted(PathBuf),
    /// A mount that goes over to another program finds another directory there.
    #[error("the {} {} is not the one that was mounted: unmount and mount again", .0, .1.display())]
    Replaced(&'static str, PathBuf),
    /// A mount cannot go over to this program.
    #[error(
        "it understands \"{ours}\", and the mount was made by one that says \"{theirs}\": unmount and mount again"
    )]
    OtherForm {
        /// What the other program says.
        theirs: String,
        /// What this one would have said.
        ours: String,
    },
    /// A mount cannot go over to this program, which would have agreed on something else with the kernel.
    #[error("it would have agreed on something else with the kernel: unmount and mount again")]
    OtherAgreement,
    /// A mount did not go over to another program, and is served as before.
    #[error("{}: {}", .0.display(), .1)]
    NotUpgraded(PathBuf, String),
    /// Its daemon is gone.
    #[error("the daemon of {} has died: acetate umount {} takes the mount away", .0.display(), .0.display())]
    Dead(PathBuf),
    /// Somebody uses it.
    #[error("{} is in use: end the programs that use it, or detach it with acetate umount --lazy", .0.display())]
    Busy(PathBuf),
    /// The daemon answered an error to a question about a path.
    #[error("{}: {}", .0.display(), .1)]
    Answer(PathBuf, String),
    /// The mount is gone, and the daemon is not.
    #[error("{} is unmounted, but its daemon {} has not ended yet", .0.display(), .1)]
    Lingers(PathBuf, u32),
    /// The daemon ended before it said anything.
    #[error("the daemon did not get ready: {0}")]
    DaemonEnded(String),
    /// The option contradicts the way the mount was asked for.
    #[error("{0}")]
    Usage(String),
    /// The daemon said why it failed.
    #[error("{text}")]
    Failed {
        /// Its exit code.
        code: u8,
        /// Its error.
        text: String,
    },
}

impl MountError {
    /// The exit code of a command that ends with it: 2 for what was asked wrongly, 1 for what failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            MountError::Option(_) | MountError::NothingToMount | MountError::Usage(_) => 2,
            MountError::Failed { code, .. } => *code,
            _ => 1,
        }
    }
}
