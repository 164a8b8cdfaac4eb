//! Ids in the values of xattrs: those of users and groups that an ACL names, and of the user whose namespaces a file's
//! capabilities are for. Where owners are mapped, so are these, as by the kernel's id-mapped mounts.

use std::ffi::OsStr;

/// The xattrs of ACLs.
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
const ACL_VERSION: u32 = 2;
const ACL_ENTRY: usize = 8;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// The xattr of a file's capabilities.
const CAPABILITY: &str = "security.capability";
const REVISION: u32 = 0xff00_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
/// Length without a user, which is then the administrator of the machine.
const WITHOUT_ROOT: usize = 20;

/// Where ids are mapped to.
pub struct IdMap<'a> {
    /// Maps a user; `None` where the map has no such user.
    pub user: &'a dyn Fn(u32) -> Option<u32>,
    /// The same for a group.
    pub group: &'a dyn Fn(u32) -> Option<u32>,
}

/// A value that names somebody whom the map does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped;

/// Whether values of this xattr hold ids.
pub fn holds_ids(name: &OsStr) -> bool {
    name == CAPABILITY || ACLS.iter().any(|acl| name == *acl)
}

/// The value as it is shown, from that on disk; `None`: no such attribute is shown. Entries of an ACL for somebody who is not
/// mapped, and whom no process can be, are left out. So are capabilities for such a one's namespaces.
pub fn ids_shown(name: &OsStr, value: Vec<u8>, map: &IdMap<'_>) -> Option<Vec<u8>> {
    if name == CAPABILITY {
        return capability(&value, map.user).ok();
    }
    let Some(body) = acl_body(&value) else {
        return Some(value);
    };
    let mut shown = value[..4].to_vec();
    for entry in body.chunks_exact(ACL_ENTRY) {
        if let Ok(entry) = acl_entry(entry, map) {
            shown.extend(entry);
        }
    }
    Some(shown)
}

/// The value to write, from that which a program gives.
pub fn ids_written(name: &OsStr, value: &[u8], map: &IdMap<'_>) -> Result<Vec<u8>, Unmapped> {
    if name == CAPABILITY {
        return match capability(value, map.user) {
            // What the machine's administrator sets who is outside of the map, as engines do before a container starts.
            Err(Unmapped) if root_of(value) == Some(0) => Ok(value.to_vec()),
            mapped => mapped,
        };
    }
    let Some(body) = acl_body(value) else {
        return Ok(value.to_vec());
    };
    let mut written = value[..4].to_vec();
    for entry in body.chunks_exact(ACL_ENTRY) {
        written.extend(acl_entry(entry, map)?);
    }
    Ok(written)
}

/// The entries of an ACL; none where it is in no known form.
fn acl_body(value: &[u8]) -> Option<&[u8]> {
    let (version, body) = value.split_first_chunk::<4>()?;
    let known = u32::from_le_bytes(*version) == ACL_VERSION && body.len().is_multiple_of(ACL_ENTRY);
    known.then_some(body)
}

fn acl_entry(entry: &[u8], map: &IdMap<'_>) -> Result<Vec<u8>, Unmapped> {
    let mut entry = entry.to_vec();
    let map = match u16::from_le_bytes([entry[0], entry[1]]) {
        ACL_USER => map.user,
        ACL_GROUP => map.group,
        _ => return Ok(entry),
    };
    let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
    entry[4..].copy_from_slice(&map(id).ok_or(Unmapped)?.to_le_bytes());
    Ok(entry)
}

/// The user for whose namespaces capabilities are; `None` where they are in no known form.
fn root_of(value: &[u8]) -> Option<u32> {
    let (magic, _) = value.split_first_chunk::<4>()?;
    match (u32::from_le_bytes(*magic) & REVISION, value.len()) {
        (REVISION_2, WITHOUT_ROOT) => Some(0),
        (REVISION_3, 24) => {
            let (_, root) = value.split_last_chunk::<4>()?;
            Some(u32::from_le_bytes(*root))
        }
        _ => None,
    }
}

fn capability(value: &[u8], user: &dyn Fn(u32) -> Option<u32>) -> Result<Vec<u8>, Unmapped> {
    let Some(root) = root_of(value) else {
        return Ok(value.to_vec());
    };
    let root = user(root).ok_or(Unmapped)?;
    let mut mapped = value[..WITHOUT_ROOT].to_vec();
    let revision = if root == 0 { REVISION_2 } else { REVISION_3 };
    let flags = u32::from_le_bytes([value[0], value[1], value[2], value[3]]) & !REVISION;
    mapped[..4].copy_from_slice(&(revision | flags).to_le_bytes());
    if root != 0 {
        mapped.extend(root.to_le_bytes());
    }
    Ok(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shift(id: u32) -> Option<u32> {
        (id < 1000).then(|| id + 100_000)
    }

    fn back(id: u32) -> Option<u32> {
        id.checked_sub(100_000).filter(|id| *id < 1000)
    }

    const INSIDE: IdMap<'_> = IdMap {
        user: &shift,
        group: &shift,
    };
    const OUTSIDE: IdMap<'_> = IdMap {
        user: &back,
        group: &back,
    };

    fn acl(entries: &[(u16, u32)]) -> Vec<u8> {
        let mut value = ACL_VERSION.to_le_bytes().to_vec();
        for (tag, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(7u16.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn users_and_groups_of_an_acl_are_mapped() {
        let name = OsStr::new(ACLS[1]);
        let disk = acl(&[
            (1, !0),
            (2, 5),
            (2, 5000),
            (4, !0),
            (8, 6),
            (16, !0),
            (32, !0),
        ]);
        let shown = ids_shown(name, disk, &INSIDE).unwrap();
        let expected = [
            (1, !0),
            (2, 100_005),
            (4, !0),
            (8, 100_006),
            (16, !0),
            (32, !0),
        ];
        assert_eq!(shown, acl(&expected));
        let again = ids_written(name, &shown, &OUTSIDE).unwrap();
        assert_eq!(ids_shown(name, again, &INSIDE).unwrap(), shown);
        let stranger = acl(&[(1, !0), (2, 7), (4, !0), (16, !0), (32, !0)]);
        assert_eq!(ids_written(name, &stranger, &OUTSIDE), Err(Unmapped));
        // In no known form.
        for value in [&b""[..], b"\x02\0\0", b"\x01\0\0\0", b"\x02\0\0\0\x02"] {
            assert_eq!(ids_shown(name, value.to_vec(), &INSIDE).unwrap(), value);
            assert_eq!(ids_written(name, value, &OUTSIDE).unwrap(), value);
        }
    }

    #[test]
    fn capabilities_are_for_the_namespaces_of_who_is_mapped() {
        let name = OsStr::new(CAPABILITY);
        let of = |root: Option<u32>| {
            let revision = if root.is_some() {
                REVISION_3
            } else {
                REVISION_2
            };
            let mut value = (revision | 1).to_le_bytes().to_vec();
            value.extend([7; 16]);
            value.extend(root.map(u32::to_le_bytes).into_iter().flatten());
            value
        };
        let shown = |value| ids_shown(name, value, &INSIDE);
        assert_eq!(shown(of(None)), Some(of(Some(100_000))));
        assert_eq!(shown(of(Some(3))), Some(of(Some(100_003))));
        assert_eq!(shown(of(Some(5000))), None);
        let written = |value: Vec<u8>| ids_written(name, &value, &OUTSIDE);
        assert_eq!(written(of(Some(100_000))), Ok(of(None)));
        assert_eq!(written(of(Some(100_003))), Ok(of(Some(3))));
        assert_eq!(written(of(Some(5))), Err(Unmapped));
        // By the machine's administrator.
        assert_eq!(written(of(None)), Ok(of(None)));
        assert_eq!(shown(vec![1, 2]), Some(vec![1, 2]));
    }

    #[test]
    fn others_hold_none() {
        assert!(holds_ids(OsStr::new("system.posix_acl_access")));
        assert!(!holds_ids(OsStr::new("user.note")));
    }
}
