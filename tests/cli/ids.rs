//! Options that map owners do what fuse-overlayfs's do.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use crate::common::skip;
use crate::require;
use crate::run::{Guard, Place};

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn prepared(name: &str) -> Place {
    let place = Place::new(name);
    chown(place.bottom.join("kept"), Some(100_005), Some(100_006)).unwrap();
    chown(place.bottom.join("deleted"), Some(100_000), Some(100_000)).unwrap();
    place
}

fn mount(place: &Place, options: &str) -> Guard {
    place.ok(&format!(
        "-o lowerdir=top:bottom,upperdir=upper,workdir=work,{options} merged"
    ));
    Guard::at(&place.merged)
}

#[test]
fn uidmapping_and_gidmapping() {
    require!(skip::privileged());
    let place = prepared("mapping");
    // Triples of the id on disk, the id in the mount, and how many.
    let _guard = mount(
        &place,
        "uidmapping=100000:0:65536,gidmapping=100000:0:65536",
    );
    assert_eq!(owner(&place.merged.join("kept")), (5, 6));
    assert_eq!(owner(&place.merged.join("deleted")), (0, 0));
    fs::write(place.merged.join("new"), "").unwrap();
    assert_eq!(owner(&place.merged.join("new")), (0, 0));
    assert_eq!(owner(&place.upper.join("new")), (100_000, 100_000));
    chown(place.merged.join("kept"), Some(7), Some(8)).unwrap();
    assert_eq!(owner(&place.merged.join("kept")), (7, 8));
    assert_eq!(owner(&place.upper.join("kept")), (100_007, 100_008));
    // What the map does not cover belongs to nobody.
    assert_eq!(owner(&place.merged.join("overridden")), (65_534, 65_534));
    let refused = chown(place.merged.join("new"), Some(70_000), None);
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn who_is_not_in_the_map_makes_entries_of_nobody() {
    require!(skip::privileged());
    let place = prepared("unmapped");
    // As containers/storage writes it. Root itself is outside the map, and makes links and files before a container
    // starts.
    let _guard = mount(
        &place,
        "uidmapping=:0:100000:1000,gidmapping=:0:100000:1000",
    );
    assert_eq!(owner(&place.merged.join("overridden")), (100_000, 100_000));
    let made = place.merged.join("made");
    fs::write(&made, "by root").unwrap();
    assert_eq!(owner(&made), (65_534, 65_534));
    chown(&made, Some(100_007), Some(100_008)).unwrap();
    assert_eq!(owner(&made), (100_007, 100_008));
    assert_eq!(owner(&place.upper.join("made")), (7, 8));
}

#[test]
fn several_ranges() {
    require!(skip::privileged());
    let place = prepared("ranges");
    let _guard = mount(
        &place,
        "uidmapping=100000:0:1:100001:1000:100,gidmapping=100000:0:65536",
    );
    assert_eq!(owner(&place.merged.join("deleted")), (0, 0));
    assert_eq!(owner(&place.merged.join("kept")), (1004, 6));
}

#[test]
fn squashed_owners() {
    require!(skip::privileged());
    for (options, expected) in [
        ("squash_to_root", (0, 0)),
        ("squash_to_uid=1234,squash_to_gid=4321", (1234, 4321)),
    ] {
        let place = prepared("squash");
        let _guard = mount(&place, options);
        for name in ["kept", "deleted", "overridden", "dir/file"] {
            assert_eq!(
                owner(&place.merged.join(name)),
                expected,
                "{options}: {name}"
            );
        }
    }
}

#[test]
fn owners_kept_in_an_xattr() {
    require!(skip::privileged());
    let place = prepared("xattr-owner");
    let guard = mount(&place, "xattr_permissions=2");
    fs::write(place.merged.join("new"), "data").unwrap();
    chown(place.merged.join("new"), Some(1001), Some(1002)).unwrap();
    fs::set_permissions(
        place.merged.join("new"),
        std::os::unix::fs::PermissionsExt::from_mode(0o4751),
    )
    .unwrap();
    let check = || {
        let meta = fs::metadata(place.merged.join("new")).unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (1001, 1002, 0o4751)
        );
    };
    check();
    drop(guard);
    // On disk the file is the daemon's own, with the truth beside it.
    assert_eq!(owner(&place.upper.join("new")), (0, 0));
    let _guard = mount(&place, "xattr_permissions=2");
    check();
}
