//! `acetate image df`.

use clap::Args;
use serde::Serialize;

use super::image_show::size;
use super::{CliError, output};
use crate::image::{Store, Usage};

/// Shows how much room the store takes
///
/// RECLAIMABLE is what `acetate image prune --all` would give back.
#[derive(Args, Debug)]
pub(super) struct UsageArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A line, for programs.
#[derive(Serialize)]
struct Line {
    #[serde(rename = "type")]
    kind: &'static str,
    total: usize,
    active: usize,
    size: u64,
    reclaimable: u64,
}

impl Line {
    fn new(kind: &'static str, usage: Usage) -> Line {
        Line {
            kind,
            total: usage.total,
            active: usage.active,
            size: usage.size,
            reclaimable: usage.reclaimable,
        }
    }
}

impl UsageArgs {
    pub(super) fn run(self, store: &Store) -> Result<(), CliError> {
        let usage = store.usage()?;
        let lines = [
            Line::new("Images", usage.images),
            Line::new("Blobs", usage.blobs),
            Line::new("Layers", usage.layers),
            Line::new("Uppers", usage.uppers),
        ];
        if self.json {
            return Ok(output::json(&lines)?);
        }
        let head = ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"];
        let mut rows = vec![head.map(String::from)];
        for line in lines {
            rows.push([
                line.kind.to_owned(),
                line.total.to_string(),
                line.active.to_string(),
                size(line.size),
                size(line.reclaimable),
            ]);
        }
        Ok(output::table(&rows)?)
    }
}
