//! Containers: `acetate run` and its family, each also as `acetate container COMMAND`.
//!
//! Exit codes of `run`, `start --attach`, `attach` and `exec` are the program's; 125 where the container could not be
//! had, 126 where the command cannot be executed, 127 where it is not there.

mod create;
mod manage;
mod show;
mod volume;
mod work;

pub(super) use volume::VolumeArgs;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::CliError;
use crate::container::{
    Attachment, Container, ContainerError, Containers, Ended, Standby, enter, is_valid_name,
    parse_keys, terminal_size,
};
use crate::image::{NewImage, Store, StoredImage};
use crate::mount::store_root;

#[derive(Debug, Subcommand)]
pub(super) enum ContainerCommand {
    Create(create::CreateArgs),
    Run(create::RunArgs),
    Start(manage::StartArgs),
    Stop(manage::StopArgs),
    Restart(manage::RestartArgs),
    Kill(manage::KillArgs),
    Wait(manage::WaitArgs),
    Rm(manage::RemoveArgs),
    Rename(manage::RenameArgs),
    Exec(work::ExecArgs),
    Attach(work::AttachArgs),
    Logs(show::LogsArgs),
    Ps(show::PsArgs),
    Inspect(show::InspectArgs),
}

/// Runs, shows and removes containers
#[derive(Args, Debug)]
pub(in crate::cli) struct ContainerArgs {
    #[command(subcommand)]
    command: Grouped,
}

// One is made for each run of the program.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
enum Grouped {
    #[command(flatten)]
    Common(ContainerCommand),
    /// Lists containers
    Ls(show::PsArgs),
    Prune(manage::PruneArgs),
    Diff(work::ContainerDiffArgs),
    Commit(work::CommitArgs),
    Export(work::ExportArgs),
}

/// The store, and its containers.
struct Place {
    store: Store,
    containers: Containers,
}

impl Place {
    fn open(root: Option<PathBuf>) -> Result<Place, CliError> {
        // As the user writes it, so that it is the same path in a monitor, which runs elsewhere.
        let root = store_root(root);
        let root = std::path::absolute(&root).unwrap_or(root);
        go_where_containers_are(&root);
        Ok(Place {
            store: Store::open(&root)?,
            containers: Containers::new(&root),
        })
    }
}

/// A plain user's containers live in namespaces of their own. Best effort: where these cannot be had, commands that only
/// look work nevertheless, and others tell.
pub(super) fn go_where_containers_are(root: &Path) {
    if root.join("containers").exists()
        && let Err(e) = enter()
    {
        log::debug!("{e}");
    }
}

impl ContainerArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        match self.command {
            Grouped::Common(command) => command.run(root),
            Grouped::Ls(arguments) => arguments.run(&Place::open(root)?),
            Grouped::Prune(arguments) => arguments.run(&Place::open(root)?),
            Grouped::Diff(arguments) => arguments.run(&Place::open(root)?),
            Grouped::Commit(arguments) => arguments.run(&Place::open(root)?),
            Grouped::Export(arguments) => arguments.run(&Place::open(root)?),
        }
    }
}

impl ContainerCommand {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        let runs = matches!(self, ContainerCommand::Run(_));
        let result = Place::open(root).and_then(|place| self.run_at(&place));
        // What is wrong before the program runs is told apart from the program's own codes.
        match result {
            Err(CliError::Container(e)) if runs => Err(CliError::Run(e)),
            Err(CliError::Image(e)) if runs => Err(CliError::Run(e.into())),
            Err(CliError::Usage(text)) if runs => Err(CliError::Run(ContainerError::Usage(text))),
            result => result,
        }
    }

    fn run_at(self, place: &Place) -> Result<(), CliError> {
        match self {
            ContainerCommand::Create(arguments) => arguments.run(place),
            ContainerCommand::Run(arguments) => arguments.run(place),
            ContainerCommand::Start(arguments) => arguments.run(place),
            ContainerCommand::Stop(arguments) => arguments.run(place),
            ContainerCommand::Restart(arguments) => arguments.run(place),
            ContainerCommand::Kill(arguments) => arguments.run(place),
            ContainerCommand::Wait(arguments) => arguments.run(place),
            ContainerCommand::Rm(arguments) => arguments.run(place),
            ContainerCommand::Rename(arguments) => arguments.run(place),
            ContainerCommand::Exec(arguments) => arguments.run(place),
            ContainerCommand::Attach(arguments) => arguments.run(place),
            ContainerCommand::Logs(arguments) => arguments.run(place),
            ContainerCommand::Ps(arguments) => arguments.run(place),
            ContainerCommand::Inspect(arguments) => arguments.run(place),
        }
    }
}

/// Whether a path that is no mount is meant as a container: it is the name or id of one, and no file here.
pub(super) fn is_meant(path: &Path, store: &Store) -> bool {
    path.to_str().is_some_and(|name| {
        is_valid_name(name) && !path.exists() && Containers::new(store.root()).find(name).is_ok()
    })
}

/// `acetate diff` of a container.
pub(super) fn diff(name: &Path, json: bool, root: Option<PathBuf>) -> Result<(), CliError> {
    work::ContainerDiffArgs::new(name, json).run(&Place::open(root)?)
}

/// `acetate commit` of a container, which stands still meanwhile.
pub(super) fn commit(
    name: &Path,
    store: &Store,
    new: NewImage,
    pause: bool,
) -> Result<StoredImage, CliError> {
    go_where_containers_are(store.root());
    let containers = Containers::new(store.root());
    let container = containers.find(&name.to_string_lossy())?;
    work::commit(&containers, store, &container, new, pause)
}

/// Runs `work` on the root filesystem of a container, for `acetate export`.
pub(super) fn with_rootfs<T>(
    name: &Path,
    store: &Store,
    work: impl FnOnce(&Path) -> Result<T, CliError>,
) -> Result<T, CliError> {
    go_where_containers_are(store.root());
    let containers = Containers::new(store.root());
    let container = containers.find(&name.to_string_lossy())?;
    containers.with_rootfs(&container, work)
}

fn keys(text: &str) -> Result<Vec<u8>, CliError> {
    parse_keys(text).ok_or_else(|| {
        CliError::Usage(format!(
            "invalid detach keys {text:?}: write them as ctrl-p,ctrl-q"
        ))
    })
}

/// How this process is attached to a container.
fn attachment(
    container: &Container,
    input: bool,
    detach_keys: &str,
) -> Result<Attachment, CliError> {
    let settings = &container.record.settings;
    let input = input && settings.interactive;
    if settings.terminal && input && !io::stdin().is_terminal() {
        return Err(CliError::Usage(
            "standard input is no terminal: leave out -t, or give it one".into(),
        ));
    }
    Ok(Attachment {
        input,
        terminal: settings.terminal,
        signals: !settings.terminal,
        detach_keys: keys(detach_keys)?,
    })
}

/// Ends as the program did.
fn ended(container: &Container, ended: Ended) -> Result<(), CliError> {
    match ended {
        Ended::Exited(0) | Ended::Detached => Ok(()),
        Ended::Exited(code) => Err(CliError::Exit(code)),
        Ended::Lost => Err(CliError::Container(ContainerError::State {
            name: container.record.name.clone(),
            is: "has lost its monitor".into(),
            hint: "its program may still run; rm --force ends it",
        })),
    }
}

/// Starts a container and stays attached until its end.
fn run_attached(
    place: &Place,
    container: &Container,
    how: &Attachment,
    standby: Option<Standby>,
) -> Result<(), CliError> {
    let size = terminal_size().filter(|_| how.terminal);
    let connection = place.containers.start(container, standby, size)?;
    ended(container, connection.serve(how)?)
}

/// Does it for all; the errors are told one by one, and the last one is the command's.
fn each(
    names: &[String],
    mut work: impl FnMut(&str) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut failed = None;
    for name in names {
        if let Err(e) = work(name)
            && let Some(earlier) = failed.replace(e)
        {
            eprintln!("acetate: {earlier}");
        }
    }
    failed.map_or(Ok(()), Err)
}
