//! A real Debian image: made by debootstrap and apt-get, saved as a docker archive, mounted, worked in.
//!
//! The same work is done on a plain directory that another program unpacked from the same archive; both trees
//! must be equal afterwards, and the layers below the mount must not have been touched.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "debian/image.rs"]
mod image;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Acetate, Mount, Scratch, Tree, TreeOptions, Watchdog, program, skip};

const WORK: &str = include_str!("debian/work.sh");
const REMOVE: &str = include_str!("debian/remove.sh");

/// Never equal on two directories of one filesystem either: logs with times, caches of inode numbers.
const OWN_TO_A_TREE: &[&str] = &[
    "var/log",
    "var/cache/ldconfig/aux-cache",
    "var/cache/apt/pkgcache.bin",
    "var/cache/apt/srcpkgcache.bin",
    "root/work/repository/.git/index",
    "root/work/clone/.git/index",
    "root/work/copy/.git/index",
    "root/work/repository/.git/logs",
    "root/work/clone/.git/logs",
    "root/work/copy/.git/logs",
];

fn root_of(tree: &Path, script: &str) -> Command {
    let mut command = Command::new("unshare");
    // A mount namespace of its own: what is mounted below the tree goes away with the last process.
    command
        .args(["--mount", "--propagation", "private", "sh", "-euc"])
        .arg(
            "mount -t proc proc \"$1/proc\"; mount --rbind /dev \"$1/dev\"
             exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TZ=UTC \
             chroot \"$1\" /bin/sh -euc \"$2\"",
        )
        .arg("sh")
        .arg(tree)
        .arg(script);
    command
}

/// A tree without times, and without what differs on any two trees.
fn contents(dir: &Path) -> Tree {
    let options = TreeOptions {
        mtime: false,
        ..TreeOptions::CONTENTS
    };
    let mut tree = Tree::read(dir, options).unwrap();
    let own = |path: &PathBuf| OWN_TO_A_TREE.iter().any(|own| path.starts_with(own));
    tree.nodes.retain(|path, _| !own(path));
    tree
}

fn layers(store: &Path) -> BTreeMap<PathBuf, Tree> {
    let layers: BTreeMap<PathBuf, Tree> = fs::read_dir(store.join("layers/sha256"))
        .unwrap()
        .map(|entry| {
            let dir = entry.unwrap().path().join("diff");
            let tree = Tree::read(&dir, TreeOptions::UNTOUCHED).unwrap();
            (dir, tree)
        })
        .collect();
    assert_eq!(layers.len(), 5, "{:?}", layers.keys());
    layers
}

struct Stand {
    scratch: Scratch,
    archive: PathBuf,
    store: PathBuf,
}

impl Stand {
    /// The image in a store, mounted once; the command does both.
    fn new(archive: PathBuf) -> Stand {
        let scratch = Scratch::new("debian");
        let stand = Stand {
            store: scratch.join("store"),
            archive,
            scratch,
        };
        let dir = stand.scratch.dir("first");
        let begin = Instant::now();
        program::must(
            stand.acetate().arg("mount").arg(&stand.archive).arg(&dir),
            Duration::from_secs(300),
        );
        println!("load and mount: {:?}", begin.elapsed());
        let begin = Instant::now();
        assert!(dir.join("etc/debian_version").is_file());
        program::must(
            stand.acetate().arg("umount").arg(&dir),
            Duration::from_secs(60),
        );
        println!("unmount: {:?}", begin.elapsed());
        stand
    }

    fn acetate(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_acetate"));
        command.arg("--root").arg(&self.store);
        command
    }

    fn mount(&self) -> Mount {
        let begin = Instant::now();
        let mount = Acetate::new(self.scratch.join("merged"))
            .argument("--root")
            .argument(&self.store)
            .argument(&self.archive)
            .mount();
        println!("mount of the ready image: {:?}", begin.elapsed());
        mount
    }

    /// The same image as another program unpacks it, on the plain filesystem.
    fn plain(&self) -> PathBuf {
        let layout = self.scratch.join("oci");
        program::must(
            Command::new("skopeo")
                .args(["copy", "-q", "--insecure-policy"])
                .arg(format!("docker-archive:{}", self.archive.display()))
                .arg(format!("oci:{}:debian", layout.display())),
            Duration::from_secs(300),
        );
        let bundle = self.scratch.join("bundle");
        program::must(
            Command::new("umoci")
                .args(["raw", "unpack", "--image"])
                .arg(format!("{}:debian", layout.display()))
                .arg(&bundle),
            Duration::from_secs(300),
        );
        fs::remove_dir_all(layout).unwrap();
        bundle
    }
}

#[test]
#[ignore = "heavy: makes a Debian image with debootstrap and apt-get"]
fn a_debian_image_works_as_on_a_plain_directory() {
    require!(skip::privileged());
    for name in ["debootstrap", "buildah", "skopeo", "umoci", "unshare"] {
        require!(program::find(name));
    }
    let _limit = Watchdog::new("debian", Duration::from_secs(900));
    let archive = match image::archive() {
        Ok(archive) => archive,
        Err(reason) => skip!("{reason}"),
    };
    let stand = Stand::new(archive);
    let before = layers(&stand.store);
    let plain = stand.plain();
    let mount = stand.mount();

    let unpacked = Tree::read(&plain, TreeOptions::CONTENTS).unwrap();
    assert!(unpacked.nodes.len() > 10_000, "{}", unpacked.nodes.len());
    unpacked.assert_same(
        &Tree::read(mount.path(), TreeOptions::CONTENTS).unwrap(),
        "the image as umoci unpacks it and as acetate shows it",
    );

    for (name, script) in [("work", WORK), ("remove", REMOVE)] {
        let begin = Instant::now();
        program::must(&mut root_of(&plain, script), Duration::from_secs(300));
        let judge = begin.elapsed();
        let begin = Instant::now();
        program::must(&mut root_of(mount.path(), script), Duration::from_secs(300));
        println!(
            "{name}: plain directory {judge:?}, acetate {:?}",
            begin.elapsed()
        );
        contents(&plain).assert_same(
            &contents(mount.path()),
            &format!("after {name}: a plain directory and acetate"),
        );
    }

    let log = mount.unmount().unwrap();
    assert!(log.trim().is_empty(), "the log is not empty:\n{log}");
    for (dir, tree) in layers(&stand.store) {
        before[&dir].assert_same(&tree, &format!("the layer {}", dir.display()));
    }
}
