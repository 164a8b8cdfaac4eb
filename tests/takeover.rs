//! Mounts that outlive the process that serves them.

#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

#[path = "takeover/adopted.rs"]
mod adopted;
#[path = "takeover/deaths.rs"]
mod deaths;
#[path = "takeover/load.rs"]
mod load;
#[path = "takeover/rig.rs"]
mod rig;
#[path = "takeover/shortage.rs"]
mod shortage;
#[path = "takeover/upgrades.rs"]
mod upgrades;
