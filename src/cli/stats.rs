//! `acetate stats`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{CliError, output};
use crate::mount::{self, MountError};
use crate::union::StatsSnapshot;
use crate::union::report::OperationStats;

/// Shows how often a mount was asked for what, how long it took, and what was copied up
#[derive(Args, Debug)]
pub(super) struct StatsArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Show what happened in each second, until interrupted or unmounted
    #[arg(long)]
    watch: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl StatsArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let mut last = mount::stats(&self.dir)?;
        self.print(&last)?;
        if !self.watch {
            return Ok(());
        }
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = match mount::stats(&self.dir) {
                Ok(now) => now,
                Err(MountError::NotMounted(_)) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            self.print(&difference(&last, &now))?;
            last = now;
        }
    }

    fn print(&self, stats: &StatsSnapshot) -> Result<(), CliError> {
        if self.json {
            return Ok(output::json(stats)?);
        }
        let mut rows = vec![["OPERATION", "COUNT", "MEAN µs", "MAX µs"].map(String::from)];
        for op in &stats.operations {
            rows.push([
                op.name.clone(),
                op.count.to_string(),
                (op.total_us / op.count.max(1)).to_string(),
                op.max_us.to_string(),
            ]);
        }
        output::table(&rows)?;
        Ok(output::lines([
            format!(
                "lookups: {} from memory, {} from the layers; inodes held: {}",
                stats.lookup_hits, stats.lookup_misses, stats.inodes
            ),
            format!(
                "copied up: {} with data ({} bytes), {} without",
                stats.copy_up_data, stats.copy_up_bytes, stats.copy_up_meta
            ),
            format!(
                "copied up by blocks: {}, of which {} are whole by now; {} lack {} bytes",
                stats.copy_up_partial,
                stats.partial_completed,
                stats.partial_files,
                stats.partial_missing
            ),
            format!(
                "opened: {} served by the kernel, {} by requests",
                stats.passthrough_opens, stats.cached_opens
            ),
        ])?)
    }
}

/// What happened between two snapshots. The slowest and what is held are those of the later.
fn difference(before: &StatsSnapshot, after: &StatsSnapshot) -> StatsSnapshot {
    let operations = after
        .operations
        .iter()
        .map(|op| {
            let old = before.operations.iter().find(|old| old.name == op.name);
            OperationStats {
                name: op.name.clone(),
                count: op.count - old.map_or(0, |old| old.count),
                total_us: op.total_us - old.map_or(0, |old| old.total_us),
                max_us: op.max_us,
            }
        })
        .filter(|op| op.count != 0)
        .collect();
    StatsSnapshot {
        operations,
        lookup_hits: after.lookup_hits - before.lookup_hits,
        lookup_misses: after.lookup_misses - before.lookup_misses,
        copy_up_data: after.copy_up_data - before.copy_up_data,
        copy_up_meta: after.copy_up_meta - before.copy_up_meta,
        copy_up_bytes: after.copy_up_bytes - before.copy_up_bytes,
        copy_up_partial: after.copy_up_partial - before.copy_up_partial,
        partial_completed: after.partial_completed - before.partial_completed,
        partial_files: after.partial_files,
        partial_missing: after.partial_missing,
        passthrough_opens: after.passthrough_opens - before.passthrough_opens,
        cached_opens: after.cached_opens - before.cached_opens,
        inodes: after.inodes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happened_meanwhile() {
        let op = |name: &str, count, total_us| OperationStats {
            name: name.into(),
            count,
            total_us,
            max_us: 9,
        };
        let before = StatsSnapshot {
            operations: vec![op("open", 2, 10), op("read", 1, 5)],
            lookup_hits: 3,
            ..StatsSnapshot::default()
        };
        let after = StatsSnapshot {
            operations: vec![op("open", 5, 40), op("read", 1, 5), op("write", 1, 1)],
            lookup_hits: 4,
            inodes: 7,
            ..StatsSnapshot::default()
        };
        let between = difference(&before, &after);
        assert_eq!(between.operations, [op("open", 3, 30), op("write", 1, 1)]);
        assert_eq!((between.lookup_hits, between.inodes), (1, 7));
    }
}
