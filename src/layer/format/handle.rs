//! File handles in the form that the kernel's overlayfs stores (`struct ovl_fb`).

use crate::layer::OverlayHandle;
use crate::sys::handle::FileHandle;

/// Version, magic, length, flags, type and uuid precede the file id.
const HEADER: usize = 5 + 16;
const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const FLAG_BIG_ENDIAN: u8 = 1;
const FLAG_ANY_ENDIAN: u8 = 2;
const FLAG_PATH_UPPER: u8 = 4;
const CPU_ENDIAN: u8 = if cfg!(target_endian = "big") {
    FLAG_BIG_ENDIAN
} else {
    0
};

/// Stores a handle of a lower node; `None` when it is too long to be stored.
pub(in crate::layer) fn encode_handle(
    uuid: &[u8; 16],
    handle: &FileHandle,
) -> Option<OverlayHandle> {
    let len = u8::try_from(HEADER + handle.data.len()).ok()?;
    // The file id's type 255 means that there is none; the field has one byte.
    let kind = u8::try_from(handle.kind).ok().filter(|k| *k != u8::MAX)?;
    let mut bytes = vec![VERSION, MAGIC, len, CPU_ENDIAN, kind];
    bytes.extend_from_slice(uuid);
    bytes.extend_from_slice(&handle.data);
    Some(OverlayHandle(bytes))
}

/// The handle, when it is of the filesystem with this uuid and can be read on this machine.
pub(in crate::layer) fn decode_handle<'a>(
    uuid: &[u8; 16],
    handle: &'a OverlayHandle,
) -> Option<(i32, &'a [u8])> {
    let bytes = handle.0.as_slice();
    let (header, id) = bytes.split_at_checked(HEADER)?;
    let &[version, magic, len, flags, kind] = header.first_chunk::<5>()?;
    let readable = version == VERSION
        && magic == MAGIC
        && usize::from(len) == bytes.len()
        && flags & !(FLAG_BIG_ENDIAN | FLAG_ANY_ENDIAN | FLAG_PATH_UPPER) == 0
        && (flags & FLAG_ANY_ENDIAN != 0 || flags & FLAG_BIG_ENDIAN == CPU_ENDIAN);
    (readable && header[5..] == *uuid).then_some((i32::from(kind), id))
}

/// The inode number in a file id, for the types that are known.
pub(in crate::layer) fn ino_in_handle(kind: i32, id: &[u8]) -> Option<u64> {
    let word = |at: usize| -> Option<u64> {
        let bytes = id.get(at * 4..at * 4 + 4)?.first_chunk::<4>()?;
        Some(u64::from(u32::from_ne_bytes(*bytes)))
    };
    let long = || Some(u64::from_ne_bytes(*id.first_chunk::<8>()?));
    match (kind, id.len()) {
        // FILEID_INO32_GEN, with or without the parent: ext4 and most others.
        (1, 8) | (2, _) => word(0),
        // The same type with a third word: tmpfs, generation first.
        (1, 12) => Some(word(1)? | word(2)? << 32),
        // FILEID_INO64_GEN, with or without the parent: xfs.
        (0x81 | 0x82, _) => long(),
        // FILEID_BTRFS_WITHOUT_PARENT and its longer forms.
        (0x4d..=0x4f, _) => long(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let uuid = *b"0123456789abcdef";
        let handle = FileHandle {
            kind: 1,
            data: vec![1, 2, 3, 4, 5, 6, 7, 8],
        };
        let stored = encode_handle(&uuid, &handle).unwrap();
        assert_eq!(stored.0.len(), 29);
        assert_eq!(decode_handle(&uuid, &stored), Some((1, &handle.data[..])));
        assert_eq!(decode_handle(&[0; 16], &stored), None);
        let mut broken = stored.clone();
        broken.0.pop();
        assert_eq!(decode_handle(&uuid, &broken), None);
        assert_eq!(decode_handle(&uuid, &OverlayHandle(vec![0, 0xfb, 2])), None);
    }
}
