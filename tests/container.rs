//! Containers: run, kept, killed and removed, with a real runtime.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// The modules are shared between files of one test binary only.
#![allow(unreachable_pub)]

mod common;
#[path = "container/death.rs"]
mod death;
#[path = "container/errors.rs"]
mod errors;
#[path = "container/lifecycle.rs"]
mod lifecycle;
#[path = "container/many.rs"]
mod many;
#[path = "container/rig.rs"]
mod rig;
#[path = "container/rootless.rs"]
mod rootless;
#[path = "container/story.rs"]
mod story;
#[path = "container/terminal.rs"]
mod terminal;
#[path = "container/volumes.rs"]
mod volumes;
