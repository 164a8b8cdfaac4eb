//! CPython's own tests of files, with their temporary folder on the mount.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::stand::{Stand, end};
use crate::common::{Watchdog, program, skip};
use crate::{require, skip};

const MODULES: &[&str] = &[
    "test_os",
    "test_shutil",
    "test_tempfile",
    "test_pathlib",
    "test_posix",
    "test_mmap",
    "test_mailbox",
    "test_sqlite3",
    "test_zipfile",
    "test_tarfile",
];

/// A Python that has its own tests: distributions package them apart.
fn python() -> Result<PathBuf, String> {
    [program::find("python3"), Ok("/usr/bin/python3".into())]
        .into_iter()
        .flatten()
        .find(|python| {
            python.is_file()
                && program::run(
                    Command::new(python).args(["-c", "import test.test_os"]),
                    Duration::from_secs(20),
                )
                .success()
        })
        .ok_or_else(|| "no python3 with its test package (libpython3-testsuite)".into())
}

fn run(python: &Path, module: &str, dir: &Path) -> (bool, String) {
    let finished = program::run(
        Command::new(python)
            .args([
                "-m",
                "test",
                "-v",
                "-u",
                "all,-network,-urlfetch,-gui,-largefile",
            ])
            .arg("--tempdir")
            .arg(dir)
            .arg(module)
            .env("TMPDIR", dir)
            .current_dir(dir),
        Duration::from_secs(180),
    );
    (finished.success(), finished.text)
}

/// The lines by which unittest names what went wrong.
fn failures(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|l| l.starts_with("FAIL: ") || l.starts_with("ERROR: "))
        .collect()
}

#[test]
#[ignore = "heavy: needs CPython's tests (Debian package libpython3-testsuite)"]
fn cpython_fails_nothing_that_passes_on_ext4() {
    require!(skip::privileged());
    let python = match python() {
        Ok(python) => python,
        Err(reason) => skip!("{reason}"),
    };
    let _limit = Watchdog::new("cpython", Duration::from_secs(600));
    let stand = Stand::new("cpython");
    let plain = stand.scratch.dir("plain");
    let mount = stand.acetate("").mount();
    let mut worse = Vec::new();
    for module in MODULES {
        let (judge, judged) = run(&python, module, &plain);
        let (ours, text) = run(&python, module, mount.path());
        println!("{module}: plain directory {judge}, acetate {ours}");
        let known = failures(&judged);
        let new: Vec<_> = failures(&text)
            .into_iter()
            .filter(|f| !known.contains(f))
            .collect();
        if !new.is_empty() || (judge && !ours) {
            worse.push(format!("{module}: {new:#?}\n{text}"));
        }
    }
    end(mount);
    assert!(
        worse.is_empty(),
        "pass on a plain directory, not here:\n{}",
        worse.join("\n")
    );
}
