//! Images made of mounts.

use std::path::Path;

use super::error::MountError;
use super::state::Record;
use crate::image::{Commit, NewImage, Store, StoredImage};
use crate::layer::upper::Namespace;

/// Makes an image of what a mount shows: one layer on its image, or, of plain directories, a single layer with all of
/// it.
pub fn commit(record: &Record, store: &Store, new: &NewImage) -> Result<StoredImage, MountError> {
    let mut unnamed = Vec::new();
    if record.upper.is_some() {
        // The upper is read as it lies on disk.
        let done = super::control::complete(&record.mountpoint)?;
        if done.left > 0 {
            return Err(MountError::Incomplete(record.mountpoint.clone()));
        }
        unnamed = super::control::unnamed(&record.mountpoint)?;
    }
    let what = Commit {
        base: record.image.as_ref(),
        upper: record.upper.as_deref().map(Path::new),
        marks: record.userxattr.map(|user| {
            if user {
                Namespace::User
            } else {
                Namespace::Trusted
            }
        }),
        merged: &record.mountpoint,
        unnamed: &unnamed,
    };
    Ok(store.commit(&what, new)?)
}
