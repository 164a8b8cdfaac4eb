//! PAX records: what tar-core skips or does not know, read strictly.

use super::acl;
use super::tarball::Entry;
use crate::layer::Timestamp;

/// Reads the records that the parser skips when they are wrong or beyond it.
pub(crate) fn apply_pax(mut pax: &[u8], entry: &mut Entry) -> Result<(), String> {
    while !pax.is_empty() {
        let (record, rest) = pax_record(pax).ok_or("a malformed PAX record")?;
        pax = rest;
        let (key, value) = record;
        if value.is_empty() {
            continue;
        }
        let text = || std::str::from_utf8(value).map_err(|_| "a PAX number that is no text");
        match key {
            b"mtime" => entry.mtime = pax_time(text()?)?,
            b"atime" => entry.atime = Some(pax_time(text()?)?),
            b"uid" | b"gid" | b"size" => {
                text()?
                    .parse::<u64>()
                    .map_err(|e| format!("PAX {}: {e}", String::from_utf8_lossy(key)))?;
            }
            _ => {
                if let Some((name, _)) = acl::FORMS.iter().find(|(_, text)| *text == key) {
                    apply_acl(name, value, entry);
                }
            }
        }
    }
    Ok(())
}

/// Takes an ACL in its text form, unless the entry has it as an attribute too, which is the exact one.
fn apply_acl(name: &'static [u8], text: &[u8], entry: &mut Entry) {
    if entry.xattrs.iter().any(|(have, _)| have == name) {
        return;
    }
    match std::str::from_utf8(text).ok().and_then(acl::from_text) {
        Some(value) => entry.xattrs.push((name.to_vec(), value)),
        None => entry.unread_xattrs.push(name),
    }
}

/// The name of an attribute as a PAX key, which holds no `=`: in GNU tar's escapes, where it needs them. Elsewhere a `%`
/// stays, for readers who know no escapes.
pub(crate) fn encode_key(name: &[u8]) -> Vec<u8> {
    if !name.contains(&b'=') && decode_key(name) == name {
        return name.to_vec();
    }
    let mut key = Vec::with_capacity(name.len() + 2);
    for &byte in name {
        match byte {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            _ => key.push(byte),
        }
    }
    key
}

/// The reverse of [`encode_key`].
pub(crate) fn decode_key(mut key: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(key.len());
    while let Some((&byte, rest)) = key.split_first() {
        let (decoded, rest) = match (byte, rest) {
            (b'%', [b'3', b'D', rest @ ..]) => (b'=', rest),
            (b'%', [b'2', b'5', rest @ ..]) => (b'%', rest),
            _ => (byte, rest),
        };
        name.push(decoded);
        key = rest;
    }
    name
}

/// A key, its value, and the records behind.
type PaxRecord<'a> = ((&'a [u8], &'a [u8]), &'a [u8]);

/// Splits the first record off: `LENGTH KEY=VALUE\n`, where the length counts the whole record.
fn pax_record(pax: &[u8]) -> Option<PaxRecord<'_>> {
    let space = pax.iter().position(|&b| b == b' ')?;
    let length: usize = std::str::from_utf8(&pax[..space]).ok()?.parse().ok()?;
    if length <= space + 1 || length > pax.len() || pax[length - 1] != b'\n' {
        return None;
    }
    let body = &pax[space + 1..length - 1];
    let equals = body.iter().position(|&b| b == b'=')?;
    Some(((&body[..equals], &body[equals + 1..]), &pax[length..]))
}

/// `-?SECONDS(.FRACTION)?`, rounded down to nanoseconds.
fn pax_time(text: &str) -> Result<Timestamp, String> {
    let wrong = || format!("time {text:?}");
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.starts_with(['+', '-']) || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let sec: i64 = whole.parse().map_err(|_| wrong())?;
    let mut nsec = 0u32;
    for place in 0..9 {
        let digit = fraction.as_bytes().get(place).map_or(0, |b| b - b'0');
        nsec = nsec * 10 + u32::from(digit);
    }
    Ok(match (negative, nsec) {
        (false, _) => Timestamp { sec, nsec },
        (true, 0) => Timestamp { sec: -sec, nsec },
        (true, _) => Timestamp {
            sec: -sec - 1,
            nsec: 1_000_000_000 - nsec,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_round_down() {
        let time = |text| pax_time(text).map(|t| (t.sec, t.nsec));
        assert_eq!(time("12.5"), Ok((12, 500_000_000)));
        assert_eq!(time("-1"), Ok((-1, 0)));
        assert_eq!(time("-1.25"), Ok((-2, 750_000_000)));
        assert_eq!(time("-0.5"), Ok((-1, 500_000_000)));
        assert_eq!(time("3.1234567899"), Ok((3, 123_456_789)));
        assert!(time("1e20").is_err());
        assert!(time("--1").is_err());
        assert!(time("99999999999999999999").is_err());
    }

    #[test]
    fn keys_are_escaped_as_gnu_tar_does() {
        for (name, key) in [
            ("user.plain", "user.plain"),
            ("user.a=b", "user.a%3Db"),
            ("user.100%=b", "user.100%25%3Db"),
            ("user.100%", "user.100%"),
            ("user.%3D", "user.%253D"),
            ("user.%25", "user.%2525"),
        ] {
            assert_eq!(encode_key(name.as_bytes()), key.as_bytes());
            assert_eq!(decode_key(key.as_bytes()), name.as_bytes());
        }
    }

    #[test]
    fn pax_records_are_split_by_length_not_by_line() {
        let ((key, value), rest) = pax_record(b"12 a=b\nc\nd=\n7 x=yz\n").unwrap_or_default();
        assert_eq!(
            (key, value, rest),
            (&b"a"[..], &b"b\nc\nd="[..], &b"7 x=yz\n"[..])
        );
        assert!(pax_record(b"99 a=b\n").is_none());
        assert!(pax_record(b"3 a=b\n").is_none());
        assert!(pax_record(b"7 a=b").is_none());
    }
}
