//! Reading tar: the one place that knows tar-core.
//!
//! On top of the parser this adds what layers need: times before 1970 and with nanoseconds, values that are
//! wrong rather than silently skipped, sparse maps that are consistent with their data, and content that is
//! handed out in the reader's own chunks, without another copy.

use std::io::{self, BufRead, ErrorKind};

use tar_core::parse::{Limits as ParserLimits, ParseError, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, Header};

use super::limits::Limits;
use super::pax::{self, apply_pax};
use crate::layer::Timestamp;

/// A tar's unit of headers and padding.
const BLOCK: usize = 512;
/// Regions of one sparse file.
const SPARSE_REGIONS: usize = 65_536;

/// What is wrong with a tar.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The bytes cannot be read (or not decompressed).
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The stream ends inside an entry.
    #[error("ends early, after {0} bytes")]
    Truncated(u64),
    /// A header that cannot be parsed.
    #[error("bad header at byte {offset}: {source}")]
    Header {
        /// Where the header begins.
        offset: u64,
        /// What the parser says.
        source: ParseError,
    },
    /// A header that can be parsed, but says something impossible.
    #[error("bad header at byte {offset}: {why}")]
    Value {
        /// Where the header begins.
        offset: u64,
        /// What is impossible.
        why: String,
    },
}

/// A source of bytes that can be skipped without being looked at.
pub(crate) trait Source: BufRead {
    /// Skips `n` bytes; fewer only at the end, which the next read then meets.
    fn skip(&mut self, mut n: u64) -> io::Result<u64> {
        let mut skipped = 0;
        while n > 0 {
            let have = match self.fill_buf() {
                Ok(chunk) => chunk.len(),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if have == 0 {
                break;
            }
            let step = usize::try_from(n).unwrap_or(usize::MAX).min(have);
            self.consume(step);
            n -= step as u64;
            skipped += step as u64;
        }
        Ok(skipped)
    }
}

impl Source for &[u8] {}

/// A region of a sparse file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Where in the file.
    pub(crate) offset: u64,
    /// How many bytes.
    pub(crate) length: u64,
}

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// A regular file whose content is all in the stream.
    File,
    /// A regular file of `size` bytes of which the stream has these regions.
    Sparse {
        /// The file's size.
        size: u64,
        /// Where there is data, ascending.
        regions: Vec<Region>,
    },
    /// A symlink with this target.
    Symlink(Vec<u8>),
    /// Another name of this path.
    HardLink(Vec<u8>),
    /// A character device: major and minor number.
    Char(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A type that no layer should have.
    Unknown(u8),
}

/// One entry of a tar.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Its path as it is written there.
    pub(crate) path: Vec<u8>,
    /// What it makes.
    pub(crate) kind: Kind,
    /// Permission bits, with suid, sgid and sticky.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Last change of the data.
    pub(crate) mtime: Timestamp,
    /// Last access, where the tar tells.
    pub(crate) atime: Option<Timestamp>,
    /// Extended attributes: names and values.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names of those that the tar has in a form that cannot be understood.
    pub(crate) unread_xattrs: Vec<&'static [u8]>,
    /// Bytes of content in the stream.
    pub(crate) size: u64,
    /// Where in the stream the content begins.
    pub(crate) offset: u64,
}

/// Reads a tar from a source, entry by entry.
#[derive(Debug)]
pub(crate) struct TarReader<S> {
    source: S,
    parser: Parser,
    /// Header bytes that were read and are not consumed yet.
    pending: Vec<u8>,
    /// Bytes of content of the current entry that are not consumed yet.
    content: u64,
    /// Padding behind that content.
    padding: u64,
    /// Bytes consumed so far, `pending` not among them.
    position: u64,
    /// The most that `pending` may grow to.
    header_limit: usize,
    done: bool,
}

impl<S: Source> TarReader<S> {
    /// Begins at the start of a tar.
    pub(crate) fn new(source: S, limits: &Limits) -> TarReader<S> {
        let mut parser = Parser::new(ParserLimits {
            max_metadata_size: u32::try_from(limits.header).unwrap_or(u32::MAX),
            max_path_len: Some(4095),
            max_pending_entries: 16,
            max_sparse_entries: SPARSE_REGIONS,
        });
        // The parser knows no time before 1970 in PAX records; `Pax` below reads the same values strictly.
        parser.set_ignore_pax_errors(true);
        parser.set_allow_empty_path(true);
        TarReader {
            source,
            parser,
            pending: Vec::new(),
            content: 0,
            padding: 0,
            position: 0,
            header_limit: limits.header.saturating_mul(2),
            done: false,
        }
    }

    /// The source, positioned behind what was read.
    pub(crate) fn into_source(self) -> S {
        self.source
    }

    /// The next entry, what is left of the last one's content skipped; `None` at the end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.done {
            return Ok(None);
        }
        self.skip(self.content + self.padding)?;
        (self.content, self.padding) = (0, 0);
        loop {
            let offset = self.position;
            match self.parse(offset)? {
                Step::Need(bytes) => {
                    if !self.fill(bytes)? {
                        self.done = true;
                        return Ok(None);
                    }
                }
                Step::Skip(consumed) => self.drop_pending(consumed),
                Step::End => {
                    self.done = true;
                    return Ok(None);
                }
                Step::Entry(consumed, mut entry) => {
                    self.drop_pending(consumed);
                    entry.offset = self.position;
                    self.content = entry.size;
                    self.padding = entry.size.wrapping_neg() % BLOCK as u64;
                    return Ok(Some(*entry));
                }
            }
        }
    }

    /// More of the current entry's content, empty at its end; to be followed by [`TarReader::consume`].
    pub(crate) fn content(&mut self) -> Result<&[u8], TarError> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.content).unwrap_or(usize::MAX);
        if !self.pending.is_empty() {
            let n = left.min(self.pending.len());
            return Ok(&self.pending[..n]);
        }
        // `fill_buf` is called twice because a borrow that is returned on one path only is not understood by
        // the compiler; the second call finds the buffer filled.
        loop {
            match self.source.fill_buf() {
                Ok([]) => return Err(TarError::Truncated(self.position)),
                Ok(_) => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(TarError::Read(e)),
            }
        }
        let chunk = self.source.fill_buf().map_err(TarError::Read)?;
        Ok(&chunk[..left.min(chunk.len())])
    }

    /// Marks `n` bytes of what [`TarReader::content`] gave as read.
    pub(crate) fn consume(&mut self, n: usize) {
        if self.pending.is_empty() {
            self.source.consume(n);
            self.position += n as u64;
        } else {
            self.drop_pending(n);
        }
        self.content -= n as u64;
    }

    fn drop_pending(&mut self, n: usize) {
        self.pending.drain(..n);
        self.position += n as u64;
    }

    fn skip(&mut self, mut n: u64) -> Result<(), TarError> {
        let here = usize::try_from(n)
            .unwrap_or(usize::MAX)
            .min(self.pending.len());
        self.drop_pending(here);
        n -= here as u64;
        if n > 0 {
            let skipped = self.source.skip(n).map_err(TarError::Read)?;
            self.position += skipped;
            if skipped < n {
                return Err(TarError::Truncated(self.position));
            }
        }
        Ok(())
    }

    /// Makes `pending` at least `need` bytes long. False at an end that is between entries: a tar may lack its
    /// end marker, and the digest tells whether this one was meant to.
    fn fill(&mut self, need: usize) -> Result<bool, TarError> {
        // A parser that asks for no more than it has would be asked for ever. It begins anew each time, so that long
        // headers are read in growing steps.
        let need = need.max(self.pending.len() + 1);
        let want = match self.pending.len() {
            0..4096 => need.max(self.pending.len() + BLOCK),
            have => need.max(have + have / 2),
        };
        if need > self.header_limit {
            return Err(TarError::Value {
                offset: self.position,
                why: format!("headers of more than {} bytes", self.header_limit),
            });
        }
        while self.pending.len() < want {
            let missing = want - self.pending.len();
            let chunk = match self.source.fill_buf() {
                Ok(chunk) => chunk,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(TarError::Read(e)),
            };
            if chunk.is_empty() && self.pending.len() >= need {
                return Ok(true);
            }
            if chunk.is_empty() {
                if self.pending.iter().all(|&byte| byte == 0) {
                    return Ok(false);
                }
                return Err(TarError::Truncated(
                    self.position + self.pending.len() as u64,
                ));
            }
            let n = missing.min(chunk.len());
            self.pending.extend_from_slice(&chunk[..n]);
            self.source.consume(n);
        }
        Ok(true)
    }

    fn parse(&mut self, offset: u64) -> Result<Step, TarError> {
        let event = self
            .parser
            .parse(&self.pending)
            .map_err(|source| TarError::Header { offset, source })?;
        let value = |why: String| TarError::Value { offset, why };
        Ok(match event {
            ParseEvent::NeedData { min_bytes } => Step::Need(min_bytes),
            // Global records come from `git archive` and say nothing of the files.
            ParseEvent::GlobalExtensions { consumed, .. } => Step::Skip(consumed),
            ParseEvent::End { .. } => Step::End,
            ParseEvent::Entry { consumed, entry } => {
                let kind = kind_of(&entry);
                // Only files have content, whatever the size of a link or directory says.
                let size = match kind {
                    Kind::File | Kind::Unknown(_) => entry.size,
                    _ => 0,
                };
                let entry = convert(&entry, kind, size).map_err(value)?;
                Step::Entry(consumed, Box::new(entry))
            }
            ParseEvent::SparseEntry {
                consumed,
                entry,
                sparse_map,
                real_size,
            } => {
                let regions: Vec<Region> = sparse_map
                    .iter()
                    .map(|r| Region {
                        offset: r.offset,
                        length: r.length,
                    })
                    .collect();
                let size = check_regions(&regions, real_size).map_err(value)?;
                // The parser counts the map of format 1.0 as content when the size comes from a PAX record.
                let map = consumed.min(self.pending.len()) as u64;
                if entry.size != size && entry.size.checked_sub(size).is_none_or(|more| more > map)
                {
                    return Err(value(format!(
                        "sparse map of {size} bytes for {} bytes of data",
                        entry.size
                    )));
                }
                let kind = Kind::Sparse {
                    size: real_size,
                    regions,
                };
                let entry = convert(&entry, kind, size).map_err(value)?;
                Step::Entry(consumed, Box::new(entry))
            }
        })
    }
}

/// True where `start`, the first 512 bytes of a decompressed stream, can be a tar. One without entries is nothing but its
/// end: zeros.
pub(crate) fn looks_like_tar(start: &[u8]) -> bool {
    if start.len() < BLOCK {
        return false;
    }
    if &start[257..262] == b"ustar" || start.iter().all(|&byte| byte == 0) {
        return true;
    }
    let mut block = [0u8; BLOCK];
    block.copy_from_slice(&start[..BLOCK]);
    Header::from_bytes(&block).verify_checksum().is_ok()
}

/// What the parser found.
enum Step {
    Need(usize),
    Skip(usize),
    End,
    Entry(usize, Box<Entry>),
}

/// The bytes of data of a sparse file, when its map ascends and stays inside the file.
fn check_regions(regions: &[Region], size: u64) -> Result<u64, String> {
    if i64::try_from(size).is_err() {
        return Err(format!("sparse file of {size} bytes"));
    }
    let (mut end, mut data) = (0u64, 0u64);
    for region in regions {
        let next = region.offset.checked_add(region.length);
        match next {
            Some(next) if region.offset >= end && next <= size => {
                end = next;
                data += region.length;
            }
            _ => return Err("sparse map that overlaps or leaves the file".to_owned()),
        }
    }
    Ok(data)
}

fn kind_of(entry: &ParsedEntry<'_>) -> Kind {
    let target = || {
        entry
            .link_target
            .as_deref()
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    };
    let device = || {
        (
            entry.dev_major.unwrap_or_default(),
            entry.dev_minor.unwrap_or_default(),
        )
    };
    match entry.entry_type {
        // Before POSIX a directory was a file whose name ends in a slash.
        EntryType::Regular if entry.path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(target()),
        EntryType::Link => Kind::HardLink(target()),
        EntryType::Char => Kind::Char(device().0, device().1),
        EntryType::Block => Kind::Block(device().0, device().1),
        EntryType::Fifo => Kind::Fifo,
        other => Kind::Unknown(other.to_byte()),
    }
}

fn convert(parsed: &ParsedEntry<'_>, kind: Kind, size: u64) -> Result<Entry, String> {
    let mut entry = Entry {
        path: parsed.path.to_vec(),
        kind,
        mode: parsed.mode & 0o7777,
        uid: id(parsed.uid, "uid")?,
        gid: id(parsed.gid, "gid")?,
        // Base 256 holds negative numbers in two's complement.
        mtime: Timestamp {
            sec: parsed.mtime as i64,
            nsec: 0,
        },
        atime: None,
        xattrs: Vec::with_capacity(parsed.xattrs.len()),
        unread_xattrs: Vec::new(),
        size,
        offset: 0,
    };
    for (name, value) in &parsed.xattrs {
        let name = pax::decode_key(name);
        // A later record replaces an earlier one.
        entry.xattrs.retain(|(have, _)| *have != name);
        entry.xattrs.push((name, value.to_vec()));
    }
    if let Some(pax) = parsed.pax {
        apply_pax(pax, &mut entry)?;
    }
    if entry.path.contains(&0) {
        return Err("a path with a zero byte".to_owned());
    }
    if i64::try_from(size).is_err() {
        return Err(format!("content of {size} bytes"));
    }
    Ok(entry)
}

fn id(value: u64, what: &str) -> Result<u32, String> {
    // 2^32 - 1 means "no change" to the kernel.
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(format!("{what} {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_sparse_map_does_not_spin() {
        // A PAX 1.0 map without any newline makes the parser ask for what it has.
        let mut builder = tar::Builder::new(Vec::new());
        let records = [
            ("GNU.sparse.major", &b"1"[..]),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"1000000"),
        ];
        builder.append_pax_extensions(records).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(20 << 20);
        header.set_path("f").unwrap();
        header.set_cksum();
        builder
            .append(
                &header,
                std::io::Read::take(std::io::repeat(b'1'), 20 << 20),
            )
            .unwrap();
        let tar = builder.into_inner().unwrap();
        let mut reader = TarReader::new(&tar[..], &Limits::default());
        assert!(matches!(reader.next_entry(), Err(TarError::Value { .. })));
    }

    #[test]
    fn a_header_with_an_impossible_size_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("f").unwrap();
        header.set_size(1 << 63);
        header.set_cksum();
        let mut tar = header.as_bytes().to_vec();
        tar.extend_from_slice(&[0; 1024]);
        let mut reader = TarReader::new(&tar[..], &Limits::default());
        assert!(reader.next_entry().is_err());
    }
}
