//! The layers that grow.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::bench::error::{BenchError, at};

/// How many names are looked up, and how many files a directory has.
pub(super) const NAMES: u64 = 1000;
/// The directory that all layers of a stack have.
pub(super) const SHARED: &str = "shared";

/// A stack: the names lie in the lowest layer, and each above has a file of its own beside them. Topmost first.
pub(super) fn stack(base: &Path, layers: u64) -> Result<Vec<PathBuf>, BenchError> {
    let mut names = Vec::new();
    for layer in 0..layers {
        let name = PathBuf::from(format!("s{layer}"));
        let dir = base.join(&name).join(SHARED);
        let fill = || -> io::Result<()> {
            fs::create_dir_all(&dir)?;
            if layer == 0 {
                for i in 0..NAMES {
                    fs::write(dir.join(format!("f{i}")), "x")?;
                }
            } else {
                fs::write(dir.join(format!("own{layer}")), "x")?;
            }
            Ok(())
        };
        fill().map_err(at("cannot make the layer", &dir))?;
        names.push(name);
    }
    names.reverse();
    Ok(names)
}

/// One layer of so many files.
pub(super) fn tree(base: &Path, files: u64) -> Result<Vec<PathBuf>, BenchError> {
    let name = PathBuf::from(format!("t{files}"));
    let root = base.join(&name);
    let fill = || -> io::Result<()> {
        for from in (0..files).step_by(NAMES as usize) {
            let dir = root.join(format!("d{}", from / NAMES));
            fs::create_dir_all(&dir)?;
            for i in from..(from + NAMES).min(files) {
                fs::write(dir.join(format!("f{}", i - from)), "x")?;
            }
        }
        Ok(())
    };
    fill().map_err(at("cannot make the layer", &root))?;
    Ok(vec![name])
}

/// Looks at everything below a directory, and counts it.
pub(super) fn walk(dir: &Path) -> io::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        count += 1;
        if entry.metadata()?.is_dir() {
            count += walk(&entry.path())?;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_what_is_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let stack = stack(dir.path(), 3).unwrap();
        assert_eq!(stack, ["s2", "s1", "s0"].map(PathBuf::from));
        let lowest = dir.path().join("s0").join(SHARED);
        assert!(lowest.join(format!("f{}", NAMES - 1)).is_file());
        let tree = tree(dir.path(), 1500).unwrap();
        assert_eq!(walk(&dir.path().join(&tree[0])).unwrap(), 1502);
    }
}
