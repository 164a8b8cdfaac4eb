//! How values are written.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use super::super::error::OptionError;

/// A number of bytes, or of units of 1024 bytes and their powers.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" | "K" | "KiB" => 10,
        "m" | "M" | "MiB" => 20,
        "g" | "G" | "GiB" => 30,
        "t" | "T" | "TiB" => 40,
        _ => return None,
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

pub(super) fn on_off(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

pub(super) fn one_zero(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

pub(super) fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.parse().ok()?).ok()
}

/// A whole number of them.
pub(super) fn micros(text: &str) -> Option<Duration> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_micros(text.parse().ok()?))
}

/// Cuts at a separator that is neither escaped by a backslash nor between double quotes.
pub(super) fn split(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let (mut start, mut at, mut quoted) = (0, 0, false);
    while at < text.len() {
        match text[at] {
            b'\\' => at += 1,
            b'"' if quoted || text[..at].ends_with(b"=") => quoted = !quoted,
            byte if byte == separator && !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    parts.push(&text[start..]);
    parts
}

/// Takes the backslashes away that keep the next byte from meaning anything.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => out.push(*bytes.next().unwrap_or(byte)),
            _ => out.push(*byte),
        }
    }
    out
}

pub(super) fn path(name: &str, raw: &[u8]) -> Result<PathBuf, OptionError> {
    if raw.is_empty() {
        return Err(OptionError::Value {
            name: name.to_owned(),
            value: String::new(),
            expected: "a path",
        });
    }
    Ok(PathBuf::from(OsString::from_vec(unescape(raw))))
}
