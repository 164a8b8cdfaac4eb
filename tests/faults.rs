//! Each system call of each change fails once: the program is given an error, nothing is lost or left, and the next attempt works.
//!
//! `ACETATE_LONG=1` has each of them fail with each error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "faults/changes.rs"]
mod changes;
mod common;
#[path = "faults/inject.rs"]
mod inject;
#[path = "faults/limits.rs"]
mod limits;
#[path = "faults/once.rs"]
mod once;
#[path = "faults/undone.rs"]
mod undone;
