//! `acetate`: a union filesystem driver via FUSE for container images.
//!
//! An animator draws on a clear sheet of acetate laid over painted backgrounds: the backgrounds are shared and never
//! touched, and the sheet is thrown away when the shot is done. This crate does that for container images: it stacks
//! read-only layers under one writable upper layer and shows the merged filesystem.
//!
//! # The modules
//!
//! Arrows point downwards only; `tests/layering.rs` checks it.
//!
//! ```text
//!   cli          arguments, output, one file per subcommand
//!    |
//!   bench, snapshotter   what it costs, beside its rivals  |  containerd's snapshots service
//!    |
//!   container    records, a monitor for each run, the OCI runtime
//!    |
//!   mount        the composition root: options, checks, daemon, control socket
//!    |      \
//!   fuse    image        the transport  |  archives, layouts and the store of unpacked layers
//!    |        |
//!   union     |          the filesystem: lookup, copy-up, rename, open files; knows neither FUSE nor OCI
//!    |        |
//!   layer <---'          read access to one layer, whiteout formats; the upper and its workdir
//!    |
//!   sys                  system calls, the only unsafe code
//! ```
//!
//! # Words
//!
//! They are those of the kernel's overlayfs documentation, of FUSE and of the OCI specifications:
//!
//! - **layer**: a directory tree that is one part of a union; a **lower** layer is only read, the **upper** layer takes
//!   all changes, the **workdir** beside it holds what is not yet published; **merged** is what programs see.
//! - **whiteout**: an entry that hides a name in the layers below; an **opaque** directory hides all of them.
//! - **copy-up**: making the upper part of a lower file before its first change; **metacopy**: one without data.
//! - **redirect**: where a renamed directory has its parts in the layers below; **origin**: the lower inode that an upper
//!   one was copied from; **index**: the table that keeps hard links one inode across copy-up.
//! - **inode**: identity and parts of a file; **dentry**: one of its names; **node id**: what the kernel knows it by;
//!   **handle**: an open file; **backing file**: a file of a layer that the kernel serves by itself (**passthrough**).
//! - **image**, **manifest**, **config**, **diff id**, **digest**, **reference**: as in the OCI image specification;
//!   **store**: where images are unpacked to, one tree per diff id.
//!
//! # Rules
//!
//! `unsafe` is denied outside `sys`; outside tests nothing unwraps, expects or panics; names are bytes
//! ([`OsStr`](std::ffi::OsStr)), never strings; absence is a value, not an error.

pub mod bench;
pub mod cli;
pub mod container;
pub mod fuse;
pub mod image;
pub mod layer;
pub mod mount;
#[cfg(feature = "snapshotter")]
pub mod snapshotter;
pub mod sys;
pub mod union;
