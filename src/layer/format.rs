//! The on-disk forms of whiteouts, opaque directories and the overlay's private xattrs.
//!
//! The kernel's forms are those of its overlayfs documentation; `.wh.` names are those of AUFS and of image layers;
//! `override_stat` is that of fuse-overlayfs and containers/storage.

mod block_map;
mod handle;
mod marks;
mod override_stat;
mod owned;
mod partial;
pub mod probe;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::upper::Namespace;

pub use block_map::BlockMap;
pub(super) use handle::{decode_handle, encode_handle, ino_in_handle};
pub use marks::is_mark_of_lower;
pub(super) use marks::{MarkNames, mark_name, mark_value, read_marks, whiteout_name};
pub use override_stat::OverrideStat;
pub(super) use override_stat::{OverrideValue, OverrideXattr};
pub use owned::{IdMap, Unmapped, holds_ids, ids_shown, ids_written};
pub use partial::{PartialError, PartialRecord};

/// Prefix of a whiteout that is an entry beside what it hides.
pub(super) const DOT_WHITEOUT: &[u8] = b".wh.";
/// The entry that makes its directory opaque.
pub(super) const DOT_OPAQUE: &str = ".wh..wh..opq";
/// Prefix of AUFS's own entries, which are no part of the tree.
const DOT_PRIVATE: &[u8] = b".wh..wh.";

/// What a directory entry's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameKind<'a> {
    /// It is an ordinary name.
    Plain,
    /// It hides this name in the layers below.
    Whiteout(&'a OsStr),
    /// It is `.wh..wh..opq`.
    Opaque,
    /// It is private to AUFS.
    Private,
}

/// Classifies the name of a directory entry.
pub(super) fn name_kind(name: &OsStr) -> NameKind<'_> {
    let bytes = name.as_bytes();
    match bytes.strip_prefix(DOT_WHITEOUT) {
        None | Some(b"") => NameKind::Plain,
        Some(_) if bytes == DOT_OPAQUE.as_bytes() => NameKind::Opaque,
        Some(_) if bytes.starts_with(DOT_PRIVATE) => NameKind::Private,
        Some(hidden) => NameKind::Whiteout(OsStr::from_bytes(hidden)),
    }
}

/// The `.wh.` entry that hides `name`; `None` where it would be too long for an entry.
pub(super) fn dot_whiteout_name(name: &OsStr) -> Option<OsString> {
    let mut bytes = DOT_WHITEOUT.to_vec();
    bytes.extend_from_slice(name.as_bytes());
    (bytes.len() <= 255).then(|| OsString::from_vec(bytes))
}

/// A name that programs may not create: it would be read back as a whiteout or an opaque marker.
pub fn is_reserved_name(name: &OsStr) -> bool {
    name_kind(name) != NameKind::Plain
}

/// Whether an inode of this type and device number is a whiteout in the kernel's form.
pub(super) fn is_whiteout_device(mode: u32, rdev: u64) -> bool {
    mode & libc::S_IFMT == libc::S_IFCHR && rdev == 0
}

/// The prefix of the marks of a namespace.
fn prefix(namespace: Namespace) -> &'static [u8] {
    match namespace {
        Namespace::Trusted => b"trusted.overlay.",
        Namespace::User => b"user.overlay.",
    }
}

/// What follows the prefix in the escaped name of a nested overlay's xattr.
const ESCAPE: &[u8] = b"overlay.";

/// Other private names, in every namespace: they are fuse-overlayfs's and containers/storage's.
fn is_foreign_private(name: &[u8]) -> bool {
    name.starts_with(b"user.fuseoverlayfs.") || OverrideXattr::is_name(name)
}

/// Whether an xattr on disk is the overlay's own: neither shown to programs nor copied up.
pub fn is_private(name: &OsStr, namespace: Namespace) -> bool {
    let name = name.as_bytes();
    match name.strip_prefix(prefix(namespace)) {
        Some(rest) => !rest.starts_with(ESCAPE),
        None => is_foreign_private(name),
    }
}

/// The name under which a program's xattr is kept on disk: the overlay's own prefix is escaped, so that another
/// overlay can keep its marks inside the mount. `None`: programs may not have an xattr of this name.
pub fn to_disk(namespace: Namespace, name: &OsStr) -> Option<Cow<'_, OsStr>> {
    let bytes = name.as_bytes();
    match bytes.strip_prefix(prefix(namespace)) {
        Some(rest) => {
            let escaped = [prefix(namespace), ESCAPE, rest].concat();
            (escaped.len() <= 255).then(|| Cow::Owned(OsString::from_vec(escaped)))
        }
        None if is_foreign_private(bytes) => None,
        None => Some(Cow::Borrowed(name)),
    }
}

/// The name that programs see for an xattr on disk; `None` when it is private and so hidden.
pub fn from_disk(namespace: Namespace, name: &OsStr) -> Option<Cow<'_, OsStr>> {
    let bytes = name.as_bytes();
    match bytes.strip_prefix(prefix(namespace)) {
        Some(rest) => {
            let rest = rest.strip_prefix(ESCAPE)?;
            Some(Cow::Owned(OsString::from_vec(
                [prefix(namespace), rest].concat(),
            )))
        }
        None if is_foreign_private(bytes) => None,
        None => Some(Cow::Borrowed(name)),
    }
}

/// The name under which a layer of the store keeps an xattr of the image. It is escaped whichever the namespace, as the marks of
/// both count in such a layer. `None`: it is not kept.
pub fn to_store(name: &OsStr) -> Option<OsString> {
    let once = to_disk(Namespace::Trusted, name)?;
    Some(to_disk(Namespace::User, &once)?.into_owned())
}

/// The name of an xattr of the image, from that in a layer of the store; `None` where it is a mark.
pub fn from_store(name: &OsStr) -> Option<OsString> {
    let once = from_disk(Namespace::Trusted, name)?;
    Some(from_disk(Namespace::User, &once)?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let kind = |n: &'static str| name_kind(OsStr::new(n));
        assert_eq!(kind("a"), NameKind::Plain);
        assert_eq!(kind(".wh."), NameKind::Plain);
        assert_eq!(kind(".wha"), NameKind::Plain);
        assert_eq!(kind(".wh.a"), NameKind::Whiteout(OsStr::new("a")));
        assert_eq!(kind(".wh..a"), NameKind::Whiteout(OsStr::new(".a")));
        assert_eq!(kind(".wh..wh..opq"), NameKind::Opaque);
        assert_eq!(kind(".wh..wh.plnk"), NameKind::Private);
    }

    #[test]
    fn escaping_goes_both_ways() {
        for namespace in [Namespace::Trusted, Namespace::User] {
            for name in [
                "trusted.overlay.opaque",
                "user.overlay.opaque",
                "trusted.overlay.overlay.opaque",
                "user.overlay.overlay.x",
                "user.a",
                "security.capability",
            ] {
                let disk = to_disk(namespace, OsStr::new(name)).unwrap();
                assert!(!is_private(&disk, namespace), "{name}");
                assert_eq!(from_disk(namespace, &disk).unwrap(), OsStr::new(name));
                let stored = to_store(OsStr::new(name)).unwrap();
                assert!(!is_private(&stored, namespace), "{name}");
                assert_eq!(from_store(&stored).unwrap(), OsStr::new(name));
            }
            let mark = [prefix(namespace), b"opaque"].concat();
            assert_eq!(from_store(OsStr::from_bytes(&mark)), None);
        }
        let disk = to_disk(Namespace::Trusted, OsStr::new("trusted.overlay.opaque")).unwrap();
        assert_eq!(disk, OsStr::new("trusted.overlay.overlay.opaque"));
        assert!(is_private(
            OsStr::new("trusted.overlay.opaque"),
            Namespace::Trusted
        ));
        assert!(!is_private(
            OsStr::new("user.overlay.opaque"),
            Namespace::Trusted
        ));
        assert!(is_private(
            OsStr::new("user.overlay.opaque"),
            Namespace::User
        ));
        assert!(is_private(
            OsStr::new("user.fuseoverlayfs.origin"),
            Namespace::Trusted
        ));
        assert_eq!(
            to_disk(Namespace::User, OsStr::new("user.containers.override_stat")),
            None
        );
    }
}
