//! Layers that somebody made to mislead whoever mounts them: against the kernel's overlayfs where it has an answer, and never
//! with anything from outside the stack, a hang, or a daemon that dies.

#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

#[path = "hostile/attributes.rs"]
mod attributes;
#[path = "hostile/changing.rs"]
mod changing;
#[path = "hostile/files.rs"]
mod files;
#[path = "hostile/forged.rs"]
mod forged;
#[path = "hostile/nested.rs"]
mod nested;
#[path = "hostile/users.rs"]
mod users;
#[path = "hostile/view.rs"]
mod view;
