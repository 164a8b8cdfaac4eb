//! `acetate complete`

use std::path::PathBuf;

use clap::Args;

use super::{CliError, output};
use crate::mount;

/// Copies the rest of a file that was copied up by blocks, or of all such files of a mount, and returns when they are whole
#[derive(Args, Debug)]
pub(super) struct CompleteArgs {
    /// A file in a mount, or where a mount is
    #[arg(value_name = "DIR|PATH")]
    path: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl CompleteArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let done = mount::complete(&self.path)?;
        if self.json {
            return Ok(output::json(&done)?);
        }
        Ok(output::lines([format!(
            "files completed: {}, bytes copied: {}",
            done.files, done.bytes
        )])?)
    }
}
