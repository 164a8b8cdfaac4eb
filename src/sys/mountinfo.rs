//! What the kernel tells of its mounts.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The upper directories and workdirs of overlay mounts, from the text of `/proc/self/mountinfo`. The paths are those that
/// were given to `mount`, so relative ones lead nowhere and are left out.
pub fn overlay_directories(mountinfo: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mountinfo.split(|b| *b == b'\n') {
        // Optional fields end with a lone hyphen; type, source and the filesystem's own options follow.
        let mut fields = line
            .split(|b| *b == b' ')
            .skip_while(|f| *f != b"-")
            .skip(1);
        if fields.next() != Some(b"overlay") {
            continue;
        }
        let Some(options) = fields.nth(1) else {
            continue;
        };
        for option in split_options(&unescape(options)) {
            let path = option
                .strip_prefix(b"upperdir=")
                .or_else(|| option.strip_prefix(b"workdir="));
            if let Some(path) = path.filter(|p| p.starts_with(b"/")) {
                found.push(PathBuf::from(OsString::from_vec(path.to_vec())));
            }
        }
    }
    found
}

/// The options that the filesystem of a device, as `stat` tells it, was mounted with, from the text of `/proc/self/mountinfo`;
/// `None` where no mount of it can be seen.
pub fn filesystem_options(mountinfo: &[u8], dev: u64) -> Option<Vec<Vec<u8>>> {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let number = format!("{major}:{minor}");
    let line = mountinfo
        .split(|b| *b == b'\n')
        .find(|line| line.split(|b| *b == b' ').nth(2) == Some(number.as_bytes()))?;
    let mut fields = line
        .split(|b| *b == b' ')
        .skip_while(|f| *f != b"-")
        .skip(3);
    Some(split_options(&unescape(fields.next()?)))
}

/// Undoes the octal escapes of blanks and backslashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

/// Splits at commas that no backslash precedes.
fn split_options(options: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut escaped = false;
    for &byte in options {
        match byte {
            b'\\' if !escaped => {
                escaped = true;
                continue;
            }
            b',' if !escaped => parts.push(Vec::new()),
            _ => {
                if let Some(last) = parts.last_mut() {
                    last.push(byte);
                }
            }
        }
        escaped = false;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_upper_and_work() {
        let text = b"36 25 0:31 / /m rw shared:9 - overlay overlay rw,lowerdir=/l,upperdir=/a\\040b/u,workdir=/w,index=on\n\
            37 25 0:32 / /n rw - ext4 /dev/x rw,upperdir=/no\n\
            38 25 0:33 / /o rw - overlay o rw,lowerdir=l,upperdir=u,workdir=w\n";
        let found = overlay_directories(text);
        assert_eq!(found, [PathBuf::from("/a b/u"), PathBuf::from("/w")]);
    }
    #[test]
    fn finds_the_options_of_a_device() {
        let text =
            b"36 25 8:17 / /m rw,noatime shared:9 - xfs /dev/sdb1 rw,attr2,logdev=/dev/sdc\n";
        let options = filesystem_options(text, rustix::fs::makedev(8, 17)).unwrap();
        assert_eq!(options, [&b"rw"[..], b"attr2", b"logdev=/dev/sdc"]);
        assert_eq!(filesystem_options(text, rustix::fs::makedev(8, 1)), None);
    }
}
