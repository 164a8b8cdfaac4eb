//! `acetate completions` and `acetate man`: what the command line tells of itself.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, CliError};

/// Prints completions for a shell, such as for /etc/bash_completion.d/acetate
#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        // Into memory first: the generator gives up loudly when nobody reads to the end.
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "acetate", &mut text);
        let mut out = io::stdout().lock();
        out.write_all(&text)?;
        Ok(out.flush()?)
    }
}

/// Writes manual pages into a directory, one for each command, such as into /usr/local/share/man/man1
#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// Where to; it is made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl ManArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let failed =
            |e: io::Error| CliError::Usage(format!("cannot write to {}: {e}", self.dir.display()));
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        clap_mangen::generate_to(Cli::command(), &self.dir).map_err(failed)
    }
}
