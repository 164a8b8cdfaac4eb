//! Public test suites: what passes on an ordinary filesystem or on the kernel's overlayfs passes here.
//!
//! Each runs twice, on acetate and on its judge in the same run on the same machine, so that what the machine
//! lacks counts for neither.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "suites/cpython.rs"]
mod cpython;
#[path = "suites/fsx.rs"]
mod fsx;
#[path = "suites/pjdfstest.rs"]
mod pjdfstest;
#[path = "suites/stress.rs"]
mod stress;
