//! A root filesystem as an image of one layer.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::PathBuf;

use super::catalog::StoredImage;
use super::commit::{NewImage, checked_name};
use super::compress::CHUNK;
use super::error::ImageError;
use super::source;
use super::store::Store;
use super::tree::{self, Dots};

/// What is imported.
#[derive(Debug)]
pub enum ImportSource {
    /// A folder, or a tar, plain or compressed with gzip or zstd.
    Path(PathBuf),
    /// A tar that is read from a descriptor.
    Stream(File),
}

impl Store {
    /// Makes an image of a root filesystem. Of a folder, other filesystems that are mounted in it are left out.
    pub fn import(&self, from: ImportSource, new: &NewImage) -> Result<StoredImage, ImageError> {
        checked_name(new)?;
        let (file, name) = match from {
            ImportSource::Path(path) => {
                let meta = std::fs::metadata(&path).map_err(ImageError::io("open", &path))?;
                if meta.is_dir() {
                    let root = tree::open_root(&path)?;
                    let (layer, ()) = self.new_layer(|output| {
                        tree::write_folder(root, output, Dots::Refused).map(|_| ())
                    })?;
                    return self.make_image(None, Some(layer), new);
                }
                let file = File::open(&path).map_err(ImageError::io("open", &path))?;
                (file, path.display().to_string())
            }
            ImportSource::Stream(file) => (file, "standard input".to_owned()),
        };
        let whole = file.metadata().is_ok_and(|meta| meta.is_file())
            && (&file)
                .stream_position()
                .is_ok_and(|position| position == 0);
        let mut tar = source::plain_tar(file, whole, &name, &self.tmp(), self.limits())?;
        tar.rewind().map_err(ImageError::io("read", &name))?;
        let (layer, ()) = self.new_layer(|output| {
            let mut left = tar.take(self.limits().layer_size.saturating_add(1));
            let mut chunk = vec![0; CHUNK];
            loop {
                let n = left
                    .read(&mut chunk)
                    .map_err(ImageError::io("read", &name))?;
                if n == 0 {
                    break;
                }
                io::Write::write_all(output, &chunk[..n])
                    .map_err(ImageError::io("write", "the new layer"))?;
            }
            if left.limit() == 0 {
                return Err(ImageError::OverLimit {
                    what: name.clone(),
                    limit: self.limits().layer_size,
                    unit: "bytes",
                    hint: "set ACETATE_MAX_LAYER_SIZE to allow more",
                });
            }
            Ok(())
        })?;
        self.make_image(None, Some(layer), new)
    }
}
