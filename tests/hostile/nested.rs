//! Unions of unions.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::{Acetate, Mount, Overlay, Scratch, Watchdog, skip};
use crate::require;

/// Mounts each union on the one before, as deep as it goes, and unmounts all.
fn nest(name: &str, depth: usize, writable: bool) {
    let scratch = Scratch::new(name);
    let mut lower: PathBuf = scratch.dir("bottom");
    fs::write(lower.join("file"), "bottom").unwrap();
    let mut mounts: Vec<Mount> = Vec::new();
    for level in 0..depth {
        let own = scratch.dir(format!("own{level}"));
        fs::write(own.join(format!("level{level}")), level.to_string()).unwrap();
        let acetate = Acetate::new(scratch.join(format!("merged{level}"))).lowers(&[&own, &lower]);
        let acetate = if writable {
            let (upper, work) = (
                scratch.dir(format!("upper{level}")),
                scratch.dir(format!("work{level}")),
            );
            acetate.upper(&upper, &work)
        } else {
            acetate.argument("--ro")
        };
        match acetate.try_mount() {
            Ok(mount) => {
                lower = mount.path().to_owned();
                mounts.push(mount);
            }
            Err(failure) => panic!("level {level}: {failure}"),
        }
    }
    let top = mounts.last().unwrap();
    assert_eq!(fs::read_to_string(top.join("file")).unwrap(), "bottom");
    assert_eq!(fs::read_dir(top.path()).unwrap().count(), depth + 1);
    for level in 0..depth {
        let text = fs::read_to_string(top.join(format!("level{level}"))).unwrap();
        assert_eq!(text, level.to_string());
    }
    if writable {
        fs::write(top.join("file"), "changed").unwrap();
        fs::remove_file(top.join("level0")).unwrap();
        assert_eq!(fs::read_to_string(top.join("file")).unwrap(), "changed");
        assert!(!top.join("level0").exists());
        let below = &mounts[depth - 2];
        assert_eq!(fs::read_to_string(below.join("file")).unwrap(), "bottom");
        assert!(below.join("level0").exists());
    }
    while let Some(mount) = mounts.pop() {
        drop(mount.unmount().unwrap());
    }
}

#[test]
fn four_unions_on_one_another() {
    require!(skip::privileged());
    let _limit = Watchdog::new("four nested", Duration::from_secs(100));
    nest("nested-four", 4, true);
}

#[test]
#[ignore = "forty daemons"]
fn forty_unions_on_one_another() {
    require!(skip::privileged());
    let _limit = Watchdog::new("forty nested", Duration::from_secs(250));
    nest("nested-forty", 40, false);
    nest("nested-forty-writable", 40, true);
}

/// The kernel allows two filesystems on one another that both pass on to a third: ours counts as one of them.
#[test]
fn beside_the_kernels_overlayfs() {
    require!(skip::privileged());
    let _limit = Watchdog::new("nested with the kernel's", Duration::from_secs(100));
    let scratch = Scratch::new("nested-kernel");
    let [a, b, c] = ["a", "b", "c"].map(|name| scratch.dir(name));
    fs::write(a.join("file"), "a").unwrap();
    let kernel = scratch.dir("kernel");
    let below = Overlay::mount(&kernel, &[&a, &b], None, "").unwrap();
    let ours = Acetate::new(scratch.join("ours"))
        .lowers(&[&c, &below.path().to_owned()])
        .upper(&scratch.dir("upper"), &scratch.dir("work"))
        .mount();
    fs::write(ours.join("file"), "changed").unwrap();
    let twice = Acetate::new(scratch.join("twice"))
        .lowers(&[&c, &ours.path().to_owned()])
        .upper(&scratch.dir("upper2"), &scratch.dir("work2"))
        .mount();
    assert_eq!(fs::read(twice.join("file")).unwrap(), b"changed");
    fs::write(twice.join("file"), "again").unwrap();
    assert_eq!(fs::read(ours.join("file")).unwrap(), b"changed");
    drop(twice.unmount().unwrap());
    drop(ours.unmount().unwrap());
    below.unmount().unwrap();
}
