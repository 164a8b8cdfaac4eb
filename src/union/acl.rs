//! POSIX ACLs in the form of their xattrs, as far as creating files needs them: the daemon creates on behalf of programs, so
//! that it applies default ACLs and umask by itself (`acl(5)`, "Object creation and default ACLs").

use std::ffi::OsStr;

pub(crate) use crate::layer::upper::attrs::acl::ACCESS;
use crate::layer::upper::attrs::acl::{ENTRY, GROUP_OBJ, MASK, OTHER, USER_OBJ, VERSION};

/// The xattr of a directory's default ACL.
pub(crate) const DEFAULT: &str = "system.posix_acl_default";

/// True for the two ACL xattrs.
pub(crate) fn is_acl(name: &OsStr) -> bool {
    name == ACCESS || name == DEFAULT
}

/// What a new file gets from its directory's default ACL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Inherited {
    /// Permission bits.
    pub mode: u32,
    /// The access ACL, unless the mode says all of it.
    pub access: Option<Vec<u8>>,
}

/// Applies a directory's default ACL to a new file of this mode; `None` when the ACL is not in the known form.
pub(crate) fn inherit(default: &[u8], mode: u32) -> Option<Inherited> {
    let (version, body) = default.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || !body.len().is_multiple_of(ENTRY) {
        return None;
    }
    let mut access = default.to_vec();
    let mut new_mode = mode & !0o777;
    let has_mask = body
        .chunks_exact(ENTRY)
        .any(|e| u16::from_le_bytes([e[0], e[1]]) == MASK);
    let mut extended = false;
    for entry in access[4..].chunks_exact_mut(ENTRY) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let perm = u16::from_le_bytes([entry[2], entry[3]]);
        // The group bits of the mode limit the mask where there is one, else the owning group.
        let shift = match tag {
            USER_OBJ => Some(6),
            MASK => Some(3),
            GROUP_OBJ if !has_mask => Some(3),
            OTHER => Some(0),
            _ => None,
        };
        extended |= !matches!(tag, USER_OBJ | GROUP_OBJ | OTHER);
        if let Some(shift) = shift {
            let kept = perm & (mode >> shift) as u16 & 7;
            entry[2..4].copy_from_slice(&kept.to_le_bytes());
            new_mode |= u32::from(kept) << shift;
        }
    }
    Some(Inherited {
        mode: new_mode,
        access: extended.then_some(access),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            out.extend(tag.to_le_bytes());
            out.extend(perm.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        out
    }

    #[test]
    fn a_minimal_default_acl_stands_for_the_umask() {
        let d = acl(&[(USER_OBJ, 7, !0), (GROUP_OBJ, 5, !0), (OTHER, 0, !0)]);
        let got = inherit(&d, 0o666).unwrap();
        assert_eq!(got.mode, 0o640);
        assert_eq!(got.access, None);
    }

    #[test]
    fn the_mask_takes_the_group_bits() {
        let d = acl(&[
            (USER_OBJ, 7, !0),
            (0x02, 7, 1000),
            (GROUP_OBJ, 5, !0),
            (MASK, 7, !0),
            (OTHER, 4, !0),
        ]);
        let got = inherit(&d, 0o4640).unwrap();
        assert_eq!(got.mode, 0o4640);
        let access = got.access.unwrap();
        // The named user and the group keep what they have; the mask limits them.
        assert_eq!(access[4 + 8 + 2], 7);
        assert_eq!(access[4 + 24 + 2], 4);
    }

    #[test]
    fn an_unknown_form_is_left_alone() {
        assert_eq!(inherit(&[1, 0, 0, 0], 0o644), None);
        assert_eq!(inherit(&[2, 0, 0, 0, 1], 0o644), None);
    }
}
