//! Commits of uppers that are made by hand, imports, exports and what others read of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use acetate::image::{
    Commit, Filter, ImageOrigin, ImportSource, NewImage, SaveFormat, Store, StoredImage,
};

use super::build::*;
use super::common::{program, skip};
use super::tree::tree;
use crate::{require, skip};

pub fn named(name: &str) -> NewImage {
    NewImage {
        reference: Some(name.to_owned()),
        ..NewImage::default()
    }
}

pub fn origin(image: &StoredImage) -> ImageOrigin {
    ImageOrigin {
        id: image.id.to_string(),
        path: None,
        tag: None,
        platform: None,
    }
}

/// `user::rwx,user:12345:r-x,group::r--,mask::rwx,other::---`
pub const ACL: &[u8] = b"\x02\0\0\0\
    \x01\0\x07\0\xff\xff\xff\xff\x02\0\x05\0\x39\x30\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

pub fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(1000);
    rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).ok()?;
    Some(value)
}

pub fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// A root filesystem with all that one may hold.
pub fn root(dir: &Path) -> PathBuf {
    let root = dir.join("rootfs");
    for sub in ["etc", "d/sub", "gone", "bin", "closed"] {
        fs::create_dir_all(root.join(sub)).unwrap();
    }
    fs::write(root.join("etc/motd"), "welcome").unwrap();
    fs::hard_link(root.join("etc/motd"), root.join("etc/again")).unwrap();
    fs::write(root.join("d/sub/file"), "in a renamed directory").unwrap();
    fs::write(root.join("gone/file"), "x").unwrap();
    fs::write(root.join("bin/tool"), "#!/bin/sh\n").unwrap();
    let long = "n".repeat(200);
    fs::create_dir_all(root.join(&long).join(&long)).unwrap();
    fs::write(root.join(&long).join(&long).join(&long), "long").unwrap();
    fs::write(root.join(name(b"caf\xe9 \xff")), "not UTF-8").unwrap();
    std::os::unix::fs::symlink("t".repeat(150), root.join("link")).unwrap();
    std::os::unix::fs::symlink("etc/motd", root.join("short")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"data", 32 << 20).unwrap();
    let mode = |path: &str, mode| {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("bin/tool", 0o6755);
    mode("closed", 0o1700);
    set(&root.join("etc/motd"), "user.note", b"a=b\nc");
    set(&root.join("etc"), "system.posix_acl_access", ACL);
    set(&root.join("etc"), "system.posix_acl_default", ACL);
    set(&root.join("etc/motd"), "system.posix_acl_access", ACL);
    let time = |path: &str, sec: i64, nsec: i64| {
        let at = rustix::fs::Timespec {
            tv_sec: sec,
            tv_nsec: nsec,
        };
        let times = rustix::fs::Timestamps {
            last_access: at,
            last_modification: at,
        };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, root.join(path), &times, flags).unwrap();
    };
    time("bin/tool", -86_400, 500_000_000);
    time("short", 1_000_000_000, 123_456_789);
    if nix::unistd::geteuid().is_root() {
        for (path, kind, device) in [
            ("fifo", nix::sys::stat::SFlag::S_IFIFO, 0),
            ("null", nix::sys::stat::SFlag::S_IFCHR, libc::makedev(1, 3)),
            (
                "disk",
                nix::sys::stat::SFlag::S_IFBLK,
                libc::makedev(300, 70_000),
            ),
        ] {
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o640);
            nix::sys::stat::mknod(&root.join(path), kind, mode, device).unwrap();
        }
        std::os::unix::fs::chown(root.join("etc/again"), Some(5_000_000), Some(70_000)).unwrap();
        set(&root.join("bin"), "trusted.note", b"t");
    }
    root
}

fn name(bytes: &[u8]) -> std::ffi::OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec())
}

pub fn exported(store: &Store, id: &str, to: &Path) -> BTreeMap<String, String> {
    let tree_of = store.exported(id.as_ref(), None).unwrap();
    let info = store.export_to_folder(&tree_of, to).unwrap();
    assert_eq!(info.xattrs, Vec::<String>::new());
    tree(to)
}

/// An upper with every mark, and the tree that it shows over the root filesystem above.
fn upper(dir: &Path, root: &Path) -> (PathBuf, PathBuf) {
    let (upper, merged) = (dir.join("upper"), dir.join("merged"));
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(root).arg(&merged);
    program::must(&mut copy, Duration::from_secs(30));
    for sub in ["etc", "moved/sub", "fresh", "gone"] {
        fs::create_dir_all(upper.join(sub)).unwrap();
    }
    // Whiteouts in both forms; a new directory in the place of one; a file without data; one in the place of another;
    // a renamed directory.
    let whiteout = |at: &str| {
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        nix::sys::stat::mknod(&upper.join(at), kind, nix::sys::stat::Mode::empty(), 0).unwrap();
    };
    whiteout("link");
    whiteout("d");
    fs::write(upper.join(".wh.short"), "").unwrap();
    fs::remove_file(merged.join("link")).unwrap();
    fs::remove_file(merged.join("short")).unwrap();
    set(&upper.join("moved"), "trusted.overlay.redirect", b"/d");
    fs::rename(merged.join("d"), merged.join("moved")).unwrap();
    fs::write(merged.join("moved/sub/more"), "more").unwrap();
    fs::write(upper.join("moved/sub/more"), "more").unwrap();
    set(&upper.join("gone"), "trusted.overlay.opaque", b"y");
    fs::remove_file(merged.join("gone/file")).unwrap();
    fs::write(merged.join("gone/new"), "new").unwrap();
    fs::write(upper.join("gone/new"), "new").unwrap();
    // The mount tells data and attributes; its other name is not in the upper.
    fs::File::create(upper.join("etc/motd"))
        .unwrap()
        .set_len(7)
        .unwrap();
    set(&upper.join("etc/motd"), "trusted.overlay.metacopy", b"");
    fs::set_permissions(merged.join("etc/motd"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir_all(merged.join("fresh")).unwrap();
    (upper, merged)
}

/// A store with an image, and a changed tree over it.
struct Changed {
    dir: tempfile::TempDir,
    store: Store,
    root: PathBuf,
    origin: ImageOrigin,
    upper: PathBuf,
    merged: PathBuf,
}

impl Changed {
    fn new() -> Changed {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        let store = Store::open(&dir.path().join("store")).unwrap();
        let base = store
            .import(ImportSource::Path(root.clone()), &named("base:1"))
            .unwrap();
        let (upper, merged) = upper(dir.path(), &root);
        Changed {
            origin: origin(&base),
            dir,
            store,
            root,
            upper,
            merged,
        }
    }

    fn commit(&self) -> Commit<'_> {
        Commit {
            base: Some(&self.origin),
            upper: Some(&self.upper),
            marks: None,
            merged: &self.merged,
            unnamed: &[],
        }
    }
}

#[test]
fn a_commit_understands_every_mark() {
    if !nix::unistd::geteuid().is_root() {
        skip!("needs root, to write trusted attributes");
    }
    let changed = Changed::new();
    let (dir, store, merged) = (&changed.dir, &changed.store, &changed.merged);
    let new = NewImage {
        author: Some("me".to_owned()),
        message: Some("why".to_owned()),
        changes: vec!["USER 7".to_owned()],
        created_by: "test".to_owned(),
        ..named("new:1")
    };
    let image = store.commit(&changed.commit(), &new).unwrap();
    assert_eq!(
        exported(store, "new:1", &dir.path().join("out")),
        tree(merged)
    );
    let history = image.config.history().as_ref().unwrap();
    assert_eq!(history.len(), 2);
    assert_eq!(history[1].author().as_deref(), Some("me"));
    assert_eq!(history[1].comment().as_deref(), Some("why"));
    assert_eq!(history[1].created_by().as_deref(), Some("test"));
    assert_eq!(image.config.rootfs().diff_ids().len(), 2);
    // Without a change there is no layer; without a name the image is found by its id.
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let mode = fs::metadata(&changed.root).unwrap().permissions();
    fs::set_permissions(&empty, mode).unwrap();
    let what = Commit {
        upper: Some(&empty),
        merged: &changed.root,
        ..changed.commit()
    };
    let nameless = store.commit(&what, &NewImage::default()).unwrap();
    assert_eq!(nameless.references, Vec::<String>::new());
    assert_eq!(nameless.config.rootfs().diff_ids().len(), 1);
    let history = nameless.config.history().as_ref().unwrap();
    assert_eq!(history[1].empty_layer(), Some(true));
    assert_eq!(store.image(nameless.short_id()).unwrap().id, nameless.id);
    let dangling = Filter::parse(&["dangling=true".to_owned()], store).unwrap();
    let found: Vec<_> = store.images().unwrap();
    let found: Vec<_> = found.iter().filter(|i| dangling.wants_image(i)).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(store.verify().unwrap().damages, []);
    let removed = store.prune(false).unwrap();
    assert_eq!(removed.images, [nameless.id.to_string()]);
}

#[test]
fn an_image_that_was_forced_away_is_still_committed_on() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("rootfs");
    fs::create_dir(&folder).unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let from = ImportSource::Path(folder.clone());
    let base = store.import(from, &named("base:1")).unwrap();
    // As a mount holds it.
    let held = store.prepare("base:1".as_ref(), None).unwrap();
    store.remove("base:1", true).unwrap();
    store.prune(true).unwrap();
    fs::write(folder.join("new"), "written on the mount").unwrap();
    let what = Commit {
        base: Some(&held.origin),
        upper: Some(&folder),
        marks: None,
        merged: &folder,
        unnamed: &[],
    };
    let image = store.commit(&what, &named("new:1")).unwrap();
    assert_eq!(image.config.rootfs().diff_ids().len(), 2);
    assert_eq!(
        image.config.rootfs().diff_ids()[..1],
        base.config.rootfs().diff_ids()[..]
    );
    drop(held);
    store.prune(false).unwrap();
    assert!(store.image(base.id.as_ref()).is_err());
    assert_eq!(store.verify().unwrap().damages, []);
}

#[test]
fn a_commit_on_an_image_that_is_gone_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("rootfs");
    fs::create_dir(&folder).unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let import = |name: &str| {
        let from = ImportSource::Path(folder.clone());
        store.import(from, &named(name))
    };
    let base = import("base:1").unwrap();
    store.remove("base:1", false).unwrap();
    let what = Commit {
        base: Some(&origin(&base)),
        upper: Some(&folder),
        marks: None,
        merged: &folder,
        unnamed: &[],
    };
    let error = store
        .commit(&what, &named("new:1"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("is gone") && error.contains(base.id.as_ref()),
        "{error}"
    );
    for (name, part) in [
        ("Upper:1", "invalid reference format"),
        (
            "x@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "digest",
        ),
    ] {
        let error = import(name).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    fs::write(folder.join(".wh.odd"), "").unwrap();
    let error = import("base:2").unwrap_err().to_string();
    assert!(
        error.contains("/.wh.odd") && error.contains("deletion"),
        "{error}"
    );
    assert_eq!(store.images().unwrap().len(), 0);
    let left = fs::read_dir(store.root().join("blobs/sha256"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}

#[test]
fn others_read_what_is_committed() {
    for tool in ["skopeo", "umoci", "podman"] {
        require!(skip::program(tool));
    }
    if !nix::unistd::geteuid().is_root() {
        skip!("needs root, as umoci and podman lay owners down");
    }
    let changed = Changed::new();
    let (dir, store, merged) = (&changed.dir, &changed.store, &changed.merged);
    let image = store.commit(&changed.commit(), &named("new:1")).unwrap();
    // What they do not keep: our own attributes of a namespace that they leave out, and times before 1970.
    let comparable = |mut tree: BTreeMap<String, String>| {
        tree.remove("/bin/tool");
        for text in tree.values_mut() {
            *text = text.replace(" trusted.note=t", "");
        }
        // The root is what the tool made it.
        tree.remove("/");
        tree
    };
    let expected = comparable(tree(merged));
    let limit = Duration::from_secs(60);
    let must = |command: &mut Command| program::must(command, limit);
    // The store is an OCI layout.
    let at = format!("oci:{}:docker.io/library/new:1", store.root().display());
    let said = must(Command::new("skopeo").args(["inspect", "--raw", &at]));
    assert!(said.contains(image.id.as_ref()), "{said}");
    let layout = dir.path().join("layout");
    store.save_dir(&["new:1".to_owned()], &layout).unwrap();
    let bundle = dir.path().join("bundle");
    let tagged = format!("{}:docker.io/library/new:1", layout.display());
    let copy = format!("oci:{}:new", dir.path().join("copy").display());
    must(Command::new("skopeo").args([
        "--insecure-policy",
        "copy",
        "-q",
        &format!("oci:{tagged}"),
        &copy,
    ]));
    let unpacked = copy.strip_prefix("oci:").unwrap();
    must(
        Command::new("umoci")
            .args(["unpack", "--image", unpacked])
            .arg(&bundle),
    );
    assert_eq!(comparable(tree(&bundle.join("rootfs"))), expected);
    let archive = dir.path().join("new.tar");
    let names = ["new:1".to_owned()];
    store
        .save_file(&names, SaveFormat::DockerArchive, &archive)
        .unwrap();
    let podman = |words: &[&str]| {
        let mut command = Command::new("podman");
        let at = dir.path().join("podman");
        command
            .arg("--root")
            .arg(at.join("root"))
            .arg("--runroot")
            .arg(at.join("run"))
            .args(["--storage-driver", "vfs"])
            .args(words);
        must(&mut command)
    };
    podman(&["load", "-q", "-i", archive.to_str().unwrap()]);
    let id = podman(&["images", "-q", "--no-trunc"]);
    assert!(id.contains(image.id.digest()), "{id}");
    let mounted = podman(&["image", "mount", "docker.io/library/new:1"]);
    let shown = comparable(tree(Path::new(mounted.trim())));
    podman(&["image", "umount", "-f", "docker.io/library/new:1"]);
    assert_eq!(shown, expected);
    // And back again, with the same ids.
    let other = Store::open(&dir.path().join("other")).unwrap();
    let back = other.load(archive.as_os_str(), None).unwrap();
    assert_eq!(back[0].id, image.id);
    let back = other.load(layout.as_os_str(), None).unwrap();
    assert_eq!((&back[0].id, &back[0].digest), (&image.id, &image.digest));
}

#[test]
fn the_store_tells_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    assert_eq!(store.usage().unwrap(), Default::default());
    for (name, text) in [("a:1", "a"), ("b:1", "b")] {
        let path = dir.path().join(text);
        let layer = Tar::new().file("file", &text.repeat(100_000).into_bytes());
        fs::write(&path, tar_of(&docker_files(&[layer.finish()], &[name]))).unwrap();
        store.load(path.as_os_str(), None).unwrap();
    }
    let held = store.prepare("a:1".as_ref(), None).unwrap();
    let usage = store.usage().unwrap();
    assert_eq!((usage.images.total, usage.images.active), (2, 1));
    assert_eq!((usage.layers.total, usage.layers.active), (2, 1));
    assert_eq!((usage.blobs.total, usage.blobs.active), (2, 2));
    assert!(usage.layers.reclaimable >= 100_000);
    assert!(usage.layers.reclaimable <= usage.layers.size / 2 + 4096);
    drop(held);
    assert_eq!(store.usage().unwrap().images.active, 0);
    store.prune(true).unwrap();
    assert_eq!(store.usage().unwrap(), Default::default());
}

/// The least time of several tries: what else runs only adds to it.
fn quickest<T>(mut work: impl FnMut() -> T) -> Duration {
    let tries = (0..5).map(|_| {
        let begin = std::time::Instant::now();
        drop(work());
        begin.elapsed()
    });
    tries.min().unwrap()
}

#[test]
#[ignore = "makes thirty thousand files"]
fn a_commit_takes_no_longer_for_a_larger_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let mut bases = Vec::new();
    for files in [30, 30_000] {
        let root = dir.path().join(format!("root{files}"));
        for i in 0..files {
            let sub = root.join(format!("d{}", i % 30));
            fs::create_dir_all(&sub).unwrap();
            fs::write(sub.join(format!("f{i}")), "x").unwrap();
        }
        let from = ImportSource::Path(root.clone());
        let base = store
            .import(from, &named(&format!("base:{files}")))
            .unwrap();
        let upper = dir.path().join(format!("upper{files}"));
        for i in 0..10 {
            let path = format!("d{}/new{i}", i % 3);
            for tree in [&root, &upper] {
                fs::create_dir_all(tree.join(&path).parent().unwrap()).unwrap();
                fs::write(tree.join(&path), "changed").unwrap();
            }
        }
        bases.push((origin(&base), upper, root));
    }
    let [small, large] = [0, 1].map(|i| {
        let (base, upper, merged) = &bases[i];
        let what = Commit {
            base: Some(base),
            upper: Some(upper),
            marks: None,
            merged,
            unnamed: &[],
        };
        quickest(|| store.commit(&what, &NewImage::default()).unwrap())
    });
    println!("10 files in 30: {small:?}, in 30,000: {large:?}");
    // In proportion to the image it would be a thousand times as much.
    assert!(large < small * 20, "{small:?}, {large:?}");
}

#[test]
#[ignore = "makes a thousand images"]
fn a_thousand_images_are_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("rootfs");
    fs::create_dir(&folder).unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let image = store
        .import(ImportSource::Path(folder), &named("seed:1"))
        .unwrap();
    let blobs = store.root().join("blobs/sha256");
    let put = |value: &serde_json::Value| {
        let bytes = serde_json::to_vec(value).unwrap();
        let hex = sha256(&bytes);
        fs::write(blobs.join(&hex), &bytes).unwrap();
        (format!("sha256:{hex}"), bytes.len())
    };
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let mut config = read(&blobs.join(image.id.digest()));
    let mut manifest = read(&blobs.join(image.digest.digest()));
    let path = store.root().join("index.json");
    let mut index = read(&path);
    for i in 0..1000 {
        config["author"] = format!("{i}").into();
        let (digest, size) = put(&config);
        manifest["config"]["digest"] = digest.into();
        manifest["config"]["size"] = size.into();
        let (digest, size) = put(&manifest);
        let mut entry = index["manifests"][0].clone();
        entry["digest"] = digest.into();
        entry["size"] = size.into();
        let name = format!("docker.io/library/i{i}:1");
        entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        index["manifests"].as_array_mut().unwrap().push(entry);
    }
    fs::write(&path, serde_json::to_vec(&index).unwrap()).unwrap();
    let took = quickest(|| assert_eq!(store.images().unwrap().len(), 1001));
    println!("1001 images: {took:?}");
}
