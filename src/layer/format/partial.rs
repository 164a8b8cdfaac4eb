//! The mark of a partially copied-up file: where its other blocks lie, and which are here.
//!
//! One xattr holds all of it (`trusted.overlay.acetate.partial`, or `user.`), little-endian:
//!
//! ```text
//! magic "AcPt" | version 1 | log2 of the block size | 0 0
//! lower: size u64, mtime seconds i64, nanoseconds u32
//! limit u64: from here on the data of the lower does not count any more
//! truncation under way to u64, or all ones
//! boot id, 16 bytes: since when runs of the map that are not durable may be lost
//! length u16, origin: file handle of the lower
//! length u16, path of the lower from the root of the layers
//! the map (see `block_map`)
//! CRC-32 of everything before
//! ```

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::block_map::BlockMap;
use crate::layer::{OverlayHandle, Timestamp};

const MAGIC: &[u8; 4] = b"AcPt";
const VERSION: u8 = 1;
const NONE: u64 = u64::MAX;

/// What the mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialRecord {
    /// The size of a block is two to this power.
    pub block_shift: u8,
    /// Size of the lower file when it was copied up, in bytes.
    pub lower_size: u64,
    /// Its modification time then.
    pub lower_mtime: Timestamp,
    /// Data of the lower counts below this offset only: the file was truncated here, or ended here.
    pub limit: u64,
    /// A truncation to this size is under way.
    pub truncating: Option<u64>,
    /// When the machine was started that wrote what is not durable.
    pub boot: [u8; 16],
    /// File handle of the lower, where it has one.
    pub origin: Option<OverlayHandle>,
    /// Absolute path of the lower from the root of the layers.
    pub path: OsString,
    /// The blocks that are in the upper.
    pub map: BlockMap,
}

/// Why a mark cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartialError {
    /// Another version wrote it.
    #[error("its block map is of version {0}, and this program knows version {VERSION}")]
    Version(u8),
    /// It is not what was written.
    #[error("its block map is damaged")]
    Damaged,
}

impl PartialRecord {
    /// The value of the mark.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, self.block_shift, 0, 0]);
        out.extend_from_slice(&self.lower_size.to_le_bytes());
        out.extend_from_slice(&self.lower_mtime.sec.to_le_bytes());
        out.extend_from_slice(&self.lower_mtime.nsec.to_le_bytes());
        out.extend_from_slice(&self.limit.to_le_bytes());
        out.extend_from_slice(&self.truncating.unwrap_or(NONE).to_le_bytes());
        out.extend_from_slice(&self.boot);
        let origin = self.origin.as_ref().map_or(&[][..], |origin| &origin.0);
        for bytes in [origin, self.path.as_bytes()] {
            // Handles are at most 255 bytes, paths are kept below 1 KiB.
            out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        self.map.encode(&mut out);
        out.extend_from_slice(&checksum(&out).to_le_bytes());
        out
    }

    /// The reverse of [`PartialRecord::encode`].
    pub fn decode(value: &[u8]) -> Result<PartialRecord, PartialError> {
        let (body, sum) = value.split_last_chunk::<4>().ok_or(PartialError::Damaged)?;
        let mut rest = body.strip_prefix(MAGIC).ok_or(PartialError::Damaged)?;
        // Before the checksum, which another version may have elsewhere.
        let [version, block_shift, zero @ ..] = take::<4>(&mut rest)?;
        if version != VERSION {
            return Err(PartialError::Version(version));
        }
        if checksum(body) != u32::from_le_bytes(*sum) || zero != [0, 0] {
            return Err(PartialError::Damaged);
        }
        let mut number = || Ok(u64::from_le_bytes(take::<8>(&mut rest)?));
        let lower_size = number()?;
        let sec = number()? as i64;
        let nsec = u32::from_le_bytes(take(&mut rest)?);
        let mut number = || Ok(u64::from_le_bytes(take::<8>(&mut rest)?));
        let limit = number()?;
        let truncating = Some(number()?).filter(|size| *size != NONE);
        let boot = take::<16>(&mut rest)?;
        let mut bytes = || {
            let len = usize::from(u16::from_le_bytes(take(&mut rest)?));
            let (bytes, after) = rest.split_at_checked(len).ok_or(PartialError::Damaged)?;
            rest = after;
            Ok(bytes.to_vec())
        };
        let origin = bytes()?;
        let path = OsString::from_vec(bytes()?);
        let map = BlockMap::decode(rest).ok_or(PartialError::Damaged)?;
        let sound = (12..=30).contains(&block_shift)
            && limit <= lower_size
            && truncating.is_none_or(|size| size < limit)
            && is_absolute(&path);
        if !sound {
            return Err(PartialError::Damaged);
        }
        Ok(PartialRecord {
            block_shift,
            lower_size,
            lower_mtime: Timestamp { sec, nsec },
            limit,
            truncating,
            boot,
            origin: (!origin.is_empty()).then_some(OverlayHandle(origin)),
            path,
            map,
        })
    }
}

fn is_absolute(path: &OsStr) -> bool {
    let Some(parts) = path.as_bytes().strip_prefix(b"/") else {
        return false;
    };
    !parts.contains(&0)
        && parts
            .split(|b| *b == b'/')
            .all(|part| !part.is_empty() && part != b"." && part != b"..")
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], PartialError> {
    let (first, after) = rest.split_first_chunk::<N>().ok_or(PartialError::Damaged)?;
    *rest = after;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> PartialRecord {
        let mut map = BlockMap::default();
        map.add(3..9, true);
        map.add(100..101, false);
        PartialRecord {
            block_shift: 12,
            lower_size: 10 << 20,
            lower_mtime: Timestamp { sec: -5, nsec: 7 },
            limit: 9 << 20,
            truncating: Some(4096),
            boot: [9; 16],
            origin: Some(OverlayHandle(vec![1, 2, 3])),
            path: "/dir/a b".into(),
            map,
        }
    }

    #[test]
    fn round_trip() {
        let mut record = record();
        assert_eq!(PartialRecord::decode(&record.encode()), Ok(record.clone()));
        record.origin = None;
        record.truncating = None;
        record.map = BlockMap::default();
        assert_eq!(PartialRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn every_changed_byte_is_found() {
        let good = record().encode();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(PartialRecord::decode(&bad).is_err(), "byte {at}");
        }
        for len in 0..good.len() {
            assert!(PartialRecord::decode(&good[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut other = record().encode();
        other[4] = 2;
        let error = PartialRecord::decode(&other).unwrap_err();
        assert_eq!(error, PartialError::Version(2));
        assert!(error.to_string().contains("version 2"));
    }

    #[test]
    fn what_makes_no_sense_is_damaged() {
        for change in [
            |r: &mut PartialRecord| r.path = "a".into(),
            |r: &mut PartialRecord| r.path = "/a/../b".into(),
            |r: &mut PartialRecord| r.block_shift = 3,
            |r: &mut PartialRecord| r.limit = r.lower_size + 1,
            |r: &mut PartialRecord| r.truncating = Some(r.limit),
        ] {
            let mut bad = record();
            change(&mut bad);
            assert_eq!(
                PartialRecord::decode(&bad.encode()),
                Err(PartialError::Damaged)
            );
        }
    }
}
