//! Reading an index whose bytes nobody vouches for: every offset is compared with what is there, every block with its
//! checksum before the first use, and nothing that is read decides how much memory is taken.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::IndexError;
use super::record::{
    BLOCK, DENTRY, DentryRecord, HEADER, Header, INODE, Identity, InodeRecord, MAGIC, Span,
    VERSION, WHITEOUT, xattrs,
};
use crate::layer::{Stat, Timestamp};
use crate::sys::mapped::MappedFile;

/// An index, not yet known to be of any tree.
#[derive(Debug)]
pub struct Index {
    /// Immutable: the whole file.
    bytes: Bytes,
    /// Immutable.
    header: Header,
    /// Immutable: where the body begins in `bytes`.
    body: usize,
    /// Immutable: where the parts begin in the body.
    dentries: u64,
    names: u64,
    blobs: u64,
    /// A bit for each block whose checksum was right. Atomic: a block that two threads check at once is right twice.
    checked: Box<[AtomicU64]>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(MappedFile),
    Own(Vec<u8>),
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Bytes::Mapped(file) => file,
            Bytes::Own(bytes) => bytes,
        }
    }
}

/// What of an index does not fit together.
pub(super) fn damaged(what: &'static str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the layer's index is damaged: {what}"),
    )
}

impl Index {
    /// Maps the index at `path`. What it costs does not depend on how many entries the layer has, but for a checksum of
    /// 4 bytes for each 4 KiB.
    pub fn open(path: &Path) -> Result<Index, IndexError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(IndexError::Missing),
            Err(e) => return Err(IndexError::Io(e)),
        };
        let meta = file.metadata().map_err(IndexError::Io)?;
        if !meta.is_file() || meta.len() < HEADER as u64 {
            return Err(IndexError::Damaged("it has no header"));
        }
        Index::new(Bytes::Mapped(
            MappedFile::new(&file).map_err(IndexError::Io)?,
        ))
    }

    /// An index that is kept in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Index, IndexError> {
        Index::new(Bytes::Own(bytes))
    }

    fn new(bytes: Bytes) -> Result<Index, IndexError> {
        let all = bytes.all();
        let Some(head) = all.first_chunk::<HEADER>() else {
            return Err(IndexError::Damaged("it has no header"));
        };
        if head[..8] != MAGIC {
            return Err(IndexError::Damaged("it begins like something else"));
        }
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if word(8) != VERSION {
            return Err(IndexError::Version(word(8)));
        }
        let header = Header::decode(head);
        let wrong_length = IndexError::Damaged("its length is not what its header says");
        let Some(body_len) = header.body() else {
            return Err(wrong_length);
        };
        let blocks = body_len.div_ceil(BLOCK as u64);
        let body = HEADER as u64 + blocks.saturating_mul(4);
        if body.checked_add(body_len) != Some(all.len() as u64) {
            return Err(wrong_length);
        }
        // Both are within the file's length now, so they fit.
        let (blocks, body) = (blocks as usize, body as usize);
        if word(12) != head_checksum(head, &all[HEADER..body]) {
            return Err(IndexError::Damaged("its header has the wrong checksum"));
        }
        if header.inodes == 0 || header.inodes == WHITEOUT {
            return Err(IndexError::Damaged("it has no root"));
        }
        let dentries = u64::from(header.inodes) * INODE as u64;
        let names = dentries + u64::from(header.dentries) * DENTRY as u64;
        let blobs = names + header.names;
        let checked = (0..blocks.div_ceil(64))
            .map(|_| AtomicU64::new(0))
            .collect();
        Ok(Index {
            header,
            body,
            dentries,
            names,
            blobs,
            checked,
            bytes,
        })
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.header.identity
    }

    /// Whether it was made of the tree whose root directory has these attributes.
    pub fn tells_of(&self, root: &Stat) -> bool {
        let Identity { ino, ctime, .. } = self.header.identity;
        (root.ino, root.ctime) == (ino, ctime)
    }

    /// Whether another index says the same, allocated sizes and the times of access and change aside.
    pub fn says_what(&self, other: &Index) -> io::Result<bool> {
        let counts = |index: &Index| {
            let Header {
                inodes,
                dentries,
                names,
                blobs,
                ..
            } = index.header;
            (inodes, dentries, names, blobs)
        };
        if counts(self) != counts(other) || self.header.identity != other.header.identity {
            return Ok(false);
        }
        for number in 0..self.header.inodes {
            let record = |index: &Index| -> io::Result<InodeRecord> {
                let mut record = index.inode(number, 0)?;
                record.stat.atime = Timestamp::default();
                record.stat.ctime = Timestamp::default();
                record.stat.blocks = 0;
                Ok(record)
            };
            if record(self)? != record(other)? {
                return Ok(false);
            }
        }
        Ok(self.behind_inodes() == other.behind_inodes())
    }

    /// The names and the blobs, and what says where the names are.
    fn behind_inodes(&self) -> &[u8] {
        self.bytes
            .all()
            .get(self.body + self.dentries as usize..)
            .unwrap_or_default()
    }

    /// Reads all of it: every checksum, and whether what the records say fits together.
    pub fn check(&self) -> io::Result<()> {
        let body = &self.bytes.all()[self.body..];
        for number in 0..body.len().div_ceil(BLOCK) {
            self.check_block(number)?;
        }
        for number in 0..self.header.inodes {
            let record = self.inode(number, 0)?;
            if number != 0 {
                if record.parent >= number {
                    return Err(damaged("a parent that is none"));
                }
                self.name(&self.dentry(record.dentry)?)?;
            }
            let data = self.blob(record.data)?;
            if record.flags.marks(data).is_none() {
                return Err(damaged("marks that are cut off"));
            }
            if xattrs(self.blob(record.xattrs)?).any(|xattr| xattr.is_none()) {
                return Err(damaged("xattrs that are cut off"));
            }
            if record.stat.is_dir() {
                self.check_names(number, &record)?;
            }
        }
        Ok(())
    }

    fn check_names(&self, dir: u32, record: &InodeRecord) -> io::Result<()> {
        let mut before: Option<&OsStr> = None;
        for number in self.names_of(record)? {
            let dentry = self.dentry(number)?;
            let name = self.name(&dentry)?;
            if before.is_some_and(|before| before >= name) {
                return Err(damaged("names that are not in order"));
            }
            before = Some(name);
            if dentry.inode != WHITEOUT {
                self.child(dir, number, &dentry, 0)?;
            }
        }
        Ok(())
    }

    /// The inode of a name. A directory has one name, and comes after the one that it is in, so that no way through the
    /// layer goes round.
    pub(super) fn child(
        &self,
        dir: u32,
        number: u32,
        dentry: &DentryRecord,
        dev: u64,
    ) -> io::Result<InodeRecord> {
        let record = self.inode(dentry.inode, dev)?;
        let own = (record.parent, record.dentry) == (dir, number) && dentry.inode > dir;
        if record.stat.is_dir() && !own {
            return Err(damaged("a directory with two names"));
        }
        Ok(record)
    }

    fn check_block(&self, number: usize) -> io::Result<()> {
        let Some(word) = self.checked.get(number / 64) else {
            return Err(damaged("an offset beyond its end"));
        };
        let bit = 1 << (number % 64);
        if word.load(Ordering::Relaxed) & bit != 0 {
            return Ok(());
        }
        let all = self.bytes.all();
        let sum = all[HEADER..self.body].as_chunks::<4>().0.get(number);
        let body = &all[self.body..];
        let block = body
            .get(number * BLOCK..)
            .map(|rest| &rest[..rest.len().min(BLOCK)]);
        match (sum, block) {
            (Some(sum), Some(block)) if u32::from_le_bytes(*sum) == crc32fast::hash(block) => {
                word.fetch_or(bit, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(damaged("a block has the wrong checksum")),
        }
    }

    /// A piece of the body, whose blocks are right.
    fn piece(&self, at: u64, len: usize) -> io::Result<&[u8]> {
        if len == 0 {
            return Ok(&[]);
        }
        let body = &self.bytes.all()[self.body..];
        let piece = usize::try_from(at)
            .ok()
            .and_then(|at| body.get(at..)?.get(..len))
            .ok_or_else(|| damaged("an offset beyond its end"))?;
        // It lies within the body, so the numbers fit.
        let (first, last) = (at as usize / BLOCK, (at as usize + len - 1) / BLOCK);
        for number in first..=last {
            self.check_block(number)?;
        }
        Ok(piece)
    }

    fn array<const N: usize>(&self, at: u64) -> io::Result<&[u8; N]> {
        self.piece(at, N)?
            .first_chunk()
            .ok_or_else(|| damaged("an offset beyond its end"))
    }

    /// The record of an inode, for a layer of the device `dev`.
    pub(super) fn inode(&self, number: u32, dev: u64) -> io::Result<InodeRecord> {
        if number >= self.header.inodes {
            return Err(damaged("an inode that it does not have"));
        }
        let bytes = self.array(u64::from(number) * INODE as u64)?;
        Ok(InodeRecord::decode(bytes, dev))
    }

    pub(super) fn dentry(&self, number: u32) -> io::Result<DentryRecord> {
        if number >= self.header.dentries {
            return Err(damaged("a name that it does not have"));
        }
        let bytes = self.array(self.dentries + u64::from(number) * DENTRY as u64)?;
        Ok(DentryRecord::decode(bytes))
    }

    pub(super) fn name(&self, dentry: &DentryRecord) -> io::Result<&OsStr> {
        let Span { at, len } = dentry.name;
        if u64::from(at) + u64::from(len) > self.header.names {
            return Err(damaged("a name outside of the names"));
        }
        let name = self.piece(self.names + u64::from(at), len as usize)?;
        // It becomes a path to be opened.
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
            return Err(damaged("a name that no entry can have"));
        }
        Ok(OsStr::from_bytes(name))
    }

    pub(super) fn blob(&self, span: Span) -> io::Result<&[u8]> {
        if u64::from(span.at) + u64::from(span.len) > self.header.blobs {
            return Err(damaged("data outside of the data"));
        }
        self.piece(self.blobs + u64::from(span.at), span.len as usize)
    }

    /// The names of a directory, in their order.
    pub(super) fn names_of(&self, dir: &InodeRecord) -> io::Result<std::ops::Range<u32>> {
        match dir.first.checked_add(dir.count) {
            Some(end) if end <= self.header.dentries => Ok(dir.first..end),
            _ => Err(damaged("names that it does not have")),
        }
    }

    /// Finds a name in a directory.
    pub(super) fn find(
        &self,
        dir: &InodeRecord,
        name: &OsStr,
    ) -> io::Result<Option<(u32, DentryRecord)>> {
        let mut range = self.names_of(dir)?;
        while !range.is_empty() {
            let middle = range.start + (range.end - range.start) / 2;
            let dentry = self.dentry(middle)?;
            match self.name(&dentry)?.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some((middle, dentry))),
                std::cmp::Ordering::Less => range.start = middle + 1,
                std::cmp::Ordering::Greater => range.end = middle,
            }
        }
        Ok(None)
    }
}

/// The checksum of the header, itself aside, and of the blocks' checksums.
pub(super) fn head_checksum(head: &[u8; HEADER], sums: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head[..12]);
    hasher.update(&head[16..]);
    hasher.update(sums);
    hasher.finalize()
}

/// Puts the right checksums into what may be an index, so that a test of readers gets behind them.
pub fn seal(bytes: &mut [u8]) {
    let Some(head) = bytes.first_chunk::<HEADER>() else {
        return;
    };
    let Some(blocks) = Header::decode(head)
        .body()
        .map(|body| body.div_ceil(BLOCK as u64))
    else {
        return;
    };
    let Some((head, rest)) = bytes.split_first_chunk_mut::<HEADER>() else {
        return;
    };
    let Some((sums, body)) = usize::try_from(blocks)
        .ok()
        .and_then(|blocks| rest.split_at_mut_checked(blocks.checked_mul(4)?))
    else {
        return;
    };
    for (sum, block) in sums
        .as_chunks_mut::<4>()
        .0
        .iter_mut()
        .zip(body.chunks(BLOCK))
    {
        *sum = crc32fast::hash(block).to_le_bytes();
    }
    let checksum = head_checksum(head, sums);
    head[12..16].copy_from_slice(&checksum.to_le_bytes());
}
