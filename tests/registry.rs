//! Images through registries: Debian's `docker-registry` on loopback, with a proxy in between that counts and breaks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// The modules are shared between files of one test binary only.
#![allow(unreachable_pub)]
#![cfg(feature = "registry")]

mod common;

#[allow(dead_code)]
#[path = "image/build.rs"]
mod build;
#[path = "registry/faults.rs"]
mod faults;
#[path = "registry/gate.rs"]
mod gate;
#[path = "registry/killed.rs"]
mod killed;
#[path = "registry/login.rs"]
mod login;
#[path = "registry/proxy.rs"]
mod proxy;
#[path = "registry/reference.rs"]
mod reference;
#[path = "registry/server.rs"]
mod server;
#[path = "registry/stand.rs"]
mod stand;
#[path = "registry/terminal.rs"]
mod terminal;
#[path = "registry/tokens.rs"]
mod tokens;
#[path = "registry/tools.rs"]
mod tools;
#[path = "registry/transfer.rs"]
mod transfer;
