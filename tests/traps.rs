//! The traps of a union filesystem on FUSE, each as a named regression test.

#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

#[path = "traps/acl.rs"]
mod acl;
#[path = "traps/caches.rs"]
mod caches;
#[path = "traps/held.rs"]
mod held;
#[path = "traps/like_ext4.rs"]
mod like_ext4;
#[path = "traps/lost.rs"]
mod lost;
#[path = "traps/map.rs"]
mod map;
#[path = "traps/metacopy.rs"]
mod metacopy;
#[path = "traps/mounts.rs"]
mod mounts;
#[path = "traps/names.rs"]
mod names;
#[path = "traps/passthrough.rs"]
mod passthrough;
#[path = "traps/privileges.rs"]
mod privileges;
#[path = "traps/requests.rs"]
mod requests;
#[path = "traps/rig.rs"]
mod rig;
#[path = "traps/unlinked.rs"]
mod unlinked;
