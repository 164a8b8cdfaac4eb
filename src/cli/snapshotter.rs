//! `acetate snapshotter`

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::CliError;
use crate::mount::store_root;
use crate::snapshotter::{MountBy, ServerConfig, serve};

/// Serves containerd's snapshots on a socket, until SIGTERM
#[derive(Args, Debug)]
#[command(
    after_help = "Snapshots lie below --root DIR, by default in the folder snapshotter of the store."
)]
pub(super) struct SnapshotterArgs {
    /// The socket, which containerd's proxy_plugins name
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/run/acetate-snapshotter/acetate.sock"
    )]
    address: PathBuf,
    /// Who makes the mounts: containerd by mount.fuse3, or the snapshotter, which hands out binds of them
    #[arg(long, value_name = "WHO", default_value = "auto")]
    mounts: Who,
    /// Map owners by the mount, as the labels of a snapshot say, so that containerd need not chown images
    #[arg(long)]
    remap_ids: bool,
    /// Write the log to this file, not to standard error
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Log each call
    #[arg(long)]
    debug: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Who {
    /// containerd where mount.fuse3 is installed, else the snapshotter
    Auto,
    /// containerd
    Helper,
    /// The snapshotter
    Snapshotter,
}

impl SnapshotterArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        self.start_log()?;
        let root = match root {
            Some(root) => root,
            None => store_root(None).join("snapshotter"),
        };
        Ok(serve(&ServerConfig {
            address: self.address,
            root,
            mounts: match self.mounts {
                Who::Auto => MountBy::Auto,
                Who::Helper => MountBy::Helper,
                Who::Snapshotter => MountBy::Snapshotter,
            },
            remap_ids: self.remap_ids,
        })?)
    }

    fn start_log(&self) -> Result<(), CliError> {
        let mut builder = env_logger::Builder::new();
        let level = if self.debug {
            "acetate=debug,warn"
        } else {
            "acetate=info,warn"
        };
        builder.parse_filters(level).parse_default_env();
        if let Some(path) = &self.log {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .map_err(|e| CliError::Usage(format!("the log file {}: {e}", path.display())))?;
            builder.target(env_logger::Target::Pipe(Box::new(file)));
        }
        if builder.try_init().is_err() {
            log::debug!("the log goes where it went before");
        }
        Ok(())
    }
}
