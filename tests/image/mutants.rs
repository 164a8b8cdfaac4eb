//! Archives with random damage: whatever happens, nothing panics, hangs, or is written outside the store.

use std::collections::BTreeMap;

use acetate::image::{Limits, Store};
use proptest::prelude::*;

use super::build::*;

/// A layer with some of everything.
fn layer() -> Vec<u8> {
    Tar::new()
        .dir("./", 0o755)
        .dir("a/", 0o755)
        .file("a/file", &[b'x'; 700])
        .symlink("link", "/tmp")
        .hard_link("a/hard", "a/file")
        .pax(&[
            ("path", b"a/long name"),
            ("mtime", b"-5.5"),
            ("SCHILY.xattr.user.a", b"b\n"),
        ])
        .file("x", b"y")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"5000"),
        ])
        .file("sparse", &{
            let mut data = b"1\n1000\n4\n".to_vec();
            data.resize(512, 0);
            data.extend_from_slice(b"data");
            data
        })
        .file("a/.wh.gone", b"")
        .file("a/.wh..wh..opq", b"")
        .finish()
}

/// An image that claims whatever digest its damaged layer has, so that the damage is met by the reader of the tar.
fn image(layer: &[u8]) -> Vec<u8> {
    tar_of(&docker_files(&[layer.to_vec()], &["x:1"]))
}

fn try_image(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    let limits = Limits {
        layer_size: 1 << 20,
        document: 1 << 16,
        ..Limits::default()
    };
    let store = Store::open(&dir.path().join("store"))
        .unwrap()
        .with_limits(limits);
    if let Err(e) = store.prepare(path.as_os_str(), None) {
        assert!(!e.to_string().is_empty());
    }
    let left = std::fs::read_dir(store.root().join("tmp")).unwrap().count();
    assert_eq!(left, 0);
    let mut beside: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    beside.sort();
    assert_eq!(beside, ["image", "store"]);
}

/// Sets right what a header's checksum is, so that the damage is not met there.
fn resum(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(512) {
        if &block[257..262] != b"ustar" {
            continue;
        }
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, fork: false, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_layers(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        sums in any::<bool>(),
    ) {
        let mut layer = layer();
        for (at, byte) in changes {
            let at = at.index(layer.len());
            layer[at] = byte;
        }
        if sums {
            resum(&mut layer);
        }
        if let Some(cut) = cut {
            layer.truncate(cut.index(layer.len()));
        }
        try_image(&image(&layer));
    }

    #[test]
    fn damaged_archives(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        oci in any::<bool>(),
    ) {
        let files: BTreeMap<String, Vec<u8>> = if oci {
            oci_files(&[layer()], Packing::Plain)
        } else {
            docker_files(&[layer()], &["x:1"])
        };
        let mut bytes = tar_of(&files);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        resum(&mut bytes);
        try_image(&bytes);
    }

    #[test]
    fn any_text_as_a_document(text in "[\\[\\]{}\",:0-9a-z ]{0,200}", oci in any::<bool>()) {
        let name = if oci { "index.json" } else { "manifest.json" };
        try_image(&tar_of(&BTreeMap::from([(name.to_owned(), text.into_bytes())])));
    }

    #[test]
    fn any_text_as_a_reference(text in "\\PC{0,300}") {
        if let Ok(reference) = acetate::image::Reference::parse(&text) {
            let again = acetate::image::Reference::parse(&reference.to_string()).unwrap();
            prop_assert_eq!(again, reference);
        }
    }
}
