//! Everyday work over a stack of layers, on acetate and on its rivals.

mod daemon;
mod data;
mod metadata;
mod programs;
mod run;
mod sum;
mod tree;
mod work;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use daemon::Daemon;
pub use run::run;
pub use work::Group;

use super::{Left, Machine, StoredImage, Summary, SystemInfo};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to work: the uppers lie there.
    pub dir: PathBuf,
    /// The lower layers, topmost first; without any a stack is made.
    pub layers: Vec<PathBuf>,
    /// How they are called.
    pub layers_name: String,
    /// Whose they are: this program mounts the image itself, the others its layers.
    pub image: Option<StoredImage>,
    /// How often each system takes its turn.
    pub rounds: usize,
    /// More programs that mount like fuse-overlayfs.
    pub rivals: Vec<PathBuf>,
    /// Only systems whose names have one of these parts; none means all.
    pub only: Vec<String>,
    /// Only workloads whose names have one of these parts; none means all.
    pub work: Vec<String>,
    /// A tenth of the work.
    pub quick: bool,
    /// After this long a workload is stopped, and fails.
    pub limit: Duration,
}

/// What was found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// `rivals`.
    pub benchmark: String,
    /// Where.
    pub machine: Machine,
    /// The layers' name, and how many there are.
    pub layers: String,
    /// The entries of the merged tree: directories, files, everything.
    pub entries: usize,
    /// Who.
    pub systems: Vec<SystemInfo>,
    /// Who else might have been.
    pub left_out: Vec<Left>,
    /// How often each took its turn.
    pub rounds: usize,
    /// How long all of it took, in seconds.
    pub seconds: f64,
    /// The system that the others are compared with.
    pub base: usize,
    /// What was done.
    pub workloads: Vec<Workload>,
    /// What could not be done here, and why.
    pub skipped: Vec<Left>,
    /// One for each workload and system that could do it.
    pub cells: Vec<Cell>,
    /// For each system the geometric mean of its multiples of the base, over what both could do.
    pub means: Vec<Mean>,
}

/// One kind of work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workload {
    /// In a few words.
    pub name: String,
    /// Names and attributes, or contents.
    pub group: Group,
}

/// One workload on one system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// The workload's number in the report.
    pub workload: usize,
    /// The system's.
    pub system: usize,
    /// How long it took.
    pub time: Option<Summary>,
    /// The median as a multiple of the base's.
    pub ratio: Option<f64>,
    /// How many single operations it was made of, such as files looked at.
    pub operations: u64,
    /// What the daemon did for it in one turn, the median of each figure.
    pub daemon: Option<Daemon>,
    /// Why there is nothing.
    pub failed: Option<String>,
}

/// How a system does on the whole.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Mean {
    /// The system's number.
    pub system: usize,
    /// Over everything.
    pub all: Option<f64>,
    /// Over the workloads on names and attributes.
    pub metadata: Option<f64>,
    /// Over those on contents.
    pub data: Option<f64>,
}
