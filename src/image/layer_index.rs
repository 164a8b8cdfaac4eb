//! The index that lies beside the tree of a layer (see [`crate::layer::packed`]).
//!
//! It is derived from the tree, so nothing ever fails for want of it: whoever cannot make one says so in the log, and the
//! layer is read as it lies. It is made once the tree is durable, whose files have all of their blocks only then, and
//! before the layer is published.

use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use oci_spec::image::Digest;
use rustix::fs::{AtFlags, CWD};

use super::error::ImageError;
use super::lock::{Hold, Lock, TempDir};
use super::store::Store;
use crate::layer::dir::{DirLayer, LayerOptions};
use crate::layer::fdcache::FdCache;
use crate::layer::packed::{Index, IndexError, Packed, check_identity};
use crate::layer::to_stat;
use crate::sys::mount::is_idmapped;

/// Directories of a layer that are kept open while it is read.
const OPEN_DIRS: usize = 64;

/// Where the index of the tree `diff` lies.
pub fn index_beside(diff: &Path) -> PathBuf {
    diff.with_file_name("index")
}

/// Makes the indexes of layers that are not published yet.
pub(super) fn index_new(trees: &[PathBuf]) {
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(trees.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(diff) = trees.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Some(dir) = diff.parent() else { continue };
                    if let Err(e) = make(diff, dir) {
                        log::info!("{} gets no index: {e}", diff.display());
                    }
                }
            });
        }
    });
}

/// Describes a tree, if it can be.
fn describe(diff: &Path) -> io::Result<(DirLayer, Packed)> {
    // Owners would be those of this mount.
    if is_idmapped(diff)? {
        return Err(io::Error::other("it lies on an id-mapped mount"));
    }
    let cache = Arc::new(FdCache::new(OPEN_DIRS));
    let layer = DirLayer::open(diff, LayerOptions::unpacked(), cache).map_err(io::Error::other)?;
    let packed = Packed::of(&layer).map_err(io::Error::other)?;
    Ok((layer, packed))
}

/// Makes the index of a tree, written in `tmp` first.
fn make(diff: &Path, tmp: &Path) -> io::Result<()> {
    write(&describe(diff)?.1, diff, tmp)
}

fn write(packed: &Packed, diff: &Path, tmp: &Path) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(tmp)?;
    {
        let mut output = BufWriter::with_capacity(1 << 20, file.as_file_mut());
        packed.write_to(&mut output)?;
        output.flush()?;
    }
    // Nobody is to write to what others have mapped.
    file.as_file()
        .set_permissions(PermissionsExt::from_mode(0o444))?;
    file.as_file().sync_all()?;
    file.persist(index_beside(diff)).map_err(|e| e.error)?;
    Ok(())
}

/// Whether a tree has an index that tells of it.
fn has_index(diff: &Path) -> io::Result<bool> {
    let index = match Index::open(&index_beside(diff)) {
        Ok(index) => index,
        Err(e) if e.can_be_mended() => return Ok(false),
        // A new one would be no better.
        Err(e) => return Err(io::Error::other(e)),
    };
    let root = rustix::fs::statat(CWD, diff, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(index.tells_of(&to_stat(&root)))
}

impl Store {
    /// Gives a layer an index that has none: it was unpacked by an older version, or copied. The caller holds its lock,
    /// shared at least.
    pub(super) fn ensure_index(&self, diff_id: &Digest) {
        let diff = self.layer_tree(diff_id);
        let made = has_index(&diff).and_then(|has| {
            if has {
                return Ok(());
            }
            let tmp = TempDir::new(&self.tmp()).map_err(io::Error::other)?;
            make(&diff, tmp.path())
        });
        if let Err(e) = made {
            log::info!("layer {diff_id} is used without an index: {e}");
        }
    }

    /// Compares the index of a layer with its tree; one that says something else is made anew, and what was wrong with it
    /// is told.
    pub(super) fn verify_index(&self, diff_id: &Digest) -> Result<Option<String>, ImageError> {
        let _lock = Lock::wait(&self.layer_lock(diff_id), Hold::Shared, self.limits().wait)?;
        if self.layer_info(diff_id)?.is_none() {
            return Ok(None);
        }
        let diff = self.layer_tree(diff_id);
        let (layer, packed) = match describe(&diff) {
            Ok(described) => described,
            Err(e) => {
                log::info!("the index of layer {diff_id} is not looked at: {e}");
                return Ok(None);
            }
        };
        let path = index_beside(&diff);
        let why = match Index::open(&path).and_then(|index| {
            check_identity(&layer, &index)?;
            Ok(index)
        }) {
            Ok(index) => match says_what(&index, &packed) {
                Ok(true) => return Ok(None),
                Ok(false) => "its index says something else than its tree".to_owned(),
                Err(e) => e.to_string(),
            },
            // Made for others, or not there yet, or of a copy: nothing is wrong with the layer.
            Err(IndexError::OtherView) => return Ok(None),
            Err(IndexError::Missing | IndexError::OtherTree | IndexError::Version(_)) => {
                self.ensure_index(diff_id);
                return Ok(None);
            }
            Err(e) => format!("its index cannot be used: {e}"),
        };
        let tmp = TempDir::new(&self.tmp())?;
        write(&packed, &diff, tmp.path()).map_err(ImageError::io("write", &path))?;
        Ok(Some(format!("{why}; it was made anew")))
    }
}

fn says_what(index: &Index, packed: &Packed) -> io::Result<bool> {
    index.check()?;
    let fresh = Index::from_bytes(packed.to_bytes()).map_err(io::Error::other)?;
    index.says_what(&fresh)
}
