//! Power cuts: what the disk holds at many moments of a workload, as a recording block device tells it, is mounted again and
//! compared with what the programs were promised.
//!
//! `ACETATE_LONG=1` looks at a thousand disks of each filesystem, `ACETATE_SEED` begins with another workload, `ACETATE_CUTS`
//! says how many disks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "crash/check.rs"]
mod check;
mod common;
#[path = "crash/copies.rs"]
mod copies;
#[path = "crash/disk.rs"]
mod disk;
#[path = "crash/model.rs"]
mod model;
#[path = "crash/power.rs"]
mod power;
#[path = "crash/workload.rs"]
mod workload;
