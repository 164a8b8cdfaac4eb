//! A disk that is full and a quota that is used up, in the middle of a copy-up.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Acetate, LoopImage, Mount, Tree, TreeOptions, Watchdog, program, skip};
use crate::stand::{Stand, pattern};
use crate::{require, skip};

const LARGE: usize = 80 << 20;
const OWNER: u32 = 54_321;

/// Upper and workdir on a filesystem of their own.
fn on(image: &LoopImage, mut stand: Stand) -> Stand {
    stand.upper = image.path().join("upper");
    stand.work = image.path().join("work");
    fs::create_dir_all(&stand.upper).unwrap();
    fs::create_dir_all(&stand.work).unwrap();
    stand
}

fn prepared() -> Stand {
    let stand = Stand::new("full");
    fs::create_dir(stand.lower.join("dir")).unwrap();
    fs::write(stand.lower.join("dir/large"), pattern(1, LARGE)).unwrap();
    fs::write(stand.lower.join("dir/small"), pattern(2, 4096)).unwrap();
    for name in ["dir/large", "dir/small"] {
        chown(stand.lower.join(name), Some(OWNER), Some(OWNER)).unwrap();
    }
    stand
}

/// Every way to have the large file copied up fails with `kind`, and nothing has changed afterwards.
fn nothing_changes(stand: &Stand, mount: &Mount, kind: ErrorKind) {
    let large = mount.join("dir/large");
    let before = Tree::read(mount.path(), TreeOptions::CONTENTS).unwrap();
    let tries: [(&str, &dyn Fn() -> std::io::Result<()>); 3] = [
        ("write", &|| {
            OpenOptions::new()
                .write(true)
                .open(&large)?
                .write_all(b"written")
        }),
        ("append", &|| {
            OpenOptions::new()
                .append(true)
                .open(&large)?
                .write_all(b"written")
        }),
        ("truncate", &|| {
            OpenOptions::new()
                .write(true)
                .open(&large)?
                .set_len(LARGE as u64 - 1)
        }),
    ];
    for (what, attempt) in tries {
        let error = attempt().expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        let after = Tree::read(mount.path(), TreeOptions::CONTENTS).unwrap();
        before.assert_same(&after, what);
        assert!(
            !stand.upper.join("dir/large").exists(),
            "{what}: half a file in the upper"
        );
        assert!(
            stand.left_in_work().is_empty(),
            "{what}: {:?}",
            stand.left_in_work()
        );
    }
    // What fits goes on.
    fs::write(mount.join("dir/small"), "fits").unwrap();
    fs::create_dir(mount.join("dir/new")).unwrap();
    fs::rename(mount.join("dir/new"), mount.join("dir/renamed")).unwrap();
    fs::remove_file(&large).unwrap();
    assert!(!large.exists());
}

#[test]
fn a_full_disk_in_the_middle_of_a_copy_up_changes_nothing() {
    require!(skip::privileged());
    let _limit = Watchdog::new("full disk", Duration::from_secs(120));
    let stand = prepared();
    let image = match LoopImage::new(&stand.scratch, "ext4", 64 << 20) {
        Ok(image) => image,
        Err(reason) => skip!("{reason}"),
    };
    let stand = on(&image, stand);
    let mount = stand.acetate("").mount();
    nothing_changes(&stand, &mount, ErrorKind::StorageFull);
    mount.unmount().unwrap();
    image.unmount().unwrap();
}

/// A filesystem on which one user, or one project, may own no more than 8 MiB.
fn with_quota(stand: &Stand, kind: &str) -> Result<LoopImage, String> {
    for name in ["setquota", "setpriv"] {
        program::find(name)?;
    }
    let (features, option) = match kind {
        "user" => ("quota", "loop,usrquota"),
        _ => ("quota,project", "loop,prjquota"),
    };
    let mkfs = ["-O", features, "-E", "quotatype=usrquota:prjquota"];
    let image = LoopImage::with_options(&stand.scratch, "ext4", 256 << 20, &mkfs, option)?;
    let setquota = program::find("setquota")?;
    let mut command = Command::new(setquota);
    match kind {
        "user" => command.args(["-u", &OWNER.to_string()]),
        _ => command.args(["-P", "7"]),
    };
    command.args(["0", "8192", "0", "0"]).arg(image.path());
    let done = program::run(&mut command, Duration::from_secs(20));
    if !done.success() {
        return Err(format!("setquota: {}", done.text.trim()));
    }
    Ok(image)
}

fn project(dirs: &[&Path]) {
    for dir in dirs {
        program::must(
            Command::new("chattr").args(["-p", "7", "+P"]).arg(dir),
            Duration::from_secs(10),
        );
    }
}

fn quota_is_kept(kind: &str) {
    let _limit = Watchdog::new("quota", Duration::from_secs(120));
    let stand = prepared();
    let image = match with_quota(&stand, kind) {
        Ok(image) => image,
        Err(reason) => skip!("{reason}"),
    };
    let stand = on(&image, stand);
    if kind == "project" {
        project(&[&stand.upper, &stand.work]);
    }
    // Whoever has this capability is above quotas.
    let mount = Acetate::new(stand.scratch.join("merged"))
        .lowers(&[&stand.lower])
        .upper(&stand.upper, &stand.work)
        .by(&[
            "setpriv",
            "--bounding-set",
            "-sys_resource",
            "--inh-caps",
            "-sys_resource",
        ])
        .mount();
    nothing_changes(&stand, &mount, ErrorKind::QuotaExceeded);
    mount.unmount().unwrap();
    image.unmount().unwrap();
}

#[test]
fn a_used_up_user_quota_in_the_middle_of_a_copy_up_changes_nothing() {
    require!(skip::privileged());
    quota_is_kept("user");
}

#[test]
fn a_used_up_project_quota_in_the_middle_of_a_copy_up_changes_nothing() {
    require!(skip::privileged());
    quota_is_kept("project");
}
