//! What a union tells about itself: which layer a path comes from, what changed, what it did.

use serde::{Deserialize, Serialize};

/// Kind of a change against the lower layers, as `docker diff` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// Added.
    A,
    /// Changed.
    C,
    /// Deleted.
    D,
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// How it changed.
    pub kind: ChangeKind,
    /// The path from the mount's root, with a leading `/`; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Bytes that the upper file still lacks, where it was copied up by blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
}

/// What is to be told of a file that was copied up by blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialWord {
    /// Bytes that the upper file still lacks.
    pub missing: u64,
    /// Of so many that the lower has.
    pub of: u64,
    /// Why it answers `EIO`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
}

/// What completing partial files did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completed {
    /// Files that became whole.
    pub files: u64,
    /// Bytes that were copied for it.
    pub bytes: u64,
    /// Files that are not whole yet: it was told to stop.
    pub left: u64,
}

/// One layer's word on a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerWord {
    /// 0 is the upper (or the topmost lower of a read-only mount), growing downwards.
    pub index: usize,
    /// Where the layer lies.
    pub layer: String,
    /// `file`, `directory`, `symlink`, `special`, `whiteout`, `opaque directory`, `nothing`.
    pub has: String,
    /// `shown`, `merged`, or `hidden by layer N (REASON)`.
    pub role: String,
}

/// The answer of `explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The path from the mount's root.
    pub path: String,
    /// One word of each layer that says something, topmost first.
    pub layers: Vec<LayerWord>,
    /// Whether the path was copied up.
    pub copied_up: bool,
    /// Time (seconds since the epoch) and reason of the copy-up where this mount made it.
    pub copy_up_time: Option<u64>,
    /// Such as `open for writing`, `chmod`, `rename`.
    pub copy_up_reason: Option<String>,
    /// Bytes of data that this mount copied for it, in all; a file whose attributes alone were copied up has 0.
    pub copy_up_bytes: Option<u64>,
    /// How long its copy-up took in microseconds, the later copying of its data included.
    pub copy_up_us: Option<u64>,
    /// Set where it was copied up by blocks and is not whole yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<PartialWord>,
}

/// Counters since the mount was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatsSnapshot {
    /// Requests by operation name, how often, and total microseconds.
    pub operations: Vec<OperationStats>,
    /// Lookups answered from memory.
    pub lookup_hits: u64,
    /// Lookups that asked a layer.
    pub lookup_misses: u64,
    /// Copy-ups that copied data.
    pub copy_up_data: u64,
    /// Copy-ups of metadata alone, directories and special files included.
    pub copy_up_meta: u64,
    /// Bytes copied by them.
    pub copy_up_bytes: u64,
    /// Copy-ups by blocks: only what is touched is copied at first.
    #[serde(default)]
    pub copy_up_partial: u64,
    /// Files of these that are whole by now.
    #[serde(default)]
    pub partial_completed: u64,
    /// Files that are partly in the upper at present.
    #[serde(default)]
    pub partial_files: u64,
    /// Bytes that these still lack.
    #[serde(default)]
    pub partial_missing: u64,
    /// Opens served by passthrough.
    pub passthrough_opens: u64,
    /// Opens served by requests.
    pub cached_opens: u64,
    /// Inodes that the kernel holds at present.
    pub inodes: u64,
}

/// Counters of one operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationStats {
    /// Its FUSE name.
    pub name: String,
    /// How often it was asked.
    pub count: u64,
    /// Time spent in microseconds, in all.
    pub total_us: u64,
    /// The slowest in microseconds.
    pub max_us: u64,
}
