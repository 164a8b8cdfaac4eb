//! Large files copied up by blocks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "partial/cost.rs"]
mod cost;
#[path = "partial/crash.rs"]
mod crash;
#[path = "partial/damage.rs"]
mod damage;
#[path = "partial/interrupt.rs"]
mod interrupt;
#[path = "partial/kernel.rs"]
mod kernel;
#[path = "partial/life.rs"]
mod life;
#[path = "partial/power.rs"]
mod power;
#[path = "partial/remount.rs"]
mod remount;
#[path = "partial/rig.rs"]
mod rig;
