//! Maps of user and group ids between the layers and the mount.

/// One range of an id map: `count` ids from `inside` (in the mount) stand for those from `outside` (on disk).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id as programs see it.
    pub inside: u32,
    /// First id as it lies on disk.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The id maps of a mount. Empty maps are the identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
