//! System calls as they are: any flags, the plain errno, nothing retried or corrected on the way.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use super::op::{Time, Who};

/// What a call returns: its value or the errno.
pub type Result<T> = std::result::Result<T, i32>;

fn check(value: impl Into<i64>) -> Result<u64> {
    let value = value.into();
    match u64::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
    }
}

/// The bytes of a path of a case.
pub fn bytes(path: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for c in path.chars() {
        match c {
            'ÿ' => out.push(0xff),
            c => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    out
}

/// A path of a case for the kernel; the root is `.`.
pub fn c_path(path: &str) -> CString {
    CString::new(if path.is_empty() {
        b".".to_vec()
    } else {
        bytes(path)
    })
    .unwrap()
}

/// A path of a case below a directory.
pub fn below(root: &std::path::Path, path: &str) -> std::path::PathBuf {
    if path.is_empty() {
        return root.to_owned();
    }
    root.join(std::ffi::OsStr::from_bytes(&bytes(path)))
}

fn timespec(time: Time) -> libc::timespec {
    let (tv_sec, tv_nsec) = match time {
        Time::Omit => (0, libc::UTIME_OMIT),
        Time::Now => (0, libc::UTIME_NOW),
        Time::At(sec, nsec) => (sec, nsec),
    };
    libc::timespec { tv_sec, tv_nsec }
}

fn id(id: Option<u32>) -> u32 {
    id.unwrap_or(u32::MAX)
}

/// Gives this thread a working directory and an umask of its own.
pub fn unshare_fs() -> Result<()> {
    // SAFETY: takes no pointer; it affects this thread alone.
    check(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// Changes the working directory.
pub fn fchdir(dir: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the descriptor is open.
    check(unsafe { libc::fchdir(dir.as_raw_fd()) }).map(drop)
}

/// Makes a directory the working directory and the root of every path, also of absolute symlinks and `..`.
pub fn enter(dir: BorrowedFd<'_>) -> Result<()> {
    fchdir(dir)?;
    // SAFETY: the path is a C string.
    check(unsafe { libc::chroot(c".".as_ptr()) }).map(drop)
}

/// Sets the umask.
pub fn umask(mask: u32) {
    // SAFETY: takes no pointer.
    unsafe { libc::umask(mask) };
}

/// Makes this thread act as someone; the raw calls, since the C library would change every thread.
pub fn become_(who: Who) -> Result<()> {
    let (uid, groups): (u32, &[u32]) = match who {
        Who::Root => (0, &[]),
        Who::Alice => (1000, &[]),
        Who::Bob => (1001, &[1000]),
    };
    let keep = -1_i64;
    // SAFETY: takes no pointer.
    check(unsafe { libc::syscall(libc::SYS_setresuid, keep, 0, keep) })?;
    // SAFETY: the pointer and the length are those of one slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: takes no pointer.
    check(unsafe { libc::syscall(libc::SYS_setresgid, keep, uid, keep) })?;
    // SAFETY: takes no pointer.
    check(unsafe { libc::syscall(libc::SYS_setresuid, keep, uid, keep) }).map(drop)
}

/// `open`.
pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    // SAFETY: the working directory is always open.
    openat(
        unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) },
        path,
        flags,
        mode,
    )
}

/// `openat`.
pub fn openat(dir: BorrowedFd<'_>, path: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    let (dir, flags) = (dir.as_raw_fd(), flags | libc::O_CLOEXEC);
    // SAFETY: the path is a C string.
    let fd = check(unsafe { libc::openat(dir, path.as_ptr(), flags, mode) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) })
}

/// `read`.
pub fn read(fd: BorrowedFd<'_>, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; len];
    // SAFETY: the buffer has the given length.
    let n = check(unsafe { libc::read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), len) } as i64)?;
    buf.truncate(usize::try_from(n).unwrap());
    Ok(buf)
}

/// `pread`.
pub fn pread(fd: BorrowedFd<'_>, len: usize, off: i64) -> Result<Vec<u8>> {
    let mut buf = vec![0; len];
    // SAFETY: the buffer has the given length.
    let n =
        check(unsafe { libc::pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), len, off) } as i64)?;
    buf.truncate(usize::try_from(n).unwrap());
    Ok(buf)
}

/// `write`.
pub fn write(fd: BorrowedFd<'_>, data: &[u8]) -> Result<u64> {
    // SAFETY: pointer and length are those of one slice.
    check(unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) } as i64)
}

/// `pwrite`.
pub fn pwrite(fd: BorrowedFd<'_>, data: &[u8], off: i64) -> Result<u64> {
    // SAFETY: pointer and length are those of one slice.
    check(unsafe { libc::pwrite(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), off) } as i64)
}

/// `lseek`.
pub fn lseek(fd: BorrowedFd<'_>, off: i64, whence: i32) -> Result<u64> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::lseek(fd.as_raw_fd(), off, whence) })
}

/// `ftruncate`.
pub fn ftruncate(fd: BorrowedFd<'_>, size: i64) -> Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }).map(drop)
}

/// `truncate`.
pub fn truncate(path: &CStr, size: i64) -> Result<()> {
    // SAFETY: the path is a C string.
    check(unsafe { libc::truncate(path.as_ptr(), size) }).map(drop)
}

/// `fallocate`.
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, off: i64, len: i64) -> Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::fallocate(fd.as_raw_fd(), mode, off, len) }).map(drop)
}

/// `fsync` and `fdatasync`.
pub fn sync(fd: BorrowedFd<'_>, data: bool) -> Result<()> {
    let fd = fd.as_raw_fd();
    // SAFETY: takes no pointer.
    check(unsafe {
        if data {
            libc::fdatasync(fd)
        } else {
            libc::fsync(fd)
        }
    })
    .map(drop)
}

/// `copy_file_range`.
pub fn copy(
    from: BorrowedFd<'_>,
    mut from_off: i64,
    to: BorrowedFd<'_>,
    mut to_off: i64,
    len: usize,
) -> Result<u64> {
    // SAFETY: the offsets outlive the call.
    let n = unsafe {
        let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
        libc::copy_file_range(from, &raw mut from_off, to, &raw mut to_off, len, 0)
    };
    check(n as i64)
}

/// `flock`.
pub fn flock(fd: BorrowedFd<'_>, how: i32) -> Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::flock(fd.as_raw_fd(), how) }).map(drop)
}

/// `F_OFD_SETLK`.
pub fn lock(fd: BorrowedFd<'_>, kind: i32, start: i64, len: i64) -> Result<()> {
    let lock = libc::flock {
        l_type: i16::try_from(kind).unwrap(),
        l_whence: 0,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the lock outlives the call.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }).map(drop)
}

/// `fstat`.
pub fn fstat(fd: BorrowedFd<'_>) -> Result<libc::stat> {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call.
    check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) })?;
    Ok(stat)
}

/// `stat` and `lstat`.
pub fn stat(path: &CStr, follow: bool) -> Result<libc::stat> {
    // SAFETY: the working directory is always open.
    statat(
        unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) },
        path,
        follow,
    )
}

/// `fstatat`.
pub fn statat(dir: BorrowedFd<'_>, path: &CStr, follow: bool) -> Result<libc::stat> {
    let flags = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call, the path is a C string.
    check(unsafe { libc::fstatat(dir.as_raw_fd(), path.as_ptr(), &raw mut stat, flags) })?;
    Ok(stat)
}

/// `fchmod`.
pub fn fchmod(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }).map(drop)
}

/// `chmod`.
pub fn chmod(path: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the path is a C string.
    check(unsafe { libc::chmod(path.as_ptr(), mode) }).map(drop)
}

/// `fchown`.
pub fn fchown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::fchown(fd.as_raw_fd(), id(uid), id(gid)) }).map(drop)
}

/// `chown` and `lchown`.
pub fn chown(path: &CStr, uid: Option<u32>, gid: Option<u32>, follow: bool) -> Result<()> {
    let flags = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    // SAFETY: the path is a C string.
    let n = unsafe { libc::fchownat(libc::AT_FDCWD, path.as_ptr(), id(uid), id(gid), flags) };
    check(n).map(drop)
}

/// `futimens`.
pub fn futimens(fd: BorrowedFd<'_>, atime: Time, mtime: Time) -> Result<()> {
    let times = [timespec(atime), timespec(mtime)];
    // SAFETY: the two times outlive the call.
    check(unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) }).map(drop)
}

/// `utimensat`.
pub fn utimens(path: &CStr, atime: Time, mtime: Time, follow: bool) -> Result<()> {
    let flags = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    let times = [timespec(atime), timespec(mtime)];
    // SAFETY: the two times outlive the call, the path is a C string.
    let n = unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), flags) };
    check(n).map(drop)
}

/// `setxattr` and `lsetxattr`.
pub fn setxattr(path: &CStr, name: &CStr, value: &[u8], flags: i32, follow: bool) -> Result<()> {
    let call = if follow {
        libc::setxattr
    } else {
        libc::lsetxattr
    };
    let (path, name) = (path.as_ptr(), name.as_ptr());
    // SAFETY: both names are C strings, pointer and length are those of one slice.
    check(unsafe { call(path, name, value.as_ptr().cast(), value.len(), flags) }).map(drop)
}

/// `fsetxattr`.
pub fn fsetxattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], flags: i32) -> Result<()> {
    let (fd, name) = (fd.as_raw_fd(), name.as_ptr());
    // SAFETY: the name is a C string, pointer and length are those of one slice.
    check(unsafe { libc::fsetxattr(fd, name, value.as_ptr().cast(), value.len(), flags) }).map(drop)
}

/// `getxattr` and `lgetxattr`.
pub fn getxattr(path: &CStr, name: &CStr, follow: bool) -> Result<Vec<u8>> {
    let call = if follow {
        libc::getxattr
    } else {
        libc::lgetxattr
    };
    let mut buf = vec![0u8; 65536];
    let (path, name) = (path.as_ptr(), name.as_ptr());
    // SAFETY: both names are C strings, the buffer has the given length.
    let n = check(unsafe { call(path, name, buf.as_mut_ptr().cast(), buf.len()) } as i64)?;
    buf.truncate(usize::try_from(n).unwrap());
    Ok(buf)
}

/// `fgetxattr`.
pub fn fgetxattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>> {
    let mut buf = vec![0u8; 65536];
    let (fd, name) = (fd.as_raw_fd(), name.as_ptr());
    // SAFETY: the name is a C string, the buffer has the given length.
    let n = unsafe { libc::fgetxattr(fd, name, buf.as_mut_ptr().cast(), buf.len()) };
    buf.truncate(usize::try_from(check(n as i64)?).unwrap());
    Ok(buf)
}

/// `listxattr` and `llistxattr`, sorted.
pub fn listxattr(path: &CStr, follow: bool) -> Result<Vec<Vec<u8>>> {
    let call = if follow {
        libc::listxattr
    } else {
        libc::llistxattr
    };
    let mut buf = vec![0u8; 65536];
    // SAFETY: the path is a C string, the buffer has the given length.
    let n = check(unsafe { call(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) } as i64)?;
    buf.truncate(usize::try_from(n).unwrap());
    let mut names: Vec<Vec<u8>> = buf
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.sort();
    Ok(names)
}

/// `removexattr` and `lremovexattr`.
pub fn removexattr(path: &CStr, name: &CStr, follow: bool) -> Result<()> {
    let call = if follow {
        libc::removexattr
    } else {
        libc::lremovexattr
    };
    // SAFETY: both names are C strings.
    check(unsafe { call(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// `fremovexattr`.
pub fn fremovexattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // SAFETY: the name is a C string.
    check(unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// `mkdir`.
pub fn mkdir(path: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the path is a C string.
    check(unsafe { libc::mkdir(path.as_ptr(), mode) }).map(drop)
}

/// `rmdir`.
pub fn rmdir(path: &CStr) -> Result<()> {
    // SAFETY: the path is a C string.
    check(unsafe { libc::rmdir(path.as_ptr()) }).map(drop)
}

/// `unlink`.
pub fn unlink(path: &CStr) -> Result<()> {
    // SAFETY: the path is a C string.
    check(unsafe { libc::unlink(path.as_ptr()) }).map(drop)
}

/// `symlink`.
pub fn symlink(target: &CStr, path: &CStr) -> Result<()> {
    // SAFETY: both are C strings.
    check(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) }).map(drop)
}

/// `linkat`.
pub fn link(from: &CStr, to: &CStr, follow: bool) -> Result<()> {
    let flags = if follow { libc::AT_SYMLINK_FOLLOW } else { 0 };
    let cwd = libc::AT_FDCWD;
    // SAFETY: both paths are C strings.
    check(unsafe { libc::linkat(cwd, from.as_ptr(), cwd, to.as_ptr(), flags) }).map(drop)
}

/// `renameat2`.
pub fn rename(from: &CStr, to: &CStr, flags: u32) -> Result<()> {
    let cwd = libc::AT_FDCWD;
    // SAFETY: both paths are C strings.
    check(unsafe { libc::renameat2(cwd, from.as_ptr(), cwd, to.as_ptr(), flags) }).map(drop)
}

/// `mknod`.
pub fn mknod(path: &CStr, mode: u32, major: u32, minor: u32) -> Result<()> {
    // SAFETY: the path is a C string.
    check(unsafe { libc::mknod(path.as_ptr(), mode, libc::makedev(major, minor)) }).map(drop)
}

/// `readlink`.
pub fn readlink(path: &CStr) -> Result<Vec<u8>> {
    let mut buf = vec![0u8; 8192];
    // SAFETY: the path is a C string, the buffer has the given length.
    let n = unsafe { libc::readlink(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    buf.truncate(usize::try_from(check(n as i64)?).unwrap());
    Ok(buf)
}

/// `faccessat2` with the effective ids.
pub fn access(path: &CStr, mode: i32) -> Result<()> {
    let (cwd, flags) = (libc::AT_FDCWD, libc::AT_EACCESS);
    // SAFETY: the path is a C string.
    let n = unsafe { libc::syscall(libc::SYS_faccessat2, cwd, path.as_ptr(), mode, flags) };
    check(n).map(drop)
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub ino: u64,
    pub kind: u8,
    /// Where the listing goes on after this entry.
    pub next: i64,
}

/// One `getdents64` with a buffer of this size.
pub fn getdents(fd: BorrowedFd<'_>, size: usize) -> Result<Vec<Entry>> {
    let mut buf = vec![0u8; size];
    // SAFETY: the buffer has the given length.
    let n = check(unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            fd.as_raw_fd(),
            buf.as_mut_ptr(),
            buf.len(),
        )
    })?;
    let mut rest = &buf[..usize::try_from(n).unwrap()];
    let mut entries = Vec::new();
    while rest.len() > 19 {
        let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
        let name = &rest[19..length];
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        entries.push(Entry {
            name: name[..end].to_vec(),
            ino: u64::from_ne_bytes(rest[..8].try_into().unwrap()),
            next: i64::from_ne_bytes(rest[8..16].try_into().unwrap()),
            kind: rest[18],
        });
        rest = &rest[length..];
    }
    Ok(entries)
}

/// A mapping of a file; unmapped on drop.
#[derive(Debug)]
pub struct Map {
    at: *mut libc::c_void,
    len: usize,
    fd: OwnedFd,
}

impl Map {
    /// Maps the first `len` bytes.
    pub fn new(fd: BorrowedFd<'_>, len: usize, write: bool, private: bool) -> Result<Map> {
        let protection = if write {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        let kind = if private {
            libc::MAP_PRIVATE
        } else {
            libc::MAP_SHARED
        };
        let own = fd
            .try_clone_to_owned()
            .map_err(|e| e.raw_os_error().unwrap())?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                kind,
                fd.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().raw_os_error().unwrap());
        }
        Ok(Map { at, len, fd: own })
    }

    /// The mapped file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.fd)
    }

    /// True when these bytes lie in the mapping and in the file, so that touching them raises no signal.
    fn covers(&self, off: usize, len: usize) -> bool {
        let size = fstat(self.fd()).map_or(0, |s| s.st_size);
        // A passthrough reader from before a copy-up is told the new size and maps the old file, which may be shorter: what it
        // can read tells.
        let mut last = [0];
        let readable =
            len == 0 || rustix::io::pread(self.fd(), &mut last, (off + len - 1) as u64) != Ok(0);
        off + len <= self.len && off + len <= usize::try_from(size).unwrap() && readable
    }

    /// Reads through the mapping; `ENXIO` where nothing can be read.
    pub fn peek(&self, off: usize, len: usize) -> Result<Vec<u8>> {
        if !self.covers(off, len) {
            return Err(libc::ENXIO);
        }
        let mut buf = vec![0u8; len];
        // SAFETY: the range lies in the mapping and in the file, as just checked.
        unsafe { std::ptr::copy(self.at.cast::<u8>().add(off), buf.as_mut_ptr(), len) };
        Ok(buf)
    }

    /// Writes through the mapping, which was made for it.
    pub fn poke(&self, off: usize, data: &[u8]) -> Result<()> {
        if !self.covers(off, data.len()) {
            return Err(libc::ENXIO);
        }
        // SAFETY: the range lies in the mapping and in the file, as just checked; the mapping is writable.
        unsafe { std::ptr::copy(data.as_ptr(), self.at.cast::<u8>().add(off), data.len()) };
        Ok(())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own.
        unsafe { libc::munmap(self.at, self.len) };
    }
}
