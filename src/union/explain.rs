//! What a union tells about itself.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::{Error, Result};
use super::inode::Inode;
use super::report::{Change, ChangeKind, Explanation, LayerWord, StatsSnapshot};
use super::stack::DirParts;
use super::{Union, stats};
use crate::layer::{EntryKind, Layer, LayerLookup, Node, Opaque};

/// That this mount copied an inode up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CopyUpEvent {
    /// The last time, in seconds since the epoch.
    time: u64,
    /// What asked for it. Empty as long as the first copy-up is under way.
    reason: &'static str,
    /// Of data, in all.
    bytes: u64,
    /// In all, in microseconds.
    took_us: u64,
}

/// What one layer has at a path, read without regard to the others.
struct Word {
    has: &'static str,
    /// The first directory of the path, from the top, that hides this path in the layers below, and why.
    hides: Option<(String, &'static str)>,
    is_dir: bool,
}

impl Union {
    pub(crate) fn do_explain(&self, path: &Path) -> Result<Explanation> {
        let names = components(path)?;
        let inode = self.walk(&names)?;
        let mut layers: Vec<(usize, Arc<dyn Layer>, Node)> = Vec::new();
        if let Some(upper) = &self.stack.upper {
            layers.push((0, upper.clone(), upper.root()));
        }
        let base = layers.len();
        for (i, layer) in self.stack.lowers.iter().enumerate() {
            layers.push((base + i, layer.clone(), layer.root()));
        }
        let shown = inode.as_ref().map(|i| self.shown_layers(i, base));
        let mut words = Vec::new();
        let mut hider: Option<(usize, String, &'static str)> = None;
        for (index, layer, root) in layers {
            let word = self.word(&*layer, root, &names)?;
            if word.has != "nothing" || shown.as_ref().is_some_and(|s| s.contains(&index)) {
                let role = match (&shown, &hider) {
                    (Some(shown), _) if shown.first() == Some(&index) => "shown".to_owned(),
                    (Some(shown), _) if shown.contains(&index) => "merged".to_owned(),
                    (_, Some((by, at, why))) => format!("hidden by layer {by} ({why} {at})"),
                    _ if word.has == "whiteout" => "hides the layers below".to_owned(),
                    _ => "not shown".to_owned(),
                };
                let has = if word.has == "nothing" {
                    "the parts of a renamed directory"
                } else {
                    word.has
                };
                words.push(LayerWord {
                    index,
                    layer: layer.describe(),
                    has: has.to_owned(),
                    role,
                });
            }
            if hider.is_none() {
                hider = word.hides.map(|(at, why)| (index, at, why)).or_else(|| {
                    let file = word.has != "nothing" && !word.is_dir;
                    file.then(|| (index, display(&names), word.has))
                });
            }
        }
        if inode.is_none() && words.is_empty() {
            return Err(Error::Errno(libc::ENOENT));
        }
        let copied_up = inode.as_ref().is_some_and(|i| {
            let state = i.state.read();
            state.upper.is_some() && (state.has_origin || !state.lowers.is_empty())
        });
        let event = inode
            .as_ref()
            .and_then(|i| self.copied.lock().get(&i.ino).copied())
            .filter(|event| !event.reason.is_empty());
        Ok(Explanation {
            path: display(&names),
            layers: words,
            copied_up,
            copy_up_time: event.map(|event| event.time),
            copy_up_reason: event.map(|event| event.reason.to_owned()),
            copy_up_bytes: event.map(|event| event.bytes),
            copy_up_us: event.map(|event| event.took_us),
            partial: inode.as_ref().and_then(|i| Self::partial_word(i)),
        })
    }

    /// Adds what copying an inode's data moved, to the mount's counters and to the inode's event.
    pub(crate) fn note_copied_bytes(&self, inode: &Inode, bytes: u64) {
        stats::add(&self.stats.copy_up_bytes, bytes);
        if bytes > 0 {
            self.copied.lock().entry(inode.ino).or_default().bytes += bytes;
        }
    }

    /// Remembers that an inode was copied up, and how long that took.
    pub(crate) fn note_copy_up(&self, inode: &Inode, reason: &'static str, took: Duration) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let mut copied = self.copied.lock();
        let event = copied.entry(inode.ino).or_default();
        event.time = now;
        event.reason = reason;
        event.took_us += u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    }

    /// Walks from the root without telling the kernel of anything.
    pub(crate) fn walk(&self, names: &[OsString]) -> Result<Option<Arc<Inode>>> {
        let mut at = self.root.clone();
        for name in names {
            if !at.is_dir() {
                return Ok(None);
            }
            match self.find(&at, name)? {
                Some(found) => at = found.inode,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn shown_layers(&self, inode: &Inode, base: usize) -> Vec<usize> {
        let state = inode.state.read();
        let upper = state.upper.is_some().then_some(0);
        // Of a file that was copied up whole, nothing below shows any more.
        // Its lower counts as long as it lacks blocks.
        let partial = state.partial().is_some_and(|p| !p.is_done());
        let whole = upper.is_some() && !inode.is_dir() && !state.metacopy && !partial;
        let lowers = state.lowers.iter().filter(|_| !whole);
        let lowers = lowers.map(|l| base + l.layer as usize);
        upper.into_iter().chain(lowers).collect()
    }

    fn word(&self, layer: &dyn Layer, root: Node, names: &[OsString]) -> Result<Word> {
        let mut at = root;
        let mut xwhiteouts = false;
        let mut word = Word {
            has: "directory",
            hides: None,
            is_dir: true,
        };
        for (i, name) in names.iter().enumerate() {
            let here = || display(&names[..=i]);
            let last = i + 1 == names.len();
            match layer.lookup(&at, name, xwhiteouts)? {
                LayerLookup::Missing => {
                    word.has = "nothing";
                    return Ok(word);
                }
                LayerLookup::Whiteout => {
                    word.has = if last { "whiteout" } else { "nothing" };
                    word.is_dir = false;
                    word.hides.get_or_insert((here(), "whiteout"));
                    return Ok(word);
                }
                LayerLookup::Found(found) => {
                    word.is_dir = found.stat.is_dir();
                    word.has = match found.stat.file_type() {
                        libc::S_IFREG => "file",
                        libc::S_IFDIR => "directory",
                        libc::S_IFLNK => "symlink",
                        _ => "special",
                    };
                    if !word.is_dir {
                        if !last {
                            word.hides.get_or_insert((here(), word.has));
                            word.has = "nothing";
                            word.is_dir = true;
                        }
                        return Ok(word);
                    }
                    let marks = layer.marks(&found.node, &found.stat)?;
                    if marks.opaque == Opaque::Yes || found.beside_whiteout {
                        word.hides.get_or_insert((here(), "opaque directory"));
                        word.has = "opaque directory";
                    }
                    xwhiteouts = marks.opaque == Opaque::XWhiteouts;
                    at = found.node;
                }
            }
        }
        Ok(word)
    }

    /// Inode numbers of changed files that no name in the upper leads to.
    pub(crate) fn do_unnamed(&self) -> Result<Vec<u64>> {
        let Some(upper) = &self.stack.upper else {
            return Ok(Vec::new());
        };
        let mut numbers = Vec::new();
        for handle in upper.index_unnamed()? {
            if let Some((dev, real, _)) = self.origin_number(&handle)? {
                numbers.push(self.stack.ino(dev, real, || self.table.dynamic_ino()));
            }
        }
        Ok(numbers)
    }

    pub(crate) fn do_diff(&self) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        if self.stack.upper.is_some() {
            let parts = Self::parts(&self.root);
            self.diff_dir(&parts, &mut Vec::new(), true, &mut changes)?;
        }
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    /// The changes below one directory of the upper. `known`: the directory itself was there before.
    fn diff_dir(
        &self,
        dir: &DirParts,
        path: &mut Vec<OsString>,
        known: bool,
        changes: &mut Vec<Change>,
    ) -> Result<()> {
        let (Some(upper), Some(part)) = (&self.stack.upper, &dir.upper) else {
            return Ok(());
        };
        let mut entries = Vec::new();
        upper.read_dir(&part.node, part.xwhiteouts, &mut |entry| {
            entries.push((entry.name.to_owned(), entry.kind));
            std::ops::ControlFlow::Continue(())
        })?;
        for (name, kind) in entries {
            path.push(name.clone());
            let before = known && self.stack.lowers_have(dir, &name)?;
            let kind = match kind {
                EntryKind::Whiteout => {
                    if before {
                        changes.push(change(ChangeKind::D, path));
                    }
                    path.pop();
                    continue;
                }
                EntryKind::Node(kind) => kind,
            };
            let mut change = change(if before { ChangeKind::C } else { ChangeKind::A }, path);
            if kind == libc::S_IFREG {
                change.missing = self.missing_of(upper, &part.node, &name)?;
            }
            changes.push(change);
            if kind == libc::S_IFDIR
                && let Some(found) = self.stack.resolve(dir, &name, false, None)?
                && let Some(upper) = &found.upper
            {
                let below = DirParts {
                    upper: Some(super::inode::UpperPart {
                        node: upper.node.clone(),
                        real_ino: upper.stat.ino,
                        xwhiteouts: upper.marks.opaque == Opaque::XWhiteouts,
                    }),
                    lowers: found.lowers.clone(),
                };
                let merged = !found.lowers.is_empty();
                if before && !merged {
                    self.diff_replaced(dir, &name, &below, path, changes)?;
                }
                self.diff_dir(&below, path, merged, changes)?;
            }
            path.pop();
        }
        Ok(())
    }

    /// A directory in place of one that was removed: what it had and the new one has not is deleted.
    fn diff_replaced(
        &self,
        dir: &DirParts,
        name: &OsStr,
        now: &DirParts,
        path: &mut Vec<OsString>,
        changes: &mut Vec<Change>,
    ) -> Result<()> {
        let Some(old) = self.stack.resolve(dir, name, true, None)? else {
            return Ok(());
        };
        if !old.lower_stat.is_some_and(|stat| stat.is_dir()) {
            return Ok(());
        }
        let Some((upper, part)) = self.stack.upper.as_ref().zip(now.upper.as_ref()) else {
            return Ok(());
        };
        let mut gone = std::collections::BTreeSet::new();
        let mut hidden = std::collections::HashSet::new();
        for lower in &old.lowers {
            let mut whiteouts = Vec::new();
            self.stack
                .lower(lower)
                .read_dir(&lower.node, lower.xwhiteouts, &mut |entry| {
                    match entry.kind {
                        EntryKind::Whiteout => whiteouts.push(entry.name.to_owned()),
                        EntryKind::Node(_) if !hidden.contains(entry.name) => {
                            gone.insert(entry.name.to_owned());
                        }
                        EntryKind::Node(_) => {}
                    }
                    std::ops::ControlFlow::Continue(())
                })?;
            hidden.extend(whiteouts);
        }
        for name in gone {
            let there = matches!(
                upper.lookup(&part.node, &name, part.xwhiteouts)?,
                LayerLookup::Found(_)
            );
            if !there {
                path.push(name);
                changes.push(change(ChangeKind::D, path));
                path.pop();
            }
        }
        Ok(())
    }

    pub(crate) fn do_stats(&self) -> StatsSnapshot {
        let (partial_files, partial_missing) = self.partial_totals();
        StatsSnapshot {
            operations: Vec::new(),
            lookup_hits: stats::get(&self.stats.lookup_hits),
            lookup_misses: stats::get(&self.stats.lookup_misses),
            copy_up_data: stats::get(&self.stats.copy_up_data),
            copy_up_meta: stats::get(&self.stats.copy_up_meta),
            copy_up_bytes: stats::get(&self.stats.copy_up_bytes),
            copy_up_partial: stats::get(&self.stats.copy_up_partial),
            partial_completed: stats::get(&self.stats.partial_completed),
            partial_files,
            partial_missing,
            passthrough_opens: stats::get(&self.stats.passthrough_opens),
            cached_opens: stats::get(&self.stats.cached_opens),
            inodes: self.table.len(),
        }
    }
}

fn change(kind: ChangeKind, path: &[OsString]) -> Change {
    Change {
        kind,
        path: display(path),
        missing: None,
    }
}

fn display(names: &[OsString]) -> String {
    if names.is_empty() {
        return "/".to_owned();
    }
    names
        .iter()
        .map(|n| format!("/{}", String::from_utf8_lossy(n.as_bytes())))
        .collect()
}

pub(super) fn components(path: &Path) -> Result<Vec<OsString>> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(Ok(name.to_owned())),
            Component::RootDir | Component::CurDir => None,
            Component::ParentDir | Component::Prefix(_) => Some(Err(Error::Errno(libc::EINVAL))),
        })
        .collect()
}
