//! A disk that is full and a quota that is used up, in the middle of a copy-up.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::chown;
use std::process::Command;
use std::time::Duration;

use crate::common::stand::Stand;
use crate::common::{Acetate, LoopImage, Mount, Tree, TreeOptions, Watchdog, program, skip};
use crate::data::pattern;
use crate::{require, skip};

const LARGE: usize = 80 << 20;
const OWNER: u32 = 54_321;

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
    let mut stand = prepared();
    let image = match LoopImage::new(&stand.scratch, "ext4", 64 << 20) {
        Ok(image) => image,
        Err(reason) => skip!("{reason}"),
    };
    stand.put_changes_on(image.path());
    let mount = stand.acetate("partial=off").mount();
    nothing_changes(&stand, &mount, ErrorKind::StorageFull);
    mount.unmount().unwrap();
    image.unmount().unwrap();
}

/// A filesystem on which little more may be written. Quotas of users are not in every kernel; the other has
/// none but the limits of subvolumes.
fn with_quota(stand: &Stand, fstype: &str) -> Result<LoopImage, String> {
    let limit = Duration::from_secs(20);
    let done = |command: &mut Command| {
        let finished = program::run(command, limit);
        if finished.success() {
            return Ok(());
        }
        Err(format!("{command:?}: {}", finished.text.trim()))
    };
    if fstype == "btrfs" {
        let image = LoopImage::new(&stand.scratch, fstype, 256 << 20)?;
        let btrfs = program::find("btrfs")?;
        let mut enable = Command::new(&btrfs);
        done(enable.args(["quota", "enable"]).arg(image.path()))?;
        let mut limit = Command::new(&btrfs);
        done(limit.args(["qgroup", "limit", "8M"]).arg(image.path()))?;
        return Ok(image);
    }
    let mkfs = ["-O", "quota", "-E", "quotatype=usrquota"];
    let image = LoopImage::with_options(&stand.scratch, fstype, 256 << 20, &mkfs, "loop,usrquota")?;
    let mut setquota = Command::new(program::find("setquota")?);
    setquota.args(["-u", &OWNER.to_string(), "0", "8192", "0", "0"]);
    done(setquota.arg(image.path()))?;
    Ok(image)
}

#[test]
fn a_used_up_quota_in_the_middle_of_a_copy_up_changes_nothing() {
    require!(skip::privileged());
    require!(program::find("setpriv"));
    let _limit = Watchdog::new("quota", Duration::from_secs(200));
    let mut missing = Vec::new();
    for fstype in ["ext4", "btrfs"] {
        let mut stand = prepared();
        let image = match with_quota(&stand, fstype) {
            Ok(image) => image,
            Err(reason) => {
                println!("no quota on {fstype}: {reason}");
                missing.push(reason);
                continue;
            }
        };
        stand.put_changes_on(image.path());
        // Whoever has this capability is above quotas of users.
        let mount = Acetate::new(stand.scratch.join("merged"))
            .lowers(&[&stand.lower])
            .upper(&stand.upper, &stand.work)
            .options("partial=off")
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
    if missing.len() == 2 {
        skip!("no filesystem with a quota: {missing:?}");
    }
}
