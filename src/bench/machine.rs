//! The facts without which figures say nothing.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What was measured on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The version of this program.
    pub acetate: String,
    /// The kernel's release.
    pub kernel: String,
    /// What the processor calls itself; empty where it does not say.
    pub processor: String,
    /// How many processors may be used.
    pub processors: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Where the scratch space lay.
    pub scratch: String,
    /// The type of the filesystem there.
    pub scratch_filesystem: String,
    /// The load average of the last minute when the run began: other work makes figures worse.
    pub load: f64,
    /// When the run began, in seconds since the epoch.
    pub time: u64,
    /// Whether it ran as root.
    pub root: bool,
}

impl Machine {
    pub(super) fn look(scratch: &Path) -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let memory = memory.trim_end_matches(" kB").parse().unwrap_or(0u64);
        let load = read("/proc/loadavg");
        Machine {
            acetate: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: value(&read("/proc/cpuinfo"), "model name"),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory * 1024,
            scratch: scratch.parent().unwrap_or(scratch).display().to_string(),
            scratch_filesystem: filesystem_at(scratch),
            load: load
                .split_whitespace()
                .next()
                .and_then(|first| first.parse().ok())
                .unwrap_or(0.0),
            time: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |now| now.as_secs()),
            root: rustix::process::geteuid().is_root(),
        }
    }
}

/// The type of the filesystem that a path lies on, by the deepest mount above it.
fn filesystem_at(path: &Path) -> String {
    let table = crate::sys::mount::mount_table().unwrap_or_default();
    let above = table.iter().filter(|m| path.starts_with(&m.mountpoint));
    let deepest = above.max_by_key(|m| m.mountpoint.as_os_str().len());
    deepest.map(|m| m.fs_type.clone()).unwrap_or_default()
}
