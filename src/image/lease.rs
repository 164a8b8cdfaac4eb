//! What a command is going to need, written where whoever removes looks: so that a pull may take hours and hold no lock.
//!
//! A lease is a list of digests in a [`TempDir`], which dies with its process. It is written under the blobs' lock, held
//! shared for that moment only; who removes holds that lock exclusively, reads the leases first and the index after
//! them, and spares what either names. In this order, because a lease is given back when the index names the image.

use std::collections::HashSet;
use std::io;

use oci_spec::image::Digest;

use super::error::ImageError;
use super::lock::{self, Hold, TempDir};
use super::resolve::Resolved;
use super::store::Store;

/// The name of the list in its folder.
const LIST: &str = "lease";

/// Keeps blobs and trees, also such as are not there yet, from being removed until it is dropped or its process dies.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Immutable; holds the list, and the lock that says that it is alive.
    _tmp: TempDir,
}

impl Store {
    /// Keeps what these digests name: blobs, and trees by their diff ids. Waits for whoever removes something now; what
    /// is there afterwards stays, and what is not there has to be made.
    pub(crate) fn lease<'a>(
        &self,
        digests: impl IntoIterator<Item = &'a str>,
    ) -> Result<Lease, ImageError> {
        let tmp = TempDir::new(&self.tmp())?;
        let mut list = String::new();
        for digest in digests {
            list.push_str(digest);
            list.push('\n');
        }
        let _blobs = self.lock_blobs(Hold::Shared)?;
        let path = tmp.path().join(LIST);
        // It need not survive a power cut: nothing that it stands for does.
        std::fs::write(&path, list).map_err(ImageError::io("write", &path))?;
        Ok(Lease { _tmp: tmp })
    }

    /// Keeps all that an image is made of.
    pub(crate) fn lease_image(
        &self,
        image: &Resolved,
        manifest: &Digest,
    ) -> Result<Lease, ImageError> {
        let blobs = image.descriptors.iter().flatten().map(|d| d.digest());
        let trees = image.layers.iter().map(|layer| &layer.source.diff_id);
        let all = blobs.chain(trees).chain([&image.id, manifest]);
        self.lease(all.map(AsRef::as_ref))
    }

    /// What all leases name. The caller holds the blobs' lock exclusively, and reads the index afterwards.
    pub(crate) fn leased_locked(&self) -> Result<HashSet<String>, ImageError> {
        let tmp = self.tmp();
        let mut digests = HashSet::new();
        for entry in std::fs::read_dir(&tmp).map_err(ImageError::io("read", &tmp))? {
            let folder = entry.map_err(ImageError::io("read", &tmp))?.path();
            let path = folder.join(LIST);
            let list = match std::fs::read_to_string(&path) {
                Ok(list) => list,
                // Another kind of work, or a lease that was given back this moment.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                Err(e) => return Err(ImageError::io("read", &path)(e)),
            };
            if !lock::is_dead(&folder)? {
                digests.extend(list.lines().map(str::to_owned));
            }
        }
        Ok(digests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_while_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let lease = store.lease(["sha256:a", "sha256:b"]).unwrap();
        let other = store.lease(["sha256:b"]).unwrap();
        let leased = || {
            let mut leased: Vec<String> = store.leased_locked().unwrap().into_iter().collect();
            leased.sort();
            leased
        };
        assert_eq!(leased(), ["sha256:a", "sha256:b"]);
        drop(lease);
        assert_eq!(leased(), ["sha256:b"]);
        drop(other);
        // One whose process died has nobody who holds it.
        let dead = store.tmp().join("1-1");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join(LIST), "sha256:c\n").unwrap();
        assert!(leased().is_empty());
    }
}
