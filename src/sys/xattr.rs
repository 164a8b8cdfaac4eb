//! Extended attributes of what an `O_PATH` descriptor names, and of a name in a directory, never following a symlink.
//!
//! The way through `/proc/self/fd` works on every kernel, but costs three times as much as the system calls of Linux 6.13, which
//! take a directory descriptor and a name.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;

use smallvec::SmallVec;

/// Whose xattrs are meant.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// What the descriptor names.
    Fd(BorrowedFd<'a>),
    /// The directory that the descriptor names.
    Dir(BorrowedFd<'a>),
    /// An entry of the directory that the descriptor names.
    At(BorrowedFd<'a>, &'a OsStr),
}

/// The system calls of Linux 6.13; the numbers are the same on all architectures that this can be built for.
const SETXATTRAT: libc::c_long = 463;
const GETXATTRAT: libc::c_long = 464;
const LISTXATTRAT: libc::c_long = 465;
const REMOVEXATTRAT: libc::c_long = 466;

/// The kernel's `struct xattr_args`.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// One operation on an inode that is named by a path.
enum Operation<'a> {
    Get(&'a CStr, &'a mut [u8]),
    List(&'a mut [u8]),
    Set(&'a CStr, &'a [u8], i32),
    Remove(&'a CStr),
}

fn answer(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether the kernel, and the sandbox, know the calls that take a directory descriptor.
fn has_at_calls() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        // SAFETY: the path is terminated, and a list of size 0 is not written to.
        let result = unsafe {
            libc::syscall(
                LISTXATTRAT,
                libc::AT_FDCWD,
                c"/".as_ptr(),
                0,
                std::ptr::null_mut::<u8>(),
                0,
            )
        };
        match answer(result) {
            Ok(_) => true,
            Err(e) => !matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)),
        }
    })
}

impl Operation<'_> {
    /// By descriptor and path.
    fn run_at(&mut self, dir: BorrowedFd<'_>, path: &CStr, flags: i32) -> io::Result<usize> {
        let (dir, path) = (dir.as_raw_fd(), path.as_ptr());
        let args_size = size_of::<XattrArgs>();
        match self {
            Operation::Get(name, value) => {
                let mut args = XattrArgs {
                    value: value.as_mut_ptr() as u64,
                    size: value.len() as u32,
                    flags: 0,
                };
                // SAFETY: path and name are terminated; `args` has the kernel's layout and names a buffer of that
                // size; all outlive the call.
                answer(unsafe {
                    libc::syscall(
                        GETXATTRAT,
                        dir,
                        path,
                        flags,
                        name.as_ptr(),
                        &raw mut args,
                        args_size,
                    )
                })
            }
            // SAFETY: the path is terminated and the buffer has the size that is passed; both outlive the call.
            Operation::List(list) => answer(unsafe {
                libc::syscall(LISTXATTRAT, dir, path, flags, list.as_mut_ptr(), list.len())
            }),
            Operation::Set(name, value, set_flags) => {
                let args = XattrArgs {
                    value: value.as_ptr() as u64,
                    size: value.len() as u32,
                    flags: *set_flags as u32,
                };
                // SAFETY: path and name are terminated; `args` has the kernel's layout and names a buffer of that
                // size, which is only read; all outlive the call.
                answer(unsafe {
                    libc::syscall(
                        SETXATTRAT,
                        dir,
                        path,
                        flags,
                        name.as_ptr(),
                        &raw const args,
                        args_size,
                    )
                })
            }
            Operation::Remove(name) => {
                // SAFETY: path and name are terminated and outlive the call.
                answer(unsafe { libc::syscall(REMOVEXATTRAT, dir, path, flags, name.as_ptr()) })
            }
        }
    }

    /// By path alone; `follow`: it ends in a magic link, which leads to the very inode, a symlink included.
    fn run_by_path(&mut self, path: &CStr, follow: bool) -> io::Result<usize> {
        let path = path.as_ptr();
        match self {
            Operation::Get(name, value) => {
                let (at, len) = (value.as_mut_ptr().cast(), value.len());
                // SAFETY: path and name are terminated, the buffer has the size that is passed, all outlive the call.
                answer(unsafe {
                    if follow {
                        libc::getxattr(path, name.as_ptr(), at, len)
                    } else {
                        libc::lgetxattr(path, name.as_ptr(), at, len)
                    }
                } as libc::c_long)
            }
            Operation::List(list) => {
                let (at, len) = (list.as_mut_ptr().cast(), list.len());
                // SAFETY: path and name are terminated, the buffer has the size that is passed, all outlive the call.
                answer(unsafe {
                    if follow {
                        libc::listxattr(path, at, len)
                    } else {
                        libc::llistxattr(path, at, len)
                    }
                } as libc::c_long)
            }
            Operation::Set(name, value, flags) => {
                let (at, len) = (value.as_ptr().cast(), value.len());
                // SAFETY: path and name are terminated, the buffer has the size that is passed, all outlive the call.
                answer(
                    unsafe {
                        if follow {
                            libc::setxattr(path, name.as_ptr(), at, len, *flags)
                        } else {
                            libc::lsetxattr(path, name.as_ptr(), at, len, *flags)
                        }
                    }
                    .into(),
                )
            }
            Operation::Remove(name) => {
                // SAFETY: path and name are terminated, the buffer has the size that is passed, all outlive the call.
                answer(
                    unsafe {
                        if follow {
                            libc::removexattr(path, name.as_ptr())
                        } else {
                            libc::lremovexattr(path, name.as_ptr())
                        }
                    }
                    .into(),
                )
            }
        }
    }

    fn run(&mut self, target: Target<'_>) -> io::Result<usize> {
        if has_at_calls() {
            match self.try_at(target) {
                Err(e) if needs_proc(target, &e) => {}
                other => return other,
            }
        }
        let (path, follow) = proc_path(target)?;
        self.run_by_path(as_c_str(&path)?, follow)
    }

    fn try_at(&mut self, target: Target<'_>) -> io::Result<usize> {
        match target {
            Target::At(dir, name) => {
                let name = terminated(name)?;
                self.run_at(dir, as_c_str(&name)?, libc::AT_SYMLINK_NOFOLLOW)
            }
            Target::Dir(dir) => self.run_at(dir, c".", 0),
            // The empty path is not taken for an `O_PATH` descriptor.
            Target::Fd(fd) => match self.run_at(fd, c"", libc::AT_EMPTY_PATH) {
                Err(e) if e.raw_os_error() == Some(libc::EBADF) => self.run_at(fd, c".", 0),
                other => other,
            },
        }
    }
}

/// Whether what failed says more of the way than of the target: no search permission in the directory itself, or no
/// directory behind an `O_PATH` descriptor.
fn needs_proc(target: Target<'_>, error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    match target {
        Target::At(..) => false,
        Target::Dir(_) => errno == Some(libc::EACCES),
        Target::Fd(_) => matches!(errno, Some(libc::ENOTDIR | libc::EACCES | libc::ELOOP)),
    }
}

/// A path with its terminator.
type Terminated = SmallVec<[u8; 128]>;

fn terminated(name: &OsStr) -> io::Result<Terminated> {
    if name.as_bytes().contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Terminated::from_slice(name.as_bytes());
    bytes.push(0);
    Ok(bytes)
}

fn as_c_str(bytes: &Terminated) -> io::Result<&CStr> {
    CStr::from_bytes_with_nul(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The target's path by way of `/proc`, and whether its last component is to be followed.
fn proc_path(target: Target<'_>) -> io::Result<(Terminated, bool)> {
    use std::io::Write;
    let (fd, name) = match target {
        Target::Fd(fd) | Target::Dir(fd) => (fd, None),
        Target::At(fd, name) => (fd, Some(name)),
    };
    let mut head = [0; 32];
    let mut rest = &mut head[..];
    write!(rest, "/proc/self/fd/{}", fd.as_raw_fd())?;
    let unused = rest.len();
    let mut bytes = Terminated::from_slice(&head[..head.len() - unused]);
    match name {
        None => bytes.push(0),
        Some(name) => {
            bytes.push(b'/');
            bytes.extend_from_slice(&terminated(name)?);
        }
    }
    Ok((bytes, name.is_none()))
}

/// Runs `operation` with a buffer that is large enough and gives what it wrote to `take`.
fn with_buffer<T>(
    mut operation: impl FnMut(&mut [u8]) -> io::Result<usize>,
    take: impl FnOnce(&[u8]) -> T,
) -> io::Result<T> {
    let mut small = [0; 256];
    match operation(&mut small) {
        Ok(len) => return Ok(take(&small[..len])),
        Err(e) if e.raw_os_error() == Some(libc::ERANGE) => {}
        Err(e) => return Err(e),
    }
    // The kernel's limit for values and lists.
    let mut large = vec![0; 1 << 16];
    let len = operation(&mut large)?;
    Ok(take(&large[..len]))
}

/// The value of an xattr; `None` when it is absent.
pub fn get(target: Target<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let name = CString::new(name.as_bytes())?;
    match with_buffer(
        |buffer| Operation::Get(&name, buffer).run(target),
        <[u8]>::to_vec,
    ) {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Calls `each` with every xattr name.
pub fn for_each_name(target: Target<'_>, mut each: impl FnMut(&OsStr)) -> io::Result<()> {
    with_buffer(
        |buffer| Operation::List(buffer).run(target),
        |names| {
            for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
                each(OsStr::from_bytes(name));
            }
        },
    )
}

/// All xattr names.
pub fn list(target: Target<'_>) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for_each_name(target, |name| {
        names.push(OsString::from_vec(name.as_bytes().to_vec()));
    })?;
    Ok(names)
}

/// Sets an xattr; `flags` as of `setxattr(2)`.
pub fn set(target: Target<'_>, name: &OsStr, value: &[u8], flags: i32) -> io::Result<()> {
    let name = CString::new(name.as_bytes())?;
    Operation::Set(&name, value, flags).run(target)?;
    Ok(())
}

/// Removes an xattr; `ENODATA` when it is absent.
pub fn remove(target: Target<'_>, name: &OsStr) -> io::Result<()> {
    let name = CString::new(name.as_bytes())?;
    Operation::Remove(&name).run(target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{CWD, Mode, OFlags};

    use super::*;

    /// Both ways, on each kind of descriptor.
    #[test]
    fn all_targets() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::write(at("f"), "").unwrap();
        std::fs::create_dir(at("d")).unwrap();
        std::os::unix::fs::symlink("f", at("l")).unwrap();
        let open = |path, flags| rustix::fs::openat(CWD, &path, flags, Mode::empty()).unwrap();
        let dir = open(temp.path().to_owned(), OFlags::PATH | OFlags::DIRECTORY);
        let file_path = open(at("f"), OFlags::PATH);
        let file = open(at("f"), OFlags::RDWR);
        let sub = open(at("d"), OFlags::PATH);
        let link = open(at("l"), OFlags::PATH | OFlags::NOFOLLOW);
        let name = OsStr::new("user.k");
        for target in [
            Target::Fd(file_path.as_fd()),
            Target::Fd(file.as_fd()),
            Target::At(dir.as_fd(), OsStr::new("f")),
            Target::Fd(sub.as_fd()),
            Target::Dir(sub.as_fd()),
            Target::At(dir.as_fd(), OsStr::new("d")),
        ] {
            let (path, follow) = proc_path(target).unwrap();
            for value in [vec![1; 10], vec![], vec![2; 1000]] {
                set(target, name, &value, 0).unwrap();
                assert_eq!(
                    get(target, name).unwrap(),
                    Some(value.clone()),
                    "{target:?}"
                );
                let again = Operation::Set(c"user.k", &value, libc::XATTR_CREATE).run(target);
                assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EEXIST));
                let mut buffer = vec![0; 2000];
                let len = Operation::Get(c"user.k", &mut buffer)
                    .run_by_path(as_c_str(&path).unwrap(), follow)
                    .unwrap();
                assert_eq!(buffer[..len], value);
            }
            assert_eq!(list(target).unwrap(), [name]);
            remove(target, name).unwrap();
            assert_eq!(get(target, name).unwrap(), None);
            let gone = remove(target, name).unwrap_err();
            assert_eq!(gone.raw_os_error(), Some(libc::ENODATA));
        }
        // A symlink is not followed: its own xattrs are not to be had by `user.` names.
        for target in [
            Target::Fd(link.as_fd()),
            Target::At(dir.as_fd(), OsStr::new("l")),
        ] {
            assert!(set(target, name, b"x", 0).is_err());
            assert!(list(target).unwrap().is_empty());
        }
        assert!(list(Target::Fd(file.as_fd())).unwrap().is_empty());
    }
}
