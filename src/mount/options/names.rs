//! The names that options have, here and elsewhere.

use super::super::error::OptionError;
use crate::sys::mount::{MountFlags, NOSYMFOLLOW};

/// What a word of `/etc/fstab` and `mount(8)` does to the flags of `mount(2)`.
pub(super) enum Flag {
    Set(MountFlags),
    Clear(MountFlags),
    Nothing,
}

pub(super) fn flag(name: &str) -> Option<Flag> {
    use Flag::{Clear, Nothing, Set};
    Some(match name {
        "ro" => Set(MountFlags::RDONLY),
        "rw" => Clear(MountFlags::RDONLY),
        "nosuid" => Set(MountFlags::NOSUID),
        "suid" => Clear(MountFlags::NOSUID),
        "nodev" => Set(MountFlags::NODEV),
        "dev" => Clear(MountFlags::NODEV),
        "noexec" => Set(MountFlags::NOEXEC),
        "exec" => Clear(MountFlags::NOEXEC),
        "sync" => Set(MountFlags::SYNCHRONOUS),
        "async" => Clear(MountFlags::SYNCHRONOUS),
        "dirsync" => Set(MountFlags::DIRSYNC),
        "noatime" => Set(MountFlags::NOATIME),
        "atime" => Clear(MountFlags::NOATIME),
        "nodiratime" => Set(MountFlags::NODIRATIME),
        "diratime" => Clear(MountFlags::NODIRATIME),
        "relatime" => Set(MountFlags::RELATIME),
        "norelatime" => Clear(MountFlags::RELATIME),
        "strictatime" => Set(MountFlags::STRICTATIME),
        "nostrictatime" => Clear(MountFlags::STRICTATIME),
        "lazytime" => Set(MountFlags::LAZYTIME),
        "nolazytime" => Clear(MountFlags::LAZYTIME),
        "nosymfollow" => Set(NOSYMFOLLOW),
        "symfollow" => Clear(NOSYMFOLLOW),
        // Words for mount(8) itself, and those that FUSE has always been doing.
        "defaults"
        | "auto"
        | "noauto"
        | "nofail"
        | "user"
        | "nouser"
        | "users"
        | "owner"
        | "group"
        | "_netdev"
        | "silent"
        | "loud"
        | "iversion"
        | "noiversion"
        | "nomand"
        | "default_permissions"
        | "big_writes"
        | "async_read"
        | "atomic_o_trunc"
        | "nonempty"
        | "use_ino"
        | "readdir_ino"
        | "intr"
        | "clone_fd"
        | "fast_ino_check"
        | "override_creds"
        | "no_auto_unmount" => Nothing,
        _ => return None,
    })
}

/// Options with a value that change nothing here: what they tune is chosen otherwise.
pub(super) const WITHOUT_EFFECT: &[&str] = &[
    "subtype",
    // As /proc/mounts shows them, from where mount(8) takes them to remount.
    "user_id",
    "group_id",
    "rootmode",
    "blkdev",
    "threaded",
    "fast_ino",
    "fast_ino_check",
    "max_read",
    "max_write",
    "max_readahead",
    "max_background",
    "max_threads",
    "max_idle_threads",
    "congestion_threshold",
    "comment",
    "helper",
    "uhelper",
    "user",
];

/// Options of which two values cannot both be meant.
pub(super) const NAMED_ONCE: &[&str] = &[
    "lowerdir",
    "upperdir",
    "workdir",
    "redirect_dir",
    "metacopy",
    "index",
    "xino",
    "uuid",
    "xattr_permissions",
    "fsync",
    "writeback",
    "passthrough",
    "supervise",
    "passthrough_lower",
    "partial",
    "complete",
    "timeout",
    "attr_timeout",
    "entry_timeout",
    "negative_timeout",
    "uidmapping",
    "gidmapping",
    "squash_to_uid",
    "squash_to_gid",
    "noxattrs",
    "layer_index",
    "sandbox",
    "busy_poll",
];

/// Options that are known elsewhere, and why they are not here.
const NOT_SUPPORTED: &[(&str, &str)] = &[
    ("plugins", "layers are directories here"),
    (
        "nooverride_creds",
        "layers are reached with the daemon's rights",
    ),
    (
        "auto_unmount",
        "use acetate umount, which also takes away the mount of a dead daemon",
    ),
];

pub(super) fn unknown(name: &str) -> OptionError {
    match NOT_SUPPORTED.iter().find(|(known, _)| *known == name) {
        Some((_, why)) => not_supported(name, why),
        None => OptionError::Unknown(name.to_owned()),
    }
}

pub(super) fn not_supported(name: &str, why: &'static str) -> OptionError {
    OptionError::NotSupported(name.to_owned(), why)
}
