//! The overlay's private xattrs.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::prefix;
use crate::layer::upper::{Mark, Namespace};
use crate::layer::{Marks, Opaque, OverlayHandle};
use crate::sys::xattr::{self, Target};

/// Which namespaces' marks count in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::layer) enum MarkNames {
    /// A lower layer of a mount whose own marks are `user.` ones: all of them.
    All,
    /// A lower layer of a mount whose own marks are `trusted.` ones. Of the `user.` ones, which whoever owns a file may set,
    /// only those count that hide or refuse something: a redirect or a metacopy would show its reader another file of the
    /// stack. The kernel's overlayfs follows neither without `userxattr`.
    Privileged,
    /// The upper: its own, and fuse-overlayfs's. The other one's belong to overlays that are nested in the mount.
    Own(Namespace),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Opaque,
    Redirect,
    Metacopy,
    Origin,
    Nlink,
    Impure,
    Partial,
    Kept,
}

const FUSE_OVERLAYFS_OPAQUE: &[u8] = b"user.fuseoverlayfs.opaque";

impl MarkNames {
    /// For the lower layers of a mount whose own marks are in `namespace`.
    pub(in crate::layer) fn of_lower(namespace: Namespace) -> MarkNames {
        match namespace {
            Namespace::Trusted => MarkNames::Privileged,
            Namespace::User => MarkNames::All,
        }
    }

    fn kind(self, name: &[u8]) -> Option<Kind> {
        if name == FUSE_OVERLAYFS_OPAQUE {
            return Some(Kind::Opaque);
        }
        let of = |namespace| name.strip_prefix(prefix(namespace));
        let rest = match self {
            MarkNames::Own(namespace) => of(namespace),
            MarkNames::All => of(Namespace::Trusted).or_else(|| of(Namespace::User)),
            MarkNames::Privileged => of(Namespace::Trusted).or_else(|| {
                of(Namespace::User).filter(|rest| matches!(*rest, b"opaque" | b"acetate.partial"))
            }),
        }?;
        Some(match rest {
            b"opaque" => Kind::Opaque,
            b"redirect" => Kind::Redirect,
            b"metacopy" => Kind::Metacopy,
            b"origin" => Kind::Origin,
            b"nlink" => Kind::Nlink,
            b"impure" => Kind::Impure,
            b"acetate.partial" => Kind::Partial,
            b"acetate.kept" => Kind::Kept,
            _ => return None,
        })
    }

    /// Whether an xattr-marked empty file is a whiteout.
    pub(in crate::layer) fn is_whiteout(self, target: Target<'_>) -> io::Result<bool> {
        let namespaces: &[Namespace] = match self {
            MarkNames::All | MarkNames::Privileged => &[Namespace::Trusted, Namespace::User],
            MarkNames::Own(Namespace::Trusted) => &[Namespace::Trusted],
            MarkNames::Own(Namespace::User) => &[Namespace::User],
        };
        for namespace in namespaces {
            let name = whiteout_name(*namespace);
            if absent_if_unsupported(xattr::get(target, &name))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether an xattr counts as a mark in the lower layers of a mount whose own marks are in `namespace`, whichever overlay wrote it.
pub fn is_mark_of_lower(namespace: Namespace, name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let own = [Namespace::Trusted, Namespace::User]
        .iter()
        .find_map(|&namespace| bytes.strip_prefix(prefix(namespace)));
    match MarkNames::of_lower(namespace).kind(bytes) {
        Some(Kind::Opaque | Kind::Redirect | Kind::Metacopy | Kind::Partial | Kind::Kept) => true,
        Some(Kind::Origin | Kind::Nlink | Kind::Impure) => false,
        None => own == Some(b"whiteout"),
    }
}

/// The xattr that makes an empty regular file a whiteout.
pub(in crate::layer) fn whiteout_name(namespace: Namespace) -> OsString {
    own_name(namespace, "whiteout")
}

/// A filesystem without xattrs has no marks.
fn absent_if_unsupported<T>(result: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        other => other,
    }
}

/// Reads and decodes the marks of one node.
pub(in crate::layer) fn read_marks(target: Target<'_>, names: MarkNames) -> io::Result<Marks> {
    let mut found: Vec<(Kind, OsString)> = Vec::new();
    let listed = xattr::for_each_name(target, |name| {
        if let Some(kind) = names.kind(name.as_bytes()) {
            found.push((kind, name.to_owned()));
        }
    });
    match listed {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Marks::default()),
        other => other?,
    }
    // The trusted form is the more trustworthy one: it is read last and so counts.
    found.sort_by_key(|(_, name)| name.as_bytes().starts_with(b"trusted."));
    let mut marks = Marks::default();
    for (kind, name) in found {
        let is_lower = !matches!(names, MarkNames::Own(_));
        if is_lower && matches!(kind, Kind::Origin | Kind::Nlink | Kind::Impure | Kind::Kept) {
            // They tell of the layer's time as an upper, under other layers.
            continue;
        }
        if let Some(value) = xattr::get(target, &name)? {
            decode(&mut marks, kind, &name, value)?;
        }
    }
    Ok(marks)
}

/// The mark in one xattr; `None` where its name is none of a mark.
pub(super) fn decode_one(
    names: MarkNames,
    name: &OsStr,
    value: Vec<u8>,
) -> Option<io::Result<Marks>> {
    let kind = names.kind(name.as_bytes())?;
    let mut marks = Marks::default();
    Some(decode(&mut marks, kind, name, value).map(|()| marks))
}

fn decode(marks: &mut Marks, kind: Kind, name: &OsStr, value: Vec<u8>) -> io::Result<()> {
    match kind {
        Kind::Opaque => match value.as_slice() {
            b"y" => marks.opaque = Opaque::Yes,
            b"x" if marks.opaque == Opaque::No => marks.opaque = Opaque::XWhiteouts,
            _ => {}
        },
        Kind::Redirect => marks.redirect = Some(checked_redirect(value)?),
        Kind::Metacopy => {
            // Empty, or version (0), length, flags, digest type and digest.
            let readable = match value.as_slice() {
                [] => true,
                [0, len, _, _, ..] => usize::from(*len) == value.len(),
                _ => false,
            };
            if !readable {
                return Err(corrupt(format!(
                    "{name:?} has a value that is not understood"
                )));
            }
            marks.metacopy = true;
        }
        Kind::Origin if !value.is_empty() => marks.origin = Some(OverlayHandle(value)),
        Kind::Origin => {}
        Kind::Nlink => marks.nlink = String::from_utf8(value).ok(),
        Kind::Impure => marks.impure = value.as_slice() == b"y",
        Kind::Partial => marks.partial = Some(value),
        Kind::Kept => marks.kept = true,
    }
    Ok(())
}

/// A redirect is an absolute path or one name, and never leads upwards.
fn checked_redirect(value: Vec<u8>) -> io::Result<OsString> {
    let parts = value.strip_prefix(b"/").unwrap_or(&value);
    let absolute = parts.len() != value.len();
    let mut components = parts.split(|b| *b == b'/');
    let sound = !value.contains(&0)
        && (absolute || !parts.contains(&b'/'))
        && components.all(|c| !c.is_empty() && c != b"." && c != b"..");
    if sound {
        Ok(OsString::from_vec(value))
    } else {
        Err(corrupt(format!(
            "the redirect {:?} is neither a name nor an absolute path",
            OsStr::from_bytes(&value)
        )))
    }
}

fn corrupt(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn own_name(namespace: Namespace, name: &str) -> OsString {
    OsString::from_vec([prefix(namespace), name.as_bytes()].concat())
}

/// The xattr that a mark is written to.
pub(in crate::layer) fn mark_name(namespace: Namespace, mark: &Mark) -> OsString {
    let name = match mark {
        Mark::Opaque | Mark::XWhiteouts => "opaque",
        Mark::Redirect(_) => "redirect",
        Mark::Metacopy(_) => "metacopy",
        Mark::Origin(_) => "origin",
        Mark::Nlink(_) => "nlink",
        Mark::Impure => "impure",
        Mark::Partial(_) => "acetate.partial",
        Mark::Kept(_) => "acetate.kept",
    };
    own_name(namespace, name)
}

/// The value to write; `None` when the mark is to be taken away.
pub(in crate::layer) fn mark_value(mark: &Mark) -> Option<&[u8]> {
    match mark {
        Mark::Opaque | Mark::Impure => Some(b"y"),
        Mark::XWhiteouts => Some(b"x"),
        Mark::Redirect(path) => path.as_ref().map(|p| p.as_bytes()),
        Mark::Metacopy(set) => set.then_some(b"".as_slice()),
        Mark::Origin(handle) => Some(&handle.0),
        Mark::Nlink(text) => text.as_ref().map(|t| t.as_bytes()),
        Mark::Partial(value) | Mark::Kept(value) => value.as_deref(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects() {
        for good in ["/a", "/a/b", "a", "..a", "/a/.b"] {
            assert!(checked_redirect(good.into()).is_ok(), "{good}");
        }
        for bad in ["", "/", "a/b", "/a/", "//a", "/a/../b", "..", "/.", "a\0"] {
            assert!(checked_redirect(bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn metacopy_values() {
        let decoded = |value: &[u8]| {
            let mut marks = Marks::default();
            decode(&mut marks, Kind::Metacopy, OsStr::new("m"), value.to_vec())
                .map(|()| marks.metacopy)
        };
        assert!(decoded(b"").unwrap());
        assert!(decoded(&[0, 4, 0, 0]).unwrap());
        assert!(decoded(&[1, 4, 0, 0]).is_err());
        assert!(decoded(&[0, 9, 0, 0]).is_err());
    }

    #[test]
    fn only_y_is_opaque() {
        let decoded = |value: &[u8]| {
            let mut marks = Marks::default();
            decode(&mut marks, Kind::Opaque, OsStr::new("o"), value.to_vec()).unwrap();
            marks.opaque
        };
        assert_eq!(decoded(b"y"), Opaque::Yes);
        assert_eq!(decoded(b"x"), Opaque::XWhiteouts);
        assert_eq!(decoded(b"n"), Opaque::No);
        assert_eq!(decoded(b"yes"), Opaque::No);
        assert_eq!(decoded(b""), Opaque::No);
    }
}
