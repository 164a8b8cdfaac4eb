//! `acetate push`, also as `acetate image push`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::progress::{self, Show};
use super::registry::ReachArgs;
use super::{CliError, output};
use crate::image::{Reference, Store};
use crate::mount::store_root;

/// Sends an image of the store to a registry
#[derive(Args, Debug)]
pub(super) struct PushArgs {
    /// A reference, or an id where DESTINATION is given
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Where to send it under another name
    #[arg(value_name = "DESTINATION")]
    destination: Option<String>,
    /// Print the name only
    #[arg(short, long)]
    quiet: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// What was pushed, for programs.
#[derive(Serialize)]
struct PushedJson {
    name: String,
    digest: String,
    size: u64,
}

impl PushArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        let destination = self.destination.as_ref().unwrap_or(&self.image);
        let target = Reference::parse(destination)?;
        let registry = self.reach.registry()?;
        let store = Store::open(&store_root(root))?;
        let show = if self.quiet || self.json {
            Show::Nothing
        } else {
            Show::Output
        };
        if show == Show::Output {
            output::line(&format!(
                "The push refers to repository [{}]",
                target.name()
            ))?;
        }
        let progress = progress::progress(show);
        let pushed = store.push(&registry, &self.image, &target, &progress)?;
        if self.json {
            return Ok(output::json(&PushedJson {
                name: pushed.name,
                digest: pushed.digest,
                size: pushed.size,
            })?);
        }
        Ok(output::line(&if self.quiet {
            pushed.name
        } else {
            format!(
                "{}: digest: {} size: {}",
                pushed.tag, pushed.digest, pushed.size
            )
        })?)
    }
}
