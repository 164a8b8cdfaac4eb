//! Tests of plain lower layers.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::layer::{EntryKind, Found, Opaque};

fn open(path: &Path) -> DirLayer {
    DirLayer::open(path, LayerOptions::default(), Arc::new(FdCache::new(8))).unwrap()
}

fn layer_of(entries: &[(&str, &str)]) -> (TempDir, DirLayer) {
    let temp = tempfile::tempdir().unwrap();
    for (path, content) in entries {
        let path = temp.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        if *content == "/" {
            std::fs::create_dir_all(path).unwrap();
        } else {
            std::fs::write(path, content).unwrap();
        }
    }
    let layer = open(temp.path());
    (temp, layer)
}

fn ask(layer: &DirLayer, dir: &Node, name: &str) -> LayerLookup {
    layer.lookup(dir, name.as_ref(), false).unwrap()
}

fn found(layer: &DirLayer, dir: &Node, name: &str) -> Found {
    match ask(layer, dir, name) {
        LayerLookup::Found(found) => found,
        other => panic!("{name}: {other:?}"),
    }
}

fn entries(layer: &DirLayer, dir: &Node, xwhiteouts: bool) -> BTreeMap<String, EntryKind> {
    let mut all = BTreeMap::new();
    layer
        .read_dir(dir, xwhiteouts, &mut |entry| {
            let name = entry.name.to_str().unwrap().to_owned();
            assert!(all.insert(name, entry.kind).is_none(), "listed twice");
            ControlFlow::Continue(())
        })
        .unwrap();
    all
}

fn marks(layer: &DirLayer, found: &Found) -> Marks {
    layer.marks(&found.node, &found.stat).unwrap()
}

fn is_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    rustix::process::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "SKIPPED: {why}"
    );
}

#[test]
fn dot_whiteouts() {
    let (_temp, layer) = layer_of(&[
        ("d/.wh.gone", ""),
        ("d/.wh.both", ""),
        ("d/both/x", ""),
        ("d/file", "f"),
        ("o/.wh..wh..opq", ""),
        ("o/x", ""),
        ("a/.wh..wh.plnk/1", ""),
        ("plain/x", ""),
    ]);
    let root = layer.root();
    let d = found(&layer, &root, "d").node;
    // Asked often, so that what is remembered of the directory is used as well.
    for _ in 0..10 {
        assert!(matches!(ask(&layer, &d, "gone"), LayerLookup::Whiteout));
        assert!(matches!(ask(&layer, &d, ".wh.gone"), LayerLookup::Missing));
        assert!(matches!(ask(&layer, &d, "no"), LayerLookup::Missing));
        assert!(found(&layer, &d, "both").beside_whiteout);
        assert!(!found(&layer, &d, "file").beside_whiteout);
        let plain = found(&layer, &root, "plain").node;
        assert!(matches!(ask(&layer, &plain, "gone"), LayerLookup::Missing));
        assert!(!found(&layer, &plain, "x").beside_whiteout);
    }
    let listed = entries(&layer, &d, false);
    assert_eq!(
        listed.into_iter().collect::<Vec<_>>(),
        [
            ("both".to_owned(), EntryKind::Node(libc::S_IFDIR)),
            ("file".to_owned(), EntryKind::Node(libc::S_IFREG)),
            ("gone".to_owned(), EntryKind::Whiteout),
        ]
    );
    let o = found(&layer, &root, "o");
    assert_eq!(marks(&layer, &o).opaque, Opaque::Yes);
    assert_eq!(entries(&layer, &o.node, false).len(), 1);
    assert_eq!(marks(&layer, &o).opaque, Opaque::Yes);
    let a = found(&layer, &root, "a");
    assert_eq!(marks(&layer, &a).opaque, Opaque::No);
    assert!(entries(&layer, &a.node, false).is_empty());
}

#[test]
fn long_names_have_no_dot_whiteout() {
    let (_temp, layer) = layer_of(&[(".wh.x", "")]);
    let root = layer.root();
    for len in [251, 252, 255] {
        let name = "n".repeat(len);
        assert!(matches!(ask(&layer, &root, &name), LayerLookup::Missing));
    }
    let too_long = layer.lookup(&root, "n".repeat(256).as_ref(), false);
    assert_eq!(
        too_long.unwrap_err().raw_os_error(),
        Some(libc::ENAMETOOLONG)
    );
}

#[test]
fn a_layer_without_dot_whiteouts_shows_such_names() {
    let (temp, _) = layer_of(&[(".wh.x", "1")]);
    let options = LayerOptions {
        dot_whiteouts: false,
        ..LayerOptions::default()
    };
    let layer = DirLayer::open(temp.path(), options, Arc::new(FdCache::new(8))).unwrap();
    let root = layer.root();
    assert_eq!(found(&layer, &root, ".wh.x").stat.size, 1);
    assert!(matches!(ask(&layer, &root, "x"), LayerLookup::Missing));
    assert_eq!(entries(&layer, &root, false).len(), 1);
}

#[test]
fn xattr_whiteouts_count_where_the_directory_says_so() {
    let (temp, layer) = layer_of(&[("d/w", ""), ("d/empty", ""), ("d/full", "x")]);
    let set = |path: &str, name: &str, value: &str| {
        let status = Command::new("setfattr")
            .args(["-n", name, "-v", value])
            .arg(temp.path().join(path))
            .status()
            .unwrap();
        assert!(status.success());
    };
    set("d/w", "user.overlay.whiteout", "y");
    set("d/full", "user.overlay.whiteout", "y");
    set("d", "user.overlay.opaque", "x");
    let d = found(&layer, &layer.root(), "d");
    assert_eq!(marks(&layer, &d).opaque, Opaque::XWhiteouts);
    let lookup = |name: &str, x| layer.lookup(&d.node, name.as_ref(), x).unwrap();
    assert!(matches!(lookup("w", true), LayerLookup::Whiteout));
    assert!(matches!(lookup("w", false), LayerLookup::Found(_)));
    assert!(matches!(lookup("empty", true), LayerLookup::Found(_)));
    assert!(matches!(lookup("full", true), LayerLookup::Found(_)));
    assert_eq!(entries(&layer, &d.node, true)["w"], EntryKind::Whiteout);
    assert_eq!(
        entries(&layer, &d.node, false)["w"],
        EntryKind::Node(libc::S_IFREG)
    );
}

#[test]
fn fuse_overlayfs_and_other_opaque_values() {
    let (temp, layer) = layer_of(&[("a", "/"), ("b", "/"), ("c", "/")]);
    for (dir, name, value) in [
        ("a", "user.fuseoverlayfs.opaque", "y"),
        ("b", "user.overlay.opaque", "n"),
        ("c", "user.overlay.opaque", "yy"),
    ] {
        let fd = rustix::fs::open(temp.path().join(dir), OFlags::RDONLY, Mode::empty()).unwrap();
        xattr::set(Target::Fd(fd.as_fd()), name.as_ref(), value.as_bytes(), 0).unwrap();
    }
    let root = layer.root();
    let opaque = |name| marks(&layer, &found(&layer, &root, name)).opaque;
    assert_eq!(opaque("a"), Opaque::Yes);
    assert_eq!(opaque("b"), Opaque::No);
    assert_eq!(opaque("c"), Opaque::No);
}

#[test]
fn owners_in_xattrs_are_found_by_the_root() {
    let (temp, _) = layer_of(&[("f", "x"), ("dev", ""), ("plain", "x")]);
    let root = temp.path();
    for (path, value) in [
        (root.to_owned(), "0:0:0755:dir"),
        (root.join("f"), "1000:1001:4711"),
        (root.join("dev"), "0:5:0620:char-136-2"),
    ] {
        let fd = rustix::fs::open(path, OFlags::RDONLY, Mode::empty()).unwrap();
        let name = OsStr::new("user.containers.override_stat");
        xattr::set(Target::Fd(fd.as_fd()), name, value.as_bytes(), 0).unwrap();
    }
    let layer = open(root);
    let f = found(&layer, &layer.root(), "f").stat;
    assert_eq!((f.uid, f.gid, f.mode), (1000, 1001, libc::S_IFREG | 0o4711));
    let dev = found(&layer, &layer.root(), "dev");
    assert_eq!(dev.stat.mode, libc::S_IFCHR | 0o620);
    assert_eq!(dev.stat.rdev, libc::makedev(136, 2));
    assert_eq!(layer.stat(&dev.node).unwrap(), dev.stat);
    let plain = found(&layer, &layer.root(), "plain").stat;
    assert_eq!(
        plain.mode,
        libc::S_IFREG | std::fs::metadata(root.join("plain")).unwrap().mode() & 0o7777
    );
}

#[test]
fn nothing_leads_outside() {
    let (temp, layer) = layer_of(&[("d/f", "inside")]);
    symlink("/etc", temp.path().join("link")).unwrap();
    symlink("/etc/passwd", temp.path().join("d/passwd")).unwrap();
    let root = layer.root();
    let link = found(&layer, &root, "link");
    assert_eq!(layer.read_link(&link.node).unwrap(), "/etc");
    // A symlink is no directory, whatever it points to.
    assert!(layer.lookup(&link.node, "passwd".as_ref(), false).is_err());
    assert!(layer.open(&link.node, Access::Read).is_err());
    // A directory that was replaced by a symlink behind our back.
    let d = found(&layer, &root, "d");
    let f = found(&layer, &d.node, "f");
    let fresh = open(temp.path());
    let d2 = found(&fresh, &fresh.root(), "d");
    std::fs::rename(temp.path().join("d"), temp.path().join("old")).unwrap();
    symlink("/etc", temp.path().join("d")).unwrap();
    assert!(fresh.lookup(&d2.node, "passwd".as_ref(), false).is_err());
    // The cached descriptor still is the directory's.
    assert_eq!(layer.stat(&f.node).unwrap().size, 6);
    for bad in ["..", ".", "d/f", ""] {
        assert!(layer.lookup(&root, bad.as_ref(), false).is_err(), "{bad}");
    }
}

#[test]
fn reading_leaves_access_times_alone() {
    let (temp, layer) = layer_of(&[("d/f", "x")]);
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    for path in ["d/f", "d"] {
        let file = std::fs::File::open(temp.path().join(path)).unwrap();
        let times = std::fs::FileTimes::new().set_accessed(old);
        file.set_times(times).unwrap();
    }
    let d = found(&layer, &layer.root(), "d");
    let f = found(&layer, &d.node, "f");
    entries(&layer, &d.node, false);
    let mut byte = [0];
    layer
        .open(&f.node, Access::Read)
        .unwrap()
        .read_at(&mut byte, 0)
        .unwrap();
    for path in ["d/f", "d"] {
        let meta = std::fs::metadata(temp.path().join(path)).unwrap();
        assert_eq!(meta.atime(), 1000, "{path}");
    }
}

#[test]
fn a_protected_layer_cannot_be_written() {
    let (temp, layer) = layer_of(&[("f", "x")]);
    let f = found(&layer, &layer.root(), "f");
    let refused = layer.open(&f.node, Access::Write).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    if !layer.is_protected() {
        return skip("the process may not clone mounts");
    }
    // Not even by opening the descriptor anew.
    let file = layer.open(&f.node, Access::Read).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_fd().unwrap().as_raw_fd());
    let reopened = std::fs::OpenOptions::new().write(true).open(path);
    assert_eq!(reopened.unwrap_err().raw_os_error(), Some(libc::EROFS));
    drop(temp);
}

#[test]
fn mounts_in_a_layer_are_not_part_of_it() {
    if !is_root() {
        return skip("mounts need root");
    }
    let (temp, _) = layer_of(&[("d/f", "x")]);
    let at = temp.path().join("d");
    let mount = |args: &[&str]| {
        let status = Command::new("mount").args(args).arg(&at).status();
        assert!(status.unwrap().success());
    };
    mount(&["-t", "tmpfs", "t"]);
    let layer = open(temp.path());
    let seen = layer.is_protected().then(|| {
        let d = found(&layer, &layer.root(), "d");
        found(&layer, &d.node, "f").stat.size
    });
    // One that was there before is not cloned, and one that comes later does not appear.
    let status = Command::new("umount").arg(&at).status();
    assert!(status.unwrap().success());
    mount(&["-t", "tmpfs", "t"]);
    let later = layer.is_protected().then(|| {
        let d = found(&layer, &layer.root(), "d");
        found(&layer, &d.node, "f").stat.size
    });
    let status = Command::new("umount").arg(&at).status();
    assert!(status.unwrap().success());
    assert_eq!((seen, later), (Some(1), Some(1)));
}

/// Where no mount can be cloned, what was mounted on a name is not taken for what the layer has there.
#[test]
fn nothing_is_opened_through_a_mount_in_an_unprotected_layer() {
    if !is_root() {
        return skip("mounts need root");
    }
    let (temp, _) = layer_of(&[("d/f", "x"), ("g", "y"), ("other", "z")]);
    let root = Arc::new(OwnedFd::from(std::fs::File::open(temp.path()).unwrap()));
    let ino = rustix::fs::fstat(&root).unwrap().st_ino;
    let tree = Tree::new(
        Arc::new(FdCache::new(8)),
        TreeOptions {
            may_hold_mounts: true,
            noatime_mount: false,
            override_xattr: None,
            names: MarkNames::of_lower(Namespace::Trusted),
            dot_whiteouts: true,
            metacopy: true,
            owners: None,
        },
    );
    let root = PathNode::root(tree.clone(), root, ino);
    struct Bound(std::path::PathBuf);
    impl Drop for Bound {
        fn drop(&mut self) {
            let status = Command::new("umount").arg("-l").arg(&self.0).status();
            assert!(status.unwrap().success());
        }
    }
    let bound = ["d", "g"].map(|name| {
        let at = temp.path().join(name);
        let mut mount = Command::new("mount");
        let status = mount.arg("--bind").args([&at, &at]).status();
        assert!(status.unwrap().success());
        Bound(at)
    });
    // The same inode is mounted on each name, so that its number does not tell.
    for name in ["d", "g"] {
        let LayerLookup::Found(found) = tree.lookup(&root, name.as_ref(), false).unwrap() else {
            panic!("{name}");
        };
        let node = lower_node(&found.node).unwrap();
        let refused = [
            node.path_fd().map(drop).unwrap_err(),
            node.open(OFlags::RDONLY).map(drop).unwrap_err(),
        ];
        for e in refused {
            assert_eq!(e.raw_os_error(), Some(libc::EXDEV), "{name}");
        }
    }
    drop(bound);
    let LayerLookup::Found(found) = tree.lookup(&root, "g".as_ref(), false).unwrap() else {
        panic!("g");
    };
    lower_node(&found.node)
        .unwrap()
        .open(OFlags::RDONLY)
        .unwrap();
}

#[test]
fn refusals_name_the_layer() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = |path: &Path| {
        let cache = Arc::new(FdCache::new(8));
        DirLayer::open(path, LayerOptions::default(), cache).unwrap_err()
    };
    let missing = refused(&temp.path().join("no"));
    assert!(matches!(missing, LayerError::Missing(_)));
    assert!(missing.to_string().contains("no"));
    assert!(matches!(refused(&file), LayerError::NotADirectory(_)));
    if rustix::process::geteuid().is_root() {
        return;
    }
    let locked = temp.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o300)).unwrap();
    assert!(matches!(refused(&locked), LayerError::Unreadable(_)));
}

#[test]
fn many_nodes_are_small() {
    assert!(size_of::<PathNode>() <= 96, "{}", size_of::<PathNode>());
}
