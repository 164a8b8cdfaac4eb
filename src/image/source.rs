//! What a user names as an image: a file, a folder, or an image of the store.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::compress::{self, CHUNK, Compression, Decoder};
use super::error::{ImageError, shown};
use super::files::Files;
use super::hash::HashingReader;
use super::limits::Limits;
use super::tarball;

/// The prefixes by which skopeo and podman name the kind of a source; what it is, is seen anyway.
const TRANSPORTS: [&[u8]; 3] = [b"oci:", b"oci-archive:", b"docker-archive:"];

/// Where an image is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file or folder, and which of its images.
    Path {
        /// Where it lies.
        path: PathBuf,
        /// The image's name in it.
        tag: Option<String>,
    },
    /// The name of an image of the store.
    Name(OsString),
}

impl Source {
    /// Tells what `text` means. What exists as a path is one; else the longest part before a colon that does, with the
    /// name of an image behind it.
    pub(crate) fn parse(text: &OsStr) -> Result<Source, ImageError> {
        let bytes = text.as_bytes();
        if exists(bytes) {
            return Ok(Source::path(bytes, None));
        }
        let transport = TRANSPORTS.iter().find_map(|t| bytes.strip_prefix(*t));
        let rest = transport.unwrap_or(bytes);
        if transport.is_some() && exists(rest) {
            return Ok(Source::path(rest, None));
        }
        let colons = (0..rest.len()).rev().filter(|&i| rest[i] == b':');
        for colon in colons {
            let (path, tag) = (&rest[..colon], &rest[colon + 1..]);
            if !path.is_empty() && exists(path) {
                let tag = std::str::from_utf8(tag)
                    .ok()
                    .filter(|tag| !tag.is_empty())
                    .ok_or_else(|| ImageError::InvalidReference {
                        reference: shown(text),
                        why: "no name of an image follows the colon",
                    })?;
                return Ok(Source::path(path, Some(tag.to_owned())));
            }
        }
        // What can only be a path is not looked for in the store.
        if transport.is_some() || rest.starts_with(b"/") || rest.starts_with(b".") {
            let path = PathBuf::from(OsString::from_vec(rest.to_vec()));
            return Err(ImageError::io("open", path)(io::Error::from(
                io::ErrorKind::NotFound,
            )));
        }
        Ok(Source::Name(text.to_owned()))
    }

    fn path(path: &[u8], tag: Option<String>) -> Source {
        Source::Path {
            path: PathBuf::from(OsString::from_vec(path.to_vec())),
            tag,
        }
    }
}

fn exists(path: &[u8]) -> bool {
    Path::new(OsStr::from_bytes(path)).exists()
}

/// Opens a file or folder as files by name. A compressed archive is decompressed into `tmp` first.
pub(crate) fn open(path: &Path, tmp: &Path, limits: &Limits) -> Result<Files, ImageError> {
    let name = path.display().to_string();
    let meta = std::fs::metadata(path).map_err(ImageError::io("open", path))?;
    if meta.is_dir() {
        return Files::folder(path, name);
    }
    let file = File::open(path).map_err(ImageError::io("open", path))?;
    // What is no regular file can be read only once, and a tar is read in any order.
    open_stream(file, meta.is_file(), name, tmp, limits)
}

/// Opens an archive from a descriptor.
pub(crate) fn open_stream(
    file: File,
    seekable: bool,
    name: String,
    tmp: &Path,
    limits: &Limits,
) -> Result<Files, ImageError> {
    let plain = plain_tar(file, seekable, &name, tmp, limits)?;
    Files::tar(plain, name, limits)
}

/// The tar that a descriptor gives, uncompressed and to be read in any order: the file itself, or a copy in `tmp`.
pub(crate) fn plain_tar(
    file: File,
    seekable: bool,
    name: &str,
    tmp: &Path,
    limits: &Limits,
) -> Result<File, ImageError> {
    let io_error = |e: io::Error| ImageError::io("read", name)(e);
    let (compression, mut decoder) = {
        let (compression, peeked) = compress::peek(&file).map_err(io_error)?;
        if let Compression::Unsupported(format) = compression {
            return Err(ImageError::UnsupportedCompression {
                name: name.to_owned(),
                format,
            });
        }
        let counted = HashingReader::new(peeked, None);
        let decoder = Decoder::new(compression, counted).map_err(io_error)?;
        (compression, decoder)
    };
    let mut start = vec![0; 512];
    let n = compress::read_full(&mut decoder, &mut start).map_err(|e| compressed(e, name))?;
    if !tarball::looks_like_tar(&start[..n]) {
        let why = match n {
            0 => "it is empty",
            _ => "it is neither a folder nor a tar, plain or compressed with gzip or zstd",
        };
        return Err(ImageError::NotAnImage {
            name: name.to_owned(),
            why: why.to_owned(),
        });
    }
    if compression == Compression::Plain && seekable {
        drop(decoder);
        return Ok(file);
    }
    spool(&start[..n], &mut decoder, name, tmp, limits)
}

/// Copies the rest of an archive into a file without a name, which dies with the process.
fn spool<R: Read>(
    start: &[u8],
    decoder: &mut Decoder<HashingReader<R>>,
    name: &str,
    tmp: &Path,
    limits: &Limits,
) -> Result<File, ImageError> {
    let mut file = tempfile::tempfile_in(tmp).map_err(ImageError::io("create a file in", tmp))?;
    let write = |e: io::Error| ImageError::io("write a copy in", tmp)(e);
    file.write_all(start).map_err(write)?;
    let mut size = start.len() as u64;
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = compress::read_full(decoder, &mut chunk).map_err(|e| compressed(e, name))?;
        if n == 0 {
            return Ok(file);
        }
        size += n as u64;
        limits.check_decompressed(name, decoder.get_ref().count(), size)?;
        file.write_all(&chunk[..n]).map_err(write)?;
    }
}

fn compressed(e: io::Error, name: &str) -> ImageError {
    if e.kind() == io::ErrorKind::UnexpectedEof {
        return ImageError::Truncated {
            name: name.to_owned(),
            why: "its compressed data ends early".to_owned(),
        };
    }
    ImageError::io("read", name)(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_be_followed_by_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a:b");
        std::fs::write(&path, "").unwrap();
        let source = |prefix: &str, suffix: &str| {
            let mut text = OsString::from(prefix);
            text.push(&path);
            text.push(suffix);
            Source::parse(&text)
        };
        let expect = |tag: Option<&str>| Source::Path {
            path: path.clone(),
            tag: tag.map(str::to_owned),
        };
        assert_eq!(source("", "").unwrap(), expect(None));
        assert_eq!(source("", ":1.0").unwrap(), expect(Some("1.0")));
        assert_eq!(
            source("docker-archive:", ":h:5000/x:1").unwrap(),
            expect(Some("h:5000/x:1"))
        );
        assert_eq!(source("oci:", "").unwrap(), expect(None));
        assert!(source("oci:", ":").is_err());
        assert!(Source::parse(OsStr::new("/does/not/exist")).is_err());
        assert_eq!(
            Source::parse(OsStr::new("debian:12")).unwrap(),
            Source::Name("debian:12".into())
        );
    }
}
