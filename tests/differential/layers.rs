//! Builds layers from their description, and copies a merged tree.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lsetxattr, utimensat};

use super::common::tree::xattrs;
use super::exec::{pattern, xattr_value};
use super::op::{Attrs, Node, Value};
use super::sys;

fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) -> io::Result<()> {
    let spec = |(tv_sec, tv_nsec): (i64, i64)| Timespec {
        tv_sec,
        tv_nsec: tv_nsec as _,
    };
    let times = Timestamps {
        last_access: spec(atime),
        last_modification: spec(mtime),
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn mknod(path: &Path, mode: u32, major: u32, minor: u32) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    sys::mknod(&path, mode, major, minor).map_err(io::Error::from_raw_os_error)
}

fn set_attrs(path: &Path, attrs: Attrs, is_dir: bool) -> io::Result<()> {
    lchown(path, Some(attrs.uid), Some(attrs.gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(attrs.mode))?;
    let special = !is_dir && !fs::symlink_metadata(path)?.is_file();
    let values = [
        (1, "user.layer", Value::Bytes(20)),
        (2, "trusted.layer", Value::Bytes(0)),
        (4, "security.capability", Value::Capability),
        (8, "system.posix_acl_access", Value::AclUser(6, 4)),
        (16, "system.posix_acl_default", Value::AclGroup(6, 7)),
        (32, "user.long", Value::Bytes(2000)),
    ];
    for (bit, name, value) in values {
        let fits = match bit {
            1 | 32 => !special,
            4 => !special && !is_dir,
            16 => is_dir,
            _ => true,
        };
        if attrs.xattrs & bit != 0 && fits {
            lsetxattr(path, name, &xattr_value(value), XattrFlags::empty())?;
        }
    }
    Ok(())
}

/// Writes a file whose every second 16 KiB are a hole when it is sparse.
fn write_file(path: &Path, size: u32, sparse: bool, seed: u8) -> io::Result<()> {
    const CHUNK: u64 = 16384;
    let file = File::options().write(true).create_new(true).open(path)?;
    file.set_len(u64::from(size))?;
    let mut at = 0;
    while at < u64::from(size) {
        let len = CHUNK.min(u64::from(size) - at);
        if !sparse || (at / CHUNK) % 2 == 1 {
            file.write_all_at(&pattern(seed, at, len as usize), at)?;
        }
        at += len;
    }
    Ok(())
}

fn make(root: &Path, path: &Path, node: &Node, user: bool) -> io::Result<()> {
    match *node {
        Node::File {
            size,
            sparse,
            seed,
            attrs,
        } => {
            write_file(path, size, sparse, seed)?;
            set_attrs(path, attrs, false)
        }
        Node::Dir { opaque, attrs } => {
            match fs::create_dir(path) {
                Err(e)
                    if e.kind() == io::ErrorKind::AlreadyExists
                        && fs::symlink_metadata(path)?.is_dir() => {}
                other => other?,
            }
            set_attrs(path, attrs, true)?;
            if opaque {
                let name = if user {
                    "user.overlay.opaque"
                } else {
                    "trusted.overlay.opaque"
                };
                lsetxattr(path, name, b"y", XattrFlags::empty())?;
            }
            Ok(())
        }
        Node::Symlink { target, uid } => {
            symlink(sys::below(Path::new(""), target), path)?;
            lchown(path, Some(uid), Some(uid))
        }
        Node::Link { to } => fs::hard_link(sys::below(root, to), path),
        Node::Fifo { attrs } => {
            mknod(path, libc::S_IFIFO | 0o600, 0, 0)?;
            set_attrs(path, attrs, false)
        }
        Node::Socket { attrs } => {
            mknod(path, libc::S_IFSOCK | 0o600, 0, 0)?;
            set_attrs(path, attrs, false)
        }
        Node::Device { attrs } => {
            mknod(path, libc::S_IFCHR | 0o600, 1, 3)?;
            set_attrs(path, attrs, false)
        }
        Node::Whiteout => mknod(path, libc::S_IFCHR, 0, 0),
    }
}

/// True when every directory above `path` is one, not a symlink that may lead out of the layer; missing ones
/// are made.
fn real_parents(root: &Path, path: &Path, create: bool) -> bool {
    let Some(parent) = path.strip_prefix(root).ok().and_then(Path::parent) else {
        return true;
    };
    let mut at = root.to_owned();
    for name in parent {
        at.push(name);
        match fs::symlink_metadata(&at) {
            Ok(meta) if meta.is_dir() => {}
            Err(e) if create && e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(&at).unwrap();
            }
            _ => return false,
        }
    }
    true
}

/// Fills one layer; `user`: with private xattrs in the `user.` form. What cannot stand where it is asked for is left out: a later entry never replaces an
/// earlier one.
pub fn build(root: &Path, entries: &[(&'static str, Node)], user: bool) {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    for (path, node) in entries {
        let full = sys::below(root, path);
        if !real_parents(root, &full, true) {
            continue;
        }
        if let Node::Link { to } = node {
            let to = sys::below(root, to);
            // Without an index the kernel knows no links of what cannot hold its private xattrs.
            let indexed = !user || fs::symlink_metadata(&to).is_ok_and(|m| m.is_file());
            if !real_parents(root, &to, false) || !indexed {
                continue;
            }
        }
        match make(root, &full, node, user) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EEXIST | libc::ENOENT | libc::EPERM | libc::ENOTDIR)
                ) => {}
            Err(e) => panic!("{}: {e}", full.display()),
        }
    }
    age(root, root);
}

/// Old times, so that nothing looks as if the test had changed it and a read would update the access time.
fn age(root: &Path, path: &Path) {
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            age(root, &entry.unwrap().path());
        }
    }
    let name = path.strip_prefix(root).unwrap().as_os_str().len() as i64;
    let mtime = 1_000_000_000 + name * 1000;
    set_times(path, (mtime - 500, 123_456_789), (mtime, 987_654_321)).unwrap();
}

/// Copies a tree with everything that programs see of it. False when it has names that are listed but not
/// found: the kernel's overlayfs lists a whiteout in a directory that is not merged with another one.
pub fn copy(from: &Path, to: &Path) -> bool {
    let mut copy = Copy {
        links: HashMap::new(),
        ghosts: false,
    };
    copy.node(from, to)
        .unwrap_or_else(|e| panic!("copy of {}: {e}", from.display()));
    !copy.ghosts
}

struct Copy {
    /// The first copy of each inode that has several names.
    links: HashMap<u64, PathBuf>,
    ghosts: bool,
}

fn copy_data(from: &Path, to: &Path, size: u64) -> io::Result<()> {
    let (source, target) = (File::open(from)?, File::options().write(true).open(to)?);
    target.set_len(size)?;
    let mut at = 0_u64;
    loop {
        let data = match rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        at = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(data))?;
        let mut buf = vec![0; (at - data) as usize];
        source.read_exact_at(&mut buf, data)?;
        target.write_all_at(&buf, data)?;
    }
}

impl Copy {
    fn node(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let meta = fs::symlink_metadata(from)?;
        let kind = meta.mode() & libc::S_IFMT;
        if kind != libc::S_IFDIR
            && meta.nlink() > 1
            && let Some(first) = self.links.insert(meta.ino(), to.to_owned())
        {
            return fs::hard_link(first, to);
        }
        match kind {
            libc::S_IFDIR => {
                if fs::symlink_metadata(to).is_err() {
                    fs::create_dir(to)?;
                }
                // Before the attributes: what is made in the directory would inherit from them.
                for entry in fs::read_dir(from)? {
                    let name = entry?.file_name();
                    let (from, to) = (from.join(&name), to.join(&name));
                    match fs::symlink_metadata(&from) {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => self.ghosts = true,
                        _ => self.node(&from, &to).map_err(|e| {
                            io::Error::new(e.kind(), format!("{}: {e}", from.display()))
                        })?,
                    }
                }
            }
            libc::S_IFLNK => symlink(fs::read_link(from)?, to)?,
            libc::S_IFREG => {
                File::create_new(to)?;
                copy_data(from, to, meta.size())?;
            }
            _ => {
                let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
                mknod(to, kind | 0o600, major, minor)?;
            }
        }
        lchown(to, Some(meta.uid()), Some(meta.gid()))?;
        if kind != libc::S_IFLNK {
            fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        }
        for (name, value) in xattrs(from)? {
            lsetxattr(to, &name, &value, XattrFlags::empty())?;
        }
        set_times(
            to,
            (meta.atime(), meta.atime_nsec()),
            (meta.mtime(), meta.mtime_nsec()),
        )
    }
}
