//! The least that a load has to do: decompress and hash each layer, one after the other, and write nothing. And the
//! images that the measurement needs.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The argument by which this program does only that.
pub(crate) const FLAG: &str = "--decompress-and-hash";

/// Reads all layers of a docker archive or of a layout: a plain layer is hashed once, a compressed one as it is stored
/// and as it is decompressed.
pub(crate) fn run(source: Option<&OsStr>) -> Result<()> {
    let path = Path::new(source.context("what is to be read?")?);
    if path.is_file() {
        let mut archive = tar::Archive::new(File::open(path)?);
        for entry in archive.entries_with_seek()? {
            let mut entry = entry?;
            if entry.size() > 1 << 16 {
                println!("{}", hash(&mut entry)?);
            }
        }
        return Ok(());
    }
    for blob in fs::read_dir(path.join("blobs/sha256"))? {
        let mut file = File::open(blob?.path())?;
        let mut magic = [0; 2];
        file.read_exact(&mut magic)?;
        file.rewind()?;
        if magic != [0x1f, 0x8b] {
            continue;
        }
        let mut stored = Hashing(file, Sha256::new());
        let buffered = io::BufReader::with_capacity(256 << 10, &mut stored);
        println!(
            "{}",
            hash(&mut flate2::bufread::MultiGzDecoder::new(buffered))?
        );
        println!("{}", hex(stored.1));
    }
    Ok(())
}

struct Hashing(File, Sha256);

impl Read for Hashing {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buf)?;
        self.1.update(&buf[..n]);
        Ok(n)
    }
}

fn hash(reader: &mut impl Read) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hex(hasher)),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(hasher: Sha256) -> String {
    hasher
        .finalize()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Makes a layout with gzip layers of a docker archive that has one image.
pub(crate) fn gzip_layout(archive: &Path, layout: &Path) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let file = |name: &str| -> Result<Vec<u8>> {
        let mut name = name.to_owned();
        // Old archives have links to the layers.
        for _ in 0..2 {
            let mut archive = tar::Archive::new(File::open(archive)?);
            for entry in archive.entries_with_seek()? {
                let mut entry = entry?;
                if entry.path()?.as_os_str() != name.as_str() {
                    continue;
                }
                if let Some(link) = entry.link_name()? {
                    name = link.to_string_lossy().trim_start_matches("../").to_owned();
                    break;
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                return Ok(bytes);
            }
        }
        anyhow::bail!("{} lacks {name}", archive.display())
    };
    let manifest: Value = serde_json::from_slice(&file("manifest.json")?)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let config = blob(
        &blobs,
        "config.v1+json",
        &file(&text(&manifest[0]["Config"]))?,
    )?;
    let mut layers = Vec::new();
    for layer in manifest[0]["Layers"].as_array().into_iter().flatten() {
        let level = flate2::Compression::default();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        encoder.write_all(&file(&text(layer))?)?;
        layers.push(blob(&blobs, "layer.v1.tar+gzip", &encoder.finish()?)?);
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let mut manifest = blob(&blobs, "manifest.v1+json", manifest.to_string().as_bytes())?;
    // podman asks for a name.
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "load:1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}

fn blob(blobs: &Path, kind: &str, bytes: &[u8]) -> Result<Value> {
    let digest = hash(&mut &bytes[..])?;
    fs::write(blobs.join(&digest), bytes)?;
    Ok(json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": format!("sha256:{digest}"),
        "size": bytes.len(),
    }))
}

/// Writes an archive of many small images that share their layer.
pub(crate) fn many_images(path: &Path, count: usize) -> Result<()> {
    let mut builder = tar::Builder::new(File::create_new(path)?);
    let layer = [0; 1024];
    let diff_id = format!("sha256:{}", hash(&mut &layer[..])?);
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes)
    };
    add("layer.tar", &layer)?;
    let mut images = Vec::new();
    for i in 0..count {
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
            "config": {"Env": [format!("N={i}")]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let config = config.to_string();
        let name = format!("{}.json", hash(&mut config.as_bytes())?);
        add(&name, config.as_bytes())?;
        let tag = format!("registry.example/many:{i}");
        images.push(json!({"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}));
    }
    add("manifest.json", Value::Array(images).to_string().as_bytes())?;
    builder.finish()?;
    Ok(())
}
