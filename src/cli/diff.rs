//! `acetate diff`

use std::path::PathBuf;

use clap::Args;

use super::{CliError, container, output};
use crate::image::Store;
use crate::mount::{self, MountError};

/// Lists what a mount or a container changes against its layers: A added, C changed, D deleted; (partial) where only
/// some blocks were copied up
#[derive(Args, Debug)]
pub(super) struct DiffArgs {
    /// Where it is mounted; or the name or id of a container
    #[arg(value_name = "DIR|CONTAINER")]
    dir: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl DiffArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        let changes = match mount::diff(&self.dir) {
            Err(e @ (MountError::NotMounted(_) | MountError::Path(..))) => {
                let store = Store::open(&mount::store_root(root.clone()))?;
                if container::is_meant(&self.dir, &store) {
                    return container::diff(&self.dir, self.json, root);
                }
                return Err(e.into());
            }
            changes => changes?,
        };
        if self.json {
            return Ok(output::json(&changes)?);
        }
        let lines = changes.iter().map(|change| {
            let partial = change.missing.map_or("", |_| " (partial)");
            format!(
                "{:?} {}{partial}",
                change.kind,
                output::escape(&change.path)
            )
        });
        Ok(output::lines(lines)?)
    }
}
