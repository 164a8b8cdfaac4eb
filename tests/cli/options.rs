//! Options, arguments and targets that cannot be right.

use std::fs;

use crate::common::skip;
use crate::require;
use crate::run::Place;

#[test]
fn unknown_and_malformed_options() {
    require!(skip::privileged());
    let place = Place::new("unknown");
    for (option, culprit) in [
        ("bogus", "bogus"),
        ("bogus=1", "bogus"),
        ("redirect_dir=maybe", "redirect_dir=maybe"),
        ("metacopy=perhaps", "metacopy=perhaps"),
        ("index=", "index"),
        ("xino=x", "xino=x"),
        ("passthrough_lower=often", "passthrough_lower=often"),
        ("timeout=soon", "timeout=soon"),
        ("uidmapping=1:2", "uidmapping=1:2"),
        ("uidmapping=a:b:c", "uidmapping=a:b:c"),
        ("squash_to_uid=me", "squash_to_uid=me"),
        ("xattr_permissions=9", "xattr_permissions=9"),
    ] {
        let culprits: Vec<&str> = culprit.split('=').collect();
        place.refused(&format!("mount --lower top -o {option} merged"), &culprits);
        place.refused(&format!("-o lowerdir=top,{option} merged"), &culprits);
    }
    place.refused("-o upperdir=upper,workdir=work merged", &["lowerdir"]);
}

#[test]
fn contradictory_options() {
    require!(skip::privileged());
    let place = Place::new("contradictory");
    for (options, culprits) in [
        ("metacopy=on,redirect_dir=off", ["metacopy", "redirect_dir"]),
        (
            "squash_to_root,squash_to_uid=5",
            ["squash_to_root", "squash_to_uid"],
        ),
        ("ro,rw,bogus", ["bogus", "bogus"]),
    ] {
        place.refused(&format!("mount --lower top -o {options} merged"), &culprits);
    }
    place.refused(
        "mount --lower top --upper upper --work work --keep kept merged",
        &["--keep"],
    );
}

#[test]
fn targets_that_are_no_mounts() {
    require!(skip::privileged());
    let place = Place::new("targets");
    for words in [
        "umount merged",
        "diff merged",
        "stats merged",
        "explain merged",
        "diff merged --json",
    ] {
        place.refused(words, &["merged"]);
    }
    for words in [
        "umount nowhere",
        "diff nowhere",
        "stats nowhere",
        "explain nowhere/path",
    ] {
        place.refused(words, &["nowhere"]);
    }
    // Another filesystem's mount is not ours to unmount.
    let other = place.scratch.dir("other");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("none"), &other, Some("tmpfs"), flags, None::<&str>).unwrap();
    let guard = crate::run::Guard(other.clone());
    place.refused("umount other", &["other"]);
    place.refused("diff other", &["other"]);
    drop(guard);
}

#[test]
fn a_mountpoint_that_is_taken() {
    require!(skip::privileged());
    let place = Place::new("taken");
    place.ok("mount --lower top merged");
    let _guard = crate::run::Guard::at(&place.merged);
    place.refused("mount --lower bottom merged", &["merged"]);
    assert_eq!(fs::read_dir(&place.merged).unwrap().count(), 1);
}

#[test]
fn usage_errors_have_a_code_of_their_own() {
    let place = Place::new("usage");
    for words in [
        "mount",
        "no-such-command merged",
        "mount --no-such-flag merged",
        "umount",
        "-o",
    ] {
        let said = place.run(words);
        assert_eq!(said.code, Some(2), "{words}: {said:?}");
        assert!(!said.err.is_empty());
    }
    assert_eq!(place.run("--version").code, Some(0));
    assert_eq!(place.run("--help").code, Some(0));
    for command in ["mount", "umount", "mounts", "diff", "explain", "stats"] {
        let help = place.run(&format!("{command} --help"));
        assert!(
            help.code == Some(0) && help.out.len() > 100,
            "{command}: {help:?}"
        );
    }
}
