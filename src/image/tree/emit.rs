//! One node after the other: its attributes, its data with its holes, and the names that it has besides.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, SeekFrom as Whence};
use rustix::io::Errno;

use super::writer::{Extent, Kind, TarWriter};
use crate::image::compress::CHUNK;
use crate::image::error::ImageError;
use crate::layer::Stat;
use crate::layer::format::from_store;
use crate::sys::xattr::{self, Target};

/// Holes of fewer bytes than this are written as zeros: readers of plain files are the more common ones.
const WORTHWHILE: u64 = 1 << 20;

/// Which extended attributes a tree shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Xattrs {
    /// Those that programs see.
    AsSeen,
    /// Those that lie on the disk below a union: its own are no part of the tree.
    AsStored,
}

/// Names and values of extended attributes.
pub(super) type XattrList = Vec<(Vec<u8>, Vec<u8>)>;

/// A node that has several names.
#[derive(Clone, Debug)]
pub(super) struct Linked {
    /// How many names it has.
    count: u64,
    /// Those that were written, in this order.
    pub(super) names: Vec<Vec<u8>>,
}

/// Writes nodes into a tar.
#[derive(Debug)]
pub(super) struct Emitter<W> {
    tar: TarWriter<W>,
    /// By device and inode number.
    linked: HashMap<(u64, u64), Linked>,
    /// Directories that were written.
    dirs: HashSet<Vec<u8>>,
    /// Nodes that are to be written still, by device and inode number.
    sought: HashSet<(u64, u64)>,
    xattrs: Xattrs,
    entries: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Emitter<W> {
    pub(super) fn new(output: W, xattrs: Xattrs) -> Emitter<W> {
        Emitter {
            tar: TarWriter::new(output),
            linked: HashMap::new(),
            dirs: HashSet::new(),
            sought: HashSet::new(),
            xattrs,
            entries: 0,
            buffer: vec![0; CHUNK],
        }
    }

    /// How many entries were written.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Ends the tar.
    pub(super) fn finish(self) -> Result<W, ImageError> {
        self.tar
            .finish()
            .map_err(ImageError::io("write", "the archive"))
    }

    /// True for a directory that was written already.
    pub(super) fn has_dir(&self, path: &[u8]) -> bool {
        self.dirs.contains(path)
    }

    /// Asks for nodes of one device.
    pub(super) fn seek(&mut self, dev: u64, numbers: &[u64]) {
        self.sought = numbers.iter().map(|&ino| (dev, ino)).collect();
    }

    /// Whether a node that was asked for is not written yet.
    pub(super) fn seeks(&self, key: (u64, u64)) -> bool {
        self.sought.contains(&key)
    }

    /// Whether there is any such node.
    pub(super) fn seeks_any(&self) -> bool {
        !self.sought.is_empty()
    }

    /// Nodes that have more names than were written, by device and inode number.
    pub(super) fn incomplete_links(&self) -> BTreeMap<(u64, u64), Linked> {
        self.linked
            .iter()
            .filter(|(_, linked)| (linked.names.len() as u64) < linked.count)
            .map(|(&key, linked)| (key, linked.clone()))
            .collect()
    }

    /// Writes the node that `name` is in `dir` (an empty name: `dir` itself) as `path`. `stat`: its attributes.
    pub(super) fn node(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> Result<(), ImageError> {
        let failed = |action| ImageError::io::<Errno>(action, shown(path));
        let kind = stat.file_type();
        self.sought.remove(&(stat.dev, stat.ino));
        if kind == libc::S_IFSOCK {
            log::info!("{} is a socket, which no tar holds", shown(path).display());
            return Ok(());
        }
        if kind != libc::S_IFDIR && stat.nlink > 1 && self.link(path, stat)? {
            return Ok(());
        }
        let xattrs = xattrs_of(dir, name, path, self.xattrs)?;
        let simple = match kind {
            libc::S_IFDIR => {
                self.dirs.insert(path.to_vec());
                Kind::Directory
            }
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFCHR => Kind::Char,
            libc::S_IFBLK => Kind::Block,
            libc::S_IFLNK => {
                let target = rustix::fs::readlinkat(dir, OsStr::from_bytes(name), Vec::new())
                    .map_err(failed("read"))?;
                return self.header(path, Kind::Symlink(target.as_bytes()), stat, &xattrs);
            }
            _ => return self.file(dir, name, path, stat, &xattrs),
        };
        self.header(path, simple, stat, &xattrs)
    }

    /// Writes a whiteout of `path`.
    pub(super) fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), ImageError> {
        let entry = [b".wh.", name].concat();
        self.header(&join(parent, &entry), Kind::File(0), &Stat::default(), &[])
    }

    /// Writes the mark that the directory `path` hides what lies below.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<(), ImageError> {
        let entry = join(path, b".wh..wh..opq");
        self.header(&entry, Kind::File(0), &Stat::default(), &[])
    }

    /// Writes another name of a node that was written; false when this is its first.
    fn link(&mut self, path: &[u8], stat: &Stat) -> Result<bool, ImageError> {
        let key = (stat.dev, stat.ino);
        let Some(linked) = self.linked.get_mut(&key) else {
            let new = Linked {
                count: stat.nlink,
                names: vec![path.to_vec()],
            };
            self.linked.insert(key, new);
            return Ok(false);
        };
        let first = linked.names[0].clone();
        linked.names.push(path.to_vec());
        self.header(path, Kind::HardLink(&first), stat, &[])?;
        Ok(true)
    }

    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), ImageError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::empty());
        let mut file: File = opened.map_err(ImageError::io("read", shown(path)))?.into();
        let meta = file
            .metadata()
            .map_err(ImageError::io("read", shown(path)))?;
        if !meta.is_file() {
            return Err(ImageError::io("read", shown(path))(io::Error::other(
                "it was replaced while it was read",
            )));
        }
        let size = meta.len();
        // A smaller file cannot have holes enough, and through a mount each question costs.
        let extents = if size < WORTHWHILE {
            vec![(0, size)]
        } else {
            extents(&file, size).map_err(ImageError::io("read", shown(path)))?
        };
        let holes = size - extents.iter().map(|e| e.1).sum::<u64>();
        if holes < WORTHWHILE {
            self.header(path, Kind::File(size), stat, xattrs)?;
            let mut copied = || {
                file.seek(SeekFrom::Start(0))?;
                self.tar.data(&mut file, size, &mut self.buffer)?;
                self.tar.pad(size)
            };
            return copied().map_err(ImageError::io("copy", shown(path)));
        }
        self.header(path, Kind::Sparse(size, &extents), stat, xattrs)?;
        let mut copied = || {
            for &(offset, length) in &extents {
                file.seek(SeekFrom::Start(offset))?;
                self.tar.data(&mut file, length, &mut self.buffer)?;
            }
            self.tar.pad(extents.iter().map(|e| e.1).sum())
        };
        copied().map_err(ImageError::io("copy", shown(path)))
    }

    fn header(
        &mut self,
        path: &[u8],
        kind: Kind<'_>,
        stat: &Stat,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), ImageError> {
        self.entries += 1;
        self.tar
            .header(path, kind, stat, xattrs)
            .map_err(ImageError::io("write", "the archive"))
    }
}

/// The extended attributes that belong to the tree, sorted.
pub(super) fn xattrs_of(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    which: Xattrs,
) -> Result<XattrList, ImageError> {
    let target = if name.is_empty() {
        Target::Dir(dir)
    } else {
        Target::At(dir, OsStr::from_bytes(name))
    };
    let failed = || ImageError::io::<io::Error>("read the attributes of", shown(path));
    let names = match xattr::list(target) {
        Ok(names) => names,
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(failed()(e)),
    };
    let mut found = Vec::new();
    for on_disk in names {
        // The label is the machine's, not the image's.
        if on_disk == "security.selinux" {
            continue;
        }
        let name = match which {
            Xattrs::AsSeen => Some(on_disk.clone()),
            Xattrs::AsStored => from_store(&on_disk),
        };
        let Some(name) = name else { continue };
        if let Some(value) = xattr::get(target, &on_disk).map_err(failed())? {
            found.push((name.into_vec(), value));
        }
    }
    found.sort();
    Ok(found)
}

/// Where a file has data. Where holes cannot be asked for, all of it is data.
fn extents(file: &File, size: u64) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let begin = match rustix::fs::seek(file, Whence::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(vec![(0, size)]),
            Err(e) => return Err(e.into()),
        };
        if begin >= size {
            break;
        }
        let end = rustix::fs::seek(file, Whence::Hole(begin))?.min(size);
        if end <= begin {
            break;
        }
        extents.push((begin, end - begin));
        at = end;
    }
    // A reader takes the size from the last piece.
    if extents
        .last()
        .is_none_or(|&(offset, length)| offset + length < size)
    {
        extents.push((size, 0));
    }
    Ok(extents)
}

/// Joins a parent's path and a name.
pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        return name.to_vec();
    }
    [parent, name].join(&b'/')
}

/// How messages call a path of the tree.
pub(super) fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from("/").join(OsStr::from_bytes(path))
}
