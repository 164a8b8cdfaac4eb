//! A tree as text, to be compared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::build::sha256;

/// Everything of every node below `root`, by its path: type, mode, owner, size, time, link count, device, target or
/// digest, and extended attributes.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut nodes = BTreeMap::new();
    walk(root, "", &mut nodes);
    nodes
}

fn walk(path: &Path, name: &str, nodes: &mut BTreeMap<String, String>) {
    nodes.insert(format!("/{name}"), describe(path));
    if !path.symlink_metadata().unwrap().is_dir() {
        return;
    }
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let child = entry.file_name().as_bytes().escape_ascii().to_string();
        let below = if name.is_empty() {
            child
        } else {
            format!("{name}/{child}")
        };
        walk(&entry.path(), &below, nodes);
    }
}

/// One node in words.
pub fn describe(path: &Path) -> String {
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path).unwrap();
        format!("link {}", target.as_os_str().as_bytes().escape_ascii())
    } else if kind.is_file() {
        let data = std::fs::read(path).unwrap();
        format!("file {} n{} {}", data.len(), meta.nlink(), sha256(&data))
    } else {
        let letter = if kind.is_char_device() {
            'c'
        } else if kind.is_block_device() {
            'b'
        } else {
            'p'
        };
        format!("{letter} {:x}", meta.rdev())
    };
    let mut text = format!(
        "{:o} {}:{} {}.{:09} {what}",
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec(),
    );
    for (name, value) in xattrs(path) {
        text.push_str(&format!(" {name}={}", value.escape_ascii()));
    }
    text
}

/// The extended attributes of a node itself.
pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0u8; 64 << 10];
    let Ok(n) = rustix::fs::llistxattr(path, &mut names[..]) else {
        return BTreeMap::new();
    };
    names[..n]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0u8; 64 << 10];
            let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            value.truncate(n);
            (name.escape_ascii().to_string(), value)
        })
        .collect()
}
