//! The harness's own checks: what other tests rest on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{LoopImage, Overlay, Scratch, Tree, TreeOptions, Watchdog, skip};

#[test]
fn a_tree_tells_every_change() {
    require!(skip::privileged());
    let scratch = Scratch::new("harness");
    let dir = scratch.dir("tree/sub");
    let root = scratch.join("tree");
    fs::write(dir.join("file"), "data").unwrap();
    fs::hard_link(dir.join("file"), root.join("other")).unwrap();
    symlink("sub", root.join("link")).unwrap();
    let before = Tree::read(&root, TreeOptions::UNTOUCHED).unwrap();
    assert_eq!(before.nodes.len(), 5);
    assert_eq!(before.links.len(), 1);
    before.assert_same(
        &Tree::read(&root, TreeOptions::UNTOUCHED).unwrap(),
        "nothing changed",
    );

    fs::write(dir.join("file"), "date").unwrap();
    let after = Tree::read(&root, TreeOptions::UNTOUCHED).unwrap();
    assert_eq!(
        before.differences(&after).len(),
        2,
        "{:?}",
        before.differences(&after)
    );
    fs::rename(dir.join("file"), dir.join("moved")).unwrap();
    let after = Tree::read(&root, TreeOptions::CONTENTS).unwrap();
    assert!(after.nodes.contains_key(std::path::Path::new("sub/moved")));
}

#[test]
fn a_kernel_overlay_comes_and_goes() {
    require!(skip::privileged());
    let _limit = Watchdog::new("kernel overlay", std::time::Duration::from_secs(60));
    let scratch = Scratch::new("harness");
    let (lower, upper, work) = (
        scratch.dir("lower"),
        scratch.dir("upper"),
        scratch.dir("work"),
    );
    let merged = scratch.dir("merged");
    fs::write(lower.join("file"), "lower").unwrap();
    let before = Tree::read(&lower, TreeOptions::UNTOUCHED).unwrap();
    let overlay = Overlay::mount(
        &merged,
        &[&lower],
        Some((&upper, &work)),
        "index=on,metacopy=on",
    )
    .unwrap();
    fs::write(merged.join("file"), "upper").unwrap();
    overlay.unmount().unwrap();
    assert_eq!(fs::read_to_string(upper.join("file")).unwrap(), "upper");
    before.assert_same(
        &Tree::read(&lower, TreeOptions::UNTOUCHED).unwrap(),
        "the lower layer",
    );
}

#[test]
fn a_loop_image_comes_and_goes() {
    require!(skip::privileged());
    let scratch = Scratch::new("harness");
    for (fstype, size) in [("ext4", 16 << 20), ("xfs", 320 << 20), ("btrfs", 128 << 20)] {
        let image = match LoopImage::new(&scratch, fstype, size) {
            Ok(image) => image,
            Err(reason) => skip!("{fstype}: {reason}"),
        };
        fs::write(image.path().join("file"), fstype).unwrap();
        image.unmount().unwrap();
    }
}
