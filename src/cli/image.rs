//! `acetate image`: the commands that change or move images. Those that show them are in `image_show`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::container::go_where_containers_are;
use super::image_commit::{CommitArgs, ExportArgs, ImportArgs};
use super::image_inspect::InspectArgs;
use super::image_show::{HistoryArgs, ListArgs};
use super::image_usage::UsageArgs;
use super::{CliError, output};
use crate::image::{Filter, Removed, SaveFormat, Store};
use crate::mount::store_root;

/// Keeps, shows and moves images
#[derive(Args, Debug)]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    #[cfg(feature = "registry")]
    Pull(super::pull::PullArgs),
    #[cfg(feature = "registry")]
    Push(super::push::PushArgs),
    Load(LoadArgs),
    Save(SaveArgs),
    Import(ImportArgs),
    Export(ExportArgs),
    Commit(CommitArgs),
    Ls(ListArgs),
    Tag(TagArgs),
    Rm(RemoveArgs),
    Inspect(InspectArgs),
    History(HistoryArgs),
    Prune(PruneArgs),
    Verify(VerifyArgs),
    Df(UsageArgs),
}

impl ImageArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        let root_of_store = store_root(root.clone());
        if matches!(self.command, ImageCommand::Rm(_) | ImageCommand::Prune(_)) {
            // What was made of a plain user's container has files of other ids.
            go_where_containers_are(&root_of_store);
        }
        let store = Store::open(&root_of_store)?;
        match self.command {
            #[cfg(feature = "registry")]
            ImageCommand::Pull(arguments) => arguments.run(root),
            #[cfg(feature = "registry")]
            ImageCommand::Push(arguments) => arguments.run(root),
            ImageCommand::Load(arguments) => arguments.run(&store),
            ImageCommand::Save(arguments) => arguments.run(&store),
            ImageCommand::Import(arguments) => arguments.run(&store),
            ImageCommand::Export(arguments) => arguments.run(&store),
            ImageCommand::Commit(arguments) => arguments.run(&store),
            ImageCommand::Ls(arguments) => arguments.run(&store),
            ImageCommand::Tag(arguments) => Ok(store.tag(&arguments.image, &arguments.name)?),
            ImageCommand::Rm(arguments) => arguments.run(&store),
            ImageCommand::Inspect(arguments) => arguments.run(&store),
            ImageCommand::History(arguments) => arguments.run(&store),
            ImageCommand::Prune(arguments) => arguments.run(&store),
            ImageCommand::Verify(arguments) => arguments.run(&store),
            ImageCommand::Df(arguments) => arguments.run(&store),
        }
    }
}

/// Puts the images of an archive or OCI layout into the store
#[derive(Args, Debug)]
struct LoadArgs {
    /// A docker archive or OCI layout, plain or compressed; `-` is standard input
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    input: OsString,
    /// Which platform of the images, such as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

impl LoadArgs {
    fn run(self, store: &Store) -> Result<(), CliError> {
        let platform = self.platform.as_deref();
        let images = if self.input == "-" {
            let stdin = io::stdin();
            if stdin.is_terminal() {
                return Err(CliError::Usage(
                    "standard input is a terminal: name an archive by --input".into(),
                ));
            }
            let file = File::from(stdin.as_fd().try_clone_to_owned()?);
            store.load_from(file, "standard input", platform)?
        } else {
            store.load(&self.input, platform)?
        };
        let lines = images.iter().flat_map(|image| {
            if self.quiet {
                return vec![image.id.to_string()];
            }
            if image.references.is_empty() {
                return vec![format!("Loaded image ID: {}", image.id)];
            }
            let named = |name: &String| format!("Loaded image: {}", output::escape(name));
            image.references.iter().map(named).collect()
        });
        Ok(output::lines(lines)?)
    }
}

/// How an image is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    DockerArchive,
    OciArchive,
    OciDir,
}

/// Writes images into an archive or an OCI layout
#[derive(Args, Debug)]
struct SaveArgs {
    /// Where; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// In which form
    #[arg(long, value_enum, default_value = "docker-archive")]
    format: Format,
    /// References or ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl SaveArgs {
    fn run(self, store: &Store) -> Result<(), CliError> {
        let to_stdout = self.output.as_os_str() == "-";
        let format = match self.format {
            Format::DockerArchive => SaveFormat::DockerArchive,
            Format::OciArchive => SaveFormat::OciArchive,
            Format::OciDir if to_stdout => {
                return Err(CliError::Usage("name the folder by --output".into()));
            }
            Format::OciDir => return Ok(store.save_dir(&self.images, &self.output)?),
        };
        if !to_stdout {
            return Ok(store.save_file(&self.images, format, &self.output)?);
        }
        let stdout = io::stdout();
        if stdout.is_terminal() {
            return Err(CliError::Usage(
                "standard output is a terminal: name a file by --output".into(),
            ));
        }
        let file = File::from(stdout.as_fd().try_clone_to_owned()?);
        Ok(store.save(
            &self.images,
            format,
            io::BufWriter::with_capacity(1 << 20, file),
        )?)
    }
}

/// Gives an image another name
#[derive(Args, Debug)]
struct TagArgs {
    /// A reference or an id
    image: String,
    /// The new reference; it is taken from another image that has it
    name: String,
}

/// Removes names, and images with their last name
#[derive(Args, Debug)]
struct RemoveArgs {
    /// References or ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Also remove an image by its id that has several names, or the name of one that is in use
    #[arg(short, long)]
    force: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What went, for programs.
#[derive(Serialize)]
struct RemovedJson {
    untagged: Vec<String>,
    deleted: Vec<String>,
    layers: Vec<String>,
    /// In use, and therefore there until the next prune.
    kept: Vec<String>,
    reclaimed: u64,
}

impl From<Removed> for RemovedJson {
    fn from(removed: Removed) -> RemovedJson {
        RemovedJson {
            untagged: removed.untagged,
            deleted: removed.images,
            layers: removed.layers,
            kept: removed.kept,
            reclaimed: removed.bytes,
        }
    }
}

impl RemoveArgs {
    fn run(self, store: &Store) -> Result<(), CliError> {
        for image in &self.images {
            let removed = store.remove(image, self.force)?;
            for id in &removed.kept {
                log::warn!(
                    "image {id} is in use: it stays without a name until 'image prune' after that"
                );
            }
            if self.json {
                output::json(&RemovedJson::from(removed))?;
            } else {
                output::lines(removed_lines(&removed))?;
            }
        }
        Ok(())
    }
}

fn removed_lines(removed: &Removed) -> Vec<String> {
    let untagged = removed
        .untagged
        .iter()
        .map(|n| format!("Untagged: {}", output::escape(n)));
    let deleted = removed.images.iter().map(|id| format!("Deleted: {id}"));
    untagged.chain(deleted).collect()
}

/// Removes images without a name, and what no image needs
#[derive(Args, Debug)]
struct PruneArgs {
    /// Also images with a name that nothing uses
    #[arg(short, long)]
    all: bool,
    /// Only images that fit: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// As docker has it: there is no question to be answered
    #[arg(short, long, hide = true)]
    force: bool,
}

impl PruneArgs {
    fn run(self, store: &Store) -> Result<(), CliError> {
        let filter = Filter::parse(&self.filters, store)?;
        let removed = store.prune_filtered(self.all, &filter)?;
        if self.json {
            return Ok(output::json(&RemovedJson::from(removed))?);
        }
        let mut lines = removed_lines(&removed);
        lines.push(format!(
            "Total reclaimed space: {}",
            super::image_show::size(removed.bytes)
        ));
        Ok(output::lines(lines)?)
    }
}

/// Reads everything in the store again and compares it with its digests
#[derive(Args, Debug)]
struct VerifyArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// One damage, for programs.
#[derive(Serialize)]
struct DamageJson {
    what: String,
    why: String,
    images: Vec<String>,
}

impl VerifyArgs {
    fn run(self, store: &Store) -> Result<(), CliError> {
        let report = store.verify()?;
        if self.json {
            let damages: Vec<DamageJson> = report
                .damages
                .iter()
                .map(|d| DamageJson {
                    what: d.what.clone(),
                    why: d.why.clone(),
                    images: d.images.clone(),
                })
                .collect();
            output::json(&damages)?;
        } else {
            let lines = report.damages.iter().map(|d| {
                let images = if d.images.is_empty() {
                    "no image".to_owned()
                } else {
                    output::escape(&d.images.join(", "))
                };
                format!("{}: {} (needed by {images})", d.what, d.why)
            });
            output::lines(lines)?;
            let mut summary = format!(
                "{} images, {} blobs and {} layers read",
                report.images, report.blobs, report.layers
            );
            if report.unverified > 0 {
                summary.push_str(&format!(
                    ", {} layers without a blob to compare with",
                    report.unverified
                ));
            }
            writeln!(io::stderr(), "{summary}")?;
        }
        match report.damages.len() {
            0 => Ok(()),
            n => Err(CliError::Damaged(n)),
        }
    }
}
