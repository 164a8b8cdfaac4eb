//! containerd's snapshots service: layers and containers' uppers as snapshots, over gRPC on a Unix socket.
//!
//! containerd asks for a snapshot (`Prepare`, `View`), is told what to mount, mounts it, and commits or removes it. The
//! mounts are acetate's own, which containerd makes by `mount.fuse3`; where that helper is missing, the snapshotter keeps
//! the mount and hands out a bind of it.
//!
//! # On disk
//!
//! ```text
//! ROOT/lock                one server a root
//! ROOT/version.json        who wrote this, and in which form
//! ROOT/sequence            no snapshot has had a number from here on
//! ROOT/records/N.json      one snapshot: name, parent, kind, times, labels, usage
//! ROOT/snapshots/N/fs      what it holds; the upper of a mount while it is active
//! ROOT/snapshots/N/work    the workdir of that mount
//! ROOT/mounts/N            the mount of it, where the snapshotter keeps it
//! ROOT/trash               what is being deleted
//! ROOT/tmp                 files that are not complete yet
//! ```
//!
//! The record is the truth: each change is the atomic replacement of one record, so that a kill at any moment leaves the
//! state before or after it. A directory without a record is what a crash left, and is swept unless a mount uses it.
//!
//! # The modules
//!
//! - `proto`: the messages of the wire; `service`: which call is which; `api`: what each call asks the store;
//! - `store`: the snapshots; `record`: their files; `usage`, `filter`, `idmap`: parts of that;
//! - `seal`: nothing writes to what is committed; `sweep`: deletes what is not needed any more;
//! - `mounts`: what containerd is told to mount;
//! - `server`: socket, signals, start and end.
//!
//! Only `service` and `server` are asynchronous.

mod api;
mod error;
mod filter;
mod idmap;
mod mounts;
pub mod proto;
mod record;
mod seal;
mod server;
mod service;
mod store;
mod sweep;
mod usage;

pub use error::{ServeError, SnapshotError};
pub use mounts::MountBy;
pub use server::{ServerConfig, serve};
