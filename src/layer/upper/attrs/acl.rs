//! POSIX ACLs in the form of their xattrs, as far as they are one with the mode. A filesystem sees to that by itself, but not where
//! the mode is kept in an xattr.

/// The xattr of an access ACL.
pub(crate) const ACCESS: &str = "system.posix_acl_access";

/// The only version, with which an ACL begins: little-endian as all of it.
pub(crate) const VERSION: u32 = 2;
/// The owner's entry.
pub(crate) const USER_OBJ: u16 = 0x01;
/// The owning group's entry.
pub(crate) const GROUP_OBJ: u16 = 0x04;
/// What limits all entries but the owner's and the others'.
pub(crate) const MASK: u16 = 0x10;
/// The entry of all others.
pub(crate) const OTHER: u16 = 0x20;
/// Bytes of an entry: tag (2), permissions (2) and id (4).
pub(crate) const ENTRY: usize = 8;

/// Where the mode has the permissions of an entry: how far they are shifted there. `has_mask`: the ACL has a mask, which the group
/// bits are then.
fn shift(tag: u16, has_mask: bool) -> Option<u32> {
    match tag {
        USER_OBJ => Some(6),
        MASK => Some(3),
        GROUP_OBJ if !has_mask => Some(3),
        OTHER => Some(0),
        _ => None,
    }
}

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

/// Goes through the entries that the mode has too, with how far they are shifted there. `None`: the ACL is not in the known form.
fn for_each(acl: &mut [u8], mut see: impl FnMut(&mut [u8], u32)) -> Option<()> {
    let (version, entries) = acl.split_first_chunk_mut::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || !entries.len().is_multiple_of(ENTRY) {
        return None;
    }
    let has_mask = entries.chunks_exact(ENTRY).any(|entry| tag(entry) == MASK);
    for entry in entries.chunks_exact_mut(ENTRY) {
        if let Some(shift) = shift(tag(entry), has_mask) {
            see(&mut entry[2..4], shift);
        }
    }
    Some(())
}

/// The permission bits, without suid, sgid and sticky, that an access ACL stands for (`posix_acl_equiv_mode` in the kernel);
/// `None` when it is not in the known form.
pub(super) fn mode_of(acl: &[u8]) -> Option<u32> {
    let mut mode = 0;
    for_each(&mut acl.to_vec(), |permissions, shift| {
        mode |= u32::from(permissions[0] & 7) << shift;
    })?;
    Some(mode)
}

/// The access ACL that a file has when its mode is changed (`posix_acl_chmod` in the kernel); `None` when it is not in the known
/// form.
pub(super) fn with_mode(acl: &[u8], mode: u32) -> Option<Vec<u8>> {
    let mut changed = acl.to_vec();
    for_each(&mut changed, |permissions, shift| {
        permissions.copy_from_slice(&((mode >> shift) as u16 & 7).to_le_bytes());
    })?;
    Some(changed)
}

#[cfg(test)]
mod unit {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            out.extend(tag.to_le_bytes());
            out.extend(permissions.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        out
    }

    #[test]
    fn the_mask_is_what_the_mode_has_for_the_group() {
        let with = |owner, group, mask, other| {
            acl(&[
                (USER_OBJ, owner, !0),
                (0x02, 7, 1000),
                (GROUP_OBJ, group, !0),
                (MASK, mask, !0),
                (OTHER, other, !0),
            ])
        };
        assert_eq!(mode_of(&with(6, 5, 4, 1)), Some(0o641));
        assert_eq!(with_mode(&with(6, 5, 4, 1), 0o6720), Some(with(7, 5, 2, 0)));
    }

    #[test]
    fn without_a_mask_it_is_the_groups_own() {
        let with = |owner, group, other| {
            acl(&[
                (USER_OBJ, owner, !0),
                (GROUP_OBJ, group, !0),
                (OTHER, other, !0),
            ])
        };
        assert_eq!(mode_of(&with(7, 5, 4)), Some(0o754));
        assert_eq!(with_mode(&with(7, 5, 4), 0o620), Some(with(6, 2, 0)));
    }

    #[test]
    fn an_unknown_form_says_nothing() {
        for bad in [&b""[..], &[1, 0, 0, 0], &[2, 0, 0, 0, 1]] {
            assert_eq!((mode_of(bad), with_mode(bad, 0)), (None, None));
        }
    }
}
