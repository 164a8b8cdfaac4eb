//! FUSE connections as the kernel sees them. Reads only `/proc` and `/sys`, so that a daemon that no longer
//! answers cannot block it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const FUSECTL: &str = "/sys/fs/fuse/connections";

/// Connections of this test process: those that a watchdog aborts.
static OURS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug)]
pub struct MountInfo {
    /// Minor device number: for FUSE the number of the connection.
    pub minor: u32,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Per-mount options.
    pub options: String,
    /// Filesystem type.
    pub fstype: String,
    /// Source.
    pub source: OsString,
    /// Options of the filesystem.
    pub super_options: String,
}

fn unescape(field: &str) -> OsString {
    let mut out = Vec::new();
    let mut bytes = field.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let octal = rest
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                bytes = &rest[3..];
            }
            None => {
                out.push(first);
                bytes = rest;
            }
        }
    }
    OsString::from_vec(out)
}

/// Every mount of this mount namespace.
pub fn mounts() -> Vec<MountInfo> {
    // A name need not be UTF-8, the kernel escapes only white space and backslash.
    let text = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            Some(MountInfo {
                minor: left.get(2)?.split_once(':')?.1.parse().ok()?,
                target: unescape(left.get(4)?).into(),
                options: (*left.get(5)?).to_owned(),
                fstype: (*right.first()?).to_owned(),
                source: unescape(right.get(1)?),
                super_options: right.get(2).copied().unwrap_or("").to_owned(),
            })
        })
        .collect()
}

/// The topmost mount at exactly this directory.
pub fn mounted_at(dir: &Path) -> Option<MountInfo> {
    mounts().into_iter().rfind(|m| m.target == dir)
}

/// Mounts fusectl where it is not mounted yet.
pub fn mount_fusectl() -> io::Result<()> {
    if fs::read_dir("/sys/fs/fuse").is_ok() && mounted_at(Path::new(FUSECTL)).is_none() {
        nix::mount::mount(
            Some("fusectl"),
            FUSECTL,
            Some("fusectl"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )?;
    }
    Ok(())
}

/// Ends a connection: everything that waits for its daemon gets an error.
pub fn abort(minor: u32) -> io::Result<()> {
    mount_fusectl()?;
    fs::write(format!("{FUSECTL}/{minor}/abort"), "1")
}

/// Registers a connection as belonging to this process.
pub fn register(minor: u32) {
    OURS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(minor);
}

/// Forgets a connection.
pub fn unregister(minor: u32) {
    OURS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|m| *m != minor);
}

/// Aborts every registered connection and says how many there were.
pub fn abort_all() -> usize {
    let ours = OURS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mounted = mounts();
    for minor in &ours {
        // A number that is mounted no more may be another process's connection by now.
        if !mounted.iter().any(|m| m.minor == *minor) {
            continue;
        }
        if let Err(e) = abort(*minor) {
            eprintln!("abort of FUSE connection {minor}: {e}");
        }
    }
    ours.len()
}
