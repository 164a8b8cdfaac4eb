//! One lower layer, an upper and a workdir.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::common::{Acetate, Mount, Scratch};

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

    pub(crate) fn acetate(&self, options: &str) -> Acetate {
        Acetate::new(self.scratch.join("merged"))
            .lowers(&[&self.lower])
            .upper(&self.upper, &self.work)
            .options(options)
    }

    /// What unfinished copies left in the workdir's scratch folder, the kernel's `work`. The whiteout that the next
    /// ones are to be links of may stay there.
    pub(crate) fn left_in_work(&self) -> Vec<PathBuf> {
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
pub(crate) fn end(mount: Mount) {
    let log = mount.unmount().unwrap();
    assert!(log.trim().is_empty(), "the log is not empty:\n{log}");
}

/// Bytes in which no block is like another.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(length);
    data
}

/// Writes a file of `length` bytes with real data in every block.
pub(crate) fn large_file(path: &Path, length: u64) {
    use std::io::Write;
    let block = pattern(length, 1 << 20);
    let mut file = fs::File::create(path).unwrap();
    let mut left = length;
    let mut number = 0u64;
    while left > 0 {
        let mut block = block.clone();
        block[..8].copy_from_slice(&number.to_le_bytes());
        let part = usize::try_from(left.min(block.len() as u64)).unwrap();
        file.write_all(&block[..part]).unwrap();
        left -= part as u64;
        number += 1;
    }
    file.sync_all().unwrap();
}
