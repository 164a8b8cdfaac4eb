//! The readers of foreign bytes, one function each and without a store: what the fuzz targets call, and the test that
//! replays their corpus.
//!
//! Documents are put into an archive in memory, so that they take the same way as those of a user's file.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::MemfdFlags;
use serde_json::json;

use super::archive;
use super::compare;
use super::compress::{self, Compression, Decoder};
use super::error::ImageError;
use super::files::Files;
use super::hash;
use super::layout::Layout;
use super::limits::Limits;
use super::platform::Wanted;
use super::reference::Reference;
use super::tarball::{TarError, TarReader};
use super::unpack::{Extractor, Ownership};

/// The configuration that [`docker_manifest`] and [`oci_manifest`] offer to the document which they try.
pub const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"]}}"#;

/// A manifest of that configuration and one layer: what [`oci_index`] may lead to.
pub const MANIFEST: &[u8] = br#"{"config":{"digest":"sha256:83656ea199d8d74b56ef7fe4a0bef9dd10aa412ec632f8ccdf3e0c903471c0a2","mediaType":"application/vnd.oci.image.config.v1+json","size":151},"layers":[{"digest":"sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef","mediaType":"application/vnd.oci.image.layer.v1.tar","size":1024}],"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}"#;

/// Reads a layer's tar to its end, contents included. Gives the number of its entries.
pub fn layer(bytes: &[u8]) -> Result<u64, TarError> {
    let mut reader = TarReader::new(bytes, &Limits::default());
    let mut entries = 0;
    while reader.next_entry()?.is_some() {
        entries += 1;
        // Every other one is read, the rest is skipped: both ways have to arrive at the same next header.
        let mut left = entries % 2 == 1;
        while left {
            let n = reader.content()?.len();
            reader.consume(n);
            left = n > 0;
        }
    }
    Ok(entries)
}

/// Decompresses bytes, whatever they are compressed with, up to `limit` bytes. Gives their number.
pub fn compressed(bytes: &[u8], limit: u64) -> Result<u64, ImageError> {
    let failed = |e| ImageError::io("read", "the bytes")(e);
    let (compression, peeked) = compress::peek(bytes).map_err(failed)?;
    if let Compression::Unsupported(format) = compression {
        return Err(ImageError::UnsupportedCompression {
            name: "the bytes".to_owned(),
            format,
        });
    }
    let decoder = Decoder::new(compression, peeked).map_err(failed)?;
    std::io::copy(&mut decoder.take(limit), &mut std::io::sink()).map_err(failed)
}

/// Writes a layer's tar below `dir`, twice, and compares. Gives what differs: nothing should.
pub fn unpack(bytes: &[u8], dir: &Path) -> Result<Option<String>, ImageError> {
    let limits = Limits::default();
    let mut trees = Vec::new();
    for name in ["one", "two"] {
        let diff = dir.join(name);
        std::fs::create_dir(&diff).map_err(ImageError::io("create", &diff))?;
        let mut tar = TarReader::new(bytes, &limits);
        Extractor::new(&diff, "probe".to_owned(), Ownership::default(), &limits)?.run(&mut tar)?;
        trees.push(File::open(&diff).map_err(ImageError::io("open", &diff))?);
    }
    compare::first_difference(trees[0].as_fd(), trees[1].as_fd())
        .map_err(ImageError::io("read", dir))
}

/// Reads an archive of whatever kind. Gives the number of its images.
pub fn archive(bytes: &[u8]) -> Result<usize, ImageError> {
    let mut file = memory()?;
    std::io::Write::write_all(&mut file, bytes).map_err(ImageError::io("write", NAME))?;
    images(&Files::tar(file, NAME.to_owned(), &Limits::default())?)
}

/// Reads the `manifest.json` of a docker archive that has one layer, `layer.tar`, and the configuration [`CONFIG`],
/// `config.json`.
pub fn docker_manifest(manifest: &[u8]) -> Result<usize, ImageError> {
    images(&files(&[
        ("manifest.json", manifest),
        ("config.json", CONFIG),
        ("layer.tar", &[0; 1024]),
    ])?)
}

/// Reads the `index.json` of a layout that has the manifest [`MANIFEST`].
pub fn oci_index(index: &[u8]) -> Result<usize, ImageError> {
    images(&files(&[
        ("index.json", index),
        (&blob_name(MANIFEST), MANIFEST),
        (&blob_name(CONFIG), CONFIG),
        (&blob_name(&[0; 1024]), &[0; 1024]),
    ])?)
}

/// Reads a manifest, or an index in its place, of a layout that has the configuration [`CONFIG`] and one layer.
pub fn oci_manifest(manifest: &[u8]) -> Result<usize, ImageError> {
    images(&files(&[
        ("index.json", &index_of(manifest)),
        (&blob_name(manifest), manifest),
        (&blob_name(CONFIG), CONFIG),
        (&blob_name(&[0; 1024]), &[0; 1024]),
    ])?)
}

/// Reads the configuration of an image with one layer.
pub fn config(config: &[u8]) -> Result<usize, ImageError> {
    let manifest = json!([{"Config": "config.json", "RepoTags": ["a:1"], "Layers": ["layer.tar"]}]);
    images(&files(&[
        ("manifest.json", manifest.to_string().as_bytes()),
        ("config.json", config),
        ("layer.tar", &[0; 1024]),
    ])?)
}

/// Parses a reference, and what it is written as again: both must be the same.
pub fn reference(text: &str) -> Result<String, ImageError> {
    let reference = Reference::parse(text)?;
    let written = reference.to_string();
    let again = Reference::parse(&written);
    if again.as_ref().ok() != Some(&reference) {
        return Err(ImageError::Inconsistent {
            what: written,
            why: format!("it is read as {again:?}"),
        });
    }
    Ok(written)
}

/// An `index.json` that [`oci_index`] reads.
pub fn oci_index_seed() -> Vec<u8> {
    index_of(MANIFEST)
}

/// How messages call the archive.
const NAME: &str = "the archive";

fn index_of(manifest: &[u8]) -> Vec<u8> {
    json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": hash::sha256(manifest),
        "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "1.0"},
    }]})
    .to_string()
    .into_bytes()
}

fn blob_name(bytes: &[u8]) -> String {
    format!("blobs/{}", hash::sha256(bytes).replace(':', "/"))
}

fn memory() -> Result<File, ImageError> {
    rustix::fs::memfd_create("archive", MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(ImageError::io("create", NAME))
}

/// An archive with these files.
fn files(files: &[(&str, &[u8])]) -> Result<Files, ImageError> {
    let mut builder = tar::Builder::new(memory()?);
    let failed = |e| ImageError::io("write", NAME)(e);
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder
            .append_data(&mut header, name, *bytes)
            .map_err(failed)?;
    }
    let mut file = builder.into_inner().map_err(failed)?;
    file.rewind().map_err(failed)?;
    Files::tar(file, NAME.to_owned(), &Limits::default())
}

fn images(files: &Files) -> Result<usize, ImageError> {
    let limits = Limits::default();
    let wanted = Wanted::new(None)?;
    let found = if files.get(b"index.json")?.is_some() {
        Layout {
            files,
            limits: &limits,
        }
        .resolve_all(None, &wanted)?
    } else {
        archive::resolve_all(files, None, &wanted, &limits)?
    };
    Ok(found.len())
}
