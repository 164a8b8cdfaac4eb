//! One lower layer, an upper and a workdir, for tests that need no more.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Acetate, Mount, Overlay, Scratch};

/// The layers, not mounted yet.
pub struct Stand {
    pub scratch: Scratch,
    pub lower: PathBuf,
    pub upper: PathBuf,
    pub work: PathBuf,
}

impl Stand {
    pub fn new(name: &str) -> Stand {
        let scratch = Scratch::new(name);
        Stand {
            lower: scratch.dir("lower"),
            upper: scratch.dir("upper"),
            work: scratch.dir("work"),
            scratch,
        }
    }

    /// Its upper and workdir lie in `dir` from now on, such as a filesystem of their own.
    pub fn put_changes_on(&mut self, dir: &Path) {
        for (name, place) in [("upper", &mut self.upper), ("work", &mut self.work)] {
            *place = dir.join(name);
            fs::create_dir_all(&*place).unwrap();
        }
    }

    /// All of it lies in `dir` from now on.
    pub fn put_on(&mut self, dir: &Path) {
        self.lower = dir.join("lower");
        fs::create_dir_all(&self.lower).unwrap();
        self.put_changes_on(dir);
    }

    pub fn acetate(&self, options: &str) -> Acetate {
        Acetate::new(self.scratch.join("merged"))
            .lowers(&[&self.lower])
            .upper(&self.upper, &self.work)
            .options(options)
    }

    /// The same lower on the kernel's overlayfs, with an upper of its own.
    pub fn kernel(&self) -> Overlay {
        let dir = self.scratch.dir("kernel");
        let (upper, work) = (
            self.scratch.dir("kernel-upper"),
            self.scratch.dir("kernel-work"),
        );
        Overlay::mount(&dir, &[&self.lower], Some((&upper, &work)), "").unwrap()
    }

    /// What unfinished copies left in the workdir's scratch folder, the kernel's `work`. The whiteout that the next
    /// ones are to be links of may stay there.
    pub fn left_in_work(&self) -> Vec<PathBuf> {
        let whiteout = |path: &PathBuf| {
            let meta = fs::symlink_metadata(path).unwrap();
            meta.file_type().is_char_device() && meta.rdev() == 0
        };
        fs::read_dir(self.work.join("work"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| !whiteout(path))
            .collect()
    }
}

/// Ends a mount: the daemon exits by itself and has nothing to complain about.
#[track_caller]
pub fn end(mount: Mount) {
    let log = mount.unmount().unwrap();
    assert!(log.trim().is_empty(), "the log is not empty:\n{log}");
}
