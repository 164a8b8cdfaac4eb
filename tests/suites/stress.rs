//! stress-ng's filesystem class: no stressor fails that passes on ext4.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::stand::{Stand, end};
use crate::common::{LoopImage, Watchdog, program, skip};
use crate::{require, skip};

/// Left out: they do not touch the directory under test at all.
const ELSEWHERE: &[&str] = &[
    "bind-mount", // mounts `/` over and over in a namespace of its own
    "binderfs",   // mounts a binder filesystem
    "eventfd",    // has no file
    "ioprio",     // sets priorities of processes
    "procfs",     // reads /proc, also of other tests' processes
];

const SUCCESS: i32 = 0;

fn class(program: &Path) -> Vec<String> {
    let text = program::run(
        Command::new(program).args(["--class", "filesystem?"]),
        Duration::from_secs(10),
    )
    .text;
    let (_, names) = text.split_once(':').unwrap_or_else(|| panic!("{text}"));
    names
        .split_whitespace()
        .filter(|name| !ELSEWHERE.contains(name))
        .map(str::to_owned)
        .collect()
}

fn stress(program: &Path, name: &str, dir: &Path) -> (Option<i32>, String) {
    let finished = program::run(
        Command::new(program)
            .arg("--temp-path")
            .arg(dir)
            .args(["--verify", "--timeout", "1", &format!("--{name}"), "2"])
            // 1 GiB each by default, which only fills the disk.
            .args(["--hdd-bytes", "32m", "--fallocate-bytes", "64m"])
            .args(["--iomix-bytes", "64m", "--sync-file-bytes", "32m"]),
        Duration::from_secs(60),
    );
    (finished.code(), finished.text)
}

#[test]
#[ignore = "heavy: needs stress-ng (Debian package)"]
fn stress_ng_fails_nothing_that_passes_on_ext4() {
    require!(skip::privileged());
    let program = match program::find("stress-ng") {
        Ok(program) => program,
        Err(reason) => skip!("{reason}"),
    };
    let _limit = Watchdog::new("stress-ng", Duration::from_secs(600));
    let stand = Stand::new("stress");
    let ext4 = match LoopImage::new(&stand.scratch, "ext4", 2 << 30) {
        Ok(image) => image,
        Err(reason) => skip!("{reason}"),
    };
    let mount = stand.acetate("").mount();
    let mut worse = Vec::new();
    let names = class(&program);
    assert!(names.len() > 30, "{names:?}");
    let mut passed = 0;
    for name in &names {
        let (judge, _) = stress(&program, name, ext4.path());
        if judge != Some(SUCCESS) {
            println!("stress-ng {name}: exits with {judge:?} on ext4, not asked of acetate");
            continue;
        }
        let (ours, text) = stress(&program, name, mount.path());
        if ours == Some(SUCCESS) {
            passed += 1;
        } else {
            worse.push(format!("{name}: {ours:?}\n{text}"));
        }
    }
    end(mount);
    println!("stress-ng: {passed} of {} stressors pass", names.len());
    assert!(
        worse.is_empty(),
        "pass on ext4, not here:\n{}",
        worse.join("\n")
    );
}
