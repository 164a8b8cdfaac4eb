//! Root filesystems as images and images as root filesystems, and what tars say of them.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use acetate::image::{ImportSource, NewImage, Store};

use super::build::*;
use super::commit::{ACL, exported, get, named, root, set};
use super::common::program;
use super::tree::tree;

#[test]
fn what_is_imported_is_exported() {
    let dir = tempfile::tempdir().unwrap();
    let root = root(dir.path());
    // Others have no escapes for such a name.
    set(&root.join("bin/tool"), "user.100%=so=much%3D", b"=");
    let before = tree(&root);
    let store = Store::open(&dir.path().join("store")).unwrap();
    let new = NewImage {
        changes: vec!["CMD [\"/bin/tool\"]".to_owned(), "ENV A=b".to_owned()],
        message: Some("imported".to_owned()),
        ..named("base:1")
    };
    let image = store
        .import(ImportSource::Path(root.clone()), &new)
        .unwrap();
    assert_eq!(image.references, ["docker.io/library/base:1"]);
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.cmd().as_ref().unwrap(), &["/bin/tool"]);
    assert_eq!(config.env().as_ref().unwrap(), &["A=b"]);
    let history = image.config.history().as_ref().unwrap();
    assert_eq!(history[0].comment().as_deref(), Some("imported"));
    assert_eq!(exported(&store, "base:1", &dir.path().join("a")), before);
    // Holes stay holes, in the layer, in the tar and in the tree.
    let tar = dir.path().join("tree.tar");
    let out = store.exported("base:1".as_ref(), None).unwrap();
    out.write_file(&tar).unwrap();
    assert!(fs::metadata(&tar).unwrap().len() < 1 << 20);
    use std::os::unix::fs::MetadataExt;
    let sparse = fs::metadata(dir.path().join("a/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20);
    // The tar is itself something to import, and shows the same.
    let from = ImportSource::Stream(fs::File::open(&tar).unwrap());
    store.import(from, &named("again:1")).unwrap();
    assert_eq!(exported(&store, "again:1", &dir.path().join("b")), before);
    // GNU tar reads it as well.
    let tars = dir.path().join("tars");
    fs::create_dir(&tars).unwrap();
    let mut gnu = Command::new("tar");
    gnu.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .arg(&tar)
        .arg("-C")
        .arg(&tars);
    program::must(&mut gnu, Duration::from_secs(30));
    let without = |mut tree: BTreeMap<String, String>| {
        tree.remove("/bin/tool");
        tree
    };
    // ACLs also where it takes no attributes.
    let acls = dir.path().join("acls");
    fs::create_dir(&acls).unwrap();
    let mut gnu = Command::new("tar");
    gnu.args(["--acls", "--no-xattrs", "--numeric-owner", "-xpf"])
        .arg(&tar)
        .arg("-C")
        .arg(&acls);
    program::must(&mut gnu, Duration::from_secs(30));
    for (path, name) in [
        ("etc/motd", "system.posix_acl_access"),
        ("etc", "system.posix_acl_access"),
        ("etc", "system.posix_acl_default"),
    ] {
        assert_eq!(get(&acls.join(path), name).as_deref(), Some(ACL), "{path}");
    }
    assert_eq!(get(&acls.join("etc/motd"), "user.note"), None);
    // What GNU tar writes of its own is read, without the attributes and with them.
    for (name, xattrs) in [("acls:1", "--no-xattrs"), ("all:1", "--xattrs-include=*")] {
        let again = dir.path().join(name);
        let mut gnu = Command::new("tar");
        gnu.args(["--format=pax", "--acls", xattrs, "--numeric-owner", "-cf"])
            .arg(&again)
            .arg("-C")
            .arg(&tars)
            .arg(".");
        program::must(&mut gnu, Duration::from_secs(30));
        let from = ImportSource::Path(again);
        store.import(from, &named(name)).unwrap();
        let shown = exported(&store, name, &dir.path().join(xattrs));
        if xattrs == "--no-xattrs" {
            let etc = dir.path().join(xattrs).join("etc");
            assert_eq!(get(&etc, "system.posix_acl_default").as_deref(), Some(ACL));
        } else {
            assert_eq!(without(shown), without(before.clone()));
        }
    }
    // It keeps whole seconds before 1970 only.
    let tool = "user.100%=so=much%3D";
    assert_eq!(
        get(&tars.join("bin/tool"), tool).as_deref(),
        Some(&b"="[..])
    );
    assert_eq!(without(tree(&tars)), without(before));
    assert_eq!(store.verify().unwrap().damages, []);
}

#[test]
fn an_archive_without_entries_is_an_empty_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let path = dir.path().join("empty.tar");
    for packing in [Packing::Plain, Packing::Gzip] {
        fs::write(&path, pack(&Tar::new().finish(), packing)).unwrap();
        let from = ImportSource::Path(path.clone());
        let image = store.import(from, &named("empty:1")).unwrap();
        assert_eq!(image.config.rootfs().diff_ids().len(), 1);
        let held = store.prepare("empty:1".as_ref(), None).unwrap();
        assert_eq!(fs::read_dir(&held.layers[0]).unwrap().count(), 0);
    }
}

#[test]
fn an_acl_of_users_whom_nobody_knows_is_left_out_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let path = dir.path().join("root.tar");
    let named_acl = b"user::rwx,user:somebody:r-x,group::r--,mask::rwx,other::---";
    let star_acl = b"user::rwx,user:somebody:r-x:12345,group::r--,mask::rwx,other::---";
    let attr = Attr {
        mode: 0o770,
        ..Attr::default()
    };
    let tar = Tar::new()
        .pax(&[("SCHILY.acl.access", named_acl)])
        .entry(b"named", tar::EntryType::Regular, b"", b"", &attr)
        .pax(&[("SCHILY.acl.access", star_acl)])
        .entry(b"star", tar::EntryType::Regular, b"", b"", &attr)
        .finish();
    fs::write(&path, tar).unwrap();
    let from = ImportSource::Path(path);
    let image = store.import(from, &named("acl:1")).unwrap();
    let held = store.prepare("acl:1".as_ref(), None).unwrap();
    let acl = |file: &str| get(&held.layers[0].join(file), "system.posix_acl_access");
    assert_eq!(acl("star").as_deref(), Some(ACL));
    assert_eq!(acl("named"), None);
    let hex = image.config.rootfs().diff_ids()[0].replace("sha256:", "");
    let info = dir
        .path()
        .join("store/layers/sha256")
        .join(hex)
        .join("layer.json");
    let info = fs::read_to_string(info).unwrap();
    assert!(info.contains("named: system.posix_acl_access"), "{info}");
}
