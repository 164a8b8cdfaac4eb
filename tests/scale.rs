//! Size, load, full disks and sudden death.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "scale/at_once.rs"]
mod at_once;
mod common;
#[path = "scale/data.rs"]
mod data;
#[path = "scale/death.rs"]
mod death;
#[path = "scale/full.rs"]
mod full;
#[path = "scale/large.rs"]
mod large;
#[path = "scale/latency.rs"]
mod latency;
#[path = "scale/memory.rs"]
mod memory;
