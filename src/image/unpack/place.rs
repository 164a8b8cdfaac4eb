//! Where an entry goes: its path taken apart, its parent opened without ever leaving the layer.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Directories that are kept open: a tar walks its tree in order, so few are enough.
const OPEN_DIRS: usize = 64;

/// What a name of a layer's tar means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The layer's root directory.
    Root,
    /// An entry: the parent's path, without slashes at its ends, and the name in it.
    Entry(Vec<u8>, Vec<u8>),
    /// A whiteout of a name in a directory.
    Whiteout(Vec<u8>, Vec<u8>),
    /// The mark that a directory is opaque.
    Opaque(Vec<u8>),
    /// Bookkeeping of AUFS, which says nothing of the tree.
    Ignored,
}

/// Takes a path apart. An absolute path means the same as without its leading slashes, as with every tar; one with
/// `..` is refused, also where it would stay inside.
pub(crate) fn target(path: &[u8]) -> Result<Target, String> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("a path with '..' is refused".to_owned()),
            part if part.len() > 255 => {
                return Err(format!("a name of {} bytes is too long", part.len()));
            }
            part => parts.push(part),
        }
    }
    let Some(name) = parts.pop() else {
        return Ok(Target::Root);
    };
    if let Some(outer) = parts.iter().find(|part| part.starts_with(b".wh.")) {
        if outer.starts_with(b".wh..wh.") {
            return Ok(Target::Ignored);
        }
        return Err("a whiteout has no entries".to_owned());
    }
    let parent = parts.join(&b'/');
    let Some(hidden) = name.strip_prefix(b".wh.") else {
        return Ok(Target::Entry(parent, name.to_vec()));
    };
    match hidden {
        b".wh..opq" => Ok(Target::Opaque(parent)),
        b"" | b"." | b".." => Err("a whiteout of no name that can exist".to_owned()),
        hidden if hidden.starts_with(b".wh.") => Ok(Target::Ignored),
        hidden => Ok(Target::Whiteout(parent, hidden.to_vec())),
    }
}

/// Joins a parent's path and a name.
pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        return name.to_vec();
    }
    [parent, name].join(&b'/')
}

/// Takes a path that [`join`] made apart.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The directories of the layer that is being written. Every descriptor comes from the root's by steps that follow no
/// symlink and do not go up.
#[derive(Debug)]
pub(crate) struct Dirs {
    root: Rc<OwnedFd>,
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
}

impl Dirs {
    /// Below `root`.
    pub(crate) fn new(root: OwnedFd) -> Dirs {
        Dirs {
            root: Rc::new(root),
            open: HashMap::new(),
        }
    }

    /// The layer's root.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory at `path`: an error of the system if it is not there, or lies behind a symlink or a file.
    pub(crate) fn get(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some(fd) = self.open.get(path) {
            return Ok(Rc::clone(fd));
        }
        let fd = Rc::new(open_beneath(
            self.root(),
            path,
            OFlags::PATH | OFlags::DIRECTORY,
        )?);
        if self.open.len() >= OPEN_DIRS {
            self.open.clear();
        }
        self.open.insert(path.to_vec(), Rc::clone(&fd));
        Ok(fd)
    }

    /// To be called when a directory was removed: its descriptor would still take new entries.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
    }
}

/// Opens what `path` names below `root`, following nothing.
pub(crate) fn open_beneath(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    loop {
        let opened = rustix::fs::openat2(
            root,
            OsStr::from_bytes(path),
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        );
        match opened {
            // The kernel may ask to try again when something was renamed meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The path by which the system's xattr calls reach a name in a directory without following it. The link of the
/// descriptor is the only part that is resolved by the system.
pub(crate) fn through_proc(parent: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(parent: &[u8], name: &[u8]) -> Result<Target, String> {
        Ok(Target::Entry(parent.to_vec(), name.to_vec()))
    }

    #[test]
    fn paths_stay_inside() {
        assert_eq!(target(b"./"), Ok(Target::Root));
        assert_eq!(target(b"/"), Ok(Target::Root));
        assert_eq!(target(b"/etc//./passwd"), entry(b"etc", b"passwd"));
        assert!(target(b"../x").is_err());
        assert!(target(b"a/../b").is_err());
        assert!(target(&[b'a'; 256]).is_err());
        assert_eq!(target(b"..."), entry(b"", b"..."));
    }

    #[test]
    fn whiteouts_are_told_from_names() {
        let whiteout =
            |parent: &[u8], name: &[u8]| Ok(Target::Whiteout(parent.to_vec(), name.to_vec()));
        assert_eq!(target(b"a/.wh.b"), whiteout(b"a", b"b"));
        assert_eq!(target(b".wh.b/"), whiteout(b"", b"b"));
        assert_eq!(target(b".wh....."), whiteout(b"", b"...."));
        assert!(target(b".wh.").is_err());
        assert!(target(b".wh..").is_err());
        assert!(target(b"a/.wh...").is_err());
        assert!(target(b".wh.a/b").is_err());
        assert_eq!(target(b"a/.wh..wh..opq"), Ok(Target::Opaque(b"a".to_vec())));
        assert_eq!(target(b".wh..wh.plnk/1.2"), Ok(Target::Ignored));
        assert_eq!(target(b".wh..wh.aufs"), Ok(Target::Ignored));
        assert_eq!(target(b"a.wh.b"), entry(b"", b"a.wh.b"));
    }
}
