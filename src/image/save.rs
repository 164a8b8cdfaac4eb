//! Images out of the store, in the forms that other tools read.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use oci_spec::image::{Descriptor, Digest, ImageIndexBuilder, MediaType};

use super::catalog::StoredImage;
use super::compress::{self, CHUNK, Decoder};
use super::durable;
use super::error::ImageError;
use super::hash::{Hasher, HashingReader};
use super::layout::{CONTAINERD_NAME, REF_NAME};
use super::lease::Lease;
use super::lock::{Hold, TempDir};
use super::store::Store;

/// The form in which images are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveFormat {
    /// A tar with a `manifest.json` and uncompressed layers, as `docker save` writes it.
    DockerArchive,
    /// An OCI layout in a tar: every blob as it is, so that all digests stay.
    OciArchive,
    /// An OCI layout in a folder.
    OciDir,
}

/// An image to be saved, and the names that it is to have.
type Chosen = (StoredImage, Vec<String>);

impl Store {
    /// Writes images into one archive, to `output`. Each of `names` is a reference, which the archive keeps, or an id.
    pub fn save(
        &self,
        names: &[String],
        format: SaveFormat,
        output: impl Write,
    ) -> Result<(), ImageError> {
        let (chosen, _lease) = self.choose_leased(names)?;
        let mut tar = tar::Builder::new(output);
        match format {
            SaveFormat::DockerArchive => self.save_docker(&chosen, &mut tar)?,
            SaveFormat::OciArchive | SaveFormat::OciDir => self.save_oci_tar(&chosen, &mut tar)?,
        }
        tar.into_inner()
            .and_then(|mut output| output.flush())
            .map_err(ImageError::io("write", "the archive"))
    }

    /// Writes images into one archive, a file that appears whole or not at all.
    pub fn save_file(
        &self,
        names: &[String],
        format: SaveFormat,
        path: &Path,
    ) -> Result<(), ImageError> {
        whole_file(path, |output| self.save(names, format, output))
    }

    /// Writes images into an OCI layout at `path`, a new or empty folder.
    pub fn save_dir(&self, names: &[String], path: &Path) -> Result<(), ImageError> {
        let (chosen, _lease) = self.choose_leased(names)?;
        std::fs::create_dir_all(path.join("blobs/sha256"))
            .map_err(ImageError::io("create", path))?;
        let tmp = TempDir::new(path)?;
        for digest in blobs_of(&chosen) {
            let to = path
                .join("blobs")
                .join(digest.algorithm().as_ref())
                .join(digest.digest());
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(ImageError::io("create", parent))?;
            }
            let copy = tmp.path().join("blob");
            let mut file = File::create(&copy).map_err(ImageError::io("create", &copy))?;
            self.copy_blob(&digest, &mut file)?;
            std::fs::rename(&copy, &to).map_err(ImageError::io("write", &to))?;
        }
        durable::write_file(&path.join("oci-layout"), LAYOUT, tmp.path())?;
        durable::write_file(&path.join("index.json"), &index_of(&chosen)?, tmp.path())
    }

    /// The same as [`Store::choose`], and their blobs stay while the lease is held.
    fn choose_leased(&self, names: &[String]) -> Result<(Vec<Chosen>, Lease), ImageError> {
        let _blobs = self.lock_blobs(Hold::Shared)?;
        let chosen = self.choose(names)?;
        let blobs = blobs_of(&chosen);
        let lease = self.lease(blobs.iter().map(AsRef::as_ref))?;
        Ok((chosen, lease))
    }

    /// Each image once, with those of its names that were asked for.
    fn choose(&self, names: &[String]) -> Result<Vec<Chosen>, ImageError> {
        let images = self.images()?;
        let mut chosen: Vec<Chosen> = Vec::new();
        for name in names {
            let image = self.select(images.clone(), name)?;
            let asked = image.named_by(name);
            let at = match chosen.iter().position(|(c, _)| c.digest == image.digest) {
                Some(at) => at,
                None => {
                    chosen.push((image, Vec::new()));
                    chosen.len() - 1
                }
            };
            let names = &mut chosen[at].1;
            if let Some(asked) = asked
                && !names.contains(&asked)
            {
                names.push(asked);
            }
        }
        Ok(chosen)
    }

    fn save_docker(
        &self,
        chosen: &[Chosen],
        tar: &mut tar::Builder<impl Write>,
    ) -> Result<(), ImageError> {
        let mut written = HashSet::new();
        let mut manifest = Vec::new();
        for (image, names) in chosen {
            let mut layers = Vec::new();
            let diff_ids = image.config.rootfs().diff_ids();
            for (diff_id, blob) in diff_ids.iter().zip(image.manifest.layers()) {
                let diff_id = super::hash::parse(diff_id, "the config")?;
                let name = format!("{}.tar", diff_id.digest());
                if written.insert(name.clone()) {
                    self.append_layer(tar, &name, blob, &diff_id)?;
                }
                layers.push(name);
            }
            let config = format!("{}.json", image.id.digest());
            if written.insert(config.clone()) {
                append(tar, &config, &image.config_bytes)?;
            }
            let tags: Vec<String> = names.clone();
            manifest.push(serde_json::json!({
                "Config": config, "RepoTags": tags, "Layers": layers,
            }));
        }
        let manifest =
            serde_json::to_vec(&manifest).map_err(ImageError::json("the manifest.json"))?;
        append(tar, "manifest.json", &manifest)
    }

    /// Appends a layer without its compression. A tar wants the size first: it is known from unpacking, or counted.
    fn append_layer(
        &self,
        tar: &mut tar::Builder<impl Write>,
        name: &str,
        blob: &Descriptor,
        diff_id: &Digest,
    ) -> Result<(), ImageError> {
        let path = self.blob_path(blob.digest());
        let io_error = |e: io::Error| ImageError::io("read", &path)(e);
        let open = || -> io::Result<_> {
            let (compression, peeked) = compress::peek(File::open(&path)?)?;
            Decoder::new(compression, peeked)
        };
        let size = match self.layer_info(diff_id)? {
            Some(info) => info.size,
            None => io::copy(&mut open().map_err(io_error)?, &mut io::sink()).map_err(io_error)?,
        };
        let mut reader = HashingReader::new(
            open().map_err(io_error)?,
            Some(Hasher::for_digest(diff_id)?),
        );
        tar.append_data(&mut header(size), name, reader.by_ref().take(size))
            .map_err(ImageError::io("write", name))?;
        let got = reader.drain().map_err(io_error)?.unwrap_or_default();
        if got != diff_id.as_ref() {
            let what = format!("the uncompressed {}", path.display());
            return Err(ImageError::digest(what, diff_id, got));
        }
        Ok(())
    }

    fn save_oci_tar(
        &self,
        chosen: &[Chosen],
        tar: &mut tar::Builder<impl Write>,
    ) -> Result<(), ImageError> {
        append(tar, "oci-layout", LAYOUT)?;
        append(tar, "index.json", &index_of(chosen)?)?;
        for digest in blobs_of(chosen) {
            let path = self.blob_path(&digest);
            let file = File::open(&path).map_err(ImageError::io("open", &path))?;
            let size = file
                .metadata()
                .map_err(ImageError::io("read", &path))?
                .len();
            let mut reader = HashingReader::new(
                BufReader::with_capacity(CHUNK, file),
                Some(Hasher::for_digest(&digest)?),
            );
            let name = format!("blobs/{}/{}", digest.algorithm(), digest.digest());
            tar.append_data(&mut header(size), &name, reader.by_ref())
                .map_err(ImageError::io("write", &name))?;
            let got = reader
                .drain()
                .map_err(ImageError::io("read", &path))?
                .unwrap_or_default();
            if got != digest.as_ref() {
                return Err(ImageError::digest(path.display().to_string(), &digest, got));
            }
        }
        Ok(())
    }

    /// Copies a blob, checking it.
    fn copy_blob(&self, digest: &Digest, to: &mut impl Write) -> Result<(), ImageError> {
        let path = self.blob_path(digest);
        let file = File::open(&path).map_err(ImageError::io("open", &path))?;
        let mut reader = HashingReader::new(file, Some(Hasher::for_digest(digest)?));
        io::copy(&mut reader.by_ref(), to).map_err(ImageError::io("copy", &path))?;
        let got = reader
            .drain()
            .map_err(ImageError::io("read", &path))?
            .unwrap_or_default();
        if got != digest.as_ref() {
            return Err(ImageError::digest(path.display().to_string(), digest, got));
        }
        Ok(())
    }
}

/// Writes a file that appears whole or not at all.
pub(crate) fn whole_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed = || ImageError::io::<io::Error>("write", path);
    // A device, or what already is no file, is written as it is.
    if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
        let file = File::options()
            .write(true)
            .open(path)
            .map_err(ImageError::io("open", path))?;
        let mut output = BufWriter::with_capacity(CHUNK, file);
        write(&mut output)?;
        return output.flush().map_err(failed());
    }
    let mut file = tempfile::NamedTempFile::new_in(parent)
        .map_err(ImageError::io("create a file in", parent))?;
    {
        let mut output = BufWriter::with_capacity(CHUNK, &mut file);
        write(&mut output)?;
        output.flush().map_err(failed())?;
    }
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file()
        .set_permissions(readable)
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed())?;
    file.persist(path)
        .map_err(|e| ImageError::io("write", path)(e.error))?;
    Ok(())
}

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    header
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
    tar.append_data(&mut header(bytes.len() as u64), name, bytes)
        .map_err(ImageError::io("write", name))
}

/// All blobs of some images, each once.
fn blobs_of(chosen: &[Chosen]) -> Vec<Digest> {
    let mut blobs: BTreeMap<String, Digest> = BTreeMap::new();
    for (image, _) in chosen {
        let layers = image.manifest.layers().iter().map(Descriptor::digest);
        for digest in layers.chain([&image.id, &image.digest]) {
            blobs.insert(digest.to_string(), digest.clone());
        }
    }
    blobs.into_values().collect()
}

/// The `index.json` for some images: an entry for each name.
fn index_of(chosen: &[Chosen]) -> Result<Vec<u8>, ImageError> {
    let mut entries = Vec::new();
    for (image, names) in chosen {
        for name in names {
            let mut entry = image.descriptor.clone();
            entry.set_annotations(Some(HashMap::from([
                (REF_NAME.to_owned(), name.clone()),
                (CONTAINERD_NAME.to_owned(), name.clone()),
            ])));
            entries.push(entry);
        }
        if names.is_empty() {
            entries.push(image.descriptor.clone());
        }
    }
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(entries)
        .build()
        .map_err(|e| ImageError::Inconsistent {
            what: "the index.json".to_owned(),
            why: e.to_string(),
        })?;
    serde_json::to_vec(&index).map_err(ImageError::json("the index.json"))
}
