//! Images that want more than there is, or than they may have.

use std::collections::BTreeMap;
use std::path::Path;

use acetate::image::{ImportSource, Limits, NewImage, Store};

use super::build::*;
use super::hostile::{Bench, refused};
use crate::skip;

#[test]
fn bombs_meet_limits() {
    let zeros = vec![0u8; 8 << 20];
    let layer = Tar::new().file("zeros", &zeros).finish();
    let bench = Bench::limited(Limits {
        layer_size: 1 << 20,
        ..Limits::default()
    });
    let files = oci_files(std::slice::from_ref(&layer), Packing::Gzip);
    bench.files(
        &files,
        &["limit of 1048576 bytes", "ACETATE_MAX_LAYER_SIZE"],
    );
    let files = oci_files(&[layer], Packing::Zstd);
    bench.files(&files, &["limit of 1048576 bytes"]);
    let bench = Bench::limited(Limits {
        layer_entries: 5,
        ..Limits::default()
    });
    let mut tar = Tar::new();
    for i in 0..6 {
        tar = tar.file(&format!("f{i}"), b"");
    }
    bench.layer(
        tar.finish(),
        &["limit of 5 entries", "ACETATE_MAX_LAYER_ENTRIES"],
    );
    let bench = Bench::limited(Limits {
        document: 100,
        ..Limits::default()
    });
    bench.layer(Tar::new().finish(), &["limit of 100 bytes"]);
}

#[test]
fn a_bomb_is_stopped_by_its_ratio() {
    // 1.5 GiB of zeros in some 50 KiB of zstd; it is stopped after the first GiB without being written anywhere but
    // the temporary folder of the store.
    let bench = Bench::new();
    let size: u64 = 3 << 29;
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_cksum();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    // A sparse entry without regions, so that the writer would take no room even if it came to that.
    std::io::Write::write_all(&mut encoder, header.as_bytes()).unwrap();
    std::io::copy(
        &mut std::io::Read::take(std::io::repeat(0), size),
        &mut encoder,
    )
    .unwrap();
    let packed = encoder.finish().unwrap();
    assert!(packed.len() < 1 << 20);
    let mut files = BTreeMap::new();
    let config = blob(
        &mut files,
        "application/vnd.oci.image.config.v1+json",
        &config(&[Tar::new().finish()], arch()),
    );
    let layer = blob(
        &mut files,
        "application/vnd.oci.image.layer.v1.tar+zstd",
        &packed,
    );
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = blob(
        &mut files,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    oci_index(&mut files, vec![manifest]);
    bench.bytes(
        &tar_of(&files),
        &["times its compressed size", "ACETATE_MAX_LAYER_RATIO"],
    );
}

/// An archive is decompressed as a whole before anything of it is looked at.
#[test]
fn a_compressed_archive_is_stopped_by_its_ratio() {
    let tar = Tar::new().file("zeros", &vec![0u8; 8 << 20]).finish();
    let limits = Limits {
        ratio_free: 1 << 20,
        layer_ratio: 50,
        ..Limits::default()
    };
    let bench = Bench::limited(limits.clone());
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"))
        .unwrap()
        .with_limits(limits);
    for packing in [Packing::Gzip, Packing::Zstd] {
        let packed = pack(&tar, packing);
        let parts = ["times its compressed size", "ACETATE_MAX_LAYER_RATIO"];
        bench.bytes(&packed, &parts);
        let path = dir.path().join("archive");
        std::fs::write(&path, packed).unwrap();
        let new = NewImage::default();
        let error = store.import(ImportSource::Path(path), &new).unwrap_err();
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    // Plain bytes have no ratio.
    let path = dir.path().join("archive");
    std::fs::write(&path, tar).unwrap();
    let mut cat = std::process::Command::new("cat")
        .arg(&path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pipe = std::os::fd::OwnedFd::from(cat.stdout.take().unwrap());
    let from = ImportSource::Stream(std::fs::File::from(pipe));
    store.import(from, &NewImage::default()).unwrap();
    assert!(cat.wait().unwrap().success());
}

/// A small filesystem of its own, unmounted in the end.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn new(at: &Path, options: &str) -> Tmpfs {
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(at)
            .status();
        assert!(status.unwrap().success());
        Tmpfs(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let status = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        assert!(
            status.unwrap().success(),
            "{} is still mounted",
            self.0.display()
        );
    }
}

#[test]
fn a_full_disk_is_named_and_left_clean() {
    if !nix::unistd::geteuid().is_root() {
        skip!("needs root, to mount a small filesystem");
    }
    let dir = tempfile::tempdir().unwrap();
    // Too little room for the data, then too few inodes for the names.
    for (options, files, size) in [("size=2m", 3, 1 << 20), ("nr_inodes=60,size=20m", 100, 1)] {
        let root = dir.path().join("small");
        std::fs::create_dir_all(&root).unwrap();
        let tmpfs = Tmpfs::new(&root, options);
        let store = Store::open(&root.join("store")).unwrap();
        let mut tar = Tar::new();
        for i in 0..files {
            tar = tar.file(&format!("f{i}"), &vec![b'x'; size]);
        }
        let image = dir.path().join("image");
        std::fs::write(&image, tar_of(&docker_files(&[tar.finish()], &[]))).unwrap();
        refused(&store, &image, None, &["No space left on device", "\"f"]);
        let error = store.load(image.as_os_str(), None).unwrap_err().to_string();
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!(
            std::fs::read_dir(root.join("store/tmp")).unwrap().count(),
            0
        );
        // A smaller image still fits.
        let layer = Tar::new().file("a", b"fits").finish();
        std::fs::write(&image, tar_of(&docker_files(&[layer], &[]))).unwrap();
        store.prepare(image.as_os_str(), None).unwrap();
        drop(tmpfs);
    }
}
