//! The commands and the forms of a mount program and a mount helper, as people and programs use them.

#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

#[path = "cli/forms.rs"]
mod forms;
#[path = "cli/ids.rs"]
mod ids;
#[path = "cli/images.rs"]
mod images;
#[path = "cli/layer_index.rs"]
mod layer_index;
#[path = "cli/listings.rs"]
mod listings;
#[path = "cli/run.rs"]
mod run;
#[path = "cli/unprivileged.rs"]
mod unprivileged;
