//! What a writable layer changes, as the tar of an image's layer.
//!
//! Names come from the upper, so that it takes time in proportion to the changes. Attributes and data come from the mount: there
//! a file whose data lie below (metadata-only or partial copy-up) is whole, owners are mapped, and the overlay's own
//! attributes are hidden. What the upper tells by marks becomes what layers know:
//!
//! - A whiteout in any form is a `.wh.` entry, an opaque directory has a `.wh..wh..opq`.
//! - A renamed directory (redirect) has parts in the layers below at its old place, which no layer can say: it is
//!   written with all that it shows, and as opaque.
//! - A socket, which no tar holds, leaves a whiteout: what it replaced is gone.
//! - A hard link whose other names lie below shows the change under those as well, though the upper has them not: the
//!   index has. Where a node has more names than were written, the mount is searched for the others; and where the name that
//!   it was changed by was removed, for any.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::emit::{Emitter, Xattrs, join, shown, xattrs_of};
use super::plain::{Dots, subtree};
use super::{names_in, open_dir_at, open_root, stat_at};
use crate::image::error::ImageError;
use crate::image::unpack::open_beneath;
use crate::layer::dir::{DirLayer, LayerOptions};
use crate::layer::fdcache::FdCache;
use crate::layer::upper::Namespace;
use crate::layer::{EntryKind, Layer, LayerLookup, Node, Opaque};
use crate::sys::mount_clone::read_only_clone;

/// A directory of the upper that is being walked.
struct Dir {
    /// In the upper.
    node: Node,
    xwhiteouts: bool,
    /// It hides what lies below, so its whiteouts say nothing.
    opaque: bool,
    /// In the mount.
    seen: OwnedFd,
    path: Vec<u8>,
    /// What is left, the next one last.
    left: Vec<(Vec<u8>, EntryKind)>,
}

struct Walk<'a, W> {
    emitter: &'a mut Emitter<W>,
    upper: &'a dyn Layer,
    dirs: Vec<Dir>,
}

/// Writes what `upper` changes, where `marks` says which marks are its own: see [`crate::image::Commit::marks`]. `merged`: its mount. `unnamed`: see [`crate::image::Commit::unnamed`]. `below`: the root of the topmost layer under the upper. The
/// result says whether anything is changed.
pub(crate) fn write_changes<W: Write>(
    (upper, marks): (&Path, Option<Namespace>),
    (merged, unnamed): (&Path, &[u64]),
    below: Option<&Path>,
    output: W,
) -> Result<(W, bool), ImageError> {
    let options = match marks {
        Some(namespace) => LayerOptions {
            namespace,
            was_upper: true,
            ..LayerOptions::default()
        },
        None => LayerOptions::default(),
    };
    let layer = open_layer(upper, options)?;
    let root = seen_root(merged)?;
    let mut emitter = Emitter::new(output, Xattrs::AsSeen);
    let stat = stat_at(root.as_fd(), b"").map_err(ImageError::io("look at", merged))?;
    emitter.node(root.as_fd(), b"", b"", &stat)?;
    emitter.seek(stat.dev, unnamed);
    let all = root.try_clone().map_err(ImageError::io("open", merged))?;
    let mut walk = Walk {
        emitter: &mut emitter,
        upper: &layer,
        dirs: Vec::new(),
    };
    walk.enter(layer.root(), false, root, Vec::new())?;
    while walk.step()? {}
    find_other_names(&mut emitter, all.as_fd())?;
    let changed = emitter.entries() > 1 || root_differs(all.as_fd(), below)?;
    Ok((emitter.finish()?, changed))
}

fn open_layer(path: &Path, options: LayerOptions) -> Result<DirLayer, ImageError> {
    let cache = Arc::new(FdCache::for_this_process());
    DirLayer::open(path, options, cache)
        .map_err(|e| ImageError::io("open", path)(std::io::Error::other(e.to_string())))
}

/// The mount without what is mounted on its files, where the process may see it so.
pub(crate) fn seen_root(merged: &Path) -> Result<OwnedFd, ImageError> {
    let root = open_root(merged)?;
    match read_only_clone(root.as_fd()) {
        Ok(clone) => open_dir_at(clone.root.as_fd(), b".").map_err(ImageError::io("open", merged)),
        Err(e) => {
            log::debug!("no private mount of {}: {e}", merged.display());
            Ok(root)
        }
    }
}

impl<W: Write> Walk<'_, W> {
    /// Begins with a directory of the upper.
    fn enter(
        &mut self,
        node: Node,
        opaque: bool,
        seen: OwnedFd,
        path: Vec<u8>,
    ) -> Result<(), ImageError> {
        let failed = || ImageError::io::<std::io::Error>("read the upper's", shown(&path));
        let stat = self.upper.stat(&node).map_err(failed())?;
        let marks = self.upper.marks(&node, &stat).map_err(failed())?;
        let xwhiteouts = marks.opaque == Opaque::XWhiteouts;
        let mut left = Vec::new();
        self.upper
            .read_dir(&node, xwhiteouts, &mut |entry| {
                left.push((entry.name.as_bytes().to_vec(), entry.kind));
                ControlFlow::Continue(())
            })
            .map_err(failed())?;
        left.sort_by(|a, b| b.0.cmp(&a.0));
        self.dirs.push(Dir {
            node,
            xwhiteouts,
            opaque,
            seen,
            path,
            left,
        });
        Ok(())
    }

    /// Writes the next entry; false when there is none.
    fn step(&mut self) -> Result<bool, ImageError> {
        let Some(dir) = self.dirs.last_mut() else {
            return Ok(false);
        };
        let Some((name, kind)) = dir.left.pop() else {
            self.dirs.pop();
            return Ok(true);
        };
        let path = join(&dir.path, &name);
        let stat = match (kind, stat_at(dir.seen.as_fd(), &name)) {
            (EntryKind::Node(_), Ok(stat)) => Some(stat),
            // Either it is a whiteout, or what the upper had a moment ago was removed meanwhile.
            (EntryKind::Whiteout, _) | (_, Err(Errno::NOENT)) => None,
            (_, Err(e)) => return Err(ImageError::io("look at", shown(&path))(e)),
        };
        // No tar holds a socket; what was in its place is gone all the same.
        let Some(stat) = stat.filter(|stat| stat.file_type() != libc::S_IFSOCK) else {
            if !dir.opaque {
                self.emitter.whiteout(&dir.path, &name)?;
            }
            return Ok(true);
        };
        self.emitter.node(dir.seen.as_fd(), &name, &path, &stat)?;
        if !stat.is_dir() {
            return Ok(true);
        }
        let seen =
            open_dir_at(dir.seen.as_fd(), &name).map_err(ImageError::io("open", shown(&path)))?;
        let failed = || ImageError::io::<std::io::Error>("read the upper's", shown(&path));
        let os_name = std::ffi::OsStr::from_bytes(&name);
        let found = match self.upper.lookup(&dir.node, os_name, dir.xwhiteouts) {
            Ok(LayerLookup::Found(found)) if found.stat.is_dir() => found,
            Ok(_) => {
                // It was replaced meanwhile.
                self.emitter.opaque(&path)?;
                subtree(self.emitter, seen, path, Dots::Refused)?;
                return Ok(true);
            }
            Err(e) => return Err(failed()(e)),
        };
        let marks = self
            .upper
            .marks(&found.node, &found.stat)
            .map_err(failed())?;
        if marks.redirect.is_some() {
            self.emitter.opaque(&path)?;
            subtree(self.emitter, seen, path, Dots::Refused)?;
            return Ok(true);
        }
        let opaque = marks.opaque == Opaque::Yes || found.beside_whiteout;
        if opaque {
            self.emitter.opaque(&path)?;
        }
        let opaque = opaque || dir.opaque;
        self.enter(found.node, opaque, seen, path)?;
        Ok(true)
    }
}

/// Writes the names of nodes that were written under others only.
fn find_other_names<W: Write>(
    emitter: &mut Emitter<W>,
    root: BorrowedFd<'_>,
) -> Result<(), ImageError> {
    let mut wanted = emitter.incomplete_links();
    let mut left: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = left.pop() {
        if wanted.is_empty() && !emitter.seeks_any() {
            break;
        }
        let failed = |action| ImageError::io::<Errno>(action, shown(&path));
        let dir = open_beneath(root, &path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(failed("open"))?;
        for name in names_in(&dir).map_err(failed("list"))? {
            let below = join(&path, &name);
            let stat = match stat_at(dir.as_fd(), &name) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(ImageError::io("look at", shown(&below))(e)),
            };
            if stat.is_dir() {
                left.push(below);
                continue;
            }
            let key = (stat.dev, stat.ino);
            let other = wanted
                .get(&key)
                .is_some_and(|linked| !linked.names.contains(&below));
            if !other && !emitter.seeks(key) {
                continue;
            }
            with_parents(emitter, root, &path)?;
            emitter.node(dir.as_fd(), &name, &below, &stat)?;
            wanted = emitter.incomplete_links();
        }
    }
    Ok(())
}

/// Writes the directories that lead to an entry, as far as they are not written: without one, its attributes would be
/// made up where the layer is unpacked.
fn with_parents<W: Write>(
    emitter: &mut Emitter<W>,
    root: BorrowedFd<'_>,
    path: &[u8],
) -> Result<(), ImageError> {
    let ends = (0..path.len())
        .filter(|&at| path[at] == b'/')
        .chain([path.len()]);
    for end in ends {
        let dir = &path[..end];
        if dir.is_empty() || emitter.has_dir(dir) {
            continue;
        }
        let failed = |action| ImageError::io::<Errno>(action, shown(dir));
        let fd =
            open_beneath(root, dir, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("open"))?;
        let stat = stat_at(fd.as_fd(), b"").map_err(failed("look at"))?;
        emitter.node(fd.as_fd(), b"", dir, &stat)?;
    }
    Ok(())
}

/// Whether the mount's root has other attributes than that of the layer below.
fn root_differs(seen: BorrowedFd<'_>, below: Option<&Path>) -> Result<bool, ImageError> {
    let Some(below) = below else {
        return Ok(false);
    };
    let layer = open_layer(below, LayerOptions::default())?;
    let failed = || ImageError::io::<std::io::Error>("look at", below);
    let before = layer.stat(&layer.root()).map_err(failed())?;
    let now = stat_at(seen, b"").map_err(ImageError::io("look at", shown(b"")))?;
    if (before.mode, before.uid, before.gid) != (now.mode, now.uid, now.gid) {
        return Ok(true);
    }
    let lower = open_root(below)?;
    let all = |dir: BorrowedFd<'_>, xattrs| -> Result<BTreeMap<_, _>, ImageError> {
        Ok(xattrs_of(dir, b"", b"", xattrs)?.into_iter().collect())
    };
    Ok(all(lower.as_fd(), Xattrs::AsStored)? != all(seen, Xattrs::AsSeen)?)
}
