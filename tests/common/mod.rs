//! What the tests share: mounts that never outlive their test, scratch space, trees and their comparison.

// Each test binary uses a part of it.
#![allow(dead_code, unused_imports, unused_macros, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod connection;
pub mod daemon;
pub mod image;
pub mod limit;
pub mod mount;
pub mod overlay;
pub mod program;
pub mod scratch;
pub mod skip;
pub mod stand;
pub mod terminal;
pub mod tree;
pub mod watched;

pub use image::LoopImage;
pub use limit::Watchdog;
pub use mount::{Acetate, Failure, Mount};
pub use overlay::Overlay;
pub use scratch::Scratch;
pub use stand::Stand;
pub use tree::{Tree, TreeOptions};
