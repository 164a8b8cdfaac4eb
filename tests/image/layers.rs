//! What real layers hold.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use acetate::image::{ImageError, PreparedImage, Store};

use super::build::*;
use super::common::skip;
use super::tree::{describe, tree, xattrs};
use crate::{require, skip};

/// A store, its folder, and the image of one layer in it.
pub struct One {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub result: Result<PreparedImage, ImageError>,
}

impl One {
    /// Prepares an image of one layer.
    pub fn new(layer: Vec<u8>) -> One {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("image.tar");
        std::fs::write(&archive, tar_of(&docker_files(&[layer], &["x:1"]))).unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let result = store.prepare(archive.as_os_str(), None);
        One { dir, store, result }
    }
    fn root(&self) -> PathBuf {
        self.result.as_ref().unwrap().layers[0].clone()
    }
    fn tree(&self) -> BTreeMap<String, String> {
        tree(&self.root())
    }
}

#[test]
fn whiteouts_apply_whatever_their_order() {
    let one = One::new(
        Tar::new()
            .file("d/.wh.early", b"")
            .file("d/early", b"here")
            .file("d/late", b"here")
            .file("d/.wh.late", b"")
            .file(".wh.dir", b"")
            .file("dir/inside", b"")
            .dir("after/", 0o755)
            .file("after/x", b"")
            .file(".wh.after", b"")
            .file("opq/.wh..wh..opq", b"")
            .dir("opq/", 0o711)
            .file("gone/.wh.me", b"")
            .file(".wh..wh.plnk/1.2", b"aufs")
            .finish(),
    );
    let tree = one.tree();
    let has = |path: &str, part: &str| {
        assert!(
            tree[path].contains(part),
            "{path}: {} lacks {part}",
            tree[path]
        );
    };
    has("/d/early", "file 4 ");
    has("/d/late", "file 4 ");
    has("/dir", "overlay.opaque=y");
    has("/after", "overlay.opaque=y");
    has("/opq", "overlay.opaque=y");
    has("/opq", "711 ");
    has("/gone/me", " c 0");
    assert!(!tree["/d"].contains("opaque"));
    assert!(!tree.keys().any(|k| k.contains(".wh.")), "{tree:#?}");
}

#[test]
fn hard_links_come_in_any_order() {
    let one = One::new(
        Tar::new()
            .hard_link("b", "a")
            .hard_link("c", "sub/d")
            .hard_link("sub/d", "./b")
            .file("a", b"data")
            .symlink("s", "nowhere")
            .hard_link("t", "s")
            .finish(),
    );
    let root = one.root();
    let ino = |name: &str| root.join(name).symlink_metadata().unwrap().ino();
    for name in ["b", "c", "sub/d"] {
        assert_eq!(ino(name), ino("a"), "{name}");
    }
    assert_eq!(ino("s"), ino("t"));
    assert_eq!(root.join("a").metadata().unwrap().nlink(), 4);
}

/// A look at all that wait for each one that is made would take minutes.
#[test]
fn a_long_chain_of_hard_links_comes_backwards() {
    const LENGTH: usize = 10_000;
    let mut tar = Tar::new();
    // By name each comes before its target.
    for i in 0..LENGTH {
        tar = tar.hard_link(&format!("l{i:05}"), &format!("l{:05}", i + 1));
    }
    let one = One::new(tar.file(&format!("l{LENGTH:05}"), b"data").finish());
    let nlink = one.root().join("l00000").metadata().unwrap().nlink();
    assert_eq!(nlink, LENGTH as u64 + 1);
}

/// Each time a look at every directory that the layer has would take long as well.
#[test]
fn a_directory_that_gives_way_takes_what_is_below_it_and_no_more() {
    let one = One::new(
        Tar::new()
            .dir("a/", 0o700)
            .dir("a/b/", 0o700)
            .hard_link("a/link", "a/later")
            .dir("a.b/", 0o700)
            .hard_link("a.b/link", "later")
            .dir("a0/", 0o700)
            .file("a", b"x")
            .file("later", b"y")
            .finish(),
    );
    let root = one.root();
    assert!(root.join("a").is_file() && root.join("a0").is_dir());
    let link = root.join("a.b/link").metadata().unwrap();
    assert_eq!(link.nlink(), 2);
}

#[test]
fn directories_may_come_after_their_entries() {
    let one = One::new(
        Tar::new()
            .file("a/b/c/file", b"x")
            .dir("a/b/c/", 0o500)
            .dir("a/b/", 0o700)
            .dir("a/", 0o1777)
            .dir("", 0o750)
            .finish(),
    );
    let tree = one.tree();
    assert!(tree["/a/b/c"].starts_with("500 "), "{tree:#?}");
    assert!(tree["/a"].starts_with("1777 "), "{tree:#?}");
    assert!(tree["/"].starts_with("750 "), "{tree:#?}");
    for dir in ["/", "/a", "/a/b", "/a/b/c"] {
        assert!(
            tree[dir].contains(" 1600000000.000000000 dir"),
            "{}",
            tree[dir]
        );
    }
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let one = One::new(
        Tar::new()
            .file("f", b"old data")
            .file("f", b"new")
            .dir("d/", 0o755)
            .file("d/keep", b"")
            .dir("d/", 0o700)
            .dir("x/", 0o755)
            .dir("x/y/", 0o755)
            .file("x/y/z", b"")
            .file("x", b"a file")
            .file("y", b"a file")
            .dir("y/", 0o755)
            .file("y/in", b"")
            .symlink("s", "d")
            .file("s", b"no link")
            .finish(),
    );
    let tree = one.tree();
    assert!(tree["/f"].contains("file 3 "));
    assert!(tree["/d"].starts_with("700 "));
    assert!(tree.contains_key("/d/keep"));
    assert!(tree["/x"].contains("file 6 "));
    assert!(tree["/y"].contains(" dir"));
    assert!(tree.contains_key("/y/in"));
    assert!(tree["/s"].contains("file 7 "));
    assert_eq!(tree.len(), 8, "{tree:#?}");
}

#[test]
fn pax_times_names_and_attributes() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let one = One::new(
        Tar::new()
            .pax(&[("mtime", b"-1.25"), ("atime", b"17.5")])
            .file("old", b"")
            .pax(&[("mtime", b"1700000000.123456789")])
            .file("exact", b"")
            .pax(&[("path", long.as_bytes())])
            .file("short", b"long")
            .pax(&[("path", b"caf\xe9\xff\n")])
            .file("short", b"bytes")
            .pax(&[("linkpath", "t".repeat(3000).as_bytes())])
            .symlink("link", "short")
            .pax(&[
                ("SCHILY.xattr.user.two\nlines", b"a\nb=\x00\xff\n"),
                ("SCHILY.xattr.user.e", b""),
            ])
            .file("xattrs", b"")
            .pax(&[("SCHILY.xattr.user.dir", b"v")])
            .dir("xdir/", 0o755)
            .finish(),
    );
    let root = one.root();
    let meta = root.join("old").metadata().unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-2, 750_000_000));
    assert_eq!((meta.atime(), meta.atime_nsec()), (17, 500_000_000));
    let tree = one.tree();
    assert!(tree["/exact"].contains(" 1700000000.123456789 "));
    assert!(tree[&format!("/{long}")].contains("file 4 "));
    assert!(tree[r"/caf\xe9\xff\n"].contains("file 5 "), "{tree:#?}");
    assert!(tree["/link"].contains(&"t".repeat(3000)));
    let values = xattrs(&root.join("xattrs"));
    if values.is_empty() {
        skip!("no user xattrs on the temporary folder's filesystem");
    }
    assert_eq!(values[r"user.two\nlines"], b"a\nb=\x00\xff\n");
    assert_eq!(values["user.e"], b"");
    assert_eq!(xattrs(&root.join("xdir"))["user.dir"], b"v");
}

#[test]
fn private_attributes_of_overlays_are_defused() {
    let one = One::new(
        Tar::new()
            .pax(&[
                ("SCHILY.xattr.user.overlay.opaque", b"y"),
                ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.user.fuseoverlayfs.opaque", b"y"),
                ("SCHILY.xattr.user.containers.override_stat", b"0:0:04755"),
            ])
            .dir("d/", 0o755)
            .finish(),
    );
    let values = xattrs(&one.root().join("d"));
    let names: Vec<_> = values.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "user.overlay.overlay.opaque",
            "user.overlay.overlay.redirect"
        ]
    );
}

#[test]
fn root_keeps_owners_devices_and_capabilities() {
    if !nix::unistd::geteuid().is_root() {
        skip!("needs root");
    }
    let capability =
        b"\x01\x00\x00\x02\x00\x04\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let attr = Attr {
        mode: 0o6755,
        uid: 3_000_000,
        gid: 70_000,
        mtime: 1,
    };
    let one = One::new(
        Tar::new()
            .entry(b"suid", tar::EntryType::Regular, b"", b"x", &attr)
            .pax(&[("uid", b"4294967294"), ("gid", b"4000000000")])
            .file("huge", b"")
            .pax(&[("SCHILY.xattr.security.capability", capability)])
            .file("ping", b"x")
            .device("null", tar::EntryType::Char, 1, 3)
            .device("disk", tar::EntryType::Block, 8, 1)
            .device("fifo", tar::EntryType::Fifo, 0, 0)
            .device("white", tar::EntryType::Char, 0, 0)
            .entry(b"link", tar::EntryType::Symlink, b"x", b"", &attr)
            .finish(),
    );
    let tree = one.tree();
    assert!(
        tree["/suid"].starts_with("6755 3000000:70000 1."),
        "{}",
        tree["/suid"]
    );
    assert!(
        tree["/huge"].contains(" 4294967294:4000000000 "),
        "{}",
        tree["/huge"]
    );
    assert!(
        tree["/link"].contains(" 3000000:70000 1."),
        "{}",
        tree["/link"]
    );
    assert!(
        tree["/null"].ends_with(" c 103") && tree["/null"].starts_with("640 "),
        "{}",
        tree["/null"]
    );
    assert!(tree["/disk"].ends_with(" b 801"));
    assert!(tree["/fifo"].ends_with(" p 0"));
    assert!(tree["/white"].ends_with(" c 0"));
    assert_eq!(
        xattrs(&one.root().join("ping"))["security.capability"],
        capability
    );
}

#[test]
fn sparse_files_of_gnu_tar_in_every_format() {
    require!(skip::program("tar"));
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("in/sparse");
    std::fs::create_dir(dir.path().join("in")).unwrap();
    let file = std::fs::File::create(&original).unwrap();
    use std::os::unix::fs::FileExt;
    // More regions than the header of the old format holds, and holes at both ends.
    for i in 0..60u64 {
        file.write_all_at(&[b'a' + (i % 26) as u8; 4096], 65_536 + i * 131_072)
            .unwrap();
    }
    file.set_len(64 << 20).unwrap();
    std::fs::File::create(dir.path().join("in/hole"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let expected = (describe(&original), describe(&dir.path().join("in/hole")));
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ];
    for format in formats {
        let output = Command::new("tar")
            .args(format)
            .args(["--sparse", "--numeric-owner", "-cf", "-", "-C"])
            .arg(dir.path().join("in"))
            .args(["sparse", "hole"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let one = One::new(output.stdout);
        let root = one.root();
        let strip = |text: &str| text.split_once(' ').unwrap().1.replace(".000000000", "");
        let whole = |text: &str| {
            // The old format has whole seconds only.
            let mut words: Vec<String> = strip(text).split(' ').map(str::to_owned).collect();
            if format[0] == "--format=gnu" {
                words[1] = words[1].split('.').next().unwrap().to_owned();
            }
            words.join(" ")
        };
        assert_eq!(
            whole(&describe(&root.join("sparse"))),
            whole(&expected.0),
            "{format:?}"
        );
        assert_eq!(
            whole(&describe(&root.join("hole"))),
            whole(&expected.1),
            "{format:?}"
        );
        let blocks = root.join("sparse").metadata().unwrap().blocks() * 512;
        assert!(blocks < 2 << 20, "{format:?}: {blocks} bytes allocated");
    }
}

#[test]
fn names_of_gnu_tar_and_links_to_long_names() {
    require!(skip::program("tar"));
    let dir = tempfile::tempdir().unwrap();
    let tree_in = dir.path().join("in");
    let deep = tree_in.join("x".repeat(120)).join("y".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("file"), "data").unwrap();
    std::fs::hard_link(deep.join("file"), deep.join("zlink")).unwrap();
    std::os::unix::fs::symlink("t".repeat(150), deep.join("symlink")).unwrap();
    for format in ["gnu", "posix"] {
        let output = Command::new("tar")
            .args([
                &format!("--format={format}"),
                "--numeric-owner",
                "-cf",
                "-",
                "-C",
            ])
            .arg(&tree_in)
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let one = One::new(output.stdout);
        let whole = |tree: BTreeMap<String, String>| -> BTreeMap<String, String> {
            let cut = |text: String| {
                let (a, b) = text.split_once('.').unwrap();
                format!("{a} {}", b.split_once(' ').unwrap().1)
            };
            tree.into_iter().map(|(k, v)| (k, cut(v))).collect()
        };
        assert_eq!(whole(one.tree()), whole(tree(&tree_in)), "{format}");
    }
}

#[test]
fn an_image_may_have_a_layer_twice_and_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let layer = Tar::new().file("a", b"1").finish();
    let other = Tar::new().file("a", b"2").finish();
    let path = dir.path().join("twice.tar");
    let layers = [layer.clone(), other, layer];
    std::fs::write(&path, tar_of(&docker_files(&layers, &[]))).unwrap();
    let image = store.prepare(path.as_os_str(), None).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.diff_ids.len(), 3);
    assert!(tree(&image.layers[0])["/a"].contains("file 1 "));
    assert_eq!(std::fs::read(image.layers[0].join("a")).unwrap(), b"1");

    let path = dir.path().join("none.tar");
    std::fs::write(&path, tar_of(&docker_files(&[], &[]))).unwrap();
    let image = store.prepare(path.as_os_str(), None).unwrap();
    assert_eq!(image.layers.len(), 1);
    assert_eq!(std::fs::read_dir(&image.layers[0]).unwrap().count(), 0);
}
