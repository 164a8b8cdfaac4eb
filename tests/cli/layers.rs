//! Layers, uppers and workdirs that cannot be used.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::{Acetate, LoopImage, skip};
use crate::require;
use crate::run::{Guard, Place, as_plain_user};

const REST: &str = "--upper upper --work work merged";

#[test]
fn a_missing_layer() {
    require!(skip::privileged());
    let place = Place::new("missing");
    place.refused(
        &format!("mount --lower top --lower nowhere {REST}"),
        &["nowhere"],
    );
    place.refused(
        "-o lowerdir=top:nowhere,upperdir=upper,workdir=work merged",
        &["nowhere"],
    );
    place.refused(
        "mount --lower top --upper nowhere --work work merged",
        &["nowhere"],
    );
    place.refused(
        "mount --lower top --upper upper --work nowhere merged",
        &["nowhere"],
    );
    place.refused(
        "mount --lower top --upper upper --work work nowhere",
        &["nowhere"],
    );
}

#[test]
fn a_path_that_is_a_file() {
    require!(skip::privileged());
    let place = Place::new("file");
    fs::write(place.scratch.join("plain"), "").unwrap();
    for words in [
        format!("mount --lower plain {REST}"),
        "mount --lower top --upper plain --work work merged".to_owned(),
        "mount --lower top --upper upper --work plain merged".to_owned(),
        "mount --lower top --upper upper --work work plain".to_owned(),
    ] {
        place.refused(&words, &["plain", "director"]);
    }
}

#[test]
fn an_unreadable_layer() {
    require!(skip::privileged());
    let place = Place::new("unreadable");
    place.give_to_plain_user();
    let secret = place.scratch.dir("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    place.refused_command(
        as_plain_user(&place, 0o666, place.installed())
            .args(["mount", "--lower", "secret", "--lower", "top", "merged"]),
        &["secret", "ermission"],
    );
}

#[test]
fn an_upper_without_a_workdir() {
    require!(skip::privileged());
    let place = Place::new("workless");
    place.refused("mount --lower top --upper upper merged", &["--work"]);
    place.refused("mount --lower top --work work merged", &["--upper"]);
    place.refused("-o lowerdir=top,upperdir=upper merged", &["workdir"]);
}

#[test]
fn a_workdir_that_cannot_serve_its_upper() {
    require!(skip::privileged());
    let place = Place::new("workdir");
    fs::create_dir(place.upper.join("inside")).unwrap();
    fs::create_dir(place.work.join("inside")).unwrap();
    place.refused(
        "mount --lower top --upper upper --work upper/inside merged",
        &["upper/inside"],
    );
    place.refused(
        "mount --lower top --upper upper --work upper merged",
        &["upper"],
    );
    place.refused(
        "mount --lower top --upper work/inside --work work merged",
        &["work"],
    );
    let other = place.scratch.dir("other");
    nix::mount::mount(
        Some("none"),
        &other,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    let guard = Guard(other.clone());
    fs::create_dir(other.join("work")).unwrap();
    place.refused(
        "mount --lower top --upper upper --work other/work merged",
        &["other/work", "filesystem"],
    );
    drop(guard);
}

#[test]
fn layers_that_overlap() {
    require!(skip::privileged());
    let place = Place::new("overlap");
    fs::create_dir(place.top.join("sub")).unwrap();
    fs::create_dir(place.upper.join("sub")).unwrap();
    place.refused(&format!("mount --lower top --lower top {REST}"), &["top"]);
    place.refused(&format!("mount --lower upper/sub {REST}"), &["upper/sub"]);
    place.refused(
        "mount --lower upper --upper upper --work work merged",
        &["upper"],
    );
    place.refused(
        "mount --lower top --upper top/sub --work work merged",
        &["top/sub"],
    );
    fs::create_dir(place.top.join("work")).unwrap();
    place.refused(
        "mount --lower top --upper upper --work top/work merged",
        &["top/work"],
    );
}

#[test]
fn an_upper_or_a_workdir_in_use() {
    require!(skip::privileged());
    let place = Place::new("in-use");
    let first = Acetate::new(place.scratch.join("first"))
        .lowers(&[&place.bottom])
        .upper(&place.upper, &place.work)
        .mount();
    let (upper2, work2) = (place.scratch.dir("upper2"), place.scratch.dir("work2"));
    place.refused(&format!("mount --lower top {REST}"), &["in use"]);
    place.refused(
        "mount --lower top --upper upper --work work2 merged",
        &["upper", "in use"],
    );
    place.refused(
        "mount --lower top --upper upper2 --work work merged",
        &["work", "in use"],
    );
    // What refuses the second mount must not disturb the first.
    fs::write(first.join("kept"), "changed").unwrap();
    first.unmount().unwrap();
    place.ok(&format!("mount --lower bottom {REST}"));
    let _guard = Guard::at(&place.merged);
    assert_eq!(
        fs::read_to_string(place.merged.join("kept")).unwrap(),
        "changed"
    );
    assert_eq!(fs::read_dir(&upper2).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&work2).unwrap().count(), 0);
}

#[test]
fn no_fuse_device_or_no_right_to_it() {
    require!(skip::privileged());
    let place = Place::new("device");
    let mut command = place.program("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-ec"])
        .arg("mount -t tmpfs none /dev; : >/dev/null; exec \"$@\"")
        .args([
            "sh",
            crate::run::BINARY,
            "mount",
            "--lower",
            "top",
            "merged",
        ]);
    place.refused_command(&mut command, &["/dev/fuse"]);
    place.give_to_plain_user();
    place.refused_command(
        as_plain_user(&place, 0o600, place.installed()).args(["mount", "--lower", "top", "merged"]),
        &["/dev/fuse", "ermission"],
    );
}

/// Either refused with a word about it, or right: hiding and renaming must survive a remount.
fn works_or_says_why(place: &Place, below: &Path) {
    for name in ["upper", "work"] {
        fs::create_dir(below.join(name)).unwrap();
    }
    let words = "mount --lower top --lower bottom --upper below/upper --work below/work merged";
    let said = place.run(words);
    if said.code != Some(0) {
        place.refused(words, &["below/"]);
        return;
    }
    let guard = Guard::at(&place.merged);
    let at = |name: &str| place.merged.join(name);
    fs::remove_dir_all(at("dir")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::remove_file(at("deleted")).unwrap();
    fs::write(at("kept"), "changed").unwrap();
    for _ in 0..2 {
        assert_eq!(
            fs::read_dir(at("dir")).unwrap().count(),
            0,
            "the old directory shines through"
        );
        assert!(!at("deleted").exists());
        assert_eq!(fs::read_to_string(at("kept")).unwrap(), "changed");
        place.ok("umount merged");
        place.ok(words);
    }
    drop(guard);
}

#[test]
fn an_upper_on_a_filesystem_without_xattrs() {
    require!(skip::privileged());
    let place = Place::new("ramfs");
    let below = place.scratch.dir("below");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &below, Some("ramfs"), flags, None::<&str>).unwrap();
    let guard = Guard(below.clone());
    works_or_says_why(&place, &below);
    drop(guard);
}

#[test]
fn an_upper_on_every_usual_filesystem() {
    require!(skip::privileged());
    for (fstype, size) in [("ext4", 32 << 20), ("xfs", 320 << 20), ("btrfs", 128 << 20)] {
        let place = Place::new(fstype);
        let image = match LoopImage::new(&place.scratch, fstype, size) {
            Ok(image) => image,
            Err(reason) => crate::skip!("{fstype}: {reason}"),
        };
        std::os::unix::fs::symlink(image.path(), place.scratch.join("below")).unwrap();
        works_or_says_why(&place, image.path());
    }
}

#[test]
fn a_read_only_filesystem_below_the_upper() {
    require!(skip::privileged());
    let place = Place::new("read-only");
    let below = place.scratch.dir("below");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &below, Some("tmpfs"), flags, None::<&str>).unwrap();
    let guard = Guard(below.clone());
    fs::create_dir(below.join("upper")).unwrap();
    fs::create_dir(below.join("work")).unwrap();
    let flags = nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY;
    nix::mount::mount(None::<&str>, &below, None::<&str>, flags, None::<&str>).unwrap();
    place.refused(
        "mount --lower top --upper below/upper --work below/work merged",
        &["below/", "ead-only"],
    );
    drop(guard);
}
