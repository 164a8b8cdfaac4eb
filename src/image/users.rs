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
