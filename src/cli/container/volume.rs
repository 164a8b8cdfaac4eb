//! `acetate volume create`, `ls`, `inspect`, `rm` and `prune`

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Place, each};
use crate::cli::{CliError, output};
use crate::container::{ContainerError, StoredVolume};

/// Makes, shows and removes volumes, which outlive containers
#[derive(Args, Debug)]
pub(in crate::cli) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
enum VolumeCommand {
    /// Makes a volume, and prints its name
    Create {
        /// Add a label
        #[arg(short, long, value_name = "NAME=VALUE")]
        label: Vec<String>,
        /// Its name; without one it is given one
        name: Option<String>,
    },
    /// Lists volumes
    Ls {
        /// Print names only
        #[arg(short, long)]
        quiet: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Tells all of volumes, as JSON
    Inspect {
        /// Names
        #[arg(value_name = "VOLUME", required = true)]
        names: Vec<String>,
    },
    /// Removes volumes and all that is in them
    Rm {
        /// Those that are not there are no error
        #[arg(short, long)]
        force: bool,
        /// Names
        #[arg(value_name = "VOLUME", required = true)]
        names: Vec<String>,
    },
    /// Removes volumes that no container has and nobody gave a name
    Prune {
        /// Those with a name, too
        #[arg(short, long)]
        all: bool,
        /// As docker has it: there is no question to be answered
        #[arg(short, long, hide = true)]
        force: bool,
    },
}

impl VolumeArgs {
    pub(in crate::cli) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        let containers = Place::open(root)?.containers;
        match self.command {
            VolumeCommand::Create { label, name } => {
                let labels: BTreeMap<String, String> = label
                    .iter()
                    .map(|text| text.split_once('=').unwrap_or((text, "")))
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect();
                let made = containers.make_volume(name.as_deref(), labels)?;
                Ok(output::line(&made.record.name)?)
            }
            VolumeCommand::Ls { quiet, json } => {
                let all = containers.volumes()?;
                if json {
                    let all: Vec<_> = all.iter().map(inspected).collect();
                    return Ok(output::json(&all)?);
                }
                let names = all.into_iter().map(|volume| volume.record.name);
                if quiet {
                    return Ok(output::lines(names)?);
                }
                let mut rows = vec![["DRIVER", "VOLUME NAME"].map(String::from)];
                rows.extend(names.map(|name| ["local".to_owned(), name]));
                Ok(output::table(&rows)?)
            }
            VolumeCommand::Inspect { names } => {
                let mut all = Vec::new();
                for name in &names {
                    all.push(inspected(&containers.volume(name)?));
                }
                Ok(output::json(&all)?)
            }
            VolumeCommand::Rm { force, names } => each(&names, |name| {
                match containers.remove_volume(name) {
                    Err(ContainerError::NoSuchVolume(_)) if force => return Ok(()),
                    removed => removed?,
                }
                Ok(output::line(name)?)
            }),
            VolumeCommand::Prune { all, .. } => {
                let mut names = Vec::new();
                for volume in containers.volumes()? {
                    if all || volume.record.anonymous {
                        names.push(volume.record.name);
                    }
                }
                each(&names, |name| match containers.remove_volume(name) {
                    Err(ContainerError::VolumeInUse { .. } | ContainerError::NoSuchVolume(_)) => {
                        Ok(())
                    }
                    removed => {
                        removed?;
                        Ok(output::line(name)?)
                    }
                })
            }
        }
    }
}

/// By docker's names.
fn inspected(volume: &StoredVolume) -> serde_json::Value {
    json!({
        "Name": volume.record.name,
        "CreatedAt": super::show::time(volume.record.created),
        "Driver": "local",
        "Labels": volume.record.labels,
        "Mountpoint": volume.data(),
        "Scope": "local",
        "Anonymous": volume.record.anonymous,
    })
}
