//! POSIX ACLs in a tar: as an extended attribute, which docker, podman and umoci read, and as text in the records
//! `SCHILY.acl.access` and `SCHILY.acl.default`, which star, GNU tar and bsdtar read and write.

use std::fmt::Write as _;

/// The version that the kernel's form begins with.
const VERSION: u32 = 2;
/// The id of an entry that has none.
const NO_ID: u32 = u32::MAX;

/// The attributes that hold an ACL, and the records that hold the same as text.
pub(crate) const FORMS: [(&[u8], &[u8]); 2] = [
    (b"system.posix_acl_access", b"SCHILY.acl.access"),
    (b"system.posix_acl_default", b"SCHILY.acl.default"),
];

/// The kernel's tags, in the order in which it wants the entries, and how the text calls them.
const TAGS: [(u16, &str, bool); 6] = [
    (0x01, "user", false),
    (0x02, "user", true),
    (0x04, "group", false),
    (0x08, "group", true),
    (0x10, "mask", false),
    (0x20, "other", false),
];

/// The text of an ACL, with ids for users and groups: whoever reads it has other names. `None` for what is no ACL.
pub(crate) fn to_text(value: &[u8]) -> Option<String> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || entries.is_empty() || entries.len() % 8 != 0 {
        return None;
    }
    let mut text = String::new();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let bits = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let (_, name, has_id) = TAGS.iter().find(|known| known.0 == tag)?;
        if bits > 7 {
            return None;
        }
        if !text.is_empty() {
            text.push(',');
        }
        let id = if *has_id {
            id.to_string()
        } else {
            String::new()
        };
        let bit = |mask, letter| if bits & mask == 0 { '-' } else { letter };
        write!(
            text,
            "{name}:{id}:{}{}{}",
            bit(4, 'r'),
            bit(2, 'w'),
            bit(1, 'x')
        )
        .ok()?;
    }
    Some(text)
}

/// Reads the text of an ACL: entries between commas or lines, `TAG:WHO:PERMISSIONS[:ID]` each, tags also by their first
/// letter. `None` for what is no ACL, and where it names a user or group without an id: whom the archive's
/// writer called so, nobody here knows.
pub(crate) fn from_text(text: &str) -> Option<Vec<u8>> {
    let mut entries: Vec<(u16, u16, u32)> = Vec::new();
    for entry in text.split([',', '\n']).map(str::trim) {
        // Comments tell what remains of an entry below its mask.
        let entry = entry.split('#').next().unwrap_or_default().trim_end();
        if entry.is_empty() {
            continue;
        }
        let parts: Vec<&str> = entry.split(':').collect();
        let (name, who, letters, id) = match parts[..] {
            // Mask and other may come without the empty field.
            [name @ ("mask" | "m" | "other" | "o"), letters] => (name, "", letters, None),
            [name, who, letters] => (name, who, letters, None),
            [name, who, letters, id] => (name, who, letters, Some(id)),
            _ => return None,
        };
        let (tag, _, has_id) = TAGS.iter().find(|(_, full, has_id)| {
            (name == *full || name == &full[..1]) && *has_id != who.is_empty()
        })?;
        let id = match (has_id, id.unwrap_or(who).parse()) {
            (false, _) => NO_ID,
            (true, Ok(NO_ID) | Err(_)) => return None,
            (true, Ok(id)) => id,
        };
        entries.push((*tag, permissions(letters)?, id));
    }
    if entries.is_empty() {
        return None;
    }
    entries.sort_unstable_by_key(|&(tag, _, id)| (tag, id));
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&bits.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Some(value)
}

fn permissions(letters: &str) -> Option<u16> {
    letters.bytes().try_fold(0, |bits, letter| {
        Some(match letter {
            b'r' => bits | 4,
            b'w' => bits | 2,
            b'x' => bits | 1,
            b'-' => bits,
            _ => return None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "user::rw-,user:7:r-x,user:70000:---,group::r--,group:5:-w-,mask::rwx,other::--x";

    #[test]
    fn text_and_attribute_are_the_same() {
        let value = from_text(TEXT).unwrap();
        assert_eq!(value.len(), 4 + 7 * 8);
        assert_eq!(value[..12], [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(to_text(&value).unwrap(), TEXT);
    }

    #[test]
    fn every_writers_form_is_read() {
        let value = from_text(TEXT).unwrap();
        // GNU tar, star, and the order in which somebody wrote them.
        for same in [
            "user::rw-\nuser:7:r-x\nuser:70000:---\ngroup::r--\ngroup:5:-w-\nmask::rwx\nother::--x\n",
            "u::rw,user:ann:r-x:7,user:bob::70000,g::r,group:x:w:5,mask:rwx,o:x",
            "other::--x,group:5:-w-,user:70000:---,user:7:r-x\t#effective:r-x,group::r--,user::rw-,mask::rwx",
        ] {
            assert_eq!(from_text(same).unwrap(), value, "{same}");
        }
        assert_eq!(
            from_text("user::rw-,user:ann:r--,group::r--,mask::r--,other::r--"),
            None
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "user",
            "user::rwq",
            "people::rwx",
            "user:7:r--:x",
            "mask:7:r--",
            "other:1:r",
            "a:b:c:d:e",
        ] {
            assert_eq!(from_text(text), None, "{text}");
        }
        for value in [
            &b""[..],
            b"\x02\0\0\0",
            b"\x01\0\0\0\x01\0\x06\0\xff\xff\xff\xff",
            b"\x02\0\0\0\x01\0\x06\0\xff",
        ] {
            assert_eq!(to_text(value), None);
        }
    }
}
