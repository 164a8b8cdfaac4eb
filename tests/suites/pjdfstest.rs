//! pjdfstest: no case fails that passes on the kernel's overlayfs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::stand::{Stand, end};
use crate::common::{Scratch, Watchdog, program, skip};
use crate::{require, skip};

// Accounts that every Debian has, so that none need be made.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// What fails now and then, and why. Opening a running program with O_RDONLY | O_TRUNC is refused with ETXTBSY, but only after the
/// kernel had the filesystem cut it to nothing (`FUSE_ATOMIC_O_TRUNC`): where the program has died of that by then, nothing is
/// left to refuse.
const UNSTEADY: [&str; 1] = ["open::etxtbsy"];

struct Outcome {
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    text: String,
}

fn pjdfstest(program: &Path, configuration: &Path, dir: &Path) -> Outcome {
    let second = Scratch::new("pjdfstest-second");
    let finished = program::run(
        Command::new(program)
            .arg("--configuration-file")
            .arg(configuration)
            .arg("--path")
            .arg(dir)
            .arg("--secondary-fs")
            .arg(second.path()),
        Duration::from_secs(240),
    );
    assert!(
        finished.status.is_some(),
        "no end in time:\n{}",
        finished.text
    );
    let mut outcome = Outcome {
        passed: BTreeSet::new(),
        failed: BTreeSet::new(),
        text: String::new(),
    };
    for line in finished.text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(name), Some("ok"), None) => outcome.passed.insert(name.into()),
            (Some(name), Some("FAILED"), None) => outcome.failed.insert(name.into()),
            _ => false,
        };
    }
    outcome.text = finished.text;
    outcome
}

fn what_the_kernel_passes_passes(program: PathBuf, options: &str) {
    let _limit = Watchdog::new("pjdfstest", Duration::from_secs(540));
    let stand = Stand::new("pjdfstest");
    let configuration = stand.scratch.join("pjdfstest.toml");
    fs::write(&configuration, CONFIGURATION).unwrap();

    let kernel = stand.kernel();
    let judge = pjdfstest(&program, &configuration, kernel.path());
    kernel.unmount().unwrap();
    assert!(
        judge.passed.len() > 300,
        "pjdfstest did not run:\n{}",
        judge.text
    );

    let mount = stand.acetate(options).mount();
    let ours = pjdfstest(&program, &configuration, mount.path());
    end(mount);
    println!(
        "pjdfstest {options}: kernel overlayfs passes {} and fails {}, acetate passes {} and fails {}",
        judge.passed.len(),
        judge.failed.len(),
        ours.passed.len(),
        ours.failed.len()
    );
    let mut worse: Vec<_> = judge.passed.difference(&ours.passed).collect();
    worse.retain(|case| !UNSTEADY.contains(&case.as_str()));
    assert!(
        worse.is_empty(),
        "pass on kernel overlayfs, not here: {worse:#?}\n{}",
        ours.text
    );
}

#[test]
#[ignore = "heavy: needs pjdfstest (cargo install pjdfstest)"]
fn pjdfstest_fails_no_case_that_kernel_overlayfs_passes() {
    require!(skip::privileged());
    match program::find("pjdfstest") {
        Ok(program) => what_the_kernel_passes_passes(program, ""),
        Err(reason) => skip!("{reason}"),
    }
}

#[test]
#[ignore = "heavy: needs pjdfstest (cargo install pjdfstest)"]
fn pjdfstest_without_passthrough_fails_no_case_that_kernel_overlayfs_passes() {
    require!(skip::privileged());
    match program::find("pjdfstest") {
        Ok(program) => what_the_kernel_passes_passes(program, "passthrough=off"),
        Err(reason) => skip!("{reason}"),
    }
}
