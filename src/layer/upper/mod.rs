//! The writable upper layer: the only way anything in it changes.
//!
//! Every mutation that a crash could leave half-done is built in the workdir and published by one rename or link.

use std::ffi::OsStr;

/// Which xattr namespace the overlay's private marks are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.overlay.`: needs CAP_SYS_ADMIN in the initial user namespace.
    Trusted,
    /// `user.overlay.`, as the kernel's `userxattr`.
    User,
}

/// How an [`Upper`] is opened.
#[derive(Clone, Debug)]
pub struct UpperOptions {
    /// Where private marks are written.
    pub namespace: Namespace,
    /// Never sync: after a crash the upper is to be thrown away.
    pub volatile: bool,
    /// `xattr_permissions=1|2`: owner and mode are kept in `override_stat` xattrs.
    pub override_stat: super::format::OverrideStat,
}

/// What is to be staged in the workdir.
#[derive(Clone, Copy, Debug)]
pub enum Stage<'a> {
    /// An empty regular file, open for reading and writing.
    File,
    /// An empty directory.
    Dir,
    /// A symlink to this target.
    Symlink(&'a OsStr),
    /// A special file: type bits (`S_IFIFO`, `S_IFSOCK`, `S_IFCHR`, `S_IFBLK`) and device number.
    Special(u32, u64),
}

/// What a publication finds at the name in the upper directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// No entry; `EEXIST` when there is one after all.
    Nothing,
    /// A whiteout, which goes away in the same step as the new entry appears.
    Whiteout,
    /// A file, which is replaced atomically.
    File,
    /// A directory that is empty but for whiteouts, which is replaced atomically.
    EmptyDir,
}

/// A new inode in the workdir that no one sees yet. Dropped without [`Upper::publish`] it is removed again.
#[derive(Debug)]
pub struct Staged {
    _private: (),
}

/// The writable upper layer and its workdir.
#[derive(Debug)]
pub struct Upper {
    _private: (),
}
