//! Two trees, node by node: the first difference in names, attributes or data.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::compress::CHUNK;
use super::unpack::through_proc;

/// The first difference of two directories' trees, in words that call the second one the damaged one; `None` when they
/// are equal. Times of access, and numbers that the filesystem chooses, do not count.
pub(crate) fn first_difference(
    right: BorrowedFd<'_>,
    found: BorrowedFd<'_>,
) -> io::Result<Option<String>> {
    let dot = CString::from(c".");
    if let Some(what) = attributes(right, found, &dot)? {
        return Ok(Some(format!("/: {what}")));
    }
    // Paths below the roots; opened one at a time, so that a deep tree takes no more descriptors than a flat one.
    let mut left: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = left.pop() {
        let (a, b) = (open_dir(right, &path)?, open_dir(found, &path)?);
        let (names, others) = (names(&a)?, names(&b)?);
        let shown = |name: &CString| {
            let mut full = path.clone();
            full.push(b'/');
            full.extend_from_slice(name.to_bytes());
            full
        };
        if let Some(name) = names.difference(&others).next() {
            return Ok(Some(said(&shown(name), "is missing")));
        }
        if let Some(name) = others.difference(&names).next() {
            return Ok(Some(said(&shown(name), "should not be there")));
        }
        for name in &names {
            if let Some(what) = attributes(a.as_fd(), b.as_fd(), name)? {
                return Ok(Some(said(&shown(name), what)));
            }
            let stat = stat(a.as_fd(), name)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => left.push(shown(name)),
                FileType::RegularFile if !same_data(a.as_fd(), b.as_fd(), name)? => {
                    return Ok(Some(said(&shown(name), "has other data")));
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

fn said(path: &[u8], what: &str) -> String {
    format!("{}: {what}", path.escape_ascii())
}

fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    use super::unpack::open_beneath;
    let path = path.strip_prefix(b"/").unwrap_or(path);
    Ok(open_beneath(
        root,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY,
    )?)
}

fn names(dir: &OwnedFd) -> io::Result<BTreeSet<CString>> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.insert(name);
        }
    }
    Ok(names)
}

fn stat(dir: BorrowedFd<'_>, name: &CString) -> io::Result<Stat> {
    Ok(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn attributes(
    a: BorrowedFd<'_>,
    b: BorrowedFd<'_>,
    name: &CString,
) -> io::Result<Option<&'static str>> {
    let (x, y) = (stat(a, name)?, stat(b, name)?);
    let kind = FileType::from_raw_mode(x.st_mode);
    if kind != FileType::from_raw_mode(y.st_mode) {
        return Ok(Some("is of another type"));
    }
    if x.st_mode != y.st_mode {
        return Ok(Some("has another mode"));
    }
    if (x.st_uid, x.st_gid) != (y.st_uid, y.st_gid) {
        return Ok(Some("has another owner"));
    }
    if (x.st_mtime, x.st_mtime_nsec) != (y.st_mtime, y.st_mtime_nsec) {
        return Ok(Some("has another time"));
    }
    if kind != FileType::Directory {
        if x.st_size != y.st_size {
            return Ok(Some("has another size"));
        }
        if x.st_nlink != y.st_nlink {
            return Ok(Some("has another number of links"));
        }
        if x.st_rdev != y.st_rdev {
            return Ok(Some("is another device"));
        }
    }
    if kind == FileType::Symlink
        && rustix::fs::readlinkat(a, name, Vec::new())?
            != rustix::fs::readlinkat(b, name, Vec::new())?
    {
        return Ok(Some("leads elsewhere"));
    }
    if xattrs(a, name)? != xattrs(b, name)? {
        return Ok(Some("has other extended attributes"));
    }
    Ok(None)
}

/// The extended attributes of a node itself.
fn xattrs(dir: BorrowedFd<'_>, name: &CString) -> io::Result<BTreeSet<(Vec<u8>, Vec<u8>)>> {
    let path = through_proc(dir, name.to_bytes());
    let path = OsStr::from_bytes(&path);
    let mut list = vec![0u8; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut found = BTreeSet::new();
    for name in list[..length].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0u8; 64 << 10];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        found.insert((name.to_vec(), value));
    }
    Ok(found)
}

fn same_data(a: BorrowedFd<'_>, b: BorrowedFd<'_>, name: &CString) -> io::Result<bool> {
    let open = |dir: BorrowedFd<'_>| -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?.into())
    };
    let (a, b) = (open(a)?, open(b)?);
    let (mut x, mut y) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0;
    loop {
        let n = a.read_at(&mut x, offset)?;
        if n == 0 {
            return Ok(true);
        }
        match b.read_exact_at(&mut y[..n], offset) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(e),
        }
        if x[..n] != y[..n] {
            return Ok(false);
        }
        offset += n as u64;
    }
}
