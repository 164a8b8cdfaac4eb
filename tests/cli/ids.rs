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

fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(256);
    let room = rustix::buffer::spare_capacity(&mut value);
    match rustix::fs::lgetxattr(path, name, room) {
        Ok(_) => Some(value),
        Err(rustix::io::Errno::NODATA) => None,
        Err(e) => panic!("{name} of {path:?}: {e}"),
    }
}

fn set(path: &Path, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty())
}

/// `user::rwx`, one named user, `group::r--`, one named group, `mask::rwx`, `other::---`, as an xattr.
fn acl(user: u32, group: u32) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in [
        (1u16, 7u16, !0),
        (2, 5, user),
        (4, 4, !0),
        (8, 6, group),
        (16, 7, !0),
        (32, 0, !0u32),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(rights.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// `cap_net_raw=ep`, for user namespaces of this user.
fn capability(root: Option<u32>) -> Vec<u8> {
    let magic: u32 = if root.is_some() {
        0x0300_0001
    } else {
        0x0200_0001
    };
    let mut value = magic.to_le_bytes().to_vec();
    value.extend(0x2000u32.to_le_bytes());
    value.extend([0; 12]);
    value.extend(root.map(u32::to_le_bytes).into_iter().flatten());
    value
}

#[test]
fn acls_and_capabilities_are_mapped_as_owners_are() {
    require!(skip::privileged());
    const ACCESS: &str = "system.posix_acl_access";
    const CAPABILITY: &str = "security.capability";
    let place = prepared("mapped-values");
    let lower = place.bottom.join("kept");
    set(&lower, ACCESS, &acl(100_005, 100_006)).unwrap();
    set(&lower, CAPABILITY, &capability(Some(100_000))).unwrap();
    set(&place.bottom.join("deleted"), CAPABILITY, &capability(None)).unwrap();
    let _guard = mount(
        &place,
        "uidmapping=100000:0:65536,gidmapping=100000:0:65536",
    );
    let (kept, upper) = (place.merged.join("kept"), place.upper.join("kept"));
    // Before and after the copy-up.
    for _ in 0..2 {
        assert_eq!(get(&kept, ACCESS).unwrap(), acl(5, 6));
        assert_eq!(get(&kept, CAPABILITY).unwrap(), capability(None));
        // That of a root who is nobody here gives nothing.
        assert_eq!(get(&place.merged.join("deleted"), CAPABILITY), None);
        set(&kept, "user.note", b"x").unwrap();
        assert_eq!(get(&upper, ACCESS).unwrap(), acl(100_005, 100_006));
        assert_eq!(get(&upper, CAPABILITY).unwrap(), capability(Some(100_000)));
    }
    set(&kept, ACCESS, &acl(7, 8)).unwrap();
    set(&kept, CAPABILITY, &capability(Some(9))).unwrap();
    assert_eq!(get(&upper, ACCESS).unwrap(), acl(100_007, 100_008));
    assert_eq!(get(&upper, CAPABILITY).unwrap(), capability(Some(100_009)));
    assert_eq!(get(&kept, ACCESS).unwrap(), acl(7, 8));
    for (name, value) in [
        (ACCESS, acl(70_000, 8)),
        (CAPABILITY, capability(Some(70_000))),
    ] {
        assert_eq!(set(&kept, name, &value), Err(rustix::io::Errno::INVAL));
    }
    // A directory hands its default on as it lies on disk.
    let dir = place.merged.join("dir");
    set(&dir, "system.posix_acl_default", &acl(7, 8)).unwrap();
    fs::create_dir(dir.join("new")).unwrap();
    for name in [ACCESS, "system.posix_acl_default"] {
        let inherited = get(&dir.join("new"), name).unwrap();
        assert_eq!(
            (&inherited[16..20], &inherited[32..36]),
            (&acl(7, 8)[16..20], &acl(7, 8)[32..36])
        );
        let on_disk = get(&place.upper.join("dir/new"), name).unwrap();
        assert_eq!(on_disk[16..20], 100_007u32.to_le_bytes());
    }
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
