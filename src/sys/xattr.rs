//! Extended attributes of what an `O_PATH` descriptor names, and of a name in a directory, never following a symlink.

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use smallvec::SmallVec;

/// Whose xattrs are meant.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// What the descriptor names.
    Fd(BorrowedFd<'a>),
    /// An entry of the directory that the descriptor names.
    At(BorrowedFd<'a>, &'a OsStr),
}

/// The target's path by way of `/proc`, terminated.
struct ProcPath {
    bytes: SmallVec<[u8; 128]>,
    /// The path ends in a magic link, which is to be followed: it leads to the very inode, a symlink included.
    follow: bool,
}

impl ProcPath {
    fn new(target: Target<'_>) -> io::Result<ProcPath> {
        use std::io::Write;
        let (fd, name) = match target {
            Target::Fd(fd) => (fd, None),
            Target::At(fd, name) => (fd, Some(name.as_bytes())),
        };
        let mut head = [0; 32];
        let mut rest = &mut head[..];
        write!(rest, "/proc/self/fd/{}", fd.as_raw_fd())?;
        let unused = rest.len();
        let mut bytes = SmallVec::from_slice(&head[..head.len() - unused]);
        if let Some(name) = name {
            if name.contains(&0) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            bytes.push(b'/');
            bytes.extend_from_slice(name);
        }
        bytes.push(0);
        Ok(ProcPath {
            bytes,
            follow: name.is_none(),
        })
    }
    fn as_c_str(&self) -> io::Result<&CStr> {
        CStr::from_bytes_with_nul(&self.bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
    }
}

/// The value of an xattr; `None` when it is absent.
pub fn get(target: Target<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let path = ProcPath::new(target)?;
    let path_str = path.as_c_str()?;
    let mut room = 256;
    loop {
        let mut value = Vec::with_capacity(room);
        let result = if path.follow {
            rustix::fs::getxattr(path_str, name, rustix::buffer::spare_capacity(&mut value))
        } else {
            rustix::fs::lgetxattr(path_str, name, rustix::buffer::spare_capacity(&mut value))
        };
        match result {
            Ok(_) => return Ok(Some(value)),
            Err(Errno::NODATA) => return Ok(None),
            // The kernel's limit is 64 KiB; a value may have grown since it was asked for.
            Err(Errno::RANGE) if room <= 1 << 16 => room *= 16,
            Err(e) => return Err(e.into()),
        }
    }
}

/// Calls `each` with every xattr name.
pub fn for_each_name(target: Target<'_>, mut each: impl FnMut(&OsStr)) -> io::Result<()> {
    let path = ProcPath::new(target)?;
    let path_str = path.as_c_str()?;
    let mut room = 512;
    loop {
        let mut names = Vec::with_capacity(room);
        let result = if path.follow {
            rustix::fs::listxattr(path_str, rustix::buffer::spare_capacity(&mut names))
        } else {
            rustix::fs::llistxattr(path_str, rustix::buffer::spare_capacity(&mut names))
        };
        match result {
            Ok(_) => {
                for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
                    each(OsStr::from_bytes(name));
                }
                return Ok(());
            }
            Err(Errno::RANGE) if room <= 1 << 16 => room *= 16,
            Err(e) => return Err(e.into()),
        }
    }
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
    let path = ProcPath::new(target)?;
    let flags = XattrFlags::from_bits_retain(flags as u32);
    let _: () = if path.follow {
        rustix::fs::setxattr(path.as_c_str()?, name, value, flags)?
    } else {
        rustix::fs::lsetxattr(path.as_c_str()?, name, value, flags)?
    };
    Ok(())
}

/// Removes an xattr; `ENODATA` when it is absent.
pub fn remove(target: Target<'_>, name: &OsStr) -> io::Result<()> {
    let path = ProcPath::new(target)?;
    let _: () = if path.follow {
        rustix::fs::removexattr(path.as_c_str()?, name)?
    } else {
        rustix::fs::lremovexattr(path.as_c_str()?, name)?
    };
    Ok(())
}
