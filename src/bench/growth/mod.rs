//! What grows with the number of layers, of files, of programs at once and of mounts, and what does not.

mod run;
mod stage;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use run::run;

use super::{Left, Machine, SystemInfo};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to work.
    pub dir: PathBuf,
    /// How often each system takes its turn.
    pub rounds: usize,
    /// More programs that mount like fuse-overlayfs.
    pub rivals: Vec<PathBuf>,
    /// Only systems whose names have one of these parts; none means all.
    pub only: Vec<String>,
    /// What is to grow; nothing means everything.
    pub axes: Vec<Axis>,
    /// The largest tree has so many files, at least 1,000.
    pub max_files: u64,
    /// A tenth of each.
    pub quick: bool,
    /// After this long a step is stopped, and fails.
    pub limit: Duration,
}

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// The lower layers; the files lie in the lowest, all others have the same directory.
    Layers,
    /// The files of one lower layer, a thousand in each directory.
    Files,
    /// The programs that walk one mount at the same time.
    Clients,
    /// The mounts of the same layers at the same time.
    Mounts,
}

impl Axis {
    /// All of them.
    pub const ALL: [Axis; 4] = [Axis::Layers, Axis::Files, Axis::Clients, Axis::Mounts];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Layers => "layers",
            Axis::Files => "files",
            Axis::Clients => "clients",
            Axis::Mounts => "mounts",
        }
    }
}

/// What was found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// `growth`.
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
    /// One for each system and number.
    pub points: Vec<Point>,
}

/// One system with so many of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    /// What grows.
    pub axis: Axis,
    /// How many there were.
    pub number: u64,
    /// The system's number in the report.
    pub system: usize,
    /// What was measured; the median of each over the rounds.
    #[serde(flatten)]
    pub figures: Figures,
    /// Why there is nothing.
    pub failed: Option<String>,
}

/// What one step gives. What does not belong to its axis is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// From the beginning of a mount until its root was listed, in microseconds; of many mounts that of the last.
    pub mount_us: Option<f64>,
    /// `stat` of a name that is new to the kernel, in microseconds.
    pub lookup_us: Option<f64>,
    /// The same of a name that is not there.
    pub missing_us: Option<f64>,
    /// Each entry of a walk over everything, in microseconds of the clock; of many programs together.
    pub walk_us: Option<f64>,
    /// Bytes of memory that are the daemon's own, for each mount.
    pub memory: Option<u64>,
    /// The same when nothing but the roots had been listed yet.
    pub idle_memory: Option<u64>,
    /// The daemon's processor time for a mount until its root was listed, in microseconds; of many mounts that of the last.
    pub mount_cpu_us: Option<f64>,
    /// The same for each name that is new to the kernel.
    pub lookup_cpu_us: Option<f64>,
    /// The same for each entry of a walk.
    pub walk_cpu_us: Option<f64>,
    /// How often the kernel asked the daemon for each new name, where it counts that.
    pub lookup_requests: Option<f64>,
}

impl Figures {
    /// The median of each.
    fn median(all: &[Figures]) -> Figures {
        let of = |figure: fn(&Figures) -> Option<f64>| {
            let mut values: Vec<f64> = all.iter().filter_map(figure).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        let bytes = |figure: fn(&Figures) -> Option<u64>| {
            let mut values: Vec<u64> = all.iter().filter_map(figure).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied()
        };
        Figures {
            mount_us: of(|f| f.mount_us),
            lookup_us: of(|f| f.lookup_us),
            missing_us: of(|f| f.missing_us),
            walk_us: of(|f| f.walk_us),
            memory: bytes(|f| f.memory),
            idle_memory: bytes(|f| f.idle_memory),
            mount_cpu_us: of(|f| f.mount_cpu_us),
            lookup_cpu_us: of(|f| f.lookup_cpu_us),
            walk_cpu_us: of(|f| f.walk_cpu_us),
            lookup_requests: of(|f| f.lookup_requests),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_each_figure() {
        let one = |mount: f64, memory: Option<u64>| Figures {
            mount_us: Some(mount),
            memory,
            ..Figures::default()
        };
        let median = Figures::median(&[one(9.0, None), one(1.0, Some(5)), one(4.0, None)]);
        assert_eq!(median, one(4.0, Some(5)));
        assert_eq!(Figures::median(&[]), Figures::default());
    }
}
