//! What happens at the limits: a full disk, little memory, and a program that is wrong.
//!
//! `ACETATE_LONG=1`: more of each, and a million files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "faults/changes.rs"]
mod changes;
mod common;
#[path = "limits/full.rs"]
mod full;
#[path = "limits/memory.rs"]
mod memory;
#[path = "limits/panics.rs"]
mod panics;
#[path = "limits/served.rs"]
mod served;
#[path = "limits/stalls.rs"]
mod stalls;
