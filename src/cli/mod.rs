//! The command line: parse, act, print. One file per subcommand.
//!
//! Exit codes: 0 when it was done, 1 when it failed, 2 when it was asked wrongly.

mod bench;
mod complete;
mod container;
mod diff;
mod explain;
mod image;
mod image_commit;
mod image_inspect;
mod image_show;
mod image_usage;
#[cfg(feature = "registry")]
mod login;
mod manual;
mod mount;
mod mounts;
mod output;
mod program;
#[cfg(feature = "registry")]
mod progress;
#[cfg(feature = "registry")]
mod pull;
#[cfg(feature = "registry")]
mod push;
#[cfg(feature = "registry")]
mod registry;
#[cfg(feature = "snapshotter")]
mod snapshotter;
mod stats;
mod umount;
mod upgrade;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::bench::BenchError;
use crate::container::ContainerError;
use crate::image::{ImageError, Store};
use crate::mount::{MountError, store_root};

/// A union filesystem driver via FUSE for container images.
///
/// As a mount program or a mount helper: `acetate [SOURCE] DIR -o OPTIONS`.
#[derive(Debug, Parser)]
#[command(name = "acetate", version, arg_required_else_help = true)]
struct Cli {
    /// Where images and private upper directories are kept [env: ACETATE_ROOT]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::MountArgs),
    Umount(umount::UmountArgs),
    Mounts(mounts::MountsArgs),
    Upgrade(upgrade::UpgradeArgs),
    #[command(name = crate::mount::TAKE_OVER_COMMAND, hide = true)]
    TakeOver(upgrade::TakeOverArgs),
    Complete(complete::CompleteArgs),
    Diff(diff::DiffArgs),
    Explain(explain::ExplainArgs),
    Stats(stats::StatsArgs),
    Image(image::ImageArgs),
    Container(container::ContainerArgs),
    #[command(flatten)]
    Containers(container::ContainerCommand),
    Volume(container::VolumeArgs),
    Bench(bench::BenchArgs),
    #[cfg(feature = "snapshotter")]
    Snapshotter(snapshotter::SnapshotterArgs),
    Commit(image_commit::CommitArgs),
    Import(image_commit::ImportArgs),
    Export(image_commit::ExportArgs),
    #[cfg(feature = "registry")]
    Pull(pull::PullArgs),
    #[cfg(feature = "registry")]
    Push(push::PushArgs),
    #[cfg(feature = "registry")]
    Login(login::LoginArgs),
    #[cfg(feature = "registry")]
    Logout(login::LogoutArgs),
    #[cfg(feature = "registry")]
    Registry(registry::RegistryArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The mount, or the question to it.
    #[error("{0}")]
    Mount(#[from] MountError),
    /// An image or the store.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// A benchmark.
    #[error("{0}")]
    Bench(#[from] BenchError),
    /// A container.
    #[error("{0}")]
    Container(#[from] ContainerError),
    /// A program could not be run in a container.
    #[error("{0}")]
    Run(ContainerError),
    /// A program that ran ended with this code, which is the command's.
    #[error("exit code {0}")]
    Exit(u8),
    /// The snapshotter.
    #[cfg(feature = "snapshotter")]
    #[error("{0}")]
    Snapshotter(#[from] crate::snapshotter::ServeError),
    /// The store has damages, which were listed.
    #[error("the store is damaged in {0} places")]
    Damaged(usize),
    /// Mounts did not go over to another program, which was listed.
    #[error("{0} of the mounts are served as before")]
    NotUpgraded(usize),
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// What was found out could not be printed.
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            CliError::Mount(e) => e.exit_code(),
            CliError::Container(e) => e.exit_code(),
            CliError::Run(e) => e.run_code(),
            CliError::Exit(code) => *code,
            CliError::Usage(_) | CliError::Bench(BenchError::Usage(_)) => 2,
            CliError::Bench(_) => 1,
            #[cfg(feature = "snapshotter")]
            CliError::Snapshotter(_) => 1,
            CliError::Image(_)
            | CliError::Damaged(_)
            | CliError::NotUpgraded(_)
            | CliError::Output(_) => 1,
        }
    }
}

/// Runs one command line, whose first word is the program's name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = arguments.into_iter().collect();
    let code = match dispatch(&words) {
        Ok(()) => 0,
        Err(CliError::Exit(code)) => code,
        // Whoever reads the output has seen enough.
        Err(CliError::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            let text = error.to_string().replace('\n', " ");
            eprintln!("acetate: {text}");
            error.exit_code()
        }
    };
    ExitCode::from(code)
}

fn dispatch(words: &[OsString]) -> Result<(), CliError> {
    let (name, rest) = match words.split_first() {
        Some((name, rest)) => (Path::new(name).file_name().unwrap_or_default(), rest),
        None => (OsStr::new(""), words),
    };
    let called_as = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
    if called_as("umount.") {
        return umount::as_helper(rest);
    }
    if called_as("mount.") {
        return program::run(rest, program::CalledBy::Mount);
    }
    // What stands before the subcommand: `--root` is an option of all of them.
    let mut at = 0;
    while let Some(word) = rest.get(at).map(|word| word.as_encoded_bytes()) {
        at += match word {
            b"--root" => 2,
            word if word.starts_with(b"--root=") => 1,
            _ => break,
        };
    }
    let is_subcommand = || {
        rest.get(at).is_some_and(|first| {
            Cli::command()
                .get_subcommands()
                .any(|known| OsStr::new(known.get_name()) == first)
        })
    };
    // In this order: putting all commands together takes longer than most of them.
    if program::is_meant(rest) && !is_subcommand() {
        return program::run(rest, program::CalledBy::Program);
    }
    match Cli::try_parse_from(words) {
        Ok(cli) => cli.run(),
        Err(e) if !e.use_stderr() => Ok(e.print()?),
        Err(e) if e.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(CliError::Usage(
                "name a command; acetate --help lists them".into(),
            ))
        }
        Err(e) => {
            let said = first_words(&e.to_string());
            // What is wrong before a program runs is told apart from the program's own codes.
            Err(match rest.get(at..) {
                Some([first, ..]) if first == "run" => CliError::Run(ContainerError::Usage(said)),
                Some([group, first, ..]) if group == "container" && first == "run" => {
                    CliError::Run(ContainerError::Usage(said))
                }
                _ => CliError::Usage(said),
            })
        }
    }
}

/// What clap says before it shows how to do it right.
fn first_words(text: &str) -> String {
    let said: Vec<&str> = text
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect();
    let said = said.join(" ");
    said.strip_prefix("error: ").unwrap_or(&said).to_owned()
}

impl Command {
    /// What mounts or serves writes a log of its own.
    fn has_a_log(&self) -> bool {
        match self {
            Command::Mount(_)
            | Command::TakeOver(_)
            | Command::Container(_)
            | Command::Containers(_) => true,
            #[cfg(feature = "snapshotter")]
            Command::Snapshotter(_) => true,
            _ => false,
        }
    }
}

impl Cli {
    fn run(self) -> Result<(), CliError> {
        if !self.command.has_a_log() {
            output::print_warnings();
        }
        match self.command {
            Command::Mount(arguments) => arguments.run(self.root),
            Command::Umount(arguments) => arguments.run(self.root),
            Command::Mounts(arguments) => arguments.run(self.root),
            Command::Upgrade(arguments) => arguments.run(),
            Command::TakeOver(arguments) => arguments.run(),
            Command::Complete(arguments) => arguments.run(),
            Command::Diff(arguments) => arguments.run(self.root),
            Command::Explain(arguments) => arguments.run(),
            Command::Stats(arguments) => arguments.run(),
            Command::Image(arguments) => arguments.run(self.root),
            Command::Container(arguments) => arguments.run(self.root),
            Command::Containers(command) => command.run(self.root),
            Command::Volume(arguments) => arguments.run(self.root),
            Command::Bench(arguments) => arguments.run(self.root),
            #[cfg(feature = "snapshotter")]
            Command::Snapshotter(arguments) => arguments.run(self.root),
            Command::Commit(arguments) => arguments.run(&store(self.root)?),
            Command::Import(arguments) => arguments.run(&store(self.root)?),
            Command::Export(arguments) => arguments.run(&store(self.root)?),
            #[cfg(feature = "registry")]
            Command::Pull(arguments) => arguments.run(self.root),
            #[cfg(feature = "registry")]
            Command::Push(arguments) => arguments.run(self.root),
            #[cfg(feature = "registry")]
            Command::Login(arguments) => arguments.run(),
            #[cfg(feature = "registry")]
            Command::Logout(arguments) => arguments.run(),
            #[cfg(feature = "registry")]
            Command::Registry(arguments) => arguments.run(),
            Command::Completions(arguments) => arguments.run(),
            Command::Man(arguments) => arguments.run(),
        }
    }
}

fn store(root: Option<PathBuf>) -> Result<Store, CliError> {
    Ok(Store::open(&store_root(root))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_errors_are_one_line() {
        let error = Cli::try_parse_from(["acetate", "mount"]).unwrap_err();
        let text = first_words(&error.to_string());
        assert!(text.contains("required") && !text.contains('\n'), "{text}");
    }
}
