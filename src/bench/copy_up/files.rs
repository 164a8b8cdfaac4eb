//! The lower layers that the changes meet.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::Advice;
use serde::{Deserialize, Serialize};

use crate::bench::error::{BenchError, at};

/// How a file lies in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Every block has data.
    Dense,
    /// One block in sixteen has data.
    Sparse,
    /// It has a second name.
    Linked,
}

impl Shape {
    /// As the directory of such files is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Shape::Dense => "dense",
            Shape::Sparse => "sparse",
            Shape::Linked => "linked",
        }
    }
}

/// The layer that holds the files; those above it hold but their directories.
pub(super) const BASE: &str = "base";
/// The directory that is renamed.
pub(super) const TREE: &str = "tree";
/// Small files for those who want to know how others are stalled.
pub(super) const SMALL: &str = "small";

const STEP: usize = 1 << 20;
const BLOCK: u64 = 4096;

/// How many files of one size there are, so that the small ones are measured often.
pub(super) fn count(size: u64) -> usize {
    usize::try_from((64 << 20) / size.max(1))
        .unwrap_or(1)
        .clamp(1, 8)
}

/// The path of a file from the root of the mount.
pub(super) fn path(shape: Shape, size: u64, number: usize) -> PathBuf {
    PathBuf::from(shape.name())
        .join(size.to_string())
        .join(format!("f{number}"))
}

/// Bytes that no filesystem can compress, the same for one seed.
pub(super) fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = usize::try_from(len.div_ceil(8)).unwrap_or(0);
    let mut bytes = Vec::with_capacity(words * 8);
    for _ in 0..words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(usize::try_from(len).unwrap_or(0));
    bytes
}

/// A file's contents depend on its name, so that one that was mistaken for another is seen.
fn seed(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.file_name().hash(&mut hasher);
    hasher.finish()
}

/// What a file held at an offset below 1 MiB before it was changed.
pub(super) fn expected(path: &Path, offset: u64, len: u64) -> Vec<u8> {
    let all = noise(seed(path), offset + len);
    all.get(offset as usize..).unwrap_or_default().to_vec()
}

/// Makes a file without holes: its first mebibyte over and over.
pub(super) fn write_noise(path: &Path, size: u64) -> io::Result<()> {
    let block = noise(seed(path), STEP as u64);
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        let part = left.min(STEP as u64);
        file.write_all(block.get(..part as usize).unwrap_or(&block))?;
        left -= part;
    }
    Ok(())
}

fn write_sparse(path: &Path, size: u64) -> io::Result<()> {
    let block = noise(seed(path), BLOCK);
    let file = File::create(path)?;
    file.set_len(size)?;
    let mut offset = 0;
    while offset < size {
        let part = (size - offset).min(BLOCK);
        file.write_all_at(block.get(..part as usize).unwrap_or(&block), offset)?;
        offset += 16 * BLOCK;
    }
    Ok(())
}

/// Which files a layer is to have.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// Dense files of these sizes.
    pub(super) sizes: Vec<u64>,
    /// Sparse and linked files of this size.
    pub(super) middle: u64,
    /// How many files the directory that is renamed has, and the number of those that are looked at while others wait.
    pub(super) tree: usize,
    pub(super) small: usize,
    /// How many layers there may be.
    pub(super) depth: usize,
}

impl Files {
    /// Bytes of data in all.
    pub(super) fn bytes(&self) -> u64 {
        let dense: u64 = self.sizes.iter().map(|s| s * count(*s) as u64).sum();
        dense
            + 2 * self.middle * count(self.middle) as u64
            + (self.tree + self.small) as u64 * BLOCK * 2
    }

    /// Makes the layers in a directory.
    pub(super) fn make(&self, dir: &Path) -> Result<(), BenchError> {
        let base = dir.join(BASE);
        self.fill(&base)
            .map_err(at("cannot make the layer", &base))?;
        for i in 1..self.depth {
            let layer = dir.join(format!("t{i}"));
            self.cover(&layer, i)
                .map_err(at("cannot make the layer", &layer))?;
        }
        Ok(())
    }

    fn fill(&self, base: &Path) -> io::Result<()> {
        for size in &self.sizes {
            fs::create_dir_all(base.join(Shape::Dense.name()).join(size.to_string()))?;
            for number in 0..count(*size) {
                write_noise(&base.join(path(Shape::Dense, *size, number)), *size)?;
            }
        }
        for shape in [Shape::Sparse, Shape::Linked] {
            fs::create_dir_all(base.join(shape.name()).join(self.middle.to_string()))?;
            for number in 0..count(self.middle) {
                let file = base.join(path(shape, self.middle, number));
                if shape == Shape::Sparse {
                    write_sparse(&file, self.middle)?;
                } else {
                    write_noise(&file, self.middle)?;
                    fs::hard_link(&file, file.with_extension("other"))?;
                }
            }
        }
        for (name, count) in [(TREE, self.tree), (SMALL, self.small)] {
            fs::create_dir_all(base.join(name))?;
            for i in 0..count {
                fs::write(base.join(name).join(format!("{i}")), format!("{i}\n"))?;
            }
        }
        Ok(())
    }

    /// A layer above: the same directories, and in each a file of its own.
    fn cover(&self, layer: &Path, number: usize) -> io::Result<()> {
        for size in &self.sizes {
            let dir = layer.join(Shape::Dense.name()).join(size.to_string());
            fs::create_dir_all(&dir)?;
            fs::write(dir.join(format!("above{number}")), "above\n")?;
        }
        Ok(())
    }
}

/// Layers for a mount, topmost first.
pub(super) fn lowers(depth: usize) -> Vec<PathBuf> {
    (1..depth)
        .rev()
        .map(|i| PathBuf::from(format!("t{i}")))
        .chain([PathBuf::from(BASE)])
        .collect()
}

/// Lets the page cache forget a file's data, or reads all of it.
pub(super) fn set_cached(path: &Path, cached: bool) -> io::Result<()> {
    let file = File::open(path)?;
    if cached {
        io::copy(&mut &file, &mut io::sink())?;
    } else {
        file.sync_data()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_layers_hold_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files {
            sizes: vec![4096, 1 << 20],
            middle: 1 << 20,
            tree: 3,
            small: 2,
            depth: 3,
        };
        files.make(dir.path()).unwrap();
        let base = dir.path().join(BASE);
        let dense = base.join(path(Shape::Dense, 1 << 20, 0));
        let read = fs::read(&dense).unwrap();
        assert_eq!(read.len(), 1 << 20);
        assert_eq!(read[4096..8192], expected(&dense, 4096, 4096));
        let sparse = fs::metadata(base.join(path(Shape::Sparse, 1 << 20, 0))).unwrap();
        assert_eq!(sparse.len(), 1 << 20);
        assert!(sparse.blocks() * 512 < 1 << 19, "{}", sparse.blocks());
        let linked = fs::metadata(base.join(path(Shape::Linked, 1 << 20, 0))).unwrap();
        assert_eq!(linked.nlink(), 2);
        assert_eq!(lowers(3), [PathBuf::from("t2"), "t1".into(), BASE.into()]);
        for lower in lowers(3) {
            assert!(dir.path().join(lower).join("dense/4096").is_dir());
        }
    }
}
