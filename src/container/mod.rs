//! Containers: an image, a writable layer, and a program that an OCI runtime runs on them.
//!
//! - `record`: what the store keeps of a container, and its locks;
//! - `names`: names and ids; `files`: how what is kept is written;
//! - `gone`: their removal;
//! - `lifecycle`: what commands do with containers;
//! - `monitor`: the process that looks after a run; `starting`: the command that waits for it;
//! - `protocol`, `client`: what is said to it, and by whom;
//! - `volume`, `fill`: directories that outlive containers, and what they begin with;
//! - `parse`, `mounts`: settings, as users and images write them;
//! - `rootless`: the namespaces of a plain user;
//! - `bundle`, `users`, `runtime`: what the runtime is given, and how it is called;
//! - `logs`: the output that is kept.
//!
//! Nothing of namespaces or cgroups is made here: that is the runtime's (crun's or runc's).

mod bundle;
mod client;
mod error;
mod files;
mod fill;
mod gone;
mod lifecycle;
mod logs;
mod monitor;
pub mod mounts;
mod names;
pub mod parse;
mod protocol;
mod record;
mod rootless;
mod runtime;
mod starting;
mod users;
mod volume;

pub use client::{Attachment, Connection, Ended, parse_keys, terminal_size};
pub use error::ContainerError;
pub use gone::Gone;
pub use lifecycle::{
    Exec, NewContainer, discard_in_background, exec, kill, network, paused, stop, wait,
};
pub use logs::{Entry, LogReader, Stream, parse as parse_log};
pub use names::is_valid as is_valid_name;
pub use record::{
    Container, Containers, LogLimit, Network, Record, Settings, State, Status, Tmpfs, Ulimit,
    Volume,
};
pub use rootless::enter;
pub use starting::Standby;
pub use volume::{StoredVolume, VolumeRecord};
