//! Layers that are large, or that this process may not lay down as they are, by way of the program.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sha2::Digest;

use super::build::*;
use super::common::{program, skip};
use super::tree::tree;
use crate::{require, skip};

const LIMIT: Duration = Duration::from_secs(240);

/// A folder where many files are made quickly.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// A layout whose only layer is a directory of `count` empty files.
fn many_files(dir: &Path, count: u32) -> PathBuf {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let packed = dir.join("layer");
    let mut encoder = zstd::stream::write::Encoder::new(File::create(&packed).unwrap(), 1).unwrap();
    let mut hasher = sha2::Sha256::new();
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_mtime(1_600_000_000);
    let (uid, gid) = me();
    header.set_uid(uid);
    header.set_gid(gid);
    for i in 0..count {
        header.set_path(format!("d/{i}")).unwrap();
        header.set_cksum();
        hasher.update(header.as_bytes());
        encoder.write_all(header.as_bytes()).unwrap();
    }
    hasher.update([0; 1024]);
    encoder.write_all(&[0; 1024]).unwrap();
    encoder.finish().unwrap().sync_all().unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let diff_id = format!("sha256:{}", hex(&hasher.finalize()));
    let mut files = std::collections::BTreeMap::new();
    let config = serde_json::json!({
        "architecture": arch(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = blob(
        &mut files,
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let layer = blob(
        &mut files,
        "application/vnd.oci.image.layer.v1.tar+zstd",
        &std::fs::read(&packed).unwrap(),
    );
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = blob(
        &mut files,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    oci_index(&mut files, vec![manifest]);
    folder_of(&files, &layout);
    layout
}

/// Loads a directory of so many entries in less memory than 200 MiB.
fn load_directory(count: u32) {
    let dir = folder();
    let layout = many_files(dir.path(), count);
    let store = dir.path().join("store");
    let load = |entries: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_acetate"));
        command.arg("--root").arg(&store);
        command.args(["image", "load", "-q", "-i"]).arg(&layout);
        command.env("ACETATE_MAX_LAYER_ENTRIES", entries);
        command
    };
    let refused = program::run(&mut load("1000"), LIMIT);
    assert!(!refused.success());
    assert!(
        refused.text.contains("limit of 1000 entries"),
        "{}",
        refused.text
    );
    for folder in ["layers/sha256", "blobs/sha256", "tmp"] {
        let left = std::fs::read_dir(store.join(folder)).unwrap().count();
        assert_eq!(left, 0, "{folder}");
    }

    let mut child = load("10m").stdout(Stdio::null()).spawn().unwrap();
    let status_file = format!("/proc/{}/status", child.id());
    let mut high = 0;
    let begin = std::time::Instant::now();
    let status = loop {
        let text = std::fs::read_to_string(&status_file).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        high = high.max(kib.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > LIMIT {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{status}");
    println!("{count} entries in {high} KiB");
    assert!(high > 0 && high < 200 << 10, "{high} KiB");
    let layer = std::fs::read_dir(store.join("layers/sha256"))
        .unwrap()
        .next()
        .unwrap();
    let made = std::fs::read_dir(layer.unwrap().path().join("diff/d")).unwrap();
    assert_eq!(made.count(), count as usize);
}

#[test]
fn a_large_directory() {
    load_directory(20_000);
}

#[test]
#[ignore = "takes a minute"]
fn a_directory_of_a_million_entries() {
    load_directory(1_000_000);
}

/// What a process may not make is recorded, and the image keeps it: who may, gets it from there.
#[test]
fn devices_without_privilege_are_recorded_and_not_lost() {
    if !nix::unistd::geteuid().is_root() {
        skip!("needs root, to compare with what root gets");
    }
    require!(skip::program("unshare"));
    let dir = tempfile::tempdir().unwrap();
    let layer = Tar::new()
        .dir("dev/", 0o755)
        .device("dev/null", tar::EntryType::Char, 1, 3)
        .device("dev/disk", tar::EntryType::Block, 8, 1)
        .device("dev/pipe", tar::EntryType::Fifo, 0, 0)
        .finish();
    let archive = dir.path().join("image");
    std::fs::write(&archive, tar_of(&docker_files(&[layer], &["x:1"]))).unwrap();
    let (plain, root) = (dir.path().join("plain"), dir.path().join("root"));
    let image = |program: &[&str], store: &Path, arguments: &[&str]| {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]);
        command
            .arg("--root")
            .arg(store)
            .arg("image")
            .args(arguments);
        program::run(&mut command, LIMIT)
    };
    let acetate = env!("CARGO_BIN_EXE_acetate");
    let shown = archive.to_str().unwrap();
    let inside = ["unshare", "--user", "--map-root-user", acetate];
    let loaded = image(&inside, &plain, &["load", "-i", shown]);
    if loaded.text.contains("unshare failed") {
        skip!("no user namespaces: {}", loaded.tail(1));
    }
    assert!(loaded.success(), "{}", loaded.text);
    assert!(loaded.text.contains("2 devices"), "{}", loaded.text);
    let layer_of = |store: &Path| {
        let mut layers = std::fs::read_dir(store.join("layers/sha256")).unwrap();
        layers.next().unwrap().unwrap().path()
    };
    let info = std::fs::read(layer_of(&plain).join("layer.json")).unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    assert_eq!(
        info["devices"],
        serde_json::json!(["dev/null: c 1:3", "dev/disk: b 8:1"])
    );
    let laid = tree(&layer_of(&plain).join("diff"));
    assert!(laid["/dev/null"].contains(" c 0"), "{laid:#?}");
    assert!(laid["/dev/pipe"].contains(" p 0"), "{laid:#?}");

    let saved = dir.path().join("saved");
    let out = saved.to_str().unwrap();
    let saved_text = image(&inside, &plain, &["save", "-o", out, "x:1"]);
    assert!(saved_text.success(), "{}", saved_text.text);
    let loaded = image(&[acetate], &root, &["load", "-i", out]);
    assert!(loaded.success(), "{}", loaded.text);
    let laid = tree(&layer_of(&root).join("diff"));
    assert!(laid["/dev/null"].contains(" c 103"), "{laid:#?}");
    assert!(laid["/dev/disk"].contains(" b 801"), "{laid:#?}");
}

/// One bad layer spoils the image: the good ones beside it do not stay either.
#[test]
fn nothing_stays_of_an_image_with_a_bad_layer() {
    let dir = tempfile::tempdir().unwrap();
    let store = acetate::image::Store::open(&dir.path().join("store")).unwrap();
    let good = |name: &str| Tar::new().file(name, &[b'x'; 10_000]).finish();
    let bad = Tar::new().file("../evil", b"").finish();
    let archive = dir.path().join("image");
    let files = docker_files(&[good("a"), good("b"), bad, good("c")], &["x:1"]);
    std::fs::write(&archive, tar_of(&files)).unwrap();
    for _ in 0..2 {
        let error = store.load(archive.as_os_str(), None).unwrap_err();
        assert!(error.to_string().contains("'..'"), "{error}");
        for folder in ["layers/sha256", "blobs/sha256", "tmp"] {
            let left = std::fs::read_dir(store.root().join(folder))
                .unwrap()
                .count();
            assert_eq!(left, 0, "{folder}");
        }
    }
    let files = docker_files(&[good("a"), good("b"), good("c")], &["x:1"]);
    std::fs::write(&archive, tar_of(&files)).unwrap();
    assert_eq!(store.load(archive.as_os_str(), None).unwrap().len(), 1);
    let made = std::fs::read_dir(store.root().join("layers/sha256")).unwrap();
    assert_eq!(made.count(), 3);
}
