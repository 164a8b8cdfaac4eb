//! The readers of what xattrs say, without files: what the fuzz target `marks` calls, and the test that replays its corpus.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::handle::{decode_handle, ino_in_handle};
use super::marks::{self, MarkNames};
use super::override_stat::OverrideValue;
use super::{DOT_WHITEOUT, IdMap, NameKind, dot_whiteout_name, ids_shown, ids_written, name_kind};
use crate::layer::{Marks, OverlayHandle};

/// Reads `value` as the xattr `name` of a lower layer's file. Gives the mark's effect in words, `None` for an xattr that is no
/// mark or that is not understood; `Err` with what is wrong in the reading itself.
pub fn mark(name: &OsStr, value: &[u8]) -> Result<Option<String>, String> {
    let Some(Ok(marks)) = marks::decode_one(MarkNames::All, name, value.to_vec()) else {
        return Ok(None);
    };
    if let Some(redirect) = &marks.redirect {
        let bytes = redirect.as_bytes();
        let upwards = bytes.split(|b| *b == b'/').any(|part| part == b"..");
        if upwards || bytes.is_empty() || bytes.contains(&0) {
            return Err(format!("the redirect {redirect:?} was taken"));
        }
    }
    Ok((marks != Marks::default()).then(|| format!("{marks:?}")))
}

/// Reads a handle of a lower file, which has to be that of a filesystem with this id. Gives the inode number in it.
pub fn handle(uuid: &[u8; 16], bytes: &[u8]) -> Option<u64> {
    let stored = OverlayHandle(bytes.to_vec());
    let (kind, id) = decode_handle(uuid, &stored)?;
    ino_in_handle(kind, id)
}

/// Reads the xattr that stands for owner, mode and type. `None`: it is not understood; `Err` when what is written again is
/// read as something else.
pub fn override_stat(value: &[u8]) -> Result<Option<String>, String> {
    let Some(read) = OverrideValue::parse(value) else {
        return Ok(None);
    };
    let text = read.encode();
    let again = OverrideValue::parse(text.as_bytes());
    if again != Some(read) {
        return Err(format!("{read:?} is written as {text:?}: {again:?}"));
    }
    Ok(Some(text))
}

/// Maps the ids in an xattr's value there and back; `Err` when that changes what a program sees. Gives how often the value names
/// somebody who is mapped.
pub fn owned(name: &OsStr, value: &[u8]) -> Result<u32, String> {
    let named = Cell::new(0);
    let shift = |id: u32| {
        named.set(named.get() + 1);
        id.checked_add(100_000).filter(|_| id < 65_536)
    };
    let back = |id: u32| id.checked_sub(100_000).filter(|id| *id < 65_536);
    let map = |ids| IdMap {
        user: ids,
        group: ids,
    };
    let Some(shown) = ids_shown(name, value.to_vec(), &map(&shift)) else {
        return Ok(0);
    };
    let count = named.get();
    let again = ids_written(name, &shown, &map(&back))
        .map(|written| ids_shown(name, written, &map(&shift)));
    if again != Ok(Some(shown.clone())) {
        return Err(format!(
            "{value:?} is shown as {shown:?}, and then as {again:?}"
        ));
    }
    Ok(count)
}

/// Reads the name of an entry of a layer; `Err` when the whiteout of the name that it hides is another entry.
pub fn entry_name(name: &OsStr) -> Result<Option<&OsStr>, String> {
    let NameKind::Whiteout(hidden) = name_kind(name) else {
        return Ok(None);
    };
    let again = dot_whiteout_name(hidden);
    let is_long = hidden.len() + DOT_WHITEOUT.len() > 255;
    if !is_long && again.as_deref() != Some(name) {
        return Err(format!("{hidden:?} is hidden by {again:?}"));
    }
    Ok(Some(hidden))
}
