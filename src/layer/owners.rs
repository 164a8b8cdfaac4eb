//! Layers that are reached through a mount which maps owners already.

use std::ffi::OsStr;

use super::Stat;
use super::format::{IdMap, holds_ids, ids_shown};

/// One range of ids: `count` ids from `shown` stand for those from `disk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shifted {
    /// First id as the mount shows it.
    pub shown: u32,
    /// First id as it lies on disk.
    pub disk: u32,
    /// How many.
    pub count: u32,
}

/// What an id-mapped mount does to owners. The mount is given ids as they lie on disk and maps them itself, so a layer
/// that comes through such a mount is read back first: otherwise it would be mapped twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerShift {
    /// Users.
    pub users: Vec<Shifted>,
    /// Groups.
    pub groups: Vec<Shifted>,
}

impl OwnerShift {
    /// Puts the owner as it lies on disk. Ids that no range covers stay.
    pub(super) fn unshift(&self, stat: &mut Stat) {
        stat.uid = disk(&self.users, stat.uid);
        stat.gid = disk(&self.groups, stat.gid);
    }

    /// The same for the ids in the value of an xattr.
    pub(super) fn unshift_value(&self, name: &OsStr, value: Vec<u8>) -> Option<Vec<u8>> {
        if !holds_ids(name) {
            return Some(value);
        }
        let map = IdMap {
            user: &|id| Some(disk(&self.users, id)),
            group: &|id| Some(disk(&self.groups, id)),
        };
        ids_shown(name, value, &map)
    }
}

fn disk(ranges: &[Shifted], id: u32) -> u32 {
    ranges
        .iter()
        .find(|range| id >= range.shown && id - range.shown < range.count)
        .map_or(id, |range| range.disk + (id - range.shown))
}
