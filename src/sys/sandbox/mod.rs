//! The cage of the process that serves a mount: what it does not need it gives up before it answers its first request.
//!
//! A bug in that process is within reach of whoever wrote a layer and of every program on the mount. Four walls, each of
//! which stands where another one cannot be built:
//! - `root`: a mount namespace of its own whose root is an empty directory, so that no path leads to the host. Layers
//!   are reached by descriptors of private mounts that are not in any namespace. Needs `CAP_SYS_ADMIN`, also that of a
//!   user namespace.
//! - `paths`: Landlock lets it open files of its layers and its upper alone: none of `/proc`, where `CAP_SYS_ADMIN` reads the
//!   environment of any process. Needs Linux 5.19.
//! - `filter`: seccomp lets through the calls that a filesystem is made of.
//! - `capabilities`: those that files are made with, and no others; no program that it might start gets any back.
//!
//! What it still has to have done outside is done by another process, which is asked: see `mount::outside`.

mod capabilities;
mod filter;
mod paths;
mod root;

use std::io;
use std::path::Path;

/// What a mount is made of.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a, P> {
    /// Directories that are read.
    pub read: &'a [P],
    /// Directories that are written to as well.
    pub written: &'a [P],
}

/// Which walls stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walls {
    /// The root directory is an empty one.
    pub root: bool,
    /// Landlock.
    pub paths: bool,
    /// seccomp.
    pub calls: bool,
}

/// A sandbox that waits to be entered.
#[derive(Debug)]
pub struct Ready {
    beneath: paths::Beneath,
}

/// Looks at what a mount needs, while its paths still lead there. Nothing of it is kept open.
pub fn prepare<P: AsRef<Path>>(needs: &Needs<'_, P>) -> io::Result<Ready> {
    let beneath = paths::Beneath::open(needs)?;
    Ok(Ready { beneath })
}

impl Ready {
    /// Shuts the calling thread in, and all that it will start; there is no way back. Must be called while the process has
    /// no other thread. A wall that the kernel does not have, or that the process may not build, is left out with a word
    /// in the log. An error: a wall fell over half built, and the process must not go on.
    ///
    /// What it takes stays: of several processes that are made of the same memory and share their descriptors, each shuts itself
    /// in.
    pub fn enter(&self) -> io::Result<Walls> {
        if std::fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::other("the process has several threads"));
        }
        // Each wall takes away what it takes to build those before it.
        let root = without("an empty root directory", root::enter())?;
        let paths = without("Landlock", self.beneath.enforce())?;
        capabilities::keep_needed()?;
        let calls = without("seccomp", filter::install())?;
        Ok(Walls { root, paths, calls })
    }
}

/// `Ok(Err)` says why a wall cannot be had here.
fn without(wall: &str, built: io::Result<Result<(), String>>) -> io::Result<bool> {
    match built {
        Ok(Ok(())) => Ok(true),
        Ok(Err(why)) => {
            log::info!("the mount is served without {wall}: {why}");
            Ok(false)
        }
        Err(e) => Err(io::Error::new(e.kind(), format!("{wall}: {e}"))),
    }
}
