//! The stack that is measured on: what it has, and one to take where none is given.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::bench::error::{BenchError, at};

const LAYERS: usize = 5;
const DIRS: usize = 40;
const FILES: usize = 50;
const LARGE: usize = 64 << 20;

/// Makes layers, the topmost first: directories that are merged and others that are not, small files, a large one.
pub(super) fn generate(base: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let mut layers = Vec::new();
    for layer in 0..LAYERS {
        let root = base.join(format!("made{layer}"));
        fill(&root, layer).map_err(at("cannot make the layer", &root))?;
        layers.push(root);
    }
    Ok(layers)
}

fn fill(root: &Path, layer: usize) -> io::Result<()> {
    for dir in 0..DIRS {
        // Every other directory exists in several layers.
        let name = if dir % 2 == 0 {
            format!("d{dir}")
        } else {
            format!("lib{layer}/d{dir}")
        };
        let dir = root.join(name);
        fs::create_dir_all(&dir)?;
        for file in 0..FILES {
            let size = 100 << (file % 8);
            fs::write(dir.join(format!("f{layer}-{file}")), vec![b'a'; size])?;
        }
    }
    if layer == 0 {
        let mut file = fs::File::create(root.join("large"))?;
        let block = vec![7; 1 << 20];
        for _ in 0..LARGE / block.len() {
            file.write_all(&block)?;
        }
    }
    Ok(())
}

/// What a merged tree has, with paths from its root.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Everything but the root.
    pub(super) entries: usize,
    /// Files that have a page or a few.
    pub(super) small: Vec<PathBuf>,
    /// The largest files, and their sizes.
    pub(super) large: Vec<(PathBuf, u64)>,
    /// A directory with a good number of files below it.
    pub(super) tree: Option<(PathBuf, usize)>,
}

const SMALL: u64 = 64 << 10;
const AT_MOST: usize = 30_000;
/// How many files the directory should have that is changed as a whole.
const TREE: usize = 2000;

impl Survey {
    /// Looks at everything. `less` is what the work is divided by.
    pub(super) fn of(root: &Path, less: usize) -> io::Result<Survey> {
        let mut survey = Survey::default();
        let mut trees = Vec::new();
        survey.look(root, Path::new(""), &mut trees)?;
        survey.small.sort();
        survey.small.truncate(AT_MOST);
        survey
            .large
            .sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        survey.large.truncate(20);
        // The nearest in size; of those the first.
        trees.sort();
        survey.tree = trees
            .into_iter()
            .filter(|(_, files)| *files >= 20)
            .min_by_key(|(_, files)| files.abs_diff(TREE / less));
        Ok(survey)
    }

    fn look(
        &mut self,
        root: &Path,
        dir: &Path,
        trees: &mut Vec<(PathBuf, usize)>,
    ) -> io::Result<usize> {
        let mut files = 0;
        for entry in fs::read_dir(root.join(dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let meta = entry.metadata()?;
            self.entries += 1;
            if meta.is_dir() {
                let below = self.look(root, &path, trees)?;
                files += below;
                trees.push((path, below));
            } else if meta.is_file() {
                files += 1;
                if meta.len() > 0 && meta.len() <= SMALL {
                    self.small.push(path);
                } else if meta.len() >= 1 << 20 {
                    self.large.push((path, meta.len()));
                }
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_made_stack_has_what_the_work_needs() {
        let dir = tempfile::tempdir().unwrap();
        let layers = generate(dir.path()).unwrap();
        assert_eq!(layers.len(), LAYERS);
        let survey = Survey::of(&layers[0], 1).unwrap();
        assert_eq!(survey.small.len(), DIRS * FILES);
        assert_eq!(survey.large, [("large".into(), LARGE as u64)]);
        let (tree, files) = survey.tree.unwrap();
        assert_eq!(files, DIRS / 2 * FILES);
        assert_eq!(tree, Path::new("lib0"));
    }
}
