//! The files of an image source by name: those of a folder, or those inside a tar.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::compress::Seekable;
use super::error::ImageError;
use super::limits::Limits;
use super::tarball::{Kind, TarError, TarReader};

/// Entries that an image archive may have: blobs, not the files of its layers.
const MAX_ENTRIES: usize = 1_000_000;
/// Links between the files of an archive that are followed one after the other.
const MAX_LINKS: usize = 8;

/// The files of one source.
#[derive(Debug)]
pub(crate) struct Files {
    /// Immutable: how messages call the source.
    name: String,
    kind: FilesKind,
}

#[derive(Debug)]
enum FilesKind {
    Folder(OwnedFd),
    Tar {
        file: Arc<File>,
        entries: HashMap<Vec<u8>, Place>,
    },
}

/// Where a name of a tar leads.
#[derive(Debug)]
enum Place {
    Data { offset: u64, size: u64 },
    Link(Vec<u8>),
}

/// One file of a source, readable from several threads at once.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Section {
    /// A whole file.
    pub(crate) fn whole(file: File) -> io::Result<Section> {
        Ok(Section {
            end: file.metadata()?.len(),
            file: Arc::new(file),
            position: 0,
        })
    }

    /// Bytes that are left.
    pub(crate) fn len(&self) -> u64 {
        self.end - self.position
    }
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.len())
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.file.read_at(&mut buf[..want], self.position)?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        self.position += n as u64;
        Ok(n)
    }
}

impl Files {
    /// The files below a folder.
    pub(crate) fn folder(path: &Path, name: String) -> Result<Files, ImageError> {
        let fd = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(ImageError::io("open", path))?;
        Ok(Files {
            name,
            kind: FilesKind::Folder(fd),
        })
    }

    /// The files inside an uncompressed tar. Reads its headers, not its content.
    pub(crate) fn tar(mut file: File, name: String, limits: &Limits) -> Result<Files, ImageError> {
        file.rewind().map_err(ImageError::io("read", &name))?;
        let length = file
            .metadata()
            .map_err(ImageError::io("read", &name))?
            .len();
        let file = Arc::new(file);
        let source = Seekable(BufReader::with_capacity(4096, &*file), length);
        let mut reader = TarReader::new(source, limits);
        let mut entries = HashMap::new();
        let broken = |source: TarError| match source {
            TarError::Truncated(bytes) => ImageError::Truncated {
                name: name.clone(),
                why: format!("it ends after {bytes} bytes, inside a file"),
            },
            TarError::Read(source) => ImageError::io("read", &name)(source),
            other => ImageError::NotAnImage {
                name: name.clone(),
                why: other.to_string(),
            },
        };
        while let Some(entry) = reader.next_entry().map_err(broken)? {
            let place = match entry.kind {
                Kind::File => {
                    if entry
                        .offset
                        .checked_add(entry.size)
                        .is_none_or(|end| end > length)
                    {
                        return Err(broken(TarError::Truncated(length)));
                    }
                    Place::Data {
                        offset: entry.offset,
                        size: entry.size,
                    }
                }
                // Old archives name a layer that an image has twice by a symlink to the first.
                Kind::Symlink(target) => Place::Link(beside(&entry.path, &target)),
                Kind::HardLink(target) => Place::Link(normal(&target)),
                _ => continue,
            };
            if entries.len() == MAX_ENTRIES {
                return Err(ImageError::OverLimit {
                    what: format!("the number of files in {name}"),
                    limit: MAX_ENTRIES as u64,
                    unit: "files",
                    hint: "this is no image archive",
                });
            }
            entries.insert(normal(&entry.path), place);
        }
        Ok(Files {
            name,
            kind: FilesKind::Tar { file, entries },
        })
    }

    /// How messages call the source.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// One file; `None` when there is none of that name.
    pub(crate) fn get(&self, name: &[u8]) -> Result<Option<Section>, ImageError> {
        match &self.kind {
            FilesKind::Folder(fd) => self.get_in_folder(fd, name),
            FilesKind::Tar { file, entries } => {
                let mut name = normal(name);
                for _ in 0..MAX_LINKS {
                    match entries.get(&name) {
                        None => return Ok(None),
                        Some(Place::Link(target)) => name = target.clone(),
                        Some(&Place::Data { offset, size }) => {
                            return Ok(Some(Section {
                                file: Arc::clone(file),
                                position: offset,
                                end: offset + size,
                            }));
                        }
                    }
                }
                Ok(None)
            }
        }
    }

    fn get_in_folder(&self, fd: &OwnedFd, name: &[u8]) -> Result<Option<Section>, ImageError> {
        let path = OsStr::from_bytes(name);
        let opened = rustix::fs::openat2(
            fd,
            path,
            // Not blocking: a fifo in place of a blob would be waited for otherwise.
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        );
        let shown = || format!("{}/{}", self.name, path.to_string_lossy());
        let file = match opened {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(ImageError::io("open", shown())(e)),
        };
        let meta = file.metadata().map_err(ImageError::io("read", shown()))?;
        if !meta.is_file() {
            return Err(ImageError::NotAnImage {
                name: shown(),
                why: "it is no regular file".to_owned(),
            });
        }
        Ok(Some(Section {
            end: meta.len(),
            file: Arc::new(file),
            position: 0,
        }))
    }

    /// A small file as a whole; `None` when there is none of that name.
    pub(crate) fn document(
        &self,
        name: &[u8],
        limits: &Limits,
    ) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(mut section) = self.get(name)? else {
            return Ok(None);
        };
        let shown = format!("{}/{}", self.name, String::from_utf8_lossy(name));
        if section.len() > limits.document {
            return Err(ImageError::OverLimit {
                what: shown,
                limit: limits.document,
                unit: "bytes",
                hint: "no real image has so large a document",
            });
        }
        let mut bytes = Vec::new();
        section
            .read_to_end(&mut bytes)
            .map_err(ImageError::io("read", shown))?;
        Ok(Some(bytes))
    }
}

/// A name without `.`, empty components, and `..` where it can be taken back; names are only looked up in a table,
/// so a `..` too many leads nowhere.
fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// What a symlink at `name` with this target names.
fn beside(name: &[u8], target: &[u8]) -> Vec<u8> {
    let mut path = name.to_vec();
    path.extend_from_slice(b"/../");
    path.extend_from_slice(target);
    normal(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_dots() {
        assert_eq!(normal(b"./a//b/./c"), b"a/b/c");
        assert_eq!(normal(b"a/../../b"), b"b");
        assert_eq!(beside(b"x/layer.tar", b"../y/layer.tar"), b"y/layer.tar");
    }
}
