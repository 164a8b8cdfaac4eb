//! Extended attributes and names at their limits.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::view::{Layers, mark, name, view};
use crate::common::tree::xattrs;
use crate::common::{Stand, Watchdog, skip};
use crate::require;

#[test]
fn xattr_names_and_values_of_every_length_are_copied_up() {
    require!(skip::privileged());
    let _limit = Watchdog::new("xattr lengths", Duration::from_secs(200));
    let stand = Stand::new("xattr-lengths");
    let mut files = Vec::new();
    // 255 bytes is the longest name; what a value may hold ends with the filesystem's room for one file.
    for length in (6..=255).step_by(3).chain([254, 255]) {
        let file = format!("name{length}");
        fs::write(stand.lower.join(&file), "x").unwrap();
        let name = format!("user.{}", "n".repeat(length - 5));
        mark(&stand.lower.join(&file), &name, b"value");
        files.push(file);
    }
    for length in (0..64).chain([255, 256, 1023, 1024, 2047, 3000]) {
        let file = format!("value{length}");
        fs::write(stand.lower.join(&file), "x").unwrap();
        mark(&stand.lower.join(&file), "user.value", &vec![0xa5; length]);
        files.push(file);
    }
    // As many as there is room for.
    fs::write(stand.lower.join("many"), "x").unwrap();
    for number in 0..60 {
        mark(&stand.lower.join("many"), &format!("user.{number}"), b"v");
    }
    files.push("many".to_owned());
    let mount = stand.acetate("").mount();
    for file in &files {
        let before = xattrs(&stand.lower.join(file)).unwrap();
        assert_eq!(xattrs(&mount.join(file)).unwrap(), before, "{file}");
        fs::write(mount.join(file), "changed").unwrap();
        assert_eq!(
            xattrs(&mount.join(file)).unwrap(),
            before,
            "{file}, copied up"
        );
    }
    drop(mount.unmount().unwrap());
}

#[test]
fn names_of_any_bytes_are_names() {
    require!(skip::privileged());
    let _limit = Watchdog::new("any names", Duration::from_secs(100));
    let layers = Layers::new("any-names");
    let long = [b'l'; 255];
    let invalid_long = [0xffu8; 255];
    let names: Vec<&[u8]> = vec![
        b"new\nline",
        b"\n",
        b"\x7f",
        b"\x01\x02",
        b"\xff\xfe\xfd",
        b"\xc3(",
        b" ",
        b"-rf",
        b"%s%n",
        b"*",
        b"a\\b",
        b"\"",
        b"'",
        b"$(touch x)",
        b"...",
        b".wh",
        b"\xed\xa0\x80",
        &long,
        &invalid_long,
    ];
    for (number, bytes) in names.iter().enumerate() {
        let layer = if number % 2 == 0 {
            &layers.top
        } else {
            &layers.bottom
        };
        fs::create_dir(layer.join(name(bytes))).unwrap();
        fs::write(layer.join(name(bytes)).join(name(bytes)), "x").unwrap();
    }
    let (ours, kernel) = layers.both();
    assert_eq!(ours, kernel);
    let mount = layers.writable();
    for bytes in &names {
        let dir = mount.join(name(bytes));
        fs::write(dir.join(name(bytes)), "changed").unwrap();
        fs::hard_link(dir.join(name(bytes)), dir.join("link")).unwrap();
        fs::remove_file(dir.join(name(bytes))).unwrap();
        fs::rename(&dir, mount.join("moved")).unwrap();
        fs::rename(mount.join("moved"), &dir).unwrap();
        assert_eq!(fs::read(dir.join("link")).unwrap(), b"changed");
    }
    let before = view(mount.path());
    // What is told of them is one line each, whatever they hold.
    let diff = acetate::mount::diff(mount.path()).unwrap();
    assert!(diff.len() >= 2 * names.len(), "{}", diff.len());
    drop(mount.unmount().unwrap());
    let again = layers.writable();
    assert_eq!(view(again.path()), before);
    drop(again.unmount().unwrap());
}

/// A directory of a layer that nobody but its owner may enter, and files without any permission: the daemon does not lend
/// its rights to who has none.
#[test]
fn modes_of_a_layer_count_for_programs() {
    require!(skip::privileged());
    let _limit = Watchdog::new("modes", Duration::from_secs(100));
    let layers = Layers::new("modes");
    fs::create_dir(layers.bottom.join("closed")).unwrap();
    fs::write(layers.bottom.join("closed/file"), "x").unwrap();
    fs::write(layers.bottom.join("none"), "x").unwrap();
    for (path, mode) in [("closed", 0o700), ("none", 0o000)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(layers.bottom.join(path), mode).unwrap();
    }
    let mount = layers.writable();
    let by_nobody = |path: &Path| {
        std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"])
            .arg(path)
            .output()
            .unwrap()
            .status
            .success()
    };
    // The scratch directory is nobody's to enter either, so by a bind mount that is.
    assert!(!by_nobody(&mount.join("closed/file")));
    assert!(!by_nobody(&mount.join("none")));
    assert_eq!(fs::metadata(mount.join("none")).unwrap().mode() & 0o7777, 0);
    drop(mount.unmount().unwrap());
}
