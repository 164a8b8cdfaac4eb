//! The mount that the suites run on.

use std::path::PathBuf;

use crate::common::{Acetate, Mount, Overlay, Scratch};

/// A lower layer, an upper and a workdir, not mounted yet.
pub(crate) struct Stand {
    pub(crate) scratch: Scratch,
    pub(crate) lower: PathBuf,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

impl Stand {
    pub(crate) fn new(name: &str) -> Stand {
        let scratch = Scratch::new(name);
        Stand {
            lower: scratch.dir("lower"),
            upper: scratch.dir("upper"),
            work: scratch.dir("work"),
            scratch,
        }
    }

    pub(crate) fn acetate(&self, options: &str) -> Mount {
        Acetate::new(self.scratch.join("merged"))
            .lowers(&[&self.lower])
            .upper(&self.upper, &self.work)
            .options(options)
            .mount()
    }

    pub(crate) fn kernel(&self) -> Overlay {
        let dir = self.scratch.dir("kernel");
        let (upper, work) = (
            self.scratch.dir("kernel-upper"),
            self.scratch.dir("kernel-work"),
        );
        Overlay::mount(&dir, &[&self.lower], Some((&upper, &work)), "").unwrap()
    }
}

/// Ends a mount: the daemon exits by itself and has nothing to complain about.
#[track_caller]
pub(crate) fn end(mount: Mount) {
    let log = mount.unmount().unwrap();
    assert!(log.trim().is_empty(), "the log is not empty:\n{log}");
}
