//! Images that other people's tools write.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use acetate::image::Store;

use super::build::*;
use super::common::skip;
use super::tree::tree;
use crate::{require, skip};

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The trees of an image's layers in a store of their own.
fn trees(dir: &Path, source: &str) -> Vec<BTreeMap<String, String>> {
    let name = source.replace(['/', ':'], "_");
    let store = Store::open(&dir.join(name)).unwrap();
    let image = store
        .prepare(source.as_ref(), None)
        .unwrap_or_else(|e| panic!("{source}: {e}"));
    image.layers.iter().map(|l| tree(l)).collect()
}

#[test]
fn skopeo_converts_between_all_that_we_read() {
    require!(skip::program("skopeo"));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", dir.path().display());
    let files = oci_files(&super::formats::layers(), Packing::Plain);
    folder_of(&files, &dir.path().join("in"));
    let expected = trees(dir.path(), &at("in"));
    let policy = dir.path().join("policy.json");
    std::fs::write(
        &policy,
        r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
    )
    .unwrap();
    for (args, target) in [
        (
            &[][..],
            format!("docker-archive:{}:a/b:1", at("docker.tar")),
        ),
        (&[], format!("oci-archive:{}:tag", at("oci.tar"))),
        (&[], format!("oci:{}:tag", at("oci"))),
        (
            &["--dest-compress-format=zstd", "--dest-compress"],
            format!("oci:{}:tag", at("zstd")),
        ),
        (
            &["--dest-compress-format=gzip", "--dest-compress"],
            format!("oci:{}:tag", at("gzip")),
        ),
    ] {
        run(Command::new("skopeo")
            .arg("--policy")
            .arg(&policy)
            .arg("copy")
            .args(args)
            .arg(format!("oci:{}:1.0", at("in")))
            .arg(&target));
        assert_eq!(trees(dir.path(), &target), expected, "{target}");
    }
}

#[test]
fn umoci_repacks_what_we_read() {
    if !nix::unistd::geteuid().is_root() {
        skip!("needs root");
    }
    require!(skip::program("umoci"));
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let bundle = dir.path().join("bundle");
    let root = bundle.join("rootfs");
    let image = format!("{}:new", layout.display());
    run(Command::new("umoci")
        .arg("init")
        .arg("--layout")
        .arg(&layout));
    run(Command::new("umoci").args(["new", "--image", &image]));
    run(Command::new("umoci")
        .args(["unpack", "--image", &image])
        .arg(&bundle));
    std::fs::create_dir_all(root.join("etc/deep")).unwrap();
    std::fs::write(root.join("etc/a"), "a").unwrap();
    std::fs::write(root.join("etc/gone"), "x").unwrap();
    std::fs::hard_link(root.join("etc/a"), root.join("etc/deep/b")).unwrap();
    std::os::unix::fs::symlink("/nowhere", root.join("link")).unwrap();
    run(Command::new("setfattr")
        .args(["-n", "user.x", "-v", "y"])
        .arg(root.join("etc/a")));
    // umoci rounds times to seconds.
    run(Command::new("find").arg(&root).args([
        "-exec",
        "touch",
        "-h",
        "-d",
        "@1500000000",
        "{}",
        "+",
    ]));
    run(Command::new("umoci")
        .args(["repack", "--image", &image])
        .arg(&bundle));
    let base = tree(&root);
    std::fs::remove_dir_all(&bundle).unwrap();
    run(Command::new("umoci")
        .args(["unpack", "--image", &image])
        .arg(&bundle));
    std::fs::remove_file(root.join("etc/gone")).unwrap();
    std::fs::write(root.join("etc/new"), "new").unwrap();
    run(Command::new("umoci")
        .args(["repack", "--image", &image])
        .arg(&bundle));

    let layers = trees(dir.path(), &image);
    assert_eq!(layers.len(), 2);
    assert!(layers[0]["/etc/gone"].contains(" c 0"), "{layers:#?}");
    assert!(layers[0]["/etc/new"].contains("file 3 "));
    for (path, node) in base {
        // The root of the bundle changes with every unpacking.
        if path != "/" {
            assert_eq!(layers[1][&path], node, "{path}");
        }
    }
}
