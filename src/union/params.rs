//! What a union is told when it is made: the semantic options of a mount.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::idmap::IdMaps;

/// Whether renamed directories are recorded by redirect (kernel: `redirect_dir`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedirectDir {
    /// Record and follow.
    On,
    /// Follow only: a rename of a lower or merged directory answers `EXDEV`.
    Follow,
    /// Neither.
    NoFollow,
}

/// Which lower files are served by passthrough on a writable mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PassthroughLower {
    /// Those that are run or mapped rather than edited: an x bit, or ELF magic.
    Auto,
    /// All.
    Always,
    /// None.
    Never,
}

/// The semantic options of one union.
#[derive(Clone, Debug)]
pub struct Params {
    /// `redirect_dir`.
    pub redirect_dir: RedirectDir,
    /// `metacopy`: copy up metadata alone where that is enough.
    pub metacopy: bool,
    /// How many of the lower layers, the last ones, are data-only: they show no names, and only absolute redirects of metacopy
    /// files lead there.
    pub data_layers: usize,
    /// `partial`: files larger than this, in bytes, are copied up by blocks.
    pub partial: Option<u64>,
    /// `index`: hard links of lower files stay linked across copy-up.
    pub index: bool,
    /// `volatile` or `fsync=0`: fsync does nothing.
    pub no_sync: bool,
    /// `noacl`: POSIX ACLs are neither shown nor stored.
    pub noacl: bool,
    /// `static_nlink`: directories report a link count of 1.
    pub static_nlink: bool,
    /// `ro`, or no upper: every change answers `EROFS`.
    pub read_only: bool,
    /// `uidmapping`, `gidmapping`, `squash_to_*`.
    pub ids: IdMaps,
    /// How long the kernel may keep entries, negative entries and attributes.
    pub timeout: Duration,
    /// The kernel accepts passthrough on this mount.
    pub passthrough: bool,
    /// Which lower files it is used for on a writable mount.
    pub passthrough_lower: PassthroughLower,
    /// The kernel caches writes (never together with passthrough).
    pub writeback: bool,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            redirect_dir: RedirectDir::On,
            metacopy: false,
            data_layers: 0,
            partial: None,
            index: true,
            no_sync: false,
            noacl: false,
            static_nlink: false,
            read_only: false,
            ids: IdMaps::default(),
            timeout: Duration::from_secs(1 << 30),
            passthrough: false,
            passthrough_lower: PassthroughLower::Auto,
            writeback: false,
        }
    }
}
