//! What the tree is to be after each step of a workload, and what of it is durable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// An inode of the model.
pub(crate) type Ino = usize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink(PathBuf),
    Fifo,
}

/// What a name leads to, without a file's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// Permissions.
    pub(crate) mode: u32,
    /// The value of `user.tag`, where there is one.
    pub(crate) tag: Option<Vec<u8>>,
    /// The time of modification, as long as nothing but attributes has changed.
    pub(crate) mtime: Option<i64>,
}

/// One state of the tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) names: BTreeMap<PathBuf, Ino>,
    pub(crate) nodes: BTreeMap<Ino, Node>,
}

impl State {
    pub(crate) fn node(&self, path: &Path) -> Option<&Node> {
        self.nodes.get(self.names.get(path)?)
    }

    pub(crate) fn is_dir(&self, path: &Path) -> bool {
        path.as_os_str().is_empty() || self.node(path).is_some_and(|n| n.kind == Kind::Dir)
    }

    pub(crate) fn is_empty_dir(&self, path: &Path) -> bool {
        self.is_dir(path) && !self.names.keys().any(|p| p.parent() == Some(path))
    }

    pub(crate) fn nlink(&self, ino: Ino) -> usize {
        self.names.values().filter(|i| **i == ino).count()
    }

    /// A name is gone, and its inode with the last one.
    pub(crate) fn remove(&mut self, path: &Path) {
        if let Some(ino) = self.names.remove(path)
            && self.nlink(ino) == 0
        {
            self.nodes.remove(&ino);
        }
    }

    /// Moves a name and all below it.
    pub(crate) fn relocate(&mut self, from: &Path, to: &Path) {
        let moved: Vec<PathBuf> = self
            .names
            .keys()
            .filter(|p| p.starts_with(from))
            .cloned()
            .collect();
        for path in moved {
            let ino = self.names.remove(&path).unwrap();
            let rest = path.strip_prefix(from).unwrap();
            // Joining the empty path would add a slash.
            let new = if rest.as_os_str().is_empty() {
                to.to_owned()
            } else {
                to.join(rest)
            };
            self.names.insert(new, ino);
        }
    }
}

/// The contents of a file from a state on.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    /// Index of the first state that has it.
    pub(crate) state: usize,
    pub(crate) data: Rc<Vec<u8>>,
}

/// A promise: whoever looks after a cut at or behind the position finds this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    pub(crate) position: usize,
    /// Index of the state that is durable.
    pub(crate) state: usize,
    /// Attributes and names as well, not the data and what is needed to find it.
    pub(crate) attributes: bool,
}

/// A workload as it went.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The tree before the first step and after each.
    pub(crate) states: Vec<State>,
    /// What was done.
    pub(crate) steps: Vec<String>,
    /// The disk's record when each step began.
    pub(crate) begins: Vec<usize>,
    /// Every version of each file's data, the oldest first.
    pub(crate) data: BTreeMap<Ino, Vec<Version>>,
    /// The last state in which each inode got other attributes or another name.
    pub(crate) changed: BTreeMap<Ino, Vec<usize>>,
    /// All of the tree is durable.
    pub(crate) synced: Vec<Promise>,
    /// A file is durable, its attributes with it.
    pub(crate) fsynced: BTreeMap<Ino, Vec<Promise>>,
}

impl History {
    pub(crate) fn last(&self) -> &State {
        self.states.last().unwrap()
    }

    /// A file's data at the end.
    pub(crate) fn latest(&self, ino: Ino) -> Vec<u8> {
        self.data[&ino].last().unwrap().data.to_vec()
    }

    /// The newest state that a disk cut at a position can hold.
    pub(crate) fn newest(&self, cut: usize) -> usize {
        let begun = self.begins.iter().take_while(|b| **b < cut).count();
        // A promise also holds where the disk had nothing to write for it any more.
        let own = self.fsynced.values().map(|p| Self::promised(p, cut));
        own.fold(begun.max(self.oldest(cut)), usize::max)
    }

    fn promised(promises: &[Promise], cut: usize) -> usize {
        let kept = promises.iter().filter(|p| p.position <= cut);
        kept.map(|p| p.state).max().unwrap_or(0)
    }

    /// The oldest state of the whole tree that it may hold.
    pub(crate) fn oldest(&self, cut: usize) -> usize {
        Self::promised(&self.synced, cut)
    }

    /// The oldest state of a file's data that it may hold.
    pub(crate) fn oldest_data(&self, ino: Ino, cut: usize) -> usize {
        let own = self.fsynced.get(&ino).map_or(&[][..], |p| p);
        self.oldest(cut).max(Self::promised(own, cut))
    }

    /// The oldest state of a file's attributes and names that it may hold: that of the last change before its fsync, or of its
    /// making where only its data was asked for.
    pub(crate) fn oldest_attributes(&self, ino: Ino, cut: usize) -> usize {
        let own = self.fsynced.get(&ino).map_or(&[][..], |p| p);
        let all: Vec<Promise> = own.iter().copied().filter(|p| p.attributes).collect();
        let (any, durable) = (Self::promised(own, cut), Self::promised(&all, cut));
        let changes = self.changed.get(&ino).map_or(&[][..], |c| c);
        let made = changes
            .first()
            .filter(|c| !self.states[0].nodes.contains_key(&ino) && **c <= any);
        changes
            .iter()
            .filter(|c| **c <= durable)
            .chain(made)
            .copied()
            .max()
            .unwrap_or(0)
    }

    /// The versions of a file's data that it may hold.
    pub(crate) fn versions(&self, ino: Ino, cut: usize) -> &[Version] {
        let all = self.data.get(&ino).map_or(&[][..], |v| v);
        let (oldest, newest) = (self.oldest_data(ino, cut), self.newest(cut));
        let first = all.iter().rposition(|v| v.state <= oldest).unwrap_or(0);
        let end = all
            .iter()
            .position(|v| v.state > newest)
            .unwrap_or(all.len());
        &all[first..end.max(first)]
    }
}
