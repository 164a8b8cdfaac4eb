//! The transport: FUSE requests become operations of the union, and their results become replies.
//!
//! - `adaptor`: one method per request: convert, call one operation, reply;
//! - `convert`: attributes, times and errors between the two sides;
//! - `data`: the requests for contents;
//! - `init`: what is agreed on with the kernel when the mount is made;
//! - `passthrough`: backing files of the requests at hand;
//! - `counters`: how often each operation was asked, and how long it took;
//! - `reply`: results as replies; `shared`: what all requests have in common;
//! - `busy_poll`: how the next request is waited for;
//! - `replay`: requests that must not be done twice;
//! - `session`: the threads that serve a connection, and invalidations the other way.
//!
//! Requests are read from the device and answered by writing to it, two system calls each. FUSE over io_uring makes one of
//! them, and copies less. It is left out: of the daemon's processor time at making and removing files (Linux 6.18) reading is 5 %
//! and answering 9 %, of which 5 % is waking the program; 30 % is the switch of tasks, which a ring does not spare. Linux
//! offers it only where `fuse.enable_uring` was set, and `FUSE_NOTIFY_RESEND` passes its rings over.

mod adaptor;
mod busy_poll;
mod convert;
mod counters;
mod data;
mod init;
mod passthrough;
mod replay;
mod reply;
mod session;
mod shared;

pub use busy_poll::DEFAULT_LIMIT as BUSY_POLL;
pub use counters::Counters;
pub use init::Settings;
pub use session::{Access, Connection, Session, TakeOver, answer_to, can_resend};
