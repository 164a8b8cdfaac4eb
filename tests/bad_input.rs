//! Bad input: one clear line that names the culprit, an exit code, nothing changed, no mount left.

#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

#[path = "cli/archives.rs"]
mod archives;
#[allow(dead_code)]
#[path = "../examples/demo/image.rs"]
mod image;
#[path = "cli/interrupts.rs"]
mod interrupts;
#[path = "cli/layers.rs"]
mod layers;
#[path = "cli/limits.rs"]
mod limits;
#[path = "cli/options.rs"]
mod options;
#[path = "cli/run.rs"]
mod run;
