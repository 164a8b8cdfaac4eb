//! The course of a pull or push: bars on a terminal, else a line for each step, as docker prints them.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use oci_spec::image::Digest;
use parking_lot::Mutex;

use super::output;
use crate::image::registry::{LayerEvent, Progress, Silent};

/// Where the course is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    /// On standard output.
    Output,
    /// On standard error, because standard output is another command's.
    Error,
    /// Nowhere.
    Nothing,
}

/// The one that fits where standard output or error lead to.
pub(super) fn progress(show: Show) -> Arc<dyn Progress> {
    let (terminal, target) = match show {
        Show::Output => (io::stdout().is_terminal(), ProgressDrawTarget::stdout()),
        Show::Error => (io::stderr().is_terminal(), ProgressDrawTarget::stderr()),
        Show::Nothing => return Arc::new(Silent),
    };
    if terminal {
        return Arc::new(Bars {
            all: MultiProgress::with_draw_target(target),
            layers: Mutex::default(),
        });
    }
    Arc::new(Lines { show })
}

/// What a step is called, where it is worth a line.
fn words(event: &LayerEvent) -> Option<String> {
    Some(match event {
        LayerEvent::Waiting => "Pulling fs layer".to_owned(),
        LayerEvent::Preparing => "Preparing".to_owned(),
        LayerEvent::AlreadyExists => "Already exists".to_owned(),
        LayerEvent::AlreadyPushed => "Layer already exists".to_owned(),
        LayerEvent::MountedFrom(repository) => {
            format!("Mounted from {}", output::escape(repository))
        }
        LayerEvent::Downloaded => "Download complete".to_owned(),
        LayerEvent::PullComplete => "Pull complete".to_owned(),
        LayerEvent::Pushed => "Pushed".to_owned(),
        LayerEvent::Retrying(why) => format!("Retrying: {}", output::escape(why)),
        LayerEvent::Downloading(_) | LayerEvent::Pushing(_) => return None,
    })
}

fn short(digest: &Digest) -> &str {
    digest.digest().get(..12).unwrap_or(digest.digest())
}

/// A line for each step.
struct Lines {
    show: Show,
}

impl Lines {
    fn line(&self, text: &str) {
        let printed = match self.show {
            Show::Error => writeln!(io::stderr(), "{text}"),
            _ => output::line(text),
        };
        if let Err(e) = printed {
            // Whoever stopped reading still wants the image.
            log::debug!("no progress shown: {e}");
        }
    }
}

impl Progress for Lines {
    fn layer(&self, digest: &Digest, _: u64, event: LayerEvent) {
        if let Some(words) = words(&event) {
            self.line(&format!("{}: {words}", short(digest)));
        }
    }
    fn note(&self, text: &str) {
        self.line(&output::escape(text));
    }
}

/// A bar for each layer.
struct Bars {
    all: MultiProgress,
    /// Leaf lock.
    layers: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn bar(&self, digest: &Digest, size: u64) -> ProgressBar {
        let mut layers = self.layers.lock();
        if let Some(bar) = layers.get(digest.as_ref()) {
            return bar.clone();
        }
        let bar = self.all.add(ProgressBar::new(size));
        bar.set_style(plain());
        bar.set_prefix(short(digest).to_owned());
        layers.insert(digest.to_string(), bar.clone());
        bar
    }
}

fn plain() -> ProgressStyle {
    style("{prefix}: {msg}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Progress for Bars {
    fn layer(&self, digest: &Digest, size: u64, event: LayerEvent) {
        let bar = self.bar(digest, size);
        match &event {
            LayerEvent::Downloading(done) | LayerEvent::Pushing(done) => {
                let doing = match event {
                    LayerEvent::Pushing(_) => "Pushing",
                    _ => "Downloading",
                };
                bar.set_style(style("{prefix}: {msg:11} [{bar:40}] {bytes}/{total_bytes}"));
                bar.set_message(doing);
                bar.set_position(*done);
            }
            LayerEvent::Downloaded => bar.set_message("Extracting"),
            other => {
                bar.set_style(plain());
                let words = words(other).unwrap_or_default();
                match other {
                    LayerEvent::Waiting | LayerEvent::Preparing | LayerEvent::Retrying(_) => {
                        bar.set_message(words)
                    }
                    _ => bar.finish_with_message(words),
                }
            }
        }
    }
    fn note(&self, text: &str) {
        if let Err(e) = self.all.println(output::escape(text)) {
            log::debug!("no progress shown: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_called_as_docker_calls_them() {
        let said = |event| words(&event).unwrap();
        assert_eq!(said(LayerEvent::AlreadyExists), "Already exists");
        assert_eq!(said(LayerEvent::PullComplete), "Pull complete");
        assert_eq!(
            said(LayerEvent::MountedFrom("a/b".into())),
            "Mounted from a/b"
        );
        assert_eq!(words(&LayerEvent::Downloading(1)), None);
    }
}
