//! `acetate start`, `stop`, `restart`, `kill`, `wait`, `rm`, `rename` and `container prune`

use std::time::Duration;

use clap::Args;

use super::{Place, attachment, each, run_attached};
use crate::cli::{CliError, output};
use crate::container::{
    Container, ContainerError, Status, discard_in_background, kill, parse, stop, wait,
};

/// How long a program that is asked to stop is waited for.
const PATIENCE: u64 = 10;

/// Starts containers that do not run
#[derive(Args, Debug)]
pub(in crate::cli) struct StartArgs {
    /// Stay attached to its output
    #[arg(short, long)]
    attach: bool,
    /// Stay attached to its input too
    #[arg(short, long)]
    interactive: bool,
    /// What is typed to leave it running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

fn start(place: &Place, container: &Container) -> Result<(), CliError> {
    place.containers.start(container, None, None)?;
    Ok(())
}

fn is_running(container: &Container) -> Result<bool, CliError> {
    Ok(container.state()?.status == Status::Running)
}

impl StartArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        if self.attach || self.interactive {
            let [name] = &self.containers[..] else {
                return Err(CliError::Usage(
                    "only one container can be attached to at a time".into(),
                ));
            };
            let container = place.containers.find(name)?;
            let how = attachment(&container, self.interactive, &self.detach_keys)?;
            return run_attached(place, &container, &how, None);
        }
        each(&self.containers, |name| {
            let container = place.containers.find(name)?;
            // As docker: what runs is started.
            if !is_running(&container)? {
                start(place, &container)?;
            }
            Ok(output::line(name)?)
        })
    }
}

/// Asks containers to stop, and kills those that do not
#[derive(Args, Debug)]
pub(in crate::cli) struct StopArgs {
    /// How many seconds they have for it
    #[arg(short, long, value_name = "SECONDS", default_value_t = PATIENCE)]
    time: u64,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl StopArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        each(&self.containers, |name| {
            let container = place.containers.find(name)?;
            stop(&container, Duration::from_secs(self.time))?;
            Ok(output::line(name)?)
        })
    }
}

/// Stops containers and starts them again
#[derive(Args, Debug)]
pub(in crate::cli) struct RestartArgs {
    /// How many seconds they have to stop
    #[arg(short, long, value_name = "SECONDS", default_value_t = PATIENCE)]
    time: u64,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl RestartArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        each(&self.containers, |name| {
            let container = place.containers.find(name)?;
            stop(&container, Duration::from_secs(self.time))?;
            start(place, &container)?;
            Ok(output::line(name)?)
        })
    }
}

/// Sends containers a signal
#[derive(Args, Debug)]
pub(in crate::cli) struct KillArgs {
    /// Which, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl KillArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let signal = parse::signal(&self.signal)?;
        each(&self.containers, |name| {
            kill(&place.containers.find(name)?, signal)?;
            Ok(output::line(name)?)
        })
    }
}

/// Waits until containers have ended, and prints their exit codes
#[derive(Args, Debug)]
pub(in crate::cli) struct WaitArgs {
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl WaitArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        each(&self.containers, |name| {
            let code = wait(&place.containers.find(name)?)?;
            Ok(output::line(&code.to_string())?)
        })
    }
}

/// Removes containers, and what they have written
#[derive(Args, Debug)]
pub(in crate::cli) struct RemoveArgs {
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
    /// Also those of their volumes that nobody gave a name
    #[arg(short, long)]
    volumes: bool,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl RemoveArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let mut gone = place.containers.leftovers()?;
        let result = each(&self.containers, |name| {
            let container = match place.containers.find(name) {
                Err(ContainerError::NoSuchContainer(_)) if self.force => return Ok(()),
                found => found?,
            };
            let removed = place
                .containers
                .remove(&container, self.force, self.volumes)?;
            gone.extend(removed);
            Ok(output::line(name)?)
        });
        discard_in_background(gone);
        result
    }
}

/// Gives a container another name
#[derive(Args, Debug)]
pub(in crate::cli) struct RenameArgs {
    /// Its name or id
    container: String,
    /// The new name
    name: String,
}

impl RenameArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        Ok(place.containers.rename(&self.container, &self.name)?)
    }
}

/// Removes all containers that do not run
#[derive(Args, Debug)]
pub(in crate::cli) struct PruneArgs {
    /// As docker has it: there is no question to be answered
    #[arg(short, long, hide = true)]
    force: bool,
}

impl PruneArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let mut gone = place.containers.leftovers()?;
        let mut result = Ok(());
        for container in place.containers.list()? {
            // Its monitor keeps that of one which has just ended for a moment.
            if container.is_held()? && container.state()?.finished.is_none() {
                continue;
            }
            match place.containers.remove(&container, false, false) {
                Ok(removed) => {
                    gone.extend(removed);
                    output::line(&container.record.id)?;
                }
                // It was started or removed meanwhile.
                Err(ContainerError::State { .. } | ContainerError::NoSuchContainer(_)) => {}
                Err(e) => result = Err(e.into()),
            }
        }
        discard_in_background(gone);
        result
    }
}
