//! The composition root: an image or layers, the union over them, and the FUSE session become one mount.
//!
//! - `options`: what `-o` says, parsed without touching anything;
//! - `checks`: what must hold before anything is touched;
//! - `private`: uppers that are thrown away;
//! - `compose`: makes the mount;
//! - `params`: what it is told, made of the options and of what the process may do;
//! - `lowers`: opens its lower layers, from their trees or their indexes;
//! - `daemon`: the process that serves it, and what its starter is told;
//! - `supervise`, `supervised`: the process that waits beside it, and has another one take over when it dies;
//! - `handover`, `succeed`, `upgrade`: what one program tells another that goes on with its mount, and how that is asked for;
//! - `completing`: the thread that completes what was copied up by blocks;
//! - `outside`: what that process has others do once it is in its sandbox;
//! - `log`: what the daemon writes when something goes wrong;
//! - `control`, `state`: how other processes find a mount and ask about it.

mod checks;
mod completing;
mod compose;
mod control;
mod daemon;
mod error;
mod handover;
mod image;
mod log;
mod lowers;
mod mapping;
mod options;
mod outside;
mod params;
mod private;
mod remount;
mod runtime;
mod state;
mod succeed;
mod supervise;
mod supervised;
mod upgrade;

pub use compose::{MountRequest, Source};
pub use control::{Info, complete, diff, explain, info, set_read_only, stats, unnamed};
pub use daemon::{Background, mount};
pub use error::{MountError, OptionError};
pub use handover::COMMAND as TAKE_OVER_COMMAND;
pub use image::commit;
pub use log::log_to;
pub use options::{Complete, LayerIndex, MountOptions, Partial};
pub use private::sweep;
pub use remount::remount;
pub use runtime::{create as runtime_dir, store_root};
pub use state::{Ending, MountState, Record, begin_unmount, find, list, unmount};
pub use succeed::{TakeOver, take_over};
pub use upgrade::{own_binary, upgrade};
