//! What the first change of a lower file costs: how long, how much is written, and who has to wait.

mod changes;
mod files;
mod plan;
mod run;
mod stall;
mod systems;

use serde::{Deserialize, Serialize};

pub use changes::Change;
pub use files::Shape;
pub use plan::Case;
pub use run::run;
pub use stall::Stall;

use super::{Left, Machine, Summary, SystemInfo};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to work; needs room for the files three times.
    pub dir: std::path::PathBuf,
    /// The largest file, in bytes.
    pub max_size: u64,
    /// How often each system takes its turn.
    pub rounds: usize,
    /// More programs that mount like fuse-overlayfs.
    pub rivals: Vec<std::path::PathBuf>,
    /// Only systems whose names have one of these parts; none means all.
    pub only: Vec<String>,
    /// Only changes whose names have one of these parts; none means all.
    pub change: Vec<String>,
    /// Sizes and the plainest change alone.
    pub quick: bool,
}

/// What was found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// `copy-up`.
    pub benchmark: String,
    /// Where.
    pub machine: Machine,
    /// Who.
    pub systems: Vec<SystemInfo>,
    /// Who else might have been.
    pub left_out: Vec<Left>,
    /// How often each took its turn.
    pub rounds: usize,
    /// How long all of it took, in seconds.
    pub seconds: f64,
    /// What was changed.
    pub cases: Vec<Case>,
    /// One for each case and system that could do it.
    pub cells: Vec<Cell>,
    /// How others were kept waiting.
    pub stalls: Vec<Stall>,
}

/// One case on one system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// The case's number in the report.
    pub case: usize,
    /// The system's.
    pub system: usize,
    /// How long the first change of a file took.
    pub latency: Option<Summary>,
    /// Bytes written to the disk for each file changed, after everything cached was written out, without the journal.
    /// `None` where nothing counts them.
    pub written: Option<u64>,
    /// Bytes of space taken for each file changed.
    pub space: u64,
    /// Why there is nothing.
    pub failed: Option<String>,
}
