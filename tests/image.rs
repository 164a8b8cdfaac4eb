//! Images as input and the store: every format, hostile archives, killed and simultaneous processes.
//!
//! These tests need no FUSE. Those that need root or a tool of others say so when they are skipped.

#[path = "image/build.rs"]
mod build;
#[path = "image/formats.rs"]
mod formats;
#[path = "image/tree.rs"]
mod tree;
