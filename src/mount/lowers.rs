//! Opens the lower layers of a mount, each in the form in which it answers fastest.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::checks::Place;
use super::error::MountError;
use super::options::{LayerIndex, MountOptions};
use super::params::{Rights, namespace};
use crate::image::index_beside;
use crate::layer::Layer;
use crate::layer::dir::{DirLayer, LayerOptions};
use crate::layer::fdcache::FdCache;
use crate::layer::format::OverrideStat;
use crate::layer::owners::{OwnerShift, Shifted};
use crate::layer::packed::{Index, IndexError, Packed, PackedLayer};
use crate::layer::upper::Namespace;
use crate::sys::mount::is_idmapped;
use crate::union::idmap::IdRange;

/// Opens `places`, topmost first, of which those from `merged` on are data-only. `unpacked`: the positions of those that
/// the store unpacked.
pub(super) fn open(
    places: &[Place],
    merged: usize,
    unpacked: &Range<usize>,
    (options, rights): (&MountOptions, Rights),
    cache: &Arc<FdCache>,
) -> Result<Vec<Arc<dyn Layer>>, MountError> {
    // Whoever owns a layer has fewer rights than such a mount.
    let namespace = namespace(options, rights);
    let mut layers = Vec::with_capacity(places.len());
    for (at, place) in places.iter().enumerate() {
        let stored = unpacked.contains(&at);
        let layer_options = LayerOptions {
            owners: mapped_already(options, &place.path)?,
            user_owners: namespace == Namespace::User
                || options.override_stat == OverrideStat::User,
            ..if stored || at >= merged {
                LayerOptions {
                    names_for: stored.then_some(namespace),
                    ..LayerOptions::unpacked()
                }
            } else {
                LayerOptions {
                    namespace,
                    ..LayerOptions::default()
                }
            }
        };
        let plain = DirLayer::open(&place.path, layer_options, cache.clone())?;
        let index = match options.layer_index {
            LayerIndex::Off => None,
            LayerIndex::Stored | LayerIndex::Built if stored => stored_index(&place.path),
            LayerIndex::Stored => None,
            LayerIndex::Built => built_index(&plain),
        };
        layers.push(with_index(plain, index));
    }
    Ok(layers)
}

fn stored_index(tree: &Path) -> Option<Index> {
    match Index::open(&index_beside(tree)) {
        Ok(index) => Some(index),
        Err(e) => {
            log::info!("{} has no index that can be used: {e}", tree.display());
            None
        }
    }
}

fn built_index(plain: &DirLayer) -> Option<Index> {
    let built = Packed::of(plain)
        .map_err(|e| e.to_string())
        .and_then(|packed| Index::from_bytes(packed.to_bytes()).map_err(|e| e.to_string()));
    match built {
        Ok(index) => Some(index),
        Err(e) => {
            log::warn!("{} is read as it lies: {e}", plain.describe());
            None
        }
    }
}

/// A layer for which the index is no good answers as it lies.
fn with_index(plain: DirLayer, index: Option<Index>) -> Arc<dyn Layer> {
    let Some(index) = index else {
        return Arc::new(plain);
    };
    match PackedLayer::new(plain, index) {
        Ok(packed) => {
            log::debug!("{} answers from its index", packed.describe());
            Arc::new(packed)
        }
        Err((plain, e)) => {
            let path = plain.describe();
            match e {
                IndexError::OtherView => log::info!("the index of {path} is not used: {e}"),
                e => log::warn!("the index of {path} is not used: {e}"),
            }
            Arc::from(plain as Box<dyn Layer>)
        }
    }
}

/// podman before 4.6 gives lower layers through id-mapped mounts, and the map as options too: those layers are not to be
/// mapped twice.
fn mapped_already(
    options: &MountOptions,
    lower: &Path,
) -> Result<Option<Arc<OwnerShift>>, MountError> {
    let ids = &options.ids;
    let failed = |e| MountError::Path("lower layer", lower.to_owned(), e);
    if ids.is_identity() || !is_idmapped(lower).map_err(failed)? {
        return Ok(None);
    }
    let shifted = |ranges: &[IdRange]| {
        let ranges = ranges.iter().map(|range| Shifted {
            shown: range.inside,
            disk: range.outside,
            count: range.count,
        });
        ranges.collect()
    };
    Ok(Some(Arc::new(OwnerShift {
        users: shifted(&ids.uids),
        groups: shifted(&ids.gids),
    })))
}
