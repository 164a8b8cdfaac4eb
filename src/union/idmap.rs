//! Maps of user and group ids between the layers and the mount.

use std::borrow::Cow;
use std::ffi::OsStr;

use serde::{Deserialize, Serialize};

use crate::layer::format::{IdMap, Unmapped, holds_ids, ids_shown, ids_written};

/// One range of an id map: `count` ids from `inside` (in the mount) stand for those from `outside` (on disk).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id as programs see it.
    pub inside: u32,
    /// First id as it lies on disk.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The id maps of a mount. Empty maps are the identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// User ids.
    pub uids: Vec<IdRange>,
    /// Group ids.
    pub gids: Vec<IdRange>,
    /// Every owner is shown as this user.
    pub squash_uid: Option<u32>,
    /// Every group is shown as this group.
    pub squash_gid: Option<u32>,
}

/// The id that stands for one that the map does not cover (the kernel's `overflowuid`).
pub const OVERFLOW_ID: u32 = 65534;

fn to_inside(map: &[IdRange], id: u32) -> u32 {
    to_inside_if(map, id).unwrap_or(OVERFLOW_ID)
}

fn to_inside_if(map: &[IdRange], id: u32) -> Option<u32> {
    if map.is_empty() {
        return Some(id);
    }
    map.iter()
        .find(|r| id >= r.outside && id - r.outside < r.count)
        .map(|r| r.inside + (id - r.outside))
}

fn to_outside(map: &[IdRange], id: u32) -> Option<u32> {
    if map.is_empty() {
        return Some(id);
    }
    map.iter()
        .find(|r| id >= r.inside && id - r.inside < r.count)
        .map(|r| r.outside + (id - r.inside))
}

impl IdMaps {
    /// The user that programs see for one on disk.
    pub fn uid_inside(&self, uid: u32) -> u32 {
        self.squash_uid
            .unwrap_or_else(|| to_inside(&self.uids, uid))
    }
    /// The group that programs see for one on disk.
    pub fn gid_inside(&self, gid: u32) -> u32 {
        self.squash_gid
            .unwrap_or_else(|| to_inside(&self.gids, gid))
    }
    /// The user on disk for one that a program names; `None` when the map has none.
    pub fn uid_outside(&self, uid: u32) -> Option<u32> {
        to_outside(&self.uids, uid)
    }
    /// The group on disk for one that a program names; `None` when the map has none.
    pub fn gid_outside(&self, gid: u32) -> Option<u32> {
        to_outside(&self.gids, gid)
    }
    /// The value of an xattr as programs see it; `None` where they see no such attribute. Where all files have one owner, ids in
    /// values stay as they are.
    pub fn value_inside(&self, name: &OsStr, value: Vec<u8>) -> Option<Vec<u8>> {
        if !self.maps_values(name) {
            return Some(value);
        }
        let map = IdMap {
            user: &|id| to_inside_if(&self.uids, id),
            group: &|id| to_inside_if(&self.gids, id),
        };
        ids_shown(name, value, &map)
    }
    /// The value to write for one that a program gives.
    pub fn value_outside<'a>(
        &self,
        name: &OsStr,
        value: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, Unmapped> {
        if !self.maps_values(name) {
            return Ok(Cow::Borrowed(value));
        }
        let map = IdMap {
            user: &|id| to_outside(&self.uids, id),
            group: &|id| to_outside(&self.gids, id),
        };
        ids_written(name, value, &map).map(Cow::Owned)
    }
    fn maps_values(&self, name: &OsStr) -> bool {
        (!self.uids.is_empty() || !self.gids.is_empty()) && holds_ids(name)
    }
    /// Owners are shown as they lie on disk.
    pub fn is_identity(&self) -> bool {
        *self == IdMaps::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_map_both_ways() {
        let maps = IdMaps {
            uids: vec![
                IdRange {
                    inside: 0,
                    outside: 1000,
                    count: 1,
                },
                IdRange {
                    inside: 1,
                    outside: 100_000,
                    count: 65_536,
                },
            ],
            ..IdMaps::default()
        };
        assert_eq!(maps.uid_inside(1000), 0);
        assert_eq!(maps.uid_inside(100_009), 10);
        assert_eq!(maps.uid_inside(5), OVERFLOW_ID);
        assert_eq!(maps.uid_outside(0), Some(1000));
        assert_eq!(maps.uid_outside(65_536), Some(165_535));
        assert_eq!(maps.uid_outside(65_537), None);
        assert_eq!(maps.gid_inside(7), 7);
    }

    #[test]
    fn squashing_shows_one_owner() {
        let maps = IdMaps {
            squash_uid: Some(0),
            squash_gid: Some(9),
            ..IdMaps::default()
        };
        assert_eq!(maps.uid_inside(1234), 0);
        assert_eq!(maps.gid_inside(1234), 9);
    }
}
