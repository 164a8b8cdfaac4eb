//! `acetate exec`, `attach`, `commit`, `export` and `container diff`

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Place, attachment, ended, keys};
use crate::cli::image_commit::NewImageArgs;
use crate::cli::{CliError, output};
use crate::container::{
    Attachment, Connection, Container, ContainerError, Containers, Exec, Status, exec, paused,
};
use crate::image::{Exported, NewImage, Store, StoredImage};
use crate::mount;

/// Runs one more program in a running container
#[derive(Args, Debug)]
pub(in crate::cli) struct ExecArgs {
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Pass standard input on to it
    #[arg(short, long)]
    interactive: bool,
    /// Set a variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Where it starts
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// As whom it runs
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// What is typed to leave it running, on a terminal
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// A name or id
    container: String,
    /// The program and its arguments
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true
    )]
    command: Vec<String>,
}

impl ExecArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        if self.tty && !io::stdin().is_terminal() {
            return Err(CliError::Usage(
                "standard input is no terminal: leave out -t, or give it one".into(),
            ));
        }
        let container = place.containers.find(&self.container)?;
        let wanted = Exec {
            command: self.command,
            env: self.env,
            workdir: self.workdir,
            user: self.user,
        };
        let how = Attachment {
            input: self.interactive || self.tty,
            terminal: self.tty,
            signals: !self.tty,
            detach_keys: keys(&self.detach_keys)?,
        };
        ended(&container, exec(&container, &wanted, &how)?)
    }
}

/// Joins this terminal to a running container
#[derive(Args, Debug)]
pub(in crate::cli) struct AttachArgs {
    /// Show the output alone
    #[arg(long)]
    no_stdin: bool,
    /// What is typed to leave it running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// A name or id
    container: String,
}

impl AttachArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let container = place.containers.find(&self.container)?;
        if container.state()?.status != Status::Running {
            return Err(CliError::Container(ContainerError::State {
                name: container.record.name.clone(),
                is: "is not running".into(),
                hint: "start it by start --attach",
            }));
        }
        let how = attachment(&container, !self.no_stdin, &self.detach_keys)?;
        let connection = Connection::open(&container, true)?;
        ended(&container, connection.serve(&how)?)
    }
}

/// Lists what a container changes against its image: A added, C changed, D deleted
#[derive(Args, Debug)]
pub(in crate::cli) struct ContainerDiffArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// A name or id
    container: String,
}

impl ContainerDiffArgs {
    pub(super) fn new(container: &Path, json: bool) -> Self {
        ContainerDiffArgs {
            json,
            container: container.to_string_lossy().into_owned(),
        }
    }

    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let container = place.containers.find(&self.container)?;
        let changes = place.containers.changes(&container)?;
        if self.json {
            return Ok(output::json(&changes)?);
        }
        let lines = changes
            .iter()
            .map(|change| format!("{:?} {}", change.kind, output::escape(&change.path)));
        Ok(output::lines(lines)?)
    }
}

/// Makes an image of a container
///
/// The new image has one layer more than the container's: it takes time in proportion to the changes. The container
/// stands still meanwhile.
#[derive(Args, Debug)]
pub(in crate::cli) struct CommitArgs {
    /// A name or id
    container: String,
    #[command(flatten)]
    new: NewImageArgs,
}

impl CommitArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let container = place.containers.find(&self.container)?;
        let (new, pause) = self.new.parts("");
        let image = commit(&place.containers, &place.store, &container, new, pause)?;
        Ok(output::line(image.id.as_ref())?)
    }
}

pub(super) fn commit(
    containers: &Containers,
    store: &Store,
    container: &Container,
    mut new: NewImage,
    pause: bool,
) -> Result<StoredImage, CliError> {
    new.created_by = container.record.settings.command.join(" ");
    containers.with_rootfs(container, |rootfs| {
        let record = mount::find(rootfs)?;
        let made = || Ok::<_, CliError>(mount::commit(&record, store, &new)?);
        if pause && container.state()?.status == Status::Running {
            paused(container, made)
        } else {
            made()
        }
    })
}

/// Writes a container's tree as a tar
#[derive(Args, Debug)]
pub(in crate::cli) struct ExportArgs {
    /// Where to; `-` is standard output
    #[arg(short, long, value_name = "FILE|-", default_value = "-")]
    output: PathBuf,
    /// A name or id
    container: String,
}

impl ExportArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let stdout = io::stdout();
        let to_stdout = self.output.as_os_str() == "-";
        if to_stdout && stdout.is_terminal() {
            return Err(CliError::Usage(
                "standard output is a terminal: name a file by --output".into(),
            ));
        }
        let container = place.containers.find(&self.container)?;
        place
            .containers
            .with_rootfs(&container, |rootfs| -> Result<(), CliError> {
                let tree = Exported::Mount(rootfs.to_owned());
                if to_stdout {
                    let file = File::from(stdout.as_fd().try_clone_to_owned()?);
                    return Ok(tree.write(io::BufWriter::with_capacity(1 << 20, file))?);
                }
                Ok(tree.write_file(&self.output)?)
            })
    }
}
