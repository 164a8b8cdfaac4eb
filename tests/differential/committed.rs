//! A mount as an image: committed and written out again, it shows the same tree.

use std::path::Path;
use std::time::{Duration, Instant};

use acetate::image::{Commit, ImageOrigin, ImportSource, NewImage, Store};

use super::view::View;

/// How long a daemon may take to answer.
const LIMIT: Duration = Duration::from_secs(20);

/// A store with an image of what the layers show.
#[derive(Debug)]
pub struct Base {
    store: Store,
    origin: ImageOrigin,
}

/// As `acetate commit` asks for them. A daemon in the foreground is mounted a little before it can be asked.
fn unnamed(merged: &Path) -> Result<Vec<u64>, String> {
    let begin = Instant::now();
    loop {
        match acetate::mount::unnamed(merged) {
            Err(_) if begin.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(5)),
            answer => return answer.map_err(|e| e.to_string()),
        }
    }
}

impl Base {
    /// Of a plain directory that holds the merged tree.
    pub fn new(root: &Path, plain: &Path) -> Base {
        let store = Store::open(root).unwrap();
        let source = ImportSource::Path(plain.to_owned());
        let image = store.import(source, &NewImage::default()).unwrap();
        let origin = ImageOrigin {
            id: image.id.to_string(),
            path: None,
            tag: None,
            platform: None,
        };
        Base { store, origin }
    }

    /// Commits a mount on the image, and compares the new image with what is mounted.
    pub fn commit(&self, upper: &Path, merged: &Path) -> Result<(), String> {
        let told = |e: acetate::image::ImageError| e.to_string();
        let unnamed = unnamed(merged)?;
        let what = Commit {
            base: Some(&self.origin),
            upper: Some(upper),
            marks: None,
            merged,
            unnamed: &unnamed,
        };
        let image = self
            .store
            .commit(&what, &NewImage::default())
            .map_err(told)?;
        let folder = self.store.root().with_extension("exported");
        let id = image.id.to_string();
        let tree = self.store.exported(id.as_ref(), None).map_err(told)?;
        self.store.export_to_folder(&tree, &folder).map_err(told)?;
        let here = View::read(merged)?.archived();
        let there = View::read(&folder)?.archived();
        let text = here.differences(&here, &there);
        if !text.is_empty() {
            return Err(format!("the committed image (as plain):\n{text}"));
        }
        let damages = self.store.verify().map_err(told)?.damages;
        if !damages.is_empty() {
            return Err(format!("the store: {damages:?}"));
        }
        Ok(())
    }
}
