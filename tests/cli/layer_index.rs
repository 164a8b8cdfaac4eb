//! `layer_index`: mounts show the same whether their layers answer from an index or as they lie.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::common::{Tree, TreeOptions, skip};
use crate::require;
use crate::run::{Guard, Place, as_plain_user};

/// An image `base:1` of two layers with most of what a layer can have.
fn place(name: &str) -> Place {
    let place = Place::new(name);
    let root = place.scratch.dir("rootfs");
    for dir in ["etc", "d/sub/deep", "gone", "replaced"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("etc/motd"), "welcome").unwrap();
    fs::hard_link(root.join("etc/motd"), root.join("d/again")).unwrap();
    fs::write(root.join("d/sub/deep/file"), "data").unwrap();
    fs::write(root.join("replaced/below"), "hidden").unwrap();
    fs::set_permissions(root.join("d"), PermissionsExt::from_mode(0o1751)).unwrap();
    symlink("../etc/motd", root.join("d/link")).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(
        root.join("etc/motd"),
        "security.capability",
        &capability,
        flags,
    )
    .unwrap();
    place.ok("import rootfs first:1");
    place.ok("mount first:1 merged");
    let _guard = Guard::at(&place.merged);
    fs::remove_dir(place.merged.join("gone")).unwrap();
    fs::remove_dir_all(place.merged.join("replaced")).unwrap();
    fs::create_dir(place.merged.join("replaced")).unwrap();
    fs::write(place.merged.join("replaced/above"), "seen").unwrap();
    fs::write(place.merged.join("etc/issue"), "above").unwrap();
    place.ok("commit merged base:1");
    place.ok("umount merged");
    place
}

/// How many indexes the daemon of a mount has mapped.
fn mapped(place: &Place, dir: &Path) -> usize {
    let mounts = place.json("mounts --json");
    let all = mounts.as_array().unwrap();
    let dir = dir.canonicalize().unwrap();
    let ours = all
        .iter()
        .find(|m| Path::new(m["mountpoint"].as_str().unwrap()) == dir)
        .unwrap();
    let maps = fs::read_to_string(format!("/proc/{}/maps", ours["pid"])).unwrap();
    let lines = maps.lines().filter(|line| line.ends_with("/index"));
    lines.collect::<Vec<_>>().len()
}

/// What `Tree` leaves out because two filesystems may differ in it: two mounts of one image do not.
fn numbers(dir: &Path) -> BTreeMap<PathBuf, [i64; 5]> {
    let mut all = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let size = meta.size().cast_signed();
        let found = [
            meta.ino().cast_signed(),
            meta.nlink().cast_signed(),
            meta.ctime(),
            meta.ctime_nsec(),
            if meta.is_dir() { 0 } else { size },
        ];
        all.insert(path.strip_prefix(dir).unwrap().to_owned(), found);
    }
    // The root is the upper's, and so are its times.
    all.remove(Path::new(""));
    all
}

#[test]
fn a_mount_shows_the_same_with_and_without() {
    require!(skip::privileged());
    let place = place("layer_index");
    let other = place.scratch.dir("other");
    place.ok("mount base:1 merged");
    let _guard = Guard::at(&place.merged);
    place.ok("mount -o layer_index=off base:1 other");
    let _other = Guard::at(&other);
    assert_eq!(mapped(&place, &place.merged), 2);
    assert_eq!(mapped(&place, &other), 0);
    let read = |dir: &Path| Tree::read(dir, TreeOptions::CONTENTS).unwrap();
    let same = |what: &str| {
        read(&place.merged).assert_same(&read(&other), what);
        assert_eq!(numbers(&place.merged), numbers(&other), "{what}");
    };
    same("as mounted");
    assert!(!place.merged.join("replaced/below").exists());
    // Copied up, each form keeps the inode number and the links, and so do the layers.
    let mut inodes = Vec::new();
    for dir in [&place.merged, &other] {
        let before = fs::metadata(dir.join("etc/motd")).unwrap().ino();
        fs::write(dir.join("d/again"), "changed").unwrap();
        assert_eq!(fs::read(dir.join("etc/motd")).unwrap(), b"changed");
        assert_eq!(fs::metadata(dir.join("etc/motd")).unwrap().ino(), before);
        fs::rename(dir.join("d/sub"), dir.join("moved")).unwrap();
        assert_eq!(fs::read(dir.join("moved/deep/file")).unwrap(), b"data");
        assert!(!dir.join("d/sub").exists());
        inodes.push(before);
    }
    assert_eq!(inodes[0], inodes[1]);
    place.ok("umount other");
    place.ok("umount merged");
    assert_eq!(place.run("image verify").code, Some(0));
}

#[test]
fn an_index_that_is_damaged_is_not_used_and_one_that_is_missing_is_made() {
    require!(skip::privileged());
    let place = place("layer_index_damaged");
    let layers = place.scratch.join("store/layers/sha256");
    let indexes: Vec<PathBuf> = fs::read_dir(&layers)
        .unwrap()
        .map(|layer| layer.unwrap().path().join("index"))
        .collect();
    assert_eq!(indexes.len(), 2);
    fs::remove_file(&indexes[0]).unwrap();
    let mut bytes = fs::read(&indexes[1]).unwrap();
    bytes[30] ^= 1;
    fs::remove_file(&indexes[1]).unwrap();
    fs::write(&indexes[1], bytes).unwrap();
    place.ok("mount base:1 merged");
    let guard = Guard::at(&place.merged);
    assert_eq!(mapped(&place, &place.merged), 2);
    assert_eq!(fs::read(place.merged.join("etc/issue")).unwrap(), b"above");
    place.ok("umount merged");
    drop(guard);
    // In the middle: what lies there cannot be read, and nothing wrong is shown.
    let mut bytes = fs::read(&indexes[1]).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    fs::remove_file(&indexes[1]).unwrap();
    fs::write(&indexes[1], bytes).unwrap();
    let verified = place.run("image verify");
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert_eq!(place.run("image verify").code, Some(0));
}

#[test]
fn plain_directories_answer_from_memory_when_asked_to() {
    require!(skip::privileged());
    let place = Place::new("layer_index_build");
    let layers = "--lower top --lower bottom --upper upper --work work";
    place.ok(&format!("mount -o layer_index=build {layers} merged"));
    let _guard = Guard::at(&place.merged);
    // They are to stay as they are: this one is not seen.
    fs::write(place.bottom.join("later"), "later").unwrap();
    assert!(!place.merged.join("later").exists());
    let text = fs::read_to_string(place.merged.join("overridden")).unwrap();
    assert_eq!(text, "overridden by the top");
    fs::write(place.merged.join("dir/file"), "written").unwrap();
    // A file that was replaced behind the mount's back is an error, not the other file's data.
    fs::remove_file(place.bottom.join("kept")).unwrap();
    fs::write(place.bottom.join("kept"), "another").unwrap();
    let error = fs::read(place.merged.join("kept")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    place.ok("umount merged");
    assert_eq!(
        fs::read(place.bottom.join("dir/file")).unwrap(),
        b"dir/file of the bottom"
    );
}

#[test]
fn other_values_are_refused() {
    let place = Place::new("layer_index_refused");
    place.refused(
        "mount -o layer_index=auto --lower top merged",
        &["layer_index", "on, off or build"],
    );
}

/// The upper of an image is a layer like any other when it is only read: its files may lack their data, which the image
/// has.
#[test]
fn an_upper_that_is_only_read_has_its_own_marks() {
    require!(skip::privileged());
    let place = place("layer_index_upper");
    let layers = "upperdir=upper,workdir=work";
    place.ok(&format!("mount -o {layers} base:1 merged"));
    let guard = Guard::at(&place.merged);
    let motd = place.merged.join("etc/motd");
    fs::set_permissions(&motd, PermissionsExt::from_mode(0o600)).unwrap();
    place.ok("umount merged");
    drop(guard);
    for index in ["on", "off"] {
        place.ok(&format!(
            "mount -o ro,layer_index={index},{layers} base:1 merged"
        ));
        let guard = Guard::at(&place.merged);
        assert_eq!(fs::metadata(&motd).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read(&motd).unwrap(), b"welcome");
        place.ok("umount merged");
        drop(guard);
    }
}

/// A layer is unpacked by a plain user, once as that, once as the root of a user namespace, and mounted by the latter, who
/// sees other owners: an index of the one is not to be believed by the other.
const OWNERS: &str = r#"
acetate="$1"
mount_and_look() {
  "$acetate" mount u:1 merged
  pid=$("$acetate" mounts | awk -v at="$(realpath merged)" '$1 == at { print $4 }')
  grep -c '/index$' "/proc/$pid/maps" || true
  stat -c '%u:%g %h' merged/kept merged/linked
  "$acetate" umount merged
}
if [ "$2" = inside ]; then "$acetate" import bottom u:1 >&2; fi
mount_and_look
"#;

#[test]
fn a_process_that_sees_other_owners_reads_the_tree() {
    require!(skip::privileged());
    let place = Place::new("layer_index_owners");
    fs::hard_link(place.bottom.join("kept"), place.bottom.join("linked")).unwrap();
    place.give_to_plain_user();
    let binary = place.installed();
    let mut import = as_plain_user(&place, 0o666, &binary);
    let imported = import.args(["import", "bottom", "u:1"]).output().unwrap();
    assert!(imported.status.success(), "{imported:?}");
    for (when, indexes) in [("before", 0), ("inside", 1)] {
        if when == "inside" {
            fs::remove_dir_all(place.scratch.join("store")).unwrap();
        }
        let mut command = as_plain_user(&place, 0o666, "unshare");
        command
            .args(["-Urm", "sh", "-ec", OWNERS, "sh"])
            .arg(&binary)
            .arg(when);
        let output = command.output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            out,
            format!("{indexes}\n0:0 2\n0:0 2\n"),
            "{when}: {output:?}"
        );
    }
}
