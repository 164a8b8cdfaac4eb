//! What is found on a mount after a cut, and whether it may be so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::model::{History, Ino, Kind, Node, State, Version};
use crate::workload::{mtime, tag_of};

/// One name that was found.
#[derive(Debug)]
struct Found {
    node: Node,
    /// Which inode, and how many names it says to have.
    ino: u64,
    nlink: u64,
    data: Vec<u8>,
}

/// A tree that was found.
#[derive(Debug, Default)]
pub(crate) struct Tree(BTreeMap<PathBuf, Found>);

/// How far a filesystem keeps the order of what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// What is found is the tree as it was at one moment, but for the data of files.
    Moment,
    /// An fsync takes single files ahead of the rest: each name for itself is as it was at some moment.
    Names,
}

impl Tree {
    /// Reads all of it; everything that is listed must be readable.
    pub(crate) fn read(root: &Path) -> Result<Tree, String> {
        let mut tree = Tree::default();
        let mut pending = vec![PathBuf::new()];
        while let Some(dir) = pending.pop() {
            let told = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
            let at = root.join(&dir);
            for entry in fs::read_dir(&at).map_err(|e| told(&at, e))? {
                let name = entry.map_err(|e| told(&at, e))?.file_name();
                let path = dir.join(name);
                let full = root.join(&path);
                let found = Found::read(&full).map_err(|e| told(&full, e))?;
                if found.node.kind == Kind::Dir {
                    pending.push(path.clone());
                }
                if tree.0.insert(path, found).is_some() {
                    return Err(format!("{} is listed twice", full.display()));
                }
            }
        }
        Ok(tree)
    }
}

impl Found {
    fn read(path: &Path) -> std::io::Result<Found> {
        let meta = fs::symlink_metadata(path)?;
        let file_type = meta.file_type();
        let kind = if file_type.is_dir() {
            Kind::Dir
        } else if file_type.is_symlink() {
            Kind::Symlink(fs::read_link(path)?)
        } else if file_type.is_fifo() {
            Kind::Fifo
        } else if file_type.is_file() {
            Kind::File
        } else {
            return Err(std::io::Error::other(format!("a {file_type:?}")));
        };
        let tag = match kind {
            Kind::File | Kind::Dir => tag_of(path)?,
            Kind::Symlink(_) | Kind::Fifo => None,
        };
        let data = match kind {
            Kind::File => fs::read(path)?,
            _ => Vec::new(),
        };
        if kind == Kind::File && data.len() as u64 != meta.size() {
            let text = format!("{} bytes, not {}", data.len(), meta.size());
            return Err(std::io::Error::other(text));
        }
        Ok(Found {
            node: Node {
                kind,
                mode: meta.mode() & 0o7777,
                tag,
                mtime: Some(mtime(&meta)),
            },
            ino: meta.ino(),
            nlink: meta.nlink(),
            data,
        })
    }
}

fn same_node(expected: &Node, found: &Node, data_as_ever: bool) -> Result<(), String> {
    let with_time = expected.mtime.is_some() && data_as_ever;
    if expected.kind == found.kind
        && expected.mode == found.mode
        && expected.tag == found.tag
        && (!with_time || expected.mtime == found.mtime)
    {
        return Ok(());
    }
    Err(format!("{found:?} instead of {expected:?}"))
}

/// Whether the data of a file may be so: each byte is that of a version, or nothing where a version ended before it.
fn wrong_data(found: &[u8], versions: &[Version]) -> Option<String> {
    let told = || {
        let all = versions.iter();
        all.map(|v| format!("{} in state {}", v.data.len(), v.state))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let sizes = || versions.iter().map(|v| v.data.len());
    let (least, most) = (sizes().min()?, sizes().max()?);
    if !(least..=most).contains(&found.len()) {
        return Some(format!("{} bytes long; versions: {}", found.len(), told()));
    }
    for (at, byte) in found.iter().enumerate() {
        let known = versions
            .iter()
            .any(|v| v.data.get(at).is_none_or(|b| b == byte) && (at < v.data.len() || *byte == 0));
        if !known {
            let bytes: Vec<_> = versions.iter().map(|v| v.data.get(at)).collect();
            return Some(format!(
                "byte {at} of {} is {byte}, not one of {bytes:?}; versions: {}",
                found.len(),
                told()
            ));
        }
    }
    None
}

/// A history and the moment at which the power went.
pub(crate) struct Judge<'a> {
    pub(crate) history: &'a History,
    pub(crate) cut: usize,
}

impl Judge<'_> {
    /// What is wrong with a tree.
    pub(crate) fn wrong(&self, tree: &Tree, order: Order) -> Option<String> {
        match order {
            Order::Moment => self.no_moment(tree),
            Order::Names => self.wrong_names(tree),
        }
    }

    fn data_as_ever(&self, ino: Ino) -> bool {
        self.history.versions(ino, self.cut).len() <= 1
    }

    /// What a tree differs in from one state.
    fn differences(&self, state: &State, tree: &Tree) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut inodes: BTreeMap<Ino, u64> = BTreeMap::new();
        for (path, ino) in &state.names {
            let Some(found) = tree.0.get(path) else {
                wrong.push(format!("{path:?} is missing"));
                continue;
            };
            if *inodes.entry(*ino).or_insert(found.ino) != found.ino {
                wrong.push(format!("{path:?} is not linked with its other names"));
            }
            let node = &state.nodes[ino];
            if let Err(text) = same_node(node, &found.node, self.data_as_ever(*ino)) {
                wrong.push(format!("{path:?}: {text}"));
                continue;
            }
            if node.kind != Kind::Dir && found.nlink != state.nlink(*ino) as u64 {
                wrong.push(format!("{path:?} has {} links", found.nlink));
            }
            if node.kind == Kind::File
                && let Some(text) = wrong_data(&found.data, self.history.versions(*ino, self.cut))
            {
                wrong.push(format!("{path:?}: {text}"));
            }
        }
        for path in tree.0.keys().filter(|p| !state.names.contains_key(*p)) {
            wrong.push(format!("{path:?} is there"));
        }
        let distinct: BTreeSet<u64> = inodes.values().copied().collect();
        if distinct.len() != inodes.len() {
            wrong.push("names of different inodes are linked".into());
        }
        wrong
    }

    fn no_moment(&self, tree: &Tree) -> Option<String> {
        let newest = self.history.newest(self.cut);
        let fsynced = self.history.fsynced.keys();
        let oldest = fsynced
            .map(|ino| self.history.oldest_attributes(*ino, self.cut))
            .fold(self.history.oldest(self.cut), usize::max);
        let mut nearest: Option<(usize, Vec<String>)> = None;
        for index in (oldest..=newest).rev() {
            let wrong = self.differences(&self.history.states[index], tree);
            if wrong.is_empty() {
                return None;
            }
            if nearest.as_ref().is_none_or(|(_, n)| n.len() > wrong.len()) {
                nearest = Some((index, wrong));
            }
        }
        let (index, wrong) = nearest?;
        Some(format!(
            "none of the states {oldest} to {newest}; of state {index}:\n  {}\nlast steps:\n{}",
            wrong.join("\n  "),
            self.told(oldest, newest)
        ))
    }

    /// The steps that led from one state to another.
    fn told(&self, oldest: usize, newest: usize) -> String {
        let steps = &self.history.steps;
        (oldest.saturating_sub(15)..newest.min(steps.len()))
            .map(|i| format!("  {} -> {}: {}", i, i + 1, steps[i]))
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn wrong_names(&self, tree: &Tree) -> Option<String> {
        let (oldest, newest) = (self.history.oldest(self.cut), self.history.newest(self.cut));
        let states = &self.history.states[oldest..=newest];
        let paths: BTreeSet<&PathBuf> = states
            .iter()
            .flat_map(|s| s.names.keys())
            .chain(tree.0.keys())
            .collect();
        let mut wrong = Vec::new();
        for path in paths {
            let found = tree.0.get(path);
            let fits = states
                .iter()
                .any(|state| match (state.names.get(path), found) {
                    (None, None) => true,
                    (Some(ino), Some(found)) => {
                        let node = &state.nodes[ino];
                        same_node(node, &found.node, self.data_as_ever(*ino)).is_ok()
                            && (node.kind != Kind::File
                                || wrong_data(&found.data, self.history.versions(*ino, self.cut))
                                    .is_none())
                    }
                    _ => false,
                });
            if !fits {
                let node = found.map(|f| &f.node);
                let data = found.and_then(|found| {
                    let last = states.iter().rev().find_map(|s| s.names.get(path))?;
                    wrong_data(&found.data, self.history.versions(*last, self.cut))
                });
                wrong.push(format!("{path:?} never was so: {node:?}, {data:?}"));
            }
        }
        let inodes: BTreeSet<Ino> = states[0]
            .nodes
            .keys()
            .copied()
            .chain(self.history.fsynced.keys().copied())
            .collect();
        for ino in inodes {
            if let Some(text) = self.lost(ino, (oldest, newest), tree) {
                wrong.push(text);
            }
        }
        (!wrong.is_empty()).then(|| {
            format!(
                "states {oldest} to {newest}:\n  {}\nlast steps:\n{}",
                wrong.join("\n  "),
                self.told(oldest, newest)
            )
        })
    }

    /// An inode that has had a name ever since it was durable, and now has none.
    fn lost(&self, ino: Ino, (oldest, newest): (usize, usize), tree: &Tree) -> Option<String> {
        let from = oldest.max(self.history.oldest_attributes(ino, self.cut));
        let states = &self.history.states[from..=newest];
        if from == 0 && oldest == 0 && !states[0].nodes.contains_key(&ino)
            || states.iter().any(|s| !s.nodes.contains_key(&ino))
        {
            return None;
        }
        let names: BTreeSet<&PathBuf> = states
            .iter()
            .flat_map(|s| s.names.iter().filter(|(_, i)| **i == ino).map(|(p, _)| p))
            .collect();
        let there = names.iter().any(|path| {
            let Some(found) = tree.0.get(*path) else {
                return false;
            };
            states
                .iter()
                .any(|s| same_node(&s.nodes[&ino], &found.node, false).is_ok())
                && (found.node.kind != Kind::File
                    || wrong_data(&found.data, self.history.versions(ino, self.cut)).is_none())
        });
        (!there).then(|| format!("inode {ino} is at none of {names:?}, durable since state {from}"))
    }
}
