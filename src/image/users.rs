//! Who needs an image though no process holds its layers: containers that do not run.

use serde::Deserialize;

use super::catalog::StoredImage;
use super::error::ImageError;
use super::store::Store;

/// As much of a container's record as is needed here.
#[derive(Deserialize)]
struct User {
    name: String,
    image_id: String,
}

impl Store {
    /// Whether the store has the image with this id and will keep it, as there is a container of it by now.
    pub fn keeps(&self, id: &str) -> Result<(), ImageError> {
        // Images are removed under this lock, those without containers.
        let _lock = self.lock_index()?;
        self.image(id).map(drop)
    }

    /// The name of a container of this image, running or not. A record that cannot be read is an error: nobody knows
    /// what it needs.
    pub(crate) fn container_of(&self, image: &StoredImage) -> Result<Option<String>, ImageError> {
        let dir = self.root().join("containers");
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ImageError::io("read", &dir)(e)),
        };
        for entry in entries {
            let path = entry.map_err(ImageError::io("read", &dir))?.path();
            // One that was removed needs nothing any more.
            if path
                .extension()
                .is_some_and(|extension| extension == "gone")
            {
                continue;
            }
            let record = path.join("container.json");
            let bytes = match std::fs::read(&record) {
                Ok(bytes) => bytes,
                // The lock; or a container that was removed meanwhile, or is being made.
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                Err(e) => return Err(ImageError::io("read", &record)(e)),
            };
            let user: User = serde_json::from_slice(&bytes)
                .map_err(ImageError::json(record.display().to_string()))?;
            if user.image_id == image.id.to_string() {
                return Ok(Some(user.name));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::image::{ImportSource, NewImage};

    #[test]
    fn an_image_that_a_container_was_just_made_of_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "x").unwrap();
        let new = NewImage {
            reference: Some("probe:1".to_owned()),
            ..NewImage::default()
        };
        let image = store.import(ImportSource::Path(tree), &new).unwrap();
        let imported = image.id.to_string();
        // The removal is on its way while the container comes into being.
        let lock = store.lock_index().unwrap();
        let removed = thread::scope(|scope| {
            let removal = scope.spawn(|| store.remove("probe:1", true));
            let container = store.root().join("containers/c1");
            std::fs::create_dir_all(&container).unwrap();
            let record = serde_json::json!({"name": "maker", "image_id": imported});
            std::fs::write(container.join("container.json"), record.to_string()).unwrap();
            drop(lock);
            removal.join().unwrap()
        });
        assert!(
            matches!(removed, Err(ImageError::InUse { .. })),
            "{removed:?}"
        );
        store.keeps(&imported).unwrap();
        std::fs::remove_dir_all(store.root().join("containers/c1")).unwrap();
        store.remove("probe:1", false).unwrap();
        assert!(store.keeps(&imported).is_err());
    }
}
