//! The changes that are made to fail, each in a directory of its own.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, FileType, Mode, RenameFlags, XattrFlags};

/// A change of a directory.
pub(crate) struct Change {
    pub(crate) name: &'static str,
    /// What is done before, and does not fail.
    pub(crate) before: fn(&Path) -> io::Result<()>,
    pub(crate) act: fn(&Path) -> io::Result<()>,
}

/// Bytes among which there is no zero.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| 1 + (at * 7 % 251) as u8).collect()
}

/// Fills a directory of the lower.
pub(crate) fn fill(dir: &Path) {
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("file"), pattern(3000)).unwrap();
    fs::write(dir.join("big"), pattern(30_000)).unwrap();
    fs::write(dir.join("one"), pattern(500)).unwrap();
    fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
    fs::create_dir(dir.join("dir")).unwrap();
    fs::write(dir.join("dir/inner"), "inner").unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    symlink("file", dir.join("symlink")).unwrap();
    set(&dir.join("file"), "user.a", b"value").unwrap();
}

fn set(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::setxattr(
        path,
        name,
        value,
        XattrFlags::empty(),
    )?)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn nothing(_: &Path) -> io::Result<()> {
    Ok(())
}

fn create(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).open(path).map(drop)
}

fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(
        CWD,
        a,
        CWD,
        b,
        RenameFlags::EXCHANGE,
    )?)
}

fn punch(path: &Path) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(open(path)?, flags, 5000, 15_000)?)
}

/// All of them.
pub(crate) const CHANGES: &[Change] = &[
    Change {
        name: "create",
        before: nothing,
        act: |d| create(&d.join("new")),
    },
    Change {
        name: "create over a whiteout",
        before: |d| fs::remove_file(d.join("file")),
        act: |d| create(&d.join("file")),
    },
    Change {
        name: "mkdir",
        before: nothing,
        act: |d| fs::create_dir(d.join("new")),
    },
    Change {
        name: "mkdir over a whiteout",
        before: |d| fs::remove_dir(d.join("empty")),
        act: |d| fs::create_dir(d.join("empty")),
    },
    Change {
        name: "mknod",
        before: nothing,
        act: |d| {
            let mode = Mode::from_raw_mode(0o600);
            Ok(rustix::fs::mknodat(
                CWD,
                d.join("new"),
                FileType::Fifo,
                mode,
                0,
            )?)
        },
    },
    Change {
        name: "symlink",
        before: nothing,
        act: |d| symlink("file", d.join("new")),
    },
    Change {
        name: "link",
        before: nothing,
        act: |d| fs::hard_link(d.join("file"), d.join("new")),
    },
    Change {
        name: "link over a whiteout",
        before: |d| fs::remove_file(d.join("file")),
        act: |d| fs::hard_link(d.join("one"), d.join("file")),
    },
    Change {
        name: "unlink",
        before: nothing,
        act: |d| fs::remove_file(d.join("file")),
    },
    Change {
        name: "unlink of the upper's",
        before: |d| create(&d.join("new")),
        act: |d| fs::remove_file(d.join("new")),
    },
    Change {
        name: "unlink of one of two names",
        before: |d| fs::set_permissions(d.join("one"), fs::Permissions::from_mode(0o600)),
        act: |d| fs::remove_file(d.join("one")),
    },
    Change {
        name: "rmdir",
        before: nothing,
        act: |d| fs::remove_dir(d.join("empty")),
    },
    Change {
        name: "rmdir of whiteouts",
        before: |d| fs::remove_file(d.join("dir/inner")),
        act: |d| fs::remove_dir(d.join("dir")),
    },
    Change {
        name: "rename",
        before: nothing,
        act: |d| fs::rename(d.join("file"), d.join("new")),
    },
    Change {
        name: "rename over a file",
        before: nothing,
        act: |d| fs::rename(d.join("file"), d.join("one")),
    },
    Change {
        name: "rename over a whiteout",
        before: |d| fs::remove_file(d.join("one")),
        act: |d| fs::rename(d.join("file"), d.join("one")),
    },
    Change {
        name: "rename of a directory",
        before: nothing,
        act: |d| fs::rename(d.join("dir"), d.join("new")),
    },
    Change {
        name: "rename over an empty directory",
        before: nothing,
        act: |d| fs::rename(d.join("dir"), d.join("empty")),
    },
    Change {
        name: "rename over a directory of whiteouts",
        before: |d| fs::remove_file(d.join("dir/inner")),
        act: |d| fs::rename(d.join("empty"), d.join("dir")),
    },
    Change {
        name: "exchange",
        before: nothing,
        act: |d| exchange(&d.join("file"), &d.join("dir")),
    },
    Change {
        name: "chmod",
        before: nothing,
        act: |d| fs::set_permissions(d.join("file"), fs::Permissions::from_mode(0o640)),
    },
    Change {
        name: "chmod of a directory",
        before: nothing,
        act: |d| fs::set_permissions(d.join("dir"), fs::Permissions::from_mode(0o750)),
    },
    Change {
        name: "chown",
        before: nothing,
        act: |d| std::os::unix::fs::chown(d.join("one"), Some(7), Some(8)),
    },
    Change {
        name: "setxattr",
        before: nothing,
        act: |d| set(&d.join("file"), "user.b", b"b"),
    },
    Change {
        name: "removexattr",
        before: nothing,
        act: |d| Ok(rustix::fs::removexattr(d.join("file"), "user.a")?),
    },
    Change {
        name: "truncate",
        before: nothing,
        act: |d| open(&d.join("file"))?.set_len(100),
    },
    Change {
        name: "truncate of a large file",
        before: nothing,
        act: |d| open(&d.join("big"))?.set_len(20_000),
    },
    Change {
        name: "truncate on opening",
        before: nothing,
        act: |d| {
            let mut options = OpenOptions::new();
            options.write(true).custom_flags(libc::O_TRUNC);
            options.open(d.join("file")).map(drop)
        },
    },
    Change {
        name: "write",
        before: nothing,
        act: |d| open(&d.join("file"))?.write_all_at(b"written", 10),
    },
    Change {
        name: "write to one of two names",
        before: nothing,
        act: |d| open(&d.join("two"))?.write_all_at(b"written", 10),
    },
    Change {
        name: "write to a metacopy file",
        before: |d| fs::set_permissions(d.join("file"), fs::Permissions::from_mode(0o640)),
        act: |d| open(&d.join("file"))?.write_all_at(b"written", 10),
    },
    Change {
        name: "write to a large file",
        before: nothing,
        act: |d| open(&d.join("big"))?.write_all_at(b"written", 10_000),
    },
    Change {
        name: "write to a partial file",
        before: |d| open(&d.join("big"))?.write_all_at(b"written", 10_000),
        act: |d| open(&d.join("big"))?.write_all_at(b"written", 20_000),
    },
    Change {
        name: "fsync of a partial file",
        before: |d| open(&d.join("big"))?.write_all_at(b"written", 10_000),
        act: |d| open(&d.join("big"))?.sync_all(),
    },
    Change {
        name: "punch",
        before: nothing,
        act: |d| punch(&d.join("big")),
    },
    Change {
        name: "completion",
        before: |d| open(&d.join("big"))?.write_all_at(b"written", 10_000),
        act: |d| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_acetate"));
            command.arg("complete").arg(d.join("big"));
            let limit = std::time::Duration::from_secs(60);
            let done = crate::common::program::run(&mut command, limit);
            if done.success() {
                Ok(())
            } else {
                // Which error it was, it tells in words.
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
        },
    },
];
