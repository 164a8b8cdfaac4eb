//! Runs one operation on one tree by plain system calls.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::op::{Op, Step, Value as Xvalue, Who};
use super::outcome::{Attr, Bytes, Outcome, Value, show};
use super::sys::{self, Map, Result, c_path};

/// How many handles an executor holds.
pub const SLOTS: usize = 4;

/// A listing under way.
#[derive(Debug, Default)]
struct Listing {
    seen: Vec<Vec<u8>>,
    at_start: BTreeSet<Vec<u8>>,
}

#[derive(Debug)]
struct Handle {
    fd: OwnedFd,
    ino: u64,
    kind: u32,
    flags: i32,
    listing: Option<Listing>,
}

/// One tree and what is open on it.
#[derive(Debug)]
pub struct Executor {
    root: OwnedFd,
    /// The machine's root.
    outside: OwnedFd,
    /// Where open files are found by number.
    proc: OwnedFd,
    /// The device of the root: everything below lies on it.
    dev: u64,
    slots: [Option<Handle>; SLOTS],
    map: Option<(Map, bool)>,
    umask: u32,
    /// Look at inode numbers around each operation.
    probe: bool,
    broken: Vec<String>,
}

/// The data that is written: it differs by seed and position.
pub fn pattern(seed: u8, off: u64, len: usize) -> Vec<u8> {
    (off..)
        .take(len)
        .map(|at| seed ^ (at % 251) as u8 ^ (at >> 12) as u8 | 1)
        .collect()
}

/// A POSIX ACL as its xattr holds it: tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(permissions.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

/// The bytes of an xattr.
pub fn xattr_value(value: Xvalue) -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    match value {
        Xvalue::Bytes(len) => pattern(7, 0, usize::from(len)),
        // Version 2 with the effective flag, cap_net_raw permitted.
        Xvalue::Capability => [0x0200_0001_u32, 1 << 13, 0, 0, 0]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect(),
        Xvalue::AclMode(mode) => acl(&[
            (1, mode >> 6 & 7, NONE),
            (4, mode >> 3 & 7, NONE),
            (0x20, mode & 7, NONE),
        ]),
        Xvalue::AclUser(user, mask) => acl(&[
            (1, 7, NONE),
            (2, user, 1000),
            (4, 5, NONE),
            (0x10, mask, NONE),
            (0x20, 0, NONE),
        ]),
        Xvalue::AclGroup(group, mask) => acl(&[
            (1, 6, NONE),
            (4, 4, NONE),
            (8, group, 1001),
            (0x10, mask, NONE),
            (0x20, 4, NONE),
        ]),
    }
}

fn c_name(name: &str) -> std::ffi::CString {
    std::ffi::CString::new(name).unwrap()
}

fn done(result: Result<()>) -> Result<Value> {
    result.map(|()| Value::Done)
}

fn number(result: Result<u64>) -> Result<Value> {
    result.map(Value::Number)
}

fn data(result: Result<Vec<u8>>) -> Result<Value> {
    result.map(|d| Value::Data(Bytes(d)))
}

/// Every entry of an open directory from its present position.
fn read_all(fd: BorrowedFd<'_>, size: usize) -> Result<Vec<sys::Entry>> {
    let mut all = Vec::new();
    loop {
        let some = sys::getdents(fd, size)?;
        if some.is_empty() {
            return Ok(all);
        }
        all.extend(some);
    }
}

/// What is wrong with the answer of `SEEK_DATA` or `SEEK_HOLE`: data may be told where zeros lie, but what is passed
/// over as a hole, or begins one, is zero.
fn wrong_hole(fd: BorrowedFd<'_>, off: i64, whence: i32, at: &Result<u64>) -> Option<String> {
    let size = sys::fstat(fd).ok()?.st_size;
    let hole = match (whence, at) {
        (libc::SEEK_DATA, Ok(at)) => off..i64::try_from(*at).unwrap(),
        (libc::SEEK_DATA, Err(libc::ENXIO)) => off..size,
        (libc::SEEK_HOLE, Ok(at)) => {
            let at = i64::try_from(*at).unwrap();
            at..size.min(at + 1)
        }
        _ => return None,
    };
    if hole.is_empty() {
        return None;
    }
    let len = usize::try_from(hole.end - hole.start).unwrap();
    let data = sys::pread(fd, len, hole.start).ok()?;
    data.iter()
        .any(|b| *b != 0)
        .then(|| format!("data in the hole {hole:?}"))
}

fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

impl Executor {
    /// Starts on a tree.
    pub fn new(root: &Path, probe: bool) -> Executor {
        let root = std::fs::File::open(root).unwrap();
        let dev = sys::fstat(root.as_fd()).unwrap().st_dev;
        Executor {
            root: root.into(),
            outside: std::fs::File::open("/").unwrap().into(),
            proc: std::fs::File::open("/proc/self/fd").unwrap().into(),
            dev,
            slots: Default::default(),
            map: None,
            umask: 0o022,
            probe,
            broken: Vec::new(),
        }
    }

    /// Runs one step. Leaves the thread as root and in no tree.
    pub fn run(&mut self, step: &Step) -> Outcome {
        // A root of its own: random symlinks must not lead to the machine's files.
        sys::enter(self.root.as_fd()).unwrap();
        sys::umask(self.umask);
        let before = self.identity_before(&step.op);
        if step.who != Who::Root {
            sys::become_(step.who).unwrap();
        }
        let result = self.op(&step.op);
        if step.who != Who::Root {
            sys::become_(Who::Root).unwrap();
        }
        if let (Some(before), Ok(_)) = (before, &result) {
            self.identity_after(&step.op, before);
        }
        sys::umask(0o022);
        // A working directory would keep the mount busy.
        sys::enter(self.outside.as_fd()).unwrap();
        Outcome {
            result,
            broken: std::mem::take(&mut self.broken),
        }
    }

    /// Attributes as root sees them.
    fn peek(&self, path: &str, follow: bool) -> Option<libc::stat> {
        sys::enter(self.root.as_fd()).unwrap();
        let stat = sys::stat(&c_path(path), follow);
        sys::enter(self.outside.as_fd()).unwrap();
        stat.ok()
    }

    /// Whether a path leads to a file of this size.
    pub fn has_size(&self, path: &str, size: u32) -> bool {
        self.peek(path, true)
            .is_some_and(|s| s.st_size == i64::from(size))
    }

    /// Whether a path leads to a file that is open.
    pub fn has_open(&self, path: &str) -> bool {
        let ino = self.peek(path, true).map(|s| s.st_ino);
        self.slots.iter().flatten().any(|h| Some(h.ino) == ino)
    }

    /// Whether an open file has capabilities.
    pub fn has_capability(&self, slot: u8) -> bool {
        self.fd(slot)
            .is_ok_and(|fd| sys::fgetxattr(fd, c"security.capability").is_ok())
    }

    /// Whether the mapped file has capabilities.
    pub fn map_has_capability(&self) -> bool {
        let map = self.map.as_ref().map(|(map, _)| map.fd());
        map.is_some_and(|fd| sys::fgetxattr(fd, c"security.capability").is_ok())
    }

    /// Whether a path is a directory.
    pub fn is_dir(&self, path: &str) -> bool {
        self.peek(path, false)
            .is_some_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }

    /// Whether a handle is open for reading only.
    pub fn is_reader(&self, slot: u8) -> bool {
        let handle = self.slots[usize::from(slot)].as_ref();
        handle.is_some_and(|h| h.flags & libc::O_ACCMODE == libc::O_RDONLY)
    }

    /// The inode that the operation must not exchange for another one.
    fn identity_before(&self, op: &Op) -> Option<u64> {
        if !self.probe {
            return None;
        }
        let (path, follow) = match op {
            Op::Rename { from, .. }
            | Op::Link {
                from,
                follow: false,
                ..
            } => (*from, false),
            Op::Chmod { path, .. } | Op::Truncate { path, .. } | Op::Open { path, .. } => {
                (*path, true)
            }
            Op::Chown { path, follow, .. }
            | Op::Utimens { path, follow, .. }
            | Op::SetXattr { path, follow, .. }
            | Op::RemoveXattr { path, follow, .. } => (*path, *follow),
            _ => return None,
        };
        sys::stat(&c_path(path), follow).ok().map(|s| s.st_ino)
    }

    fn identity_after(&mut self, op: &Op, before: u64) {
        let (path, follow) = match op {
            Op::Rename { to, .. } | Op::Link { to, .. } => (*to, false),
            Op::Chmod { path, .. } | Op::Truncate { path, .. } | Op::Open { path, .. } => {
                (*path, true)
            }
            Op::Chown { path, follow, .. }
            | Op::Utimens { path, follow, .. }
            | Op::SetXattr { path, follow, .. }
            | Op::RemoveXattr { path, follow, .. } => (*path, *follow),
            _ => return,
        };
        match sys::stat(&c_path(path), follow) {
            Ok(stat) if stat.st_ino == before => {}
            Ok(stat) => {
                self.broken
                    .push(format!("inode number {before} became {}", stat.st_ino));
            }
            Err(errno) => self.broken.push(format!("gone afterwards: errno {errno}")),
        }
    }

    fn fd(&self, slot: u8) -> Result<BorrowedFd<'_>> {
        self.slots[usize::from(slot)]
            .as_ref()
            .map(|h| h.fd.as_fd())
            .ok_or(libc::EBADF)
    }

    /// A handle of a regular file or directory: what a fifo or a device does is not the filesystem's.
    fn file(&self, slot: u8) -> Result<BorrowedFd<'_>> {
        match self.slots[usize::from(slot)].as_ref() {
            Some(h) if matches!(h.kind, libc::S_IFREG | libc::S_IFDIR) => Ok(h.fd.as_fd()),
            _ => Err(libc::EBADF),
        }
    }

    /// A handle of a regular file.
    fn regular(&self, slot: u8) -> Result<BorrowedFd<'_>> {
        match self.slots[usize::from(slot)].as_ref() {
            Some(h) if h.kind == libc::S_IFREG => Ok(h.fd.as_fd()),
            _ => Err(libc::EBADF),
        }
    }

    fn keep(&mut self, slot: u8, fd: OwnedFd, flags: i32) -> Result<Value> {
        let stat = sys::fstat(fd.as_fd())?;
        let kind = stat.st_mode & libc::S_IFMT;
        let handle = Handle {
            fd,
            ino: stat.st_ino,
            kind,
            flags,
            listing: None,
        };
        self.slots[usize::from(slot)] = Some(handle);
        Ok(Value::Attr(self.attr(&stat)))
    }

    fn attr(&mut self, stat: &libc::stat) -> Attr {
        if stat.st_dev != self.dev {
            self.broken.push(format!(
                "st_dev {:x}, not {:x} of the root",
                stat.st_dev, self.dev
            ));
        }
        stat.into()
    }

    fn op(&mut self, op: &Op) -> Result<Value> {
        match *op {
            Op::Open {
                slot,
                path,
                flags,
                mode,
            } => {
                // A fifo without a peer would block.
                let fd = sys::open(&c_path(path), flags | libc::O_NONBLOCK, mode)?;
                self.keep(slot, fd, flags)
            }
            Op::Reopen { slot, from, flags } => {
                use std::os::fd::AsRawFd;
                let number = c_name(&self.file(from)?.as_raw_fd().to_string());
                let fd = sys::openat(self.proc.as_fd(), &number, flags | libc::O_NONBLOCK, 0)?;
                self.keep(slot, fd, flags)
            }
            Op::Close { slot } => {
                let held = self.slots[usize::from(slot)].take();
                held.map(|_| Value::Done).ok_or(libc::EBADF)
            }
            Op::Umask { mask } => {
                self.umask = mask;
                Ok(Value::Done)
            }
            // The world's, not one tree's.
            Op::Remount => Ok(Value::Done),
            Op::DirStart { .. } | Op::DirFinish { .. } | Op::DirSeek { .. } | Op::List { .. } => {
                self.dir_op(op)
            }
            _ => match self.path_op(op) {
                Some(result) => result,
                None => self.file_op(op),
            },
        }
    }

    fn file_op(&mut self, op: &Op) -> Result<Value> {
        let wide = |n: u32| i64::from(n);
        let long = |n: u32| n as usize;
        match *op {
            Op::Read { slot, len } => data(sys::read(self.regular(slot)?, long(len))),
            Op::Pread { slot, off, len } => {
                data(sys::pread(self.regular(slot)?, long(len), wide(off)))
            }
            Op::Write { slot, len, seed } => {
                let data = pattern(seed, 0, long(len));
                number(sys::write(self.file(slot)?, &data))
            }
            Op::Pwrite {
                slot,
                off,
                len,
                seed,
            } => {
                let data = pattern(seed, u64::from(off), long(len));
                number(sys::pwrite(self.file(slot)?, &data, wide(off)))
            }
            Op::Seek { slot, off, whence } => {
                let fd = self.regular(slot)?;
                let at = sys::lseek(fd, i64::from(off), whence);
                if matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
                    let broken = wrong_hole(fd, i64::from(off), whence, &at);
                    // Where it led may differ, what is read next may not.
                    sys::lseek(fd, i64::from(off), libc::SEEK_SET)?;
                    self.broken.extend(broken);
                }
                number(at)
            }
            Op::Ftruncate { slot, size } => done(sys::ftruncate(self.file(slot)?, wide(size))),
            Op::Fallocate {
                slot,
                mode,
                off,
                len,
            } => done(sys::fallocate(self.file(slot)?, mode, wide(off), wide(len))),
            Op::Sync { slot, data } => done(sys::sync(self.file(slot)?, data)),
            Op::Copy {
                from,
                to,
                from_off,
                to_off,
                len,
            } => {
                let (from, to) = (self.file(from)?, self.file(to)?);
                number(sys::copy(from, wide(from_off), to, wide(to_off), long(len)))
            }
            Op::Flock { slot, how } => done(sys::flock(self.file(slot)?, how | libc::LOCK_NB)),
            Op::Lock {
                slot,
                kind,
                start,
                len,
            } => done(sys::lock(self.file(slot)?, kind, wide(start), wide(len))),
            Op::Fstat { slot } => {
                let stat = sys::fstat(self.fd(slot)?)?;
                let ino = self.slots[usize::from(slot)].as_ref().map(|h| h.ino);
                if ino != Some(stat.st_ino) {
                    self.broken.push(format!(
                        "inode {} of the open file, once {ino:?}",
                        stat.st_ino
                    ));
                }
                Ok(Value::Attr(self.attr(&stat)))
            }
            Op::Fchmod { slot, mode } => done(sys::fchmod(self.fd(slot)?, mode)),
            Op::Fchown { slot, uid, gid } => done(sys::fchown(self.fd(slot)?, uid, gid)),
            Op::Futimens { slot, atime, mtime } => {
                done(sys::futimens(self.fd(slot)?, atime, mtime))
            }
            Op::Fsetxattr {
                slot,
                name,
                value,
                flags,
            } => {
                let value = xattr_value(value);
                done(sys::fsetxattr(self.fd(slot)?, &c_name(name), &value, flags))
            }
            Op::Fgetxattr { slot, name } => data(sys::fgetxattr(self.fd(slot)?, &c_name(name))),
            Op::Fremovexattr { slot, name } => {
                done(sys::fremovexattr(self.fd(slot)?, &c_name(name)))
            }
            _ => self.map_op(op),
        }
    }

    fn map_op(&mut self, op: &Op) -> Result<Value> {
        let size = |fd: BorrowedFd<'_>| sys::fstat(fd).map(|s| s.st_size as usize);
        match *op {
            Op::MapRead { slot, off, len } => {
                let fd = self.regular(slot)?;
                let map = Map::new(fd, size(fd)?, false, false)?;
                data(map.peek(off as usize, len as usize))
            }
            Op::MapWrite {
                slot,
                off,
                len,
                seed,
            } => {
                let fd = self.regular(slot)?;
                let map = Map::new(fd, size(fd)?, true, false)?;
                done(map.poke(off as usize, &pattern(seed, u64::from(off), len as usize)))
            }
            Op::MapPrivate {
                slot,
                off,
                len,
                seed,
            } => {
                let fd = self.regular(slot)?;
                let map = Map::new(fd, size(fd)?, true, true)?;
                map.poke(off as usize, &pattern(seed, u64::from(off), len as usize))?;
                data(map.peek(off as usize, len as usize))
            }
            Op::MapHold { slot } => {
                self.map = None;
                let fd = self.regular(slot)?;
                let flags = self.slots[usize::from(slot)]
                    .as_ref()
                    .map_or(0, |h| h.flags);
                let write = flags & libc::O_ACCMODE == libc::O_RDWR;
                self.map = Some((Map::new(fd, size(fd)?, write, false)?, write));
                Ok(Value::Done)
            }
            Op::MapPoke { off, len, seed } => match &self.map {
                Some((map, true)) => {
                    done(map.poke(off as usize, &pattern(seed, u64::from(off), len as usize)))
                }
                _ => Err(libc::ENXIO),
            },
            Op::MapPeek { off, len } => match &self.map {
                Some((map, true)) => data(map.peek(off as usize, len as usize)),
                // A mapping made before a copy-up may keep the old data, on the kernel's overlayfs too.
                Some((map, false)) => map.peek(off as usize, len as usize).map(|_| Value::Done),
                None => Err(libc::ENXIO),
            },
            Op::MapDrop => {
                self.map = None;
                Ok(Value::Done)
            }
            _ => unreachable!("{op:?}"),
        }
    }

    fn path_op(&mut self, op: &Op) -> Option<Result<Value>> {
        Some(match *op {
            Op::Truncate { path, size } => done(sys::truncate(&c_path(path), i64::from(size))),
            Op::Mkdir { path, mode } => done(sys::mkdir(&c_path(path), mode)),
            Op::Rmdir { path } => done(sys::rmdir(&c_path(path))),
            Op::Unlink { path } => done(sys::unlink(&c_path(path))),
            Op::Symlink { target, path } => done(sys::symlink(&c_path(target), &c_path(path))),
            Op::Link { from, to, follow } => done(sys::link(&c_path(from), &c_path(to), follow)),
            Op::Rename { from, to, flags } => done(sys::rename(&c_path(from), &c_path(to), flags)),
            Op::Mknod {
                path,
                kind,
                mode,
                major,
                minor,
            } => done(sys::mknod(&c_path(path), kind | mode, major, minor)),
            Op::Chmod { path, mode } => done(sys::chmod(&c_path(path), mode)),
            Op::Chown {
                path,
                uid,
                gid,
                follow,
            } => done(sys::chown(&c_path(path), uid, gid, follow)),
            Op::Utimens {
                path,
                atime,
                mtime,
                follow,
            } => done(sys::utimens(&c_path(path), atime, mtime, follow)),
            Op::SetXattr {
                path,
                name,
                value,
                flags,
                follow,
            } => {
                let value = xattr_value(value);
                done(sys::setxattr(
                    &c_path(path),
                    &c_name(name),
                    &value,
                    flags,
                    follow,
                ))
            }
            Op::GetXattr { path, name, follow } => {
                data(sys::getxattr(&c_path(path), &c_name(name), follow))
            }
            Op::RemoveXattr { path, name, follow } => {
                done(sys::removexattr(&c_path(path), &c_name(name), follow))
            }
            Op::ListXattr { path, follow } => sys::listxattr(&c_path(path), follow)
                .map(|names| Value::List(names.iter().map(|n| show(n)).collect())),
            Op::Readlink { path } => data(sys::readlink(&c_path(path))),
            Op::Stat { path, follow } => {
                sys::stat(&c_path(path), follow).map(|s| Value::Attr(self.attr(&s)))
            }
            Op::Access { path, mode } => done(sys::access(&c_path(path), mode)),
            Op::Cat { path } => Self::cat(path),
            _ => return None,
        })
    }

    fn cat(path: &str) -> Result<Value> {
        let fd = sys::open(&c_path(path), libc::O_RDONLY | libc::O_NONBLOCK, 0)?;
        let stat = sys::fstat(fd.as_fd())?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Ok(Value::Done);
        }
        let mut all = Vec::new();
        loop {
            let some = sys::read(fd.as_fd(), 1 << 17)?;
            if some.is_empty() {
                return Ok(Value::Data(Bytes(all)));
            }
            all.extend(some);
        }
    }

    fn dir_op(&mut self, op: &Op) -> Result<Value> {
        match *op {
            Op::List { path } => {
                let fd = sys::open(&c_path(path), libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
                let entries = read_all(fd.as_fd(), 32768)?;
                if self.probe {
                    self.check_listing(fd.as_fd(), &entries);
                }
                let mut names: Vec<(String, u8)> =
                    entries.iter().map(|e| (show(&e.name), e.kind)).collect();
                names.sort();
                Ok(Value::Names(names))
            }
            Op::DirStart { slot } => {
                let fd = self.directory(slot)?;
                sys::lseek(fd, 0, libc::SEEK_SET)?;
                let at_start = Self::names_now(fd)?;
                let seen = sys::getdents(fd, 64)?.into_iter().map(|e| e.name).collect();
                if let Some(handle) = &mut self.slots[usize::from(slot)] {
                    handle.listing = Some(Listing { seen, at_start });
                }
                Ok(Value::Done)
            }
            Op::DirFinish { slot } => {
                self.directory(slot)?;
                let Some(handle) = &mut self.slots[usize::from(slot)] else {
                    return Err(libc::EBADF);
                };
                let mut listing = handle.listing.take().ok_or(libc::EINVAL)?;
                let at_end = Self::names_now(handle.fd.as_fd());
                listing
                    .seen
                    .extend(read_all(handle.fd.as_fd(), 64)?.into_iter().map(|e| e.name));
                // Whatever came or went in between may be listed or not; the rest exactly once.
                for name in listing.at_start.intersection(&at_end?) {
                    let times = listing.seen.iter().filter(|n| *n == name).count();
                    if times != 1 {
                        self.broken
                            .push(format!("{} listed {times} times", show(name)));
                    }
                }
                Ok(Value::Done)
            }
            Op::DirSeek { slot, at } => {
                let fd = self.directory(slot)?;
                sys::lseek(fd, 0, libc::SEEK_SET)?;
                let all = read_all(fd, 4096)?;
                let mut broken = None;
                if let Some(entry) = all.get(usize::from(at)) {
                    sys::lseek(fd, entry.next, libc::SEEK_SET)?;
                    let rest = read_all(fd, 4096)?;
                    if rest[..] != all[usize::from(at) + 1..] {
                        broken = Some(format!("after seeking {rest:?} of {all:?}"));
                    }
                }
                let count = all.len() as u64;
                if let Some(handle) = &mut self.slots[usize::from(slot)] {
                    handle.listing = None;
                }
                self.broken.extend(broken);
                Ok(Value::Number(count))
            }
            _ => unreachable!("{op:?}"),
        }
    }

    fn directory(&self, slot: u8) -> Result<BorrowedFd<'_>> {
        match self.slots[usize::from(slot)].as_ref() {
            Some(h) if h.kind == libc::S_IFDIR && h.flags & libc::O_PATH == 0 => Ok(h.fd.as_fd()),
            _ => Err(libc::ENOTDIR),
        }
    }

    /// The names in an open directory, by a descriptor of its own.
    fn names_now(fd: BorrowedFd<'_>) -> Result<BTreeSet<Vec<u8>>> {
        let own = sys::openat(fd, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        Ok(read_all(own.as_fd(), 4096)?
            .into_iter()
            .map(|e| e.name)
            .collect())
    }

    fn check_listing(&mut self, dir: BorrowedFd<'_>, entries: &[sys::Entry]) {
        let mut names = BTreeSet::new();
        for entry in entries {
            let name = &entry.name;
            if !names.insert(name) {
                self.broken.push(format!("{} listed twice", show(name)));
            }
            if is_dot(name) {
                continue;
            }
            let name = std::ffi::CString::new(name.clone()).unwrap();
            // A listing with attributes names a node, and that of a file which a reader holds as it was before a change is
            // not its number: a known difference, told by a bit that no number has.
            let node = entry.ino >> 63 == 1;
            match sys::statat(dir, &name, false) {
                Ok(stat) if stat.st_ino != entry.ino && !node => self.broken.push(format!(
                    "{} listed with inode {}, has {}",
                    show(&entry.name),
                    entry.ino,
                    stat.st_ino
                )),
                // Without search permission nothing can be said.
                Ok(_) | Err(libc::EACCES) => {}
                Err(errno) => {
                    self.broken
                        .push(format!("{} listed but errno {errno}", show(&entry.name)));
                }
            }
        }
        for dot in [&b"."[..], b".."] {
            if !names.contains(&dot.to_vec()) {
                self.broken.push(format!("{} not listed", show(dot)));
            }
        }
    }
}
