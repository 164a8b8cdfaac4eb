//! Images made by hand: tars, docker archives and OCI layouts.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use sha2::Digest as _;

/// Hexadecimal SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// A tar that is being written; the methods take what a hostile writer would put in.
pub struct Tar {
    builder: tar::Builder<Vec<u8>>,
}

/// The attributes of an entry.
#[derive(Clone)]
pub struct Attr {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

impl Default for Attr {
    fn default() -> Attr {
        let (uid, gid) = me();
        Attr {
            mode: 0o644,
            uid,
            gid,
            mtime: 1_600_000_000,
        }
    }
}

/// The ids that a test may always give a file.
pub fn me() -> (u64, u64) {
    (
        nix::unistd::geteuid().as_raw().into(),
        nix::unistd::getegid().as_raw().into(),
    )
}

impl Tar {
    pub fn new() -> Tar {
        Tar {
            builder: tar::Builder::new(Vec::new()),
        }
    }
    /// PAX records for the next entry.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Tar {
        self.builder
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        self
    }
    pub fn entry(
        mut self,
        path: &[u8],
        kind: tar::EntryType,
        link: &[u8],
        data: &[u8],
        attr: &Attr,
    ) -> Tar {
        let mut header = tar::Header::new_gnu();
        assert!(path.len() <= 100 && link.len() <= 100, "use a PAX record");
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(attr.mode);
        header.set_uid(attr.uid);
        header.set_gid(attr.gid);
        header.set_mtime(attr.mtime);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.builder.append(&header, data).unwrap();
        self
    }
    pub fn file(self, path: &str, data: &[u8]) -> Tar {
        self.entry(
            path.as_bytes(),
            tar::EntryType::Regular,
            b"",
            data,
            &Attr::default(),
        )
    }
    pub fn dir(self, path: &str, mode: u32) -> Tar {
        let attr = Attr {
            mode,
            ..Attr::default()
        };
        self.entry(path.as_bytes(), tar::EntryType::Directory, b"", b"", &attr)
    }
    pub fn symlink(self, path: &str, target: &str) -> Tar {
        let attr = Attr {
            mode: 0o777,
            ..Attr::default()
        };
        self.entry(
            path.as_bytes(),
            tar::EntryType::Symlink,
            target.as_bytes(),
            b"",
            &attr,
        )
    }
    pub fn hard_link(self, path: &str, target: &str) -> Tar {
        self.entry(
            path.as_bytes(),
            tar::EntryType::Link,
            target.as_bytes(),
            b"",
            &Attr::default(),
        )
    }
    pub fn device(mut self, path: &str, kind: tar::EntryType, major: u32, minor: u32) -> Tar {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_mode(0o640);
        header.set_uid(me().0);
        header.set_gid(me().1);
        header.set_size(0);
        header.set_mtime(1_600_000_000);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self.builder.append(&header, &b""[..]).unwrap();
        self
    }
    pub fn finish(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packing {
    Plain,
    Gzip,
    /// Several members, as pigz and eStargz write.
    GzipMembers,
    Zstd,
}

pub fn pack(tar: &[u8], packing: Packing) -> Vec<u8> {
    let gzip = |part: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    };
    match packing {
        Packing::Plain => tar.to_vec(),
        Packing::Gzip => gzip(tar),
        Packing::GzipMembers => tar.chunks(700).flat_map(gzip).collect(),
        Packing::Zstd => zstd::stream::encode_all(tar, 1).unwrap(),
    }
}

/// An image's configuration for these layers.
pub fn config(layers: &[Vec<u8>], arch: &str) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|l| format!("sha256:{}", sha256(l)))
        .collect();
    serde_json::to_vec(&serde_json::json!({
        "created": "2026-01-01T00:00:00Z",
        "architecture": arch,
        "os": "linux",
        "config": {"Env": ["A=b"], "Cmd": null, "Volumes": null, "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "test"}],
    }))
    .unwrap()
}

/// A `docker save` archive of the older form, as files by name.
pub fn docker_files(layers: &[Vec<u8>], tags: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let config = config(layers, arch());
    let config_name = format!("{}.json", sha256(&config));
    let mut names = Vec::new();
    for layer in layers {
        let name = format!("{}/layer.tar", sha256(&[b"id", &layer[..]].concat()));
        files.insert(name.clone(), layer.clone());
        names.push(name);
    }
    let manifest = serde_json::json!([
        {"Config": config_name, "RepoTags": tags, "Layers": names}
    ]);
    files.insert(config_name, config);
    files.insert("manifest.json".into(), manifest.to_string().into_bytes());
    files
}

/// This machine's architecture, as images call it.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// One image of an OCI layout.
pub struct OciImage {
    pub layers: Vec<Vec<u8>>,
    pub packing: Packing,
    pub arch: String,
    pub tag: Option<String>,
}

/// Blobs and descriptors of an image.
pub fn oci_image(files: &mut BTreeMap<String, Vec<u8>>, image: &OciImage) -> serde_json::Value {
    let config = config(&image.layers, &image.arch);
    let config = blob(files, "application/vnd.oci.image.config.v1+json", &config);
    let media_type = match image.packing {
        Packing::Plain => "application/vnd.oci.image.layer.v1.tar",
        Packing::Gzip | Packing::GzipMembers => "application/vnd.oci.image.layer.v1.tar+gzip",
        Packing::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| blob(files, media_type, &pack(layer, image.packing)))
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let mut descriptor = blob(
        files,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    descriptor["platform"] = serde_json::json!({"os": "linux", "architecture": image.arch});
    if let Some(tag) = &image.tag {
        descriptor["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": tag});
    }
    descriptor
}

/// Adds a blob and gives its descriptor.
pub fn blob(
    files: &mut BTreeMap<String, Vec<u8>>,
    media_type: &str,
    bytes: &[u8],
) -> serde_json::Value {
    let hex = sha256(bytes);
    files.insert(format!("blobs/sha256/{hex}"), bytes.to_vec());
    serde_json::json!({
        "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len(),
    })
}

/// The files of a layout with this index.
pub fn oci_index(files: &mut BTreeMap<String, Vec<u8>>, manifests: Vec<serde_json::Value>) {
    let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
    files.insert("index.json".into(), index.to_string().into_bytes());
    files.insert(
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    );
}

/// A layout of one image.
pub fn oci_files(layers: &[Vec<u8>], packing: Packing) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let descriptor = oci_image(
        &mut files,
        &OciImage {
            layers: layers.to_vec(),
            packing,
            arch: arch().into(),
            tag: Some("1.0".into()),
        },
    );
    oci_index(&mut files, vec![descriptor]);
    files
}

/// The files as a tar.
pub fn tar_of(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The files as a folder.
pub fn folder_of(files: &BTreeMap<String, Vec<u8>>, at: &Path) {
    for (name, bytes) in files {
        let path = at.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}
