//! `acetate explain`

use std::path::PathBuf;

use clap::Args;

use super::{CliError, output};
use crate::mount;
use crate::union::Explanation;

/// Tells which layer shows a path, what hides the others, and whether and why it was copied up
#[derive(Args, Debug)]
pub(super) struct ExplainArgs {
    /// A path in a mount; it need not exist
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl ExplainArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let explanation = mount::explain(&self.path)?;
        if self.json {
            return Ok(output::json(&explanation)?);
        }
        Ok(output::lines(lines(&explanation))?)
    }
}

fn lines(explanation: &Explanation) -> Vec<String> {
    let mut lines = vec![output::escape(&explanation.path)];
    if explanation.layers.is_empty() {
        lines.push("  no layer says anything of it".to_owned());
    }
    for word in &explanation.layers {
        lines.push(format!(
            "  layer {} {}: {}, {}",
            word.index,
            output::escape(&word.layer),
            word.has,
            output::escape(&word.role)
        ));
    }
    if explanation.copied_up {
        let when = explanation.copy_up_time.map(crate::image::time::format);
        lines.push(match (when, &explanation.copy_up_reason) {
            (Some(when), Some(why)) => format!("  copied up at {when} by {why}"),
            _ => "  copied up by an earlier mount".to_owned(),
        });
    }
    if let Some(partial) = &explanation.partial {
        lines.push(match &partial.unusable {
            Some(why) => format!(
                "  copied up by blocks, and unusable: {}",
                output::escape(why)
            ),
            None => format!(
                "  copied up by blocks: {} of {} bytes are still those of the lower",
                partial.missing, partial.of
            ),
        });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::report::LayerWord;

    #[test]
    fn one_line_a_layer() {
        let explanation = Explanation {
            path: "/a".into(),
            layers: vec![LayerWord {
                index: 0,
                layer: "/u".into(),
                has: "file".into(),
                role: "shown".into(),
            }],
            copied_up: true,
            copy_up_time: Some(0),
            copy_up_reason: Some("chmod".into()),
            copy_up_bytes: Some(0),
            partial: Some(crate::union::PartialWord {
                missing: 4096,
                of: 8192,
                unusable: None,
            }),
            copy_up_us: Some(9),
        };
        assert_eq!(
            lines(&explanation),
            [
                "/a",
                "  layer 0 /u: file, shown",
                "  copied up at 1970-01-01T00:00:00Z by chmod",
                "  copied up by blocks: 4096 of 8192 bytes are still those of the lower"
            ]
        );
    }
}
