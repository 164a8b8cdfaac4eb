//! An indexed layer answers as the plain one does.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::layer::Opaque;
use crate::layer::dir::LayerOptions;
use crate::layer::fdcache::FdCache;
use crate::sys::xattr::{self, Target};

fn plain(path: &Path) -> DirLayer {
    DirLayer::open(path, LayerOptions::default(), Arc::new(FdCache::new(16))).unwrap()
}

fn packed(path: &Path) -> PackedLayer {
    let layer = plain(path);
    let bytes = Packed::of(&layer).unwrap().to_bytes();
    let index = Index::from_bytes(bytes).unwrap();
    index.check().unwrap();
    PackedLayer::new(layer, index).map_err(|(_, e)| e).unwrap()
}

fn is_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    rustix::process::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn set(path: &Path, name: &str, value: &[u8]) {
    let file = std::fs::File::open(path).unwrap();
    xattr::set(
        Target::Fd(std::os::fd::AsFd::as_fd(&file)),
        name.as_ref(),
        value,
        0,
    )
    .unwrap();
}

/// A tree with everything that a layer can hold and this process can make.
fn everything() -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    let at = |path: &str| temp.path().join(path);
    for dir in ["d", "d/e", "d/both", "o", "x", "y", "empty", "r"] {
        std::fs::create_dir(at(dir)).unwrap();
    }
    for (path, content) in [
        ("a", "a"),
        ("d/file", "some data"),
        ("d/e/deep", ""),
        ("d/.wh.gone", ""),
        ("d/.wh.both", ""),
        ("o/.wh..wh..opq", ""),
        ("o/file", ""),
        ("x/hidden", ""),
        ("x/shown", ""),
        ("r/meta", "0123456789"),
        (&"n".repeat(255), "long"),
    ] {
        std::fs::write(at(path), content).unwrap();
    }
    for many in 0..200 {
        std::fs::write(at(&format!("d/e/{many}")), vec![b'm'; many]).unwrap();
    }
    std::fs::hard_link(at("a"), at("d/link")).unwrap();
    std::fs::hard_link(at("a"), at("y/link")).unwrap();
    symlink("../a", at("d/symlink")).unwrap();
    symlink("t".repeat(4000), at("y/long")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("y/fifo"), rustix::fs::Mode::RWXU).unwrap();
    std::fs::set_permissions(at("d/file"), PermissionsExt::from_mode(0o4751)).unwrap();
    // Another file in its place has another time, however soon it comes.
    let file = std::fs::File::options().write(true).open(at("d/file"));
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    file.unwrap().set_modified(long_ago).unwrap();
    for (path, name, value) in [
        ("a", "user.one", &b"1"[..]),
        ("a", "user.empty", b""),
        ("d/file", "user.big", &[7; 2000]),
        ("x", "user.overlay.opaque", b"x"),
        ("x/hidden", "user.overlay.whiteout", b""),
        ("y", "user.overlay.opaque", b"y"),
        ("d/e", "user.overlay.redirect", b"/else/where"),
        ("r/meta", "user.overlay.metacopy", b""),
        ("r/meta", "user.overlay.redirect", b"other"),
    ] {
        set(&at(path), name, value);
    }
    if is_root() {
        let null = rustix::fs::makedev(1, 3);
        let none = rustix::fs::makedev(0, 0);
        let kind = rustix::fs::FileType::CharacterDevice;
        for (name, device) in [("d/null", null), ("d/whiteout", none)] {
            let mode = rustix::fs::Mode::RUSR;
            rustix::fs::mknodat(rustix::fs::CWD, at(name), kind, mode, device).unwrap();
        }
        set(&at("empty"), "trusted.overlay.opaque", b"y");
        set(
            &at("d/file"),
            "security.capability",
            &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        );
        std::os::unix::fs::lchown(at("d/symlink"), Some(1234), Some(5678)).unwrap();
    }
    temp
}

type Listed = Vec<(OsString, u64, EntryKind)>;

fn list(layer: &dyn Layer, dir: &Node, xwhiteouts: bool) -> Listed {
    let mut all = Vec::new();
    layer
        .read_dir(dir, xwhiteouts, &mut |entry| {
            all.push((entry.name.to_owned(), entry.ino, entry.kind));
            ControlFlow::Continue(())
        })
        .unwrap();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn content(file: RealFile) -> Vec<u8> {
    let mut buf = vec![0; 4096];
    let n = file.read_at(&mut buf, 0).unwrap();
    buf.truncate(n);
    buf
}

/// Reading a link or a directory moves its time of access where the layer is not mounted for itself.
#[track_caller]
fn assert_same_stat(x: Stat, y: Stat, shown: &Path) {
    let atime = y.atime;
    assert_eq!(Stat { atime, ..x }, y, "{shown:?}");
}

/// Everything that two layers say of a node, and of what is below; gives the number of nodes.
fn same(a: &dyn Layer, b: &dyn Layer, (x, y): (&Node, &Node), shown: &Path) -> usize {
    let (sx, sy) = (a.stat(x).unwrap(), b.stat(y).unwrap());
    assert_same_stat(sx, sy, shown);
    let (mx, my) = (a.marks(x, &sx).unwrap(), b.marks(y, &sy).unwrap());
    assert_eq!(mx, my, "{shown:?}");
    let names = a.list_xattr(x).unwrap();
    assert_eq!(names, b.list_xattr(y).unwrap(), "{shown:?}");
    let others = [
        "user.none",
        "system.posix_acl_access",
        "none",
        "trusted.none",
        "user.",
    ];
    for name in names
        .iter()
        .map(OsString::as_os_str)
        .chain(others.map(OsStr::new))
    {
        let (vx, vy) = (a.get_xattr(x, name), b.get_xattr(y, name));
        let code = |r: io::Result<Option<Vec<u8>>>| r.map_err(|e| e.raw_os_error());
        assert_eq!(code(vx), code(vy), "{shown:?}: {name:?}");
    }
    assert_eq!(a.handle(x).unwrap(), b.handle(y).unwrap(), "{shown:?}");
    if sx.is_file() {
        let read = |layer: &dyn Layer, node| content(layer.open(node, Access::Read).unwrap());
        assert_eq!(read(a, x), read(b, y), "{shown:?}");
        let refused = b.open(y, Access::Write).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    }
    if sx.file_type() == libc::S_IFLNK {
        assert_eq!(
            a.read_link(x).unwrap(),
            b.read_link(y).unwrap(),
            "{shown:?}"
        );
    }
    if !sx.is_dir() {
        return 1;
    }
    let xwhiteouts = mx.opaque == Opaque::XWhiteouts;
    let entries = list(a, x, xwhiteouts);
    assert_eq!(entries, list(b, y, xwhiteouts), "{shown:?}");
    let mut count = 1;
    let others = ["no", ".wh.gone", ".wh..wh..opq", "gone", &"z".repeat(255)].map(OsString::from);
    for name in entries.iter().map(|(name, ..)| name).chain(&others) {
        let ask = |layer: &dyn Layer, dir| layer.lookup(dir, name, xwhiteouts).unwrap();
        match (ask(a, x), ask(b, y)) {
            (LayerLookup::Missing, LayerLookup::Missing)
            | (LayerLookup::Whiteout, LayerLookup::Whiteout) => {}
            (LayerLookup::Found(fx), LayerLookup::Found(fy)) => {
                assert_same_stat(fx.stat, fy.stat, &shown.join(name));
                assert_eq!(fx.beside_whiteout, fy.beside_whiteout, "{shown:?}/{name:?}");
                count += same(a, b, (&fx.node, &fy.node), &shown.join(name));
            }
            other => panic!("{shown:?}/{name:?}: {other:?}"),
        }
    }
    for bad in ["", ".", "..", "a/b"] {
        assert!(b.lookup(y, bad.as_ref(), xwhiteouts).is_err());
    }
    count
}

#[test]
fn answers_as_the_plain_layer_does() {
    let temp = everything();
    let (a, b) = (plain(temp.path()), packed(temp.path()));
    let count = same(&a, &b, (&a.root(), &b.root()), Path::new("/"));
    assert!(count > 220, "{count}");
}

#[test]
fn of_another_tree_or_of_a_changed_root_it_is_refused() {
    let temp = everything();
    let bytes = Packed::of(&plain(temp.path())).unwrap().to_bytes();
    let index = || Index::from_bytes(bytes.clone()).unwrap();
    assert!(PackedLayer::new(plain(temp.path()), index()).is_ok());
    let refused = |path: &Path| PackedLayer::new(plain(path), index()).unwrap_err().1;
    let other = everything();
    assert!(matches!(refused(other.path()), IndexError::OtherTree));
    let options = LayerOptions {
        metacopy: false,
        ..LayerOptions::default()
    };
    let layer = DirLayer::open(temp.path(), options, Arc::new(FdCache::new(16))).unwrap();
    let (_, error) = PackedLayer::new(layer, index()).unwrap_err();
    assert!(matches!(error, IndexError::OtherView), "{error}");
    std::fs::remove_file(temp.path().join("a")).unwrap();
    assert!(matches!(refused(temp.path()), IndexError::OtherTree));
}

#[test]
fn a_file_that_is_another_one_when_it_is_opened_is_an_error() {
    let temp = everything();
    let layer = packed(temp.path());
    let find = |dir: &Node, name: &str| match layer.lookup(dir, name.as_ref(), false).unwrap() {
        LayerLookup::Found(found) => found.node,
        other => panic!("{other:?}"),
    };
    let d = find(&layer.root(), "d");
    let file = find(&d, "file");
    let code = |node: &Node| {
        layer
            .open(node, Access::Read)
            .map(drop)
            .map_err(|e| e.raw_os_error())
    };
    assert_eq!(code(&file), Ok(()));
    std::fs::write(temp.path().join("d/file"), "other data").unwrap();
    assert_eq!(code(&file), Err(Some(libc::EIO)));
    std::fs::remove_file(temp.path().join("d/file")).unwrap();
    assert_eq!(code(&file), Err(Some(libc::EIO)));
    std::fs::write(temp.path().join("d/file"), "some data").unwrap();
    assert_eq!(code(&file), Err(Some(libc::EIO)));
    // A symlink that leads out of the layer, in place of a directory on the way.
    let deep = find(&find(&d, "e"), "deep");
    let fresh = packed(temp.path());
    std::fs::rename(temp.path().join("d/e"), temp.path().join("d/was")).unwrap();
    symlink("/etc", temp.path().join("d/e")).unwrap();
    let opened = fresh.open(&deep, Access::Read).map(drop);
    assert_eq!(opened.map_err(|e| e.raw_os_error()), Err(Some(libc::EIO)));
}

#[test]
fn what_the_disk_has_changed_is_found_before_it_is_believed() {
    let temp = everything();
    let bytes = Packed::of(&plain(temp.path())).unwrap().to_bytes();
    let head = bytes.len().div_ceil(4096) * 4 + 128;
    for (at, expected) in [
        (0, false),
        (9, false),
        (13, false),
        (20, false),
        (70, false),
        (130, false),
    ] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert_eq!(Index::from_bytes(bytes).is_ok(), expected, "{at}");
    }
    let mut short = bytes.clone();
    short.pop();
    assert!(Index::from_bytes(short).is_err());
    // In the body: found by whoever comes to the place.
    let mut bytes = bytes.clone();
    bytes[head + 68] ^= 2;
    let index = Index::from_bytes(bytes).unwrap();
    assert!(index.check().is_err());
    let layer = PackedLayer::new(plain(temp.path()), index)
        .map_err(|(_, e)| e)
        .unwrap();
    let error = layer.stat(&layer.root()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

/// Goes through a layer that may say anything, and comes to an end.
fn roam(layer: &PackedLayer) {
    let mut left = vec![layer.root()];
    let mut steps = 0;
    while let Some(node) = left.pop() {
        steps += 1;
        assert!(steps < 100_000, "it goes round");
        let Ok(stat) = layer.stat(&node) else {
            continue;
        };
        drop(layer.marks(&node, &stat));
        drop(layer.read_link(&node));
        if let Ok(names) = layer.list_xattr(&node) {
            for name in names.iter().take(4) {
                drop(layer.get_xattr(&node, name));
            }
        }
        if stat.is_file() {
            drop(layer.open(&node, Access::Read));
        }
        let mut names = Vec::new();
        drop(layer.read_dir(&node, false, &mut |entry| {
            names.push(entry.name.to_owned());
            ControlFlow::Continue(())
        }));
        for name in names {
            if let Ok(LayerLookup::Found(found)) = layer.lookup(&node, &name, false) {
                // Other files may be named as often as they like.
                if found.stat.is_dir() || steps < 1000 {
                    left.push(found.node);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// With the checksums made right again, as whoever means ill would.
    #[test]
    fn hostile_bytes_do_no_harm(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..12),
        words in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u32>()), 0..4),
    ) {
        thread_local!(static TREE: (TempDir, Vec<u8>) = {
            let temp = everything();
            let bytes = Packed::of(&plain(temp.path())).unwrap().to_bytes();
            (temp, bytes)
        });
        TREE.with(|(temp, bytes)| {
            let mut bytes = bytes.clone();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            for (at, word) in &words {
                let at = at.index(bytes.len() / 4) * 4;
                bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            // The version stays, so that it is not that which is refused.
            seal(&mut bytes);
            if let Ok(index) = Index::from_bytes(bytes) {
                drop(index.check());
                if let Ok(layer) = PackedLayer::new(plain(temp.path()), index) {
                    roam(&layer);
                }
            }
        });
    }
}
