//! The sandbox of the process that serves a mount: what someone who took that process over could still do.

#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

#[path = "cage/attempts.rs"]
mod attempts;
#[path = "cage/escape.rs"]
mod escape;
#[path = "cage/inside.rs"]
mod inside;
#[path = "cage/served.rs"]
mod served;
