//! The index beside the tree of each layer.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use acetate::image::{Store, index_beside};
use acetate::layer::dir::{DirLayer, LayerOptions};
use acetate::layer::fdcache::FdCache;
use acetate::layer::packed::{Index, IndexError, PackedLayer};

use super::build::*;

fn image(dir: &Path) -> PathBuf {
    let below = Tar::new()
        .dir("etc", 0o755)
        .file("etc/passwd", b"root")
        .file("etc/gone", b"gone")
        .symlink("etc/link", "passwd");
    let above = Tar::new()
        .dir("etc", 0o700)
        .file("etc/.wh.gone", b"")
        .file("etc/shadow", b"secret");
    let path = dir.join("image.tar");
    let files = oci_files(&[below.finish(), above.finish()], Packing::Gzip);
    fs::write(&path, tar_of(&files)).unwrap();
    path
}

/// Whether a mount would answer from the layer's index.
fn usable(tree: &Path) -> Result<(), IndexError> {
    let cache = Arc::new(FdCache::new(16));
    let layer = DirLayer::open(tree, LayerOptions::unpacked(), cache).unwrap();
    let index = Index::open(&index_beside(tree))?;
    index.check().unwrap();
    PackedLayer::new(layer, index).map(drop).map_err(|(_, e)| e)
}

fn prepared(store: &Store, image: &Path) -> Vec<PathBuf> {
    let layers = store.prepare(image.as_os_str(), None).unwrap().layers;
    assert_eq!(layers.len(), 2);
    layers
}

#[test]
fn every_layer_has_one() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let root = dir.path().join("store");
    let store = Store::open(&root).unwrap();
    store.load(image.as_os_str(), None).unwrap();
    for tree in fs::read_dir(root.join("layers/sha256")).unwrap() {
        // Already when it is loaded.
        let tree = tree.unwrap().path().join("diff");
        usable(&tree).unwrap();
        let mode = fs::metadata(index_beside(&tree)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o222, 0, "it is mapped by others");
    }
    let layers = prepared(&store, &image);
    // One that is there stays.
    let before = fs::metadata(index_beside(&layers[0])).unwrap().ino();
    prepared(&store, &image);
    assert_eq!(
        fs::metadata(index_beside(&layers[0])).unwrap().ino(),
        before
    );
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_layer_of_an_older_version_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let store = Store::open(&dir.path().join("store")).unwrap();
    let layers = prepared(&store, &image);
    fs::remove_file(index_beside(&layers[0])).unwrap();
    fs::write(index_beside(&layers[1]), "acetpack\u{2}\0\0\0").unwrap();
    prepared(&store, &image);
    for layer in &layers {
        usable(layer).unwrap();
    }
    fs::remove_file(index_beside(&layers[0])).unwrap();
    store.load(image.as_os_str(), None).unwrap();
    assert_eq!(store.verify().unwrap().damages, []);
    usable(&layers[0]).unwrap();
}

#[test]
fn a_copied_store_makes_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    prepared(&Store::open(&from).unwrap(), &image);
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&from, &to])
        .status()
        .unwrap();
    assert!(copied.success());
    let store = Store::open(&to).unwrap();
    for tree in fs::read_dir(to.join("layers/sha256")).unwrap() {
        let refused = usable(&tree.unwrap().path().join("diff"));
        assert!(matches!(refused, Err(IndexError::OtherTree)), "{refused:?}");
    }
    for layer in prepared(&store, &image) {
        usable(&layer).unwrap();
    }
}

#[test]
fn verifying_finds_what_is_wrong_with_one_and_mends_it() {
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let store = Store::open(&dir.path().join("store")).unwrap();
    store.load(image.as_os_str(), None).unwrap();
    let layers = prepared(&store, &image);
    assert_eq!(store.verify().unwrap().damages, []);
    let replace = |change: Change<'_>| {
        let path = index_beside(&layers[0]);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    };
    // A bit of a name, with and without its checksum, and the end that is missing.
    let name = |bytes: &mut Vec<u8>| {
        let at = bytes.windows(6).position(|w| w == b"shadow").unwrap();
        bytes[at] = b'S';
    };
    let changes: [Change<'_>; 3] = [
        &name,
        &|bytes| {
            name(bytes);
            acetate::layer::packed::seal(bytes);
        },
        &|bytes| bytes.truncate(bytes.len() - 1),
    ];
    for change in changes {
        replace(change);
        let damages = store.verify().unwrap().damages;
        assert_eq!(damages.len(), 1, "{damages:?}");
        assert!(damages[0].what.starts_with("layer sha256:"), "{damages:?}");
        assert!(damages[0].why.contains("index"), "{damages:?}");
        usable(&layers[0]).unwrap();
        assert_eq!(store.verify().unwrap().damages, []);
    }
}
