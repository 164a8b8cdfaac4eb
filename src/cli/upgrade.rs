//! `acetate upgrade`

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{CliError, output};
use crate::mount::{self, MountError, MountState, TakeOver};

/// Has this program go on with mounts that another one serves: those of this user, or those that are named
///
/// It takes them over as another process takes over when a daemon dies: programs that use the mount wait for some milliseconds,
/// and none is told an error. A mount that cannot go over is served as before, and the exit code is 1.
#[derive(Args, Debug)]
pub(super) struct UpgradeArgs {
    /// Where they are mounted
    #[arg(value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// The program that goes on, instead of this one
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    #[serde(serialize_with = "shown")]
    mountpoint: PathBuf,
    /// What serves it now.
    version: Option<String>,
    /// Where that lies.
    binary: Option<String>,
    /// Why it was not done.
    error: Option<String>,
}

fn shown<S: serde::Serializer>(path: &std::path::Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

impl UpgradeArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let binary = match &self.to {
            Some(path) => path
                .canonicalize()
                .map_err(|e| CliError::Usage(format!("the program {}: {e}", path.display())))?,
            None => mount::own_binary().map_err(|e| MountError::Io("this program", e))?,
        };
        let dirs = if self.dirs.is_empty() {
            let all = mount::list()?.into_iter();
            all.filter(|(_, state)| *state == MountState::Mounted)
                .map(|(record, _)| record.mountpoint)
                .collect()
        } else {
            self.dirs
        };
        let mut failed = 0;
        let mut lines = Vec::new();
        for dir in dirs {
            let line = match mount::upgrade(&dir, &binary) {
                Ok(record) => Line {
                    mountpoint: dir,
                    version: record.version,
                    binary: record.binary,
                    error: None,
                },
                Err(e) => {
                    failed += 1;
                    let record = mount::find(&dir).ok();
                    Line {
                        mountpoint: dir,
                        version: record.as_ref().and_then(|r| r.version.clone()),
                        binary: record.and_then(|r| r.binary),
                        error: Some(match e {
                            // The mountpoint stands beside it.
                            MountError::NotUpgraded(_, why) => why,
                            e => e.to_string(),
                        }),
                    }
                }
            };
            lines.push(line);
        }
        if self.json {
            output::json(&lines)?;
        } else {
            let mut rows = vec![["MOUNTPOINT", "VERSION", "BINARY", "RESULT"].map(String::from)];
            let text = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
            for line in lines {
                rows.push([
                    line.mountpoint.display().to_string(),
                    text(line.version),
                    text(line.binary),
                    line.error.unwrap_or_else(|| "upgraded".to_owned()),
                ]);
            }
            output::table(&rows)?;
        }
        if failed > 0 {
            return Err(CliError::NotUpgraded(failed));
        }
        Ok(())
    }
}

/// Goes on with a mount of another program, which starts this one for that
#[derive(Args, Debug)]
pub(super) struct TakeOverArgs {
    #[arg(long)]
    state: RawFd,
    #[arg(long)]
    answer: PathBuf,
    #[arg(long)]
    former: Option<RawFd>,
    #[arg(long)]
    rehearse: bool,
    #[arg(long)]
    parent: Option<u32>,
}

impl TakeOverArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let how = TakeOver {
            state: self.state,
            answer: self.answer,
            former: self.former,
            rehearse: self.rehearse,
            parent: self.parent,
        };
        Ok(mount::take_over(&how)?)
    }
}
