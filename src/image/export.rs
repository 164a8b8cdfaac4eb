//! The whole tree of an image or a mount, to take along: as a tar, or in a folder.
//!
//! A folder is written as a layer is, so that it may become one: the attributes of an overlay that was nested in the
//! tree stand in it escaped. A tar has them as programs see them.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::compress::CHUNK;
use super::error::ImageError;
use super::lock::remove_tree;
use super::store::{LayerGuard, Store};
use super::tarball::{Source, TarReader};
use super::tree::{self, Dots};
use super::unpack::{Extractor, LayerInfo};

/// A tree that is to be written somewhere else.
#[derive(Debug)]
pub enum Exported {
    /// What is mounted at a directory.
    Mount(PathBuf),
    /// What the layers of an image show, topmost first.
    Image {
        /// Their trees.
        layers: Vec<PathBuf>,
        /// Keeps them from being removed.
        guard: LayerGuard,
    },
}

impl Store {
    /// The tree of an image, which is unpacked where it is not.
    pub fn exported(&self, image: &OsStr, platform: Option<&str>) -> Result<Exported, ImageError> {
        let prepared = self.prepare(image, platform)?;
        Ok(Exported::Image {
            layers: prepared.layers,
            guard: prepared.guard,
        })
    }

    /// Writes a tree into `folder`, which is new or empty, and tells what could not be laid down.
    pub fn export_to_folder(
        &self,
        tree: &Exported,
        folder: &Path,
    ) -> Result<LayerInfo, ImageError> {
        let made = match std::fs::create_dir(folder) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let mut entries =
                    std::fs::read_dir(folder).map_err(ImageError::io("read", folder))?;
                if entries.next().is_some() {
                    return Err(ImageError::io("write to", folder)(io::Error::from(
                        io::ErrorKind::DirectoryNotEmpty,
                    )));
                }
                false
            }
            Err(e) => return Err(ImageError::io("create", folder)(e)),
        };
        let info = self.write_folder(tree, folder);
        if info.is_err()
            && made
            && let Err(e) = remove_tree(folder)
        {
            log::warn!("{} is not removed: {e}", folder.display());
        }
        info
    }

    fn write_folder(&self, tree: &Exported, folder: &Path) -> Result<LayerInfo, ImageError> {
        let name = folder.display().to_string();
        let (reader, writer) = io::pipe().map_err(ImageError::io("write to", folder))?;
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || -> Result<(), ImageError> {
                tree.write(io::BufWriter::<PipeWriter>::with_capacity(CHUNK, writer))
            });
            let mut tar = TarReader::new(
                Piped(BufReader::with_capacity(CHUNK, reader)),
                self.limits(),
            );
            let read = Extractor::new(folder, name, self.ownership(), self.limits())
                .and_then(|extractor| extractor.run(&mut tar));
            drop(tar);
            let written = writing.join().unwrap_or_else(|_| {
                Err(ImageError::Inconsistent {
                    what: "the tree".to_owned(),
                    why: "writing it failed unexpectedly".to_owned(),
                })
            });
            match (read, written) {
                // Whoever could not read on made the writer fail.
                (Err(e @ (ImageError::EntryIo { .. } | ImageError::Io { .. })), _) => Err(e),
                (_, Err(e)) | (Err(e), Ok(())) => Err(e),
                (Ok(info), Ok(())) => Ok(info),
            }
        })
    }
}

impl Exported {
    /// Writes the tree as a tar.
    pub fn write(&self, output: impl Write) -> Result<(), ImageError> {
        match self {
            Exported::Mount(merged) => {
                tree::write_folder(tree::seen_root(merged)?, output, Dots::Kept)?;
            }
            Exported::Image { layers, .. } => {
                tree::write_stack(layers, output)?;
            }
        }
        Ok(())
    }

    /// Writes the tree as a tar that appears whole or not at all.
    pub fn write_file(&self, path: &Path) -> Result<(), ImageError> {
        super::save::whole_file(path, |output| self.write(output))
    }
}

/// A tar that comes through a pipe.
struct Piped(BufReader<PipeReader>);

impl Read for Piped {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl BufRead for Piped {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }
    fn consume(&mut self, n: usize) {
        self.0.consume(n);
    }
}

impl Source for Piped {}
