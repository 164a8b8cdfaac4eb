//! containerd's own suite of snapshotters, from Debian's sources of containerd, against our socket.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Scratch, Watchdog, program, skip};
use crate::require;

/// Where Debian's packages of Go sources lie.
const SOURCES: &str = "/usr/share/gocode";

fn sources() -> Result<(), String> {
    let suite = Path::new(SOURCES).join("src/github.com/containerd/containerd/snapshots/testsuite");
    if suite.is_dir() {
        return Ok(());
    }
    Err("golang-github-containerd-containerd-dev is not installed".into())
}

fn passes(mounts: &str) {
    require!(skip::privileged());
    for name in ["go", "mount.fuse3"] {
        require!(skip::program(name));
    }
    require!(sources());
    let _limit = Watchdog::new("containerd's suite", Duration::from_secs(470));
    let scratch = Scratch::new("suite");
    let binary = scratch.join("suite.test");
    let mut build = Command::new("go");
    build.args(["test", "-c", "-o"]).arg(&binary).arg(".");
    build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/containerd/suite"));
    // Compiled once for all runs of one checkout.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
    build.env("GO111MODULE", "off").env("GOPATH", SOURCES);
    build.env("GOFLAGS", "").env("GOCACHE", cache);
    program::must(&mut build, Duration::from_secs(180));

    let mut suite = Command::new(&binary);
    suite.args(["-test.v", "-test.parallel", "4"]);
    suite.env("TMPDIR", scratch.dir("t"));
    suite.env("ACETATE", env!("CARGO_BIN_EXE_acetate"));
    suite.env("ACETATE_MOUNTS", mounts);
    let printed = program::must(&mut suite, Duration::from_secs(280));
    let ended = |how: &str| -> Vec<&str> {
        let prefix = format!("--- {how}: TestSnapshotter/");
        let lines = printed.lines().map(str::trim_start);
        let names = lines.filter_map(|line| line.strip_prefix(&prefix));
        names.filter_map(|rest| rest.split(' ').next()).collect()
    };
    let passed = ended("PASS");
    assert!(passed.contains(&"128LayersMount"), "{passed:?}");
    assert!(passed.len() >= 20, "{passed:?}");
    // The suite of containerd 1.6 leaves it out for everybody; `names_move_out_of_lower_layers` does it.
    assert_eq!(ended("SKIP"), ["Rename"]);
}

#[test]
#[ignore = "needs Go, containerd's sources and root (Debian packages)"]
fn containerd_s_own_suite_passes() {
    passes("helper");
}

#[test]
#[ignore = "needs Go, containerd's sources and root (Debian packages)"]
fn containerd_s_own_suite_passes_on_mounts_that_the_snapshotter_keeps() {
    if std::env::var_os("ACETATE_LONG").is_none() {
        println!("set ACETATE_LONG=1 for the second run of the suite");
        return;
    }
    passes("snapshotter");
}
