//! `acetate mounts`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{CliError, output};
use crate::mount::{self, MountState, Record};

/// Lists the mounts of this user
#[derive(Args, Debug)]
pub(super) struct MountsArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    record: Record,
    state: MountState,
}

impl MountsArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        mount::sweep(&mount::store_root(root));
        let all = mount::list()?;
        if self.json {
            let lines: Vec<Line> = all
                .into_iter()
                .map(|(record, state)| Line { record, state })
                .collect();
            return Ok(output::json(&lines)?);
        }
        let mut rows = vec![
            [
                "MOUNTPOINT",
                "SOURCE",
                "UPPER",
                "PID",
                "SINCE",
                "STATE",
                "VERSION",
            ]
            .map(String::from),
        ];
        for (record, state) in all {
            let upper = match (record.upper, record.private) {
                (Some(_), true) => "private".to_owned(),
                (Some(upper), false) => upper,
                (None, _) => "none (read-only)".to_owned(),
            };
            rows.push([
                record.mountpoint.display().to_string(),
                record.source,
                upper,
                record.pid.to_string(),
                crate::image::time::format(record.since),
                match state {
                    MountState::Mounted => "mounted",
                    MountState::Detached => "detached",
                    MountState::Dead => "dead",
                }
                .to_owned(),
                record.version.unwrap_or_else(|| "unknown".to_owned()),
            ]);
        }
        Ok(output::table(&rows)?)
    }
}
