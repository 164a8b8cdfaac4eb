//! Images that are none, or not whole.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::skip;
use crate::require;
use crate::run::Place;

fn layout(place: &Place, name: &str) -> PathBuf {
    let dir = place.scratch.dir(name);
    crate::image::build(&dir).unwrap();
    dir
}

/// The largest blob: a layer.
fn layer(layout: &Path) -> PathBuf {
    fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .max_by_key(|p| fs::metadata(p).unwrap().len())
        .unwrap()
}

fn tar(place: &Place, from: &Path, name: &str) -> PathBuf {
    let path = place.scratch.join(name);
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    tar.append_dir_all(".", from).unwrap();
    tar.finish().unwrap();
    path
}

/// Nothing of an image that was refused may stay in the store as if it were whole: the same image, once it is
/// repaired, must mount.
fn refused_then_repaired(place: &Place, image: &str, culprits: &[&str], repair: impl FnOnce()) {
    place.refused(&format!("mount {image} merged"), culprits);
    repair();
    place.ok(&format!("mount {image} merged"));
    assert!(
        fs::read_to_string(place.merged.join("etc/motd"))
            .unwrap()
            .contains("app layer")
    );
    place.ok("umount merged");
}

#[test]
fn a_layer_with_a_wrong_digest() {
    require!(skip::privileged());
    let place = Place::new("digest");
    let layer = layer(&layout(&place, "image"));
    let good = fs::read(&layer).unwrap();
    let mut bad = good.clone();
    // The last bytes are gzip's own checksum and length; one in the middle is data.
    let middle = bad.len() / 2;
    bad[middle] ^= 0x55;
    fs::write(&layer, bad).unwrap();
    let digest = layer.file_name().unwrap().to_str().unwrap().to_owned();
    refused_then_repaired(&place, "image", &[&digest[..12]], || {
        fs::write(&layer, good).unwrap()
    });
}

#[test]
fn a_truncated_layer() {
    require!(skip::privileged());
    let place = Place::new("truncated");
    let layer = layer(&layout(&place, "image"));
    let good = fs::read(&layer).unwrap();
    fs::write(&layer, &good[..good.len() / 3]).unwrap();
    let digest = layer.file_name().unwrap().to_str().unwrap().to_owned();
    refused_then_repaired(&place, "image", &[&digest[..12]], || {
        fs::write(&layer, good).unwrap()
    });
}

#[test]
fn a_missing_blob() {
    require!(skip::privileged());
    let place = Place::new("blob");
    let layer = layer(&layout(&place, "image"));
    let good = fs::read(&layer).unwrap();
    fs::remove_file(&layer).unwrap();
    let digest = layer.file_name().unwrap().to_str().unwrap().to_owned();
    refused_then_repaired(&place, "image", &[&digest[..12]], || {
        fs::write(&layer, good).unwrap()
    });
}

#[test]
fn a_truncated_archive() {
    require!(skip::privileged());
    let place = Place::new("archive");
    let archive = tar(&place, &layout(&place, "image"), "image.tar");
    let good = fs::read(&archive).unwrap();
    fs::write(&archive, &good[..good.len() / 2]).unwrap();
    refused_then_repaired(&place, "image.tar", &["image.tar"], || {
        fs::write(&archive, good).unwrap()
    });
}

#[test]
fn what_is_no_image() {
    require!(skip::privileged());
    let place = Place::new("no-image");
    fs::write(place.scratch.join("text"), "just some text").unwrap();
    fs::write(place.scratch.join("empty"), "").unwrap();
    fs::write(
        place.scratch.join("noise"),
        (0..100_000u32)
            .map(|i| ((i * 7919) >> 3) as u8)
            .collect::<Vec<_>>(),
    )
    .unwrap();
    let plain = place.scratch.dir("plain");
    fs::write(plain.join("file"), "").unwrap();
    tar(&place, &plain, "plain.tar");
    for image in [
        "text",
        "empty",
        "noise",
        "plain",
        "plain.tar",
        "nowhere",
        "/dev/null",
    ] {
        place.refused(&format!("mount --pull=never {image} merged"), &[image]);
    }
}

#[test]
fn json_that_lies() {
    require!(skip::privileged());
    let place = Place::new("json");
    for (name, text) in [
        ("not-json", "{"),
        ("no-manifests", r#"{"schemaVersion":2}"#),
        ("empty-manifests", r#"{"schemaVersion":2,"manifests":[]}"#),
        (
            "bad-digest",
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../../etc/passwd","size":10}]}"#,
        ),
        (
            "absent",
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":10}]}"#,
        ),
    ] {
        let dir = layout(&place, name);
        fs::write(dir.join("index.json"), text).unwrap();
        place.refused(&format!("mount {name} merged"), &[name]);
    }
}

/// Its layers are in the store as trees then, and only the blobs are missing: they were checked by a thread that
/// waited for the end of what its own creator still held open.
#[test]
fn an_image_that_was_mounted_before_is_loaded() {
    require!(skip::privileged());
    let place = Place::new("mounted-before");
    layout(&place, "image");
    place.ok("mount image merged");
    place.ok("umount merged");
    let output = place
        .program("timeout")
        .args(["20", crate::run::BINARY, "image", "load", "-i", "image"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(place.run("image verify").code, Some(0));
}
