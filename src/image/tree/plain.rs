//! A folder with all that is in it.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use super::emit::{Emitter, Xattrs, join, shown};
use super::{names_in, open_dir_at, stat_at};
use crate::image::error::ImageError;

/// What becomes of names that begin with `.wh.`, which mean deletions in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dots {
    /// They are refused: the tar is to be a layer.
    Refused,
    /// They are names like others.
    Kept,
}

/// Writes the tree at `root` as a tar, the root's own attributes included.
pub(crate) fn write_folder<W: Write>(
    root: OwnedFd,
    output: W,
    dots: Dots,
) -> Result<W, ImageError> {
    let mut emitter = Emitter::new(output, Xattrs::AsSeen);
    let stat = stat_at(root.as_fd(), b"").map_err(ImageError::io("look at", shown(b"")))?;
    emitter.node(root.as_fd(), b"", b"", &stat)?;
    subtree(&mut emitter, root, Vec::new(), dots)?;
    emitter.finish()
}

/// Writes everything below a directory, which itself has been written.
pub(super) fn subtree<W: Write>(
    emitter: &mut Emitter<W>,
    dir: OwnedFd,
    path: Vec<u8>,
    dots: Dots,
) -> Result<(), ImageError> {
    let device = stat_at(dir.as_fd(), b"")
        .map_err(ImageError::io("look at", shown(&path)))?
        .dev;
    let names = names_in(&dir).map_err(ImageError::io("list", shown(&path)))?;
    // A directory that is being walked: its descriptor, its path, and the names that are left, the next one last.
    let mut stack = vec![(dir, path, reversed(names))];
    while let Some((dir, path, names)) = stack.last_mut() {
        let Some(name) = names.pop() else {
            stack.pop();
            continue;
        };
        let below = join(path, &name);
        if dots == Dots::Refused && name.starts_with(b".wh.") {
            return Err(ImageError::Inconsistent {
                what: shown(&below).display().to_string(),
                why: "a name that begins with .wh. means a deletion in a layer".to_owned(),
            });
        }
        let stat = stat_at(dir.as_fd(), &name).map_err(ImageError::io("look at", shown(&below)))?;
        emitter.node(dir.as_fd(), &name, &below, &stat)?;
        if stat.is_dir() {
            if stat.dev != device {
                log::warn!(
                    "{} is another filesystem, of which nothing is taken",
                    shown(&below).display()
                );
                continue;
            }
            let opened =
                open_dir_at(dir.as_fd(), &name).map_err(ImageError::io("open", shown(&below)))?;
            let names = names_in(&opened).map_err(ImageError::io("list", shown(&below)))?;
            stack.push((opened, below, reversed(names)));
        }
    }
    Ok(())
}

fn reversed(mut names: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    names.reverse();
    names
}
