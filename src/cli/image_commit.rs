//! `acetate image commit`, `import` and `export`: trees as images, and images as trees.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{CliError, container, output};
use crate::image::{Exported, ImportSource, NewImage, Store, StoredImage};
use crate::mount::{self, MountError};

/// What a commit's image is to be called and to say.
#[derive(Args, Debug)]
pub(super) struct NewImageArgs {
    /// The new image's name; without one it is found by its id
    #[arg(value_name = "REFERENCE")]
    reference: Option<String>,
    /// Who makes it
    #[arg(short, long)]
    author: Option<String>,
    /// Why
    #[arg(short, long)]
    message: Option<String>,
    /// Change the configuration by an instruction of a Dockerfile, such as 'CMD ["httpd"]'
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// Let a container stand still meanwhile (the default), or run on: --pause=false
    #[arg(short, long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    pause: bool,
}

impl NewImageArgs {
    /// What the image is to be, and whether a container is to stand still.
    pub(super) fn parts(self, created_by: &str) -> (NewImage, bool) {
        let new = NewImage {
            reference: self.reference,
            author: self.author,
            message: self.message,
            changes: self.changes,
            created_by: created_by.to_owned(),
            platform: None,
        };
        (new, self.pause)
    }
}

/// Makes an image of what a mount or a container changes
///
/// The new image has one layer more than the mount's: it takes time in proportion to the changes. A mount of plain
/// directories becomes an image of one layer, with all that it shows. Programs that write to a mount meanwhile
/// are not held up; a container stands still.
#[derive(Args, Debug)]
pub(super) struct CommitArgs {
    /// Where it is mounted; or the name or id of a container
    #[arg(value_name = "DIR|CONTAINER")]
    target: PathBuf,
    #[command(flatten)]
    new: NewImageArgs,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

impl CommitArgs {
    pub(super) fn run(self, store: &Store) -> Result<(), CliError> {
        let (new, pause) = self.new.parts("acetate commit");
        let image = match mount::find(&self.target) {
            Ok(record) => mount::commit(&record, store, &new)?,
            Err(MountError::NotMounted(_) | MountError::Path(..))
                if container::is_meant(&self.target, store) =>
            {
                container::commit(&self.target, store, new, pause)?
            }
            Err(e) => return Err(e.into()),
        };
        print_id(&image, self.quiet)
    }
}

fn print_id(image: &StoredImage, quiet: bool) -> Result<(), CliError> {
    if quiet {
        return Ok(());
    }
    Ok(output::line(image.id.as_ref())?)
}

/// Makes an image of a root filesystem, which becomes its only layer
#[derive(Args, Debug)]
pub(super) struct ImportArgs {
    /// A folder, or a tar, plain or compressed with gzip or zstd; `-` is standard input
    #[arg(value_name = "FILE|DIR|-")]
    source: PathBuf,
    /// The new image's name; without one it is found by its id
    #[arg(value_name = "REFERENCE")]
    reference: Option<String>,
    /// Change the configuration by an instruction of a Dockerfile, such as 'CMD ["httpd"]'
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// What its history says
    #[arg(short, long)]
    message: Option<String>,
    /// For which platform, such as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

impl ImportArgs {
    pub(super) fn run(self, store: &Store) -> Result<(), CliError> {
        let (source, name) = if self.source.as_os_str() == "-" {
            let stdin = io::stdin();
            if stdin.is_terminal() {
                return Err(CliError::Usage(
                    "standard input is a terminal: name a file or folder".into(),
                ));
            }
            let file = File::from(stdin.as_fd().try_clone_to_owned()?);
            (ImportSource::Stream(file), "-".to_owned())
        } else {
            let name = self.source.display().to_string();
            (ImportSource::Path(self.source), name)
        };
        let message = match self.message {
            Some(message) => message,
            None => format!("Imported from {name}"),
        };
        let new = NewImage {
            reference: self.reference,
            author: None,
            message: Some(message),
            changes: self.changes,
            created_by: "acetate import".to_owned(),
            platform: self.platform,
        };
        print_id(&store.import(source, &new)?, self.quiet)
    }
}

/// Writes the tree that an image or a mount shows as a tar, or into a folder
#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    /// Where it is mounted; or a container; or an image: a reference, an id, an archive or a layout
    #[arg(value_name = "DIR|CONTAINER|IMAGE")]
    what: OsString,
    /// Where to: a tar, a folder that is new or empty (written with a slash at its end where it is new), or `-`,
    /// standard output
    #[arg(short, long, value_name = "FILE|DIR/|-", default_value = "-")]
    output: PathBuf,
    /// Which platform of the image, such as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
}

impl ExportArgs {
    pub(super) fn run(self, store: &Store) -> Result<(), CliError> {
        let stdout = io::stdout();
        let to_stdout = self.output.as_os_str() == "-";
        if to_stdout && stdout.is_terminal() {
            return Err(CliError::Usage(
                "standard output is a terminal: name a file or folder by --output".into(),
            ));
        }
        let what = Path::new(&self.what);
        match mount::find(what) {
            Ok(record) => self.write(store, &Exported::Mount(record.mountpoint)),
            Err(MountError::NotMounted(_) | MountError::Path(..)) => {
                if container::is_meant(what, store) {
                    return container::with_rootfs(what, store, |rootfs| {
                        self.write(store, &Exported::Mount(rootfs.to_owned()))
                    });
                }
                // Then it is an image.
                let tree = store.exported(&self.what, self.platform.as_deref())?;
                self.write(store, &tree)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn write(&self, store: &Store, tree: &Exported) -> Result<(), CliError> {
        let stdout = io::stdout();
        let to_stdout = self.output.as_os_str() == "-";
        if to_stdout {
            let file = File::from(stdout.as_fd().try_clone_to_owned()?);
            return Ok(tree.write(io::BufWriter::with_capacity(1 << 20, file))?);
        }
        let folder = self.output.as_os_str().as_encoded_bytes().ends_with(b"/");
        if !folder && !self.output.is_dir() {
            return Ok(tree.write_file(&self.output)?);
        }
        let info = store.export_to_folder(tree, &self.output)?;
        let lost = info.devices.len() + info.xattrs.len();
        if lost > 0 || info.squashed > 0 {
            log::warn!(
                "{}: without the privilege for it, left out: {} device nodes, {} extended attributes, the owners of {} entries",
                self.output.display(),
                info.devices.len(),
                info.xattrs.len(),
                info.squashed
            );
        }
        Ok(())
    }
}
