//! What copy-up, and everything else, costs on this machine: the same work on acetate and on its rivals, in turns.
//!
//! - `scene`: scratch space, mounts and loop devices that are gone afterwards, also after ctrl-C;
//! - `disk`: filesystems of our own, so that the bytes written are nobody else's;
//! - `system`: what is measured, and how it is mounted;
//! - `measure`, `machine`: summaries, a daemon's share, and the facts beside the figures;
//! - [`copy_up`]: the price of the first change of a lower file;
//! - [`rivals`]: everyday work;
//! - [`growth`]: what more layers, files, programs and mounts cost;
//! - [`trace`]: what one command makes an image copy;
//! - [`report`]: tables and the page.

pub mod copy_up;
mod disk;
mod error;
pub mod growth;
mod machine;
mod measure;
pub mod report;
pub mod rivals;
mod scene;
mod system;
pub mod trace;

pub use disk::Filesystem;
pub use error::BenchError;
pub use machine::Machine;
pub use measure::Summary;
pub use system::{Left, StoredImage, SystemInfo};

/// What a run tells while it goes on.
pub trait Progress {
    /// So many of all steps are done, and this one begins.
    fn step(&self, done: u64, all: u64, what: &str);
    /// Something that whoever waits should know, such as a system that is left out.
    fn note(&self, text: &str);
}
