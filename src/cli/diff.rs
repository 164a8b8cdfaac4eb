//! `acetate diff`

use std::path::PathBuf;

use clap::Args;

use super::{CliError, output};
use crate::mount;

/// Lists what a mount changes against its layers: A added, C changed, D deleted; (partial) where only some blocks were copied up
#[derive(Args, Debug)]
pub(super) struct DiffArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl DiffArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let changes = mount::diff(&self.dir)?;
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
