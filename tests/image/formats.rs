//! Every form of an image gives the same trees.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use acetate::image::Store;

use super::build::*;
use super::tree::tree;

/// Three layers with an override, a whiteout and an opaque directory.
pub fn layers() -> Vec<Vec<u8>> {
    vec![
        Tar::new()
            .dir("./", 0o755)
            .dir("etc/", 0o755)
            .file("etc/a", b"base")
            .file("etc/b", b"hidden")
            .dir("opt/", 0o750)
            .file("opt/x", &vec![b'x'; 100_000])
            .symlink("lib", "usr/lib")
            .finish(),
        Tar::new()
            .file("etc/a", b"override")
            .file("etc/.wh.b", b"")
            .finish(),
        Tar::new()
            .dir("opt/", 0o700)
            .file("opt/.wh..wh..opq", b"")
            .file("opt/y", b"y")
            .hard_link("opt/z", "opt/y")
            .finish(),
    ]
}

fn trees(store: &Store, source: &OsStr) -> Vec<BTreeMap<String, String>> {
    let image = store.prepare(source, None).unwrap();
    assert_eq!(image.diff_ids.len(), 3);
    assert_eq!(image.config.architecture().to_string(), arch());
    image.layers.iter().map(|l| tree(l)).collect()
}

fn fresh(dir: &Path, name: &str) -> Store {
    Store::open(&dir.join(name)).unwrap()
}

#[test]
fn every_format_gives_the_same_layers() {
    let dir = tempfile::tempdir().unwrap();
    let layers = layers();
    let mut sources: Vec<(String, PathBuf)> = Vec::new();
    let written = |name: &str, bytes: Vec<u8>| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (name.to_owned(), path)
    };
    let docker = tar_of(&docker_files(&layers, &["a/b:1"]));
    sources.push(written("docker.tar", docker.clone()));
    sources.push(written("docker.tar.gz", pack(&docker, Packing::Gzip)));
    sources.push(written("docker.tar.zst", pack(&docker, Packing::Zstd)));
    for packing in [
        Packing::Plain,
        Packing::Gzip,
        Packing::GzipMembers,
        Packing::Zstd,
    ] {
        let files = oci_files(&layers, packing);
        sources.push(written(&format!("oci-{packing:?}.tar"), tar_of(&files)));
        let folder = dir.path().join(format!("oci-{packing:?}"));
        folder_of(&files, &folder);
        sources.push((format!("oci-{packing:?}"), folder));
    }
    // What docker writes since version 25: both forms in one.
    let mut both = oci_files(&layers, Packing::Plain);
    let layer_names: Vec<_> = layers
        .iter()
        .map(|l| format!("blobs/sha256/{}", sha256(l)))
        .collect();
    let config_name = format!("blobs/sha256/{}", sha256(&config(&layers, arch())));
    both.insert(
        "manifest.json".into(),
        serde_json::json!([{"Config": config_name, "RepoTags": ["a:1"], "Layers": layer_names}])
            .to_string()
            .into_bytes(),
    );
    let path = dir.path().join("both.tar");
    std::fs::write(&path, tar_of(&both)).unwrap();
    sources.push(("both.tar".into(), path));
    let folder = dir.path().join("docker");
    folder_of(&docker_files(&layers, &["a/b:1"]), &folder);
    sources.push(("docker".into(), folder));

    let expected = trees(&fresh(dir.path(), "store"), sources[0].1.as_os_str());
    assert_eq!(expected.len(), 3);
    assert!(expected[2]["/etc/a"].contains("file 4 "), "{expected:#?}");
    assert!(expected[1]["/etc/b"].contains(" c 0"), "{expected:#?}");
    assert!(
        expected[0]["/opt"].contains("overlay.opaque=y"),
        "{expected:#?}"
    );
    assert!(expected[0]["/opt/z"].contains(" n2 "), "{expected:#?}");
    for (name, path) in &sources {
        let store = fresh(dir.path(), &format!("store-{name}"));
        assert_eq!(trees(&store, path.as_os_str()), expected, "{name}");
        // A second time nothing is unpacked, and the result is the same.
        assert_eq!(trees(&store, path.as_os_str()), expected, "{name} again");
        assert_eq!(
            std::fs::read_dir(store.root().join("tmp")).unwrap().count(),
            0
        );
    }
}
