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
