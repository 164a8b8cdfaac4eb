//! Runs one script on an ordinary directory and on mounts: what it sees must be the same.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::common::Scratch;
use crate::common::tree::xattrs;
use crate::rig::Rig;

/// What a script saw, one line each.
#[derive(Debug)]
pub struct Script {
    dir: PathBuf,
    lines: Vec<String>,
}

impl Script {
    /// A path in the directory at hand.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Notes a result: its value, or its error number.
    pub fn note<T: Debug>(&mut self, what: &str, result: io::Result<T>) {
        let text = match result {
            Ok(value) => format!("{value:?}"),
            Err(e) => format!("error {:?}", e.raw_os_error()),
        };
        self.lines.push(format!("{what}: {text}"));
    }

    /// Notes type, mode, owner, size, link count and the names of the xattrs of a path, no symlink followed.
    pub fn stat(&mut self, what: &str, name: &str) {
        let path = self.at(name);
        let seen = fs::symlink_metadata(&path).map(|m| {
            let names: Vec<_> = xattrs(&path).unwrap().into_iter().collect();
            let size = if m.is_dir() { 0 } else { m.size() };
            let links = if m.is_dir() { 0 } else { m.nlink() };
            format!(
                "{:o} {}:{} size {size} links {links} {names:?}",
                m.mode(),
                m.uid(),
                m.gid()
            )
        });
        self.note(&format!("{what}: {name}"), seen);
    }
}

/// What `script` sees on the tree that `build` makes: in a plain directory, in a lower layer and in an upper, by
/// passthrough, by requests, and with cached writes.
pub fn like_ext4(name: &str, build: impl Fn(&Path), script: impl Fn(&mut Script)) {
    let ways = [
        "passthrough_lower=auto",
        "passthrough_lower=always",
        "passthrough=off",
    ];
    like_ext4_by(&ways, name, build, script);
}

/// Owner and mode are kept in xattrs, a privileged one and one that whoever owns the file may set.
pub const KEPT_IN_XATTRS: [&str; 2] = ["xattr_permissions=1", "xattr_permissions=2"];

/// The same on mounts with these options.
pub fn like_ext4_by(
    ways: &[&str],
    name: &str,
    build: impl Fn(&Path),
    script: impl Fn(&mut Script),
) {
    let scratch = Scratch::new(name);
    let run = |dir: &Path| {
        let mut at = Script {
            dir: dir.to_owned(),
            lines: Vec::new(),
        };
        script(&mut at);
        at.lines
    };
    let plain = scratch.dir("plain");
    build(&plain);
    let expected = run(&plain);
    assert!(!expected.is_empty());
    let mut wrong = Vec::new();
    let mut compare = |seen: &[String], what: &str| {
        let show = |line: Option<&String>| line.map_or_else(|| "nothing".to_owned(), Clone::clone);
        for i in 0..expected.len().max(seen.len()) {
            if expected.get(i) != seen.get(i) {
                let (plain, mount) = (show(expected.get(i)), show(seen.get(i)));
                wrong.push(format!("{what}:\n  plain: {plain}\n  mount: {mount}"));
            }
        }
    };
    for &options in ways {
        let rig = Rig::new(name, options, &build);
        let seen = run(rig.mount.path());
        compare(&seen, &format!("a lower tree, {options}"));
        rig.finish(|_| {});
        let rig = Rig::new(name, options, |_| {});
        build(rig.mount.path());
        let seen = run(rig.mount.path());
        compare(&seen, &format!("an upper tree, {options}"));
        rig.finish(|_| {});
    }
    assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
}

/// Opens a path without following or needing anything, for operations on a symlink itself.
pub fn open_path(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
