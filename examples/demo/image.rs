//! An OCI image made of this machine's own shell and libraries.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Paths worth explaining, and what is special about each.
pub(crate) const PATHS: &[(&str, &str)] = &[
    ("bin/sh", "from the lowest layer"),
    ("etc/motd", "overridden by a higher layer"),
    ("usr/share/draft", "deleted by a whiteout"),
    ("var/cache", "an opaque directory: nothing shines through"),
];

/// The layers' names, the topmost first, as `acetate` numbers them.
pub(crate) const LAYERS: &[&str] = &["config", "app", "base"];

/// The time of everything in the image, so that the same programs make the same image.
const CREATED: &str = "2023-11-14T22:13:20Z";

const PROGRAMS: &[&str] = &["sh", "cat", "ls", "mkdir", "mv", "rm"];

/// One layer: a tar that is being written.
struct Layer {
    tar: tar::Builder<Vec<u8>>,
    made: BTreeSet<PathBuf>,
}

impl Layer {
    fn new() -> Layer {
        Layer {
            tar: tar::Builder::new(Vec::new()),
            made: BTreeSet::new(),
        }
    }

    fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size as u64);
        header
    }

    /// A directory and those above it.
    fn dir(&mut self, path: &Path) -> Result<()> {
        if path.as_os_str().is_empty() || !self.made.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.dir(parent)?;
        }
        let mut header = Layer::header(tar::EntryType::Directory, 0o755, 0);
        Ok(self.tar.append_data(&mut header, path, std::io::empty())?)
    }

    fn file(&mut self, path: impl AsRef<Path>, mode: u32, data: &[u8]) -> Result<()> {
        let path = path.as_ref();
        if !self.made.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.dir(parent)?;
        }
        let mut header = Layer::header(tar::EntryType::Regular, mode, data.len());
        Ok(self.tar.append_data(&mut header, path, data)?)
    }

    /// Hides a path of the layers below.
    fn whiteout(&mut self, path: &str) -> Result<()> {
        let path = Path::new(path);
        let mut name = std::ffi::OsString::from(".wh.");
        name.push(path.file_name().context("a whiteout of nothing")?);
        self.file(path.with_file_name(name), 0o644, b"")
    }

    /// Hides everything that the layers below have in a directory.
    fn opaque(&mut self, path: &str) -> Result<()> {
        self.file(Path::new(path).join(".wh..wh..opq"), 0o644, b"")
    }

    /// Adds a program of this machine and the libraries it loads; says how many bytes.
    fn program(&mut self, name: &str) -> Result<usize> {
        let path = which(name)?;
        let mut bytes = 0;
        let mut add = |layer: &mut Layer, from: &Path, to: &Path| -> Result<()> {
            let data = fs::read(from).with_context(|| from.display().to_string())?;
            bytes += data.len();
            let mode = fs::metadata(from)?.permissions().mode() & 0o777;
            layer.file(to.strip_prefix("/")?, mode, &data)
        };
        add(self, &path, &Path::new("/bin").join(name))?;
        for library in libraries(&path)? {
            add(self, &library, &library)?;
        }
        Ok(bytes)
    }
}

fn which(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/bin", "/usr/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("this machine has no `{name}`"))
}

/// What the program's loader would load, itself included; nothing for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "NAME => /path (0x...)" and "/path/of/the/loader (0x...)".
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

/// An image as it is being written: blobs by digest.
struct Blobs<'a> {
    dir: &'a Path,
}

impl Blobs<'_> {
    fn add(&self, media_type: &str, data: &[u8]) -> Result<serde_json::Value> {
        let digest = hex(data);
        File::create(self.dir.join("blobs/sha256").join(&digest))?.write_all(data)?;
        Ok(
            json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": data.len()}),
        )
    }
}

fn hex(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Writes an OCI layout of three layers at `dir` and describes them, the lowest first.
pub(crate) fn build(dir: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut base = Layer::new();
    let mut bytes = 0;
    for name in PROGRAMS {
        bytes += base.program(name)?;
    }
    if bytes == 0 {
        bail!("this machine's programs are empty");
    }
    base.file("etc/motd", 0o644, b"the base layer says hello\n")?;
    base.file("usr/share/draft", 0o644, b"not for the final image\n")?;
    base.file("var/cache/stale-1", 0o644, b"")?;
    base.file("var/cache/stale-2", 0o644, b"")?;
    lines.push(format!(
        "layer 3  base      {} and their libraries",
        PROGRAMS.join(", ")
    ));

    let mut app = Layer::new();
    app.file("opt/tool/run", 0o755, b"#!/bin/sh\necho runs\n")?;
    app.file("usr/share/app/notes", 0o644, b"to be deleted\n")?;
    app.file("etc/motd", 0o644, b"the app layer says hello\n")?;
    app.whiteout("usr/share/draft")?;
    lines.push("layer 2  app       overrides etc/motd, deletes usr/share/draft".to_owned());

    let mut config = Layer::new();
    config.opaque("var/cache")?;
    config.file("var/cache/fresh", 0o644, b"")?;
    config.file("etc/hostname", 0o644, b"demo\n")?;
    lines.push("layer 1  config    starts var/cache anew".to_owned());

    fs::create_dir_all(dir.join("blobs/sha256"))?;
    let blobs = Blobs { dir };
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in [base, app, config] {
        let tar = layer.tar.into_inner()?;
        diff_ids.push(format!("sha256:{}", hex(&tar)));
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar)?;
        layers.push(blobs.add(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            &gzip.finish()?,
        )?);
    }
    let config = json!({
        "created": CREATED,
        "architecture": architecture(),
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": LAYERS.iter().rev().map(|name| json!({
            "created": CREATED,
            "created_by": format!("demo: layer {name}"),
        })).collect::<Vec<_>>(),
    });
    let config = blobs.add(
        "application/vnd.oci.image.config.v1+json",
        &serde_json::to_vec(&config)?,
    )?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers,
    });
    let mut manifest = blobs.add(manifest_type, &serde_json::to_vec(&manifest)?)?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "demo"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(lines)
}

/// The machine's architecture by its name in OCI images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}
