//! Images as input and the store: every format, odd and hostile layers, killed and simultaneous processes.
//!
//! These tests need no FUSE. Those that need root or a tool of others say so when they are skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// The modules are shared between files of one test binary only.
#![allow(unreachable_pub)]

mod common;

#[path = "image/build.rs"]
mod build;
#[path = "image/commit.rs"]
mod commit;
#[path = "image/formats.rs"]
mod formats;
#[path = "image/hostile.rs"]
mod hostile;
#[path = "image/import.rs"]
mod import;
#[path = "image/large.rs"]
mod large;
#[path = "image/layer_index.rs"]
mod layer_index;
#[path = "image/layers.rs"]
mod layers;
#[path = "image/limits.rs"]
mod limits;
#[path = "image/mutants.rs"]
mod mutants;
#[path = "image/processes.rs"]
mod processes;
#[path = "image/store.rs"]
mod store;
#[path = "image/tools.rs"]
mod tools;
#[path = "image/tree.rs"]
mod tree;
