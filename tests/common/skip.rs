//! Tests that need more than a machine may have.

use std::fs::OpenOptions;
use std::path::Path;

/// True on the continuous-integration machine, where a skipped mounted test is a failure.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|v| v == "true")
}

/// Says loudly that a test does not run and why.
pub fn skipped(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
    eprintln!("SKIPPED: {test}: {reason}");
    assert!(!in_ci(), "{test} may not be skipped with CI=true: {reason}");
}

/// Leaves the test with a loud notice: `skip!("no loop devices: {e}")`. With `CI=true` it fails.
#[macro_export]
macro_rules! skip {
    ($($arg:tt)*) => {{
        $crate::common::skip::skipped(module_path!(), &format!($($arg)*));
        return;
    }};
}

/// Leaves the test loudly when a condition returns the reason: `require!(skip::privileged())`.
#[macro_export]
macro_rules! require {
    ($condition:expr) => {
        if let Err(reason) = $condition {
            $crate::skip!("{reason}");
        }
    };
}

/// Root with the right to mount, and a FUSE device.
pub fn privileged() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".into());
    }
    fuse_device()
}

/// A usable `/dev/fuse`.
pub fn fuse_device() -> Result<(), String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map(drop)
        .map_err(|e| format!("/dev/fuse: {e}"))
}

/// A program on the search path.
pub fn program(name: &str) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|dir| dir.join(name).is_file());
    if found {
        Ok(())
    } else {
        Err(format!("{name} is not installed"))
    }
}

/// A filesystem type that this kernel knows.
pub fn filesystem(name: &str) -> Result<(), String> {
    let known = |text: &str| {
        text.lines()
            .any(|l| l.split_whitespace().next_back() == Some(name))
    };
    let list = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known(&list) || Path::new("/sys/module").join(name).exists() {
        Ok(())
    } else {
        Err(format!("the kernel has no {name}"))
    }
}

/// Linux 6.9 is the first that sends requests again.
pub fn kernel_resends() -> Result<(), String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 9) => Ok(()),
        _ => Err(format!("Linux {} sends no request again", release.trim())),
    }
}
