//! What the tests have in common.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::program;

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const MARK: &str = "trusted.overlay.acetate.partial";

/// Bytes in which no block is like another.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed << 1 | 1;
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(length);
    data
}

/// Numbers at random, the same each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Runs a command of acetate.
pub(crate) fn acetate(words: &[&OsStr]) -> program::Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_acetate"));
    program::run(command.args(words), Duration::from_secs(60))
}

/// Completes a file or a mount.
pub(crate) fn complete(path: &Path) -> String {
    let done = acetate(&["complete".as_ref(), path.as_os_str()]);
    assert!(done.success(), "{}", done.text);
    done.text
}

/// A number that `acetate stats --json` tells.
pub(crate) fn stat(mount: &Path, name: &str) -> u64 {
    let told = acetate(&["stats".as_ref(), "--json".as_ref(), mount.as_os_str()]);
    assert!(told.success(), "{}", told.text);
    let value: serde_json::Value = serde_json::from_str(&told.text).unwrap();
    value[name].as_u64().unwrap()
}

/// The mark of a partial file, on disk.
pub(crate) fn mark(path: &Path) -> Option<Vec<u8>> {
    let mut value = vec![0; 8192];
    match rustix::fs::lgetxattr(path, MARK, &mut value) {
        Ok(n) => {
            value.truncate(n);
            Some(value)
        }
        Err(rustix::io::Errno::NODATA) => None,
        Err(e) => panic!("{}: {e}", path.display()),
    }
}

pub(crate) fn set_mark(path: &Path, value: &[u8]) {
    rustix::fs::lsetxattr(path, MARK, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// Neither marks nor the announcement are left.
#[track_caller]
pub(crate) fn assert_whole(upper: &Path, work: &Path, expected: &[u8]) {
    let names = crate::common::tree::xattrs(upper).unwrap();
    let left: Vec<_> = names
        .keys()
        .filter(|name| {
            let name = name.as_bytes();
            [&b"partial"[..], b"metacopy", b"redirect"]
                .iter()
                .any(|part| name.windows(part.len()).any(|w| w == *part))
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!work.join("work/incompat").exists());
    assert!(fs::read(upper).unwrap() == expected, "the bytes on disk");
}
