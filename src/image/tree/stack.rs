//! What the layers of an image show together, without mounting them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::emit::{Emitter, Xattrs, join, shown};
use crate::image::error::ImageError;
use crate::layer::dir::{DirLayer, LayerOptions};
use crate::layer::fdcache::FdCache;
use crate::layer::{EntryKind, Layer, LayerLookup, Node, Opaque, Stat};

/// A layer's part of a directory.
#[derive(Clone, Debug)]
struct Part {
    /// Which layer.
    layer: usize,
    node: Node,
    xwhiteouts: bool,
}

/// A directory that is being walked.
struct Dir {
    /// Topmost first.
    parts: Vec<Part>,
    path: Vec<u8>,
    /// Names and the parts that show them, the next one last.
    left: Vec<(Vec<u8>, usize)>,
}

/// Writes what unpacked layers show together. `layers`: their trees, topmost first.
pub(crate) fn write_stack<W: Write>(layers: &[PathBuf], output: W) -> Result<W, ImageError> {
    let cache = Arc::new(FdCache::for_this_process());
    let options = LayerOptions::unpacked();
    let mut opened = Vec::with_capacity(layers.len());
    for path in layers {
        let layer = DirLayer::open(path, options.clone(), cache.clone())
            .map_err(|e| ImageError::io("open", path)(std::io::Error::other(e.to_string())))?;
        opened.push(layer);
    }
    let mut emitter = Emitter::new(output, Xattrs::AsStored);
    let Some(top) = opened.first() else {
        return emitter.finish();
    };
    let root = top.root();
    let failed = || ImageError::io::<std::io::Error>("read", shown(b""));
    let stat = top.stat(&root).map_err(failed())?;
    emitter.node(dir_fd(&root).map_err(failed())?.as_fd(), b"", b"", &stat)?;
    let mut parts = Vec::new();
    for (layer, opened) in opened.iter().enumerate() {
        let root = opened.root();
        let stat = opened.stat(&root).map_err(failed())?;
        let marks = opened.marks(&root, &stat).map_err(failed())?;
        parts.push(Part {
            layer,
            node: root,
            xwhiteouts: marks.opaque == Opaque::XWhiteouts,
        });
        if marks.opaque == Opaque::Yes {
            break;
        }
    }
    let mut dirs = vec![list(&opened, parts, Vec::new())?];
    while let Some(dir) = dirs.last_mut() {
        let Some((name, at)) = dir.left.pop() else {
            dirs.pop();
            continue;
        };
        let path = join(&dir.path, &name);
        let Some((stat, below)) = find(&opened, &dir.parts[at..], &name, &path)? else {
            continue;
        };
        let parent = dir_fd(&dir.parts[at].node).map_err(ImageError::io("read", shown(&path)))?;
        emitter.node(parent.as_fd(), &name, &path, &stat)?;
        if stat.is_dir() {
            dirs.push(list(&opened, below, path)?);
        }
    }
    emitter.finish()
}

fn dir_fd(node: &Node) -> std::io::Result<Arc<OwnedFd>> {
    match node {
        Node::Path(path) => path.dir_fd(),
        Node::Child(_) | Node::Index(_) => Err(std::io::ErrorKind::Unsupported.into()),
    }
}

/// The names that a directory shows.
fn list(layers: &[DirLayer], parts: Vec<Part>, path: Vec<u8>) -> Result<Dir, ImageError> {
    let mut names: BTreeMap<Vec<u8>, Option<usize>> = BTreeMap::new();
    for (at, part) in parts.iter().enumerate() {
        layers[part.layer]
            .read_dir(&part.node, part.xwhiteouts, &mut |entry| {
                let shows = matches!(entry.kind, EntryKind::Node(_)).then_some(at);
                names.entry(entry.name.as_bytes().to_vec()).or_insert(shows);
                ControlFlow::Continue(())
            })
            .map_err(ImageError::io("read", shown(&path)))?;
    }
    let left = names
        .into_iter()
        .rev()
        .filter_map(|(name, at)| Some((name, at?)))
        .collect();
    Ok(Dir { parts, path, left })
}

/// The attributes of a name, and its parts where it is a directory. The first of `parts` shows it.
fn find(
    layers: &[DirLayer],
    parts: &[Part],
    name: &[u8],
    path: &[u8],
) -> Result<Option<(Stat, Vec<Part>)>, ImageError> {
    let mut attributes = None;
    let mut below = Vec::new();
    for part in parts {
        let layer = &layers[part.layer];
        let failed = || ImageError::io::<std::io::Error>("read", shown(path));
        let looked = layer
            .lookup(&part.node, OsStr::from_bytes(name), part.xwhiteouts)
            .map_err(failed())?;
        let found = match looked {
            LayerLookup::Missing => continue,
            LayerLookup::Whiteout => break,
            LayerLookup::Found(found) => found,
        };
        if !found.stat.is_dir() {
            // A file below a directory is hidden, and hides what is below itself.
            attributes.get_or_insert(found.stat);
            break;
        }
        attributes.get_or_insert(found.stat);
        let marks = layer.marks(&found.node, &found.stat).map_err(failed())?;
        below.push(Part {
            layer: part.layer,
            node: found.node,
            xwhiteouts: marks.opaque == Opaque::XWhiteouts,
        });
        if marks.opaque == Opaque::Yes || found.beside_whiteout {
            break;
        }
    }
    Ok(attributes.map(|stat| (stat, below)))
}
