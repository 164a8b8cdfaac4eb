//! Making an index: the tree is walked once through [`DirLayer`], so that what the index says is what the layer itself
//! would have answered, whiteouts and marks decoded.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::identity_of;
use super::index::head_checksum;
use super::record::{
    BLOCK, DentryRecord, Flags, HEADER, Header, InodeRecord, Span, WHITEOUT, push_xattr,
};
use crate::layer::dir::DirLayer;
use crate::layer::{EntryKind, Layer, LayerLookup, Node, Opaque, Stat};

/// Why a layer has no index.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A node cannot be read; the path is the layer's own.
    #[error("{}: {}", .0.display(), .1)]
    Node(PathBuf, #[source] io::Error),
    /// It changed while it was read.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// It is of another filesystem than the layer's root.
    #[error("{} lies on another filesystem", .0.display())]
    OtherFilesystem(PathBuf),
    /// There is more than an index can hold.
    #[error("the layer is too large for an index")]
    TooLarge,
    /// Whose tree it is cannot be told.
    #[error("the layer cannot be identified: {0}")]
    Identity(#[source] io::Error),
}

/// The bytes of an index.
#[derive(Debug)]
pub struct Packed {
    header: [u8; HEADER],
    sums: Vec<u8>,
    /// The body in pieces: of a large layer it is not held twice.
    parts: Vec<Vec<u8>>,
}

impl Packed {
    /// Walks a layer, of which nothing may change meanwhile, and describes it.
    pub fn of(layer: &DirLayer) -> Result<Packed, PackError> {
        let identity = identity_of(layer).map_err(PackError::Identity)?;
        let mut builder = Builder {
            layer,
            inodes: Vec::new(),
            inode_count: 0,
            dentries: Vec::new(),
            dentry_count: 0,
            names: Vec::new(),
            blobs: Vec::new(),
            same_xattrs: HashMap::new(),
            linked: HashMap::new(),
        };
        builder.walk()?;
        if identity_of(layer).map_err(PackError::Identity)? != identity {
            return Err(PackError::Changed(PathBuf::from("/")));
        }
        let header = Header {
            identity,
            inodes: builder.inode_count,
            dentries: builder.dentry_count,
            names: builder.names.len() as u64,
            blobs: builder.blobs.len() as u64,
        };
        let parts = vec![
            builder.inodes,
            builder.dentries,
            builder.names,
            builder.blobs,
        ];
        Ok(Packed::seal(&header, parts))
    }

    fn seal(header: &Header, parts: Vec<Vec<u8>>) -> Packed {
        let sums = block_sums(&parts);
        let checksum = head_checksum(&header.encode(0), &sums);
        Packed {
            header: header.encode(checksum),
            sums,
            parts,
        }
    }

    /// Writes the index.
    pub fn write_to(&self, mut output: impl Write) -> io::Result<()> {
        output.write_all(&self.header)?;
        output.write_all(&self.sums)?;
        for part in &self.parts {
            output.write_all(part)?;
        }
        Ok(())
    }

    /// The index in one piece.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.header[..], &self.sums, &self.parts.concat()].concat()
    }
}

/// The checksums of the blocks of a body, the last of which may be short.
fn block_sums(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut sums = Vec::new();
    let mut block = crc32fast::Hasher::new();
    let mut room = BLOCK;
    for part in parts {
        let mut rest = &part[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(room.min(rest.len()));
            block.update(now);
            rest = later;
            room -= now.len();
            if room == 0 {
                let full = std::mem::take(&mut block);
                sums.extend_from_slice(&full.finalize().to_le_bytes());
                room = BLOCK;
            }
        }
    }
    if room < BLOCK {
        sums.extend_from_slice(&block.finalize().to_le_bytes());
    }
    sums
}

/// A directory whose names are still to be read.
struct Pending {
    number: u32,
    node: Node,
    xwhiteouts: bool,
    /// For messages.
    path: PathBuf,
}

struct Builder<'a> {
    layer: &'a DirLayer,
    inodes: Vec<u8>,
    inode_count: u32,
    dentries: Vec<u8>,
    dentry_count: u32,
    names: Vec<u8>,
    blobs: Vec<u8>,
    /// Many inodes have the same xattrs: where they are.
    same_xattrs: HashMap<Vec<u8>, Span>,
    /// The numbers of inodes that have several names.
    linked: HashMap<u64, u32>,
}

/// Sets of xattrs that are remembered, to be written once.
const REMEMBERED: usize = 1024;

impl Builder<'_> {
    /// Directories are numbered before what is in them, so that a parent has a smaller number than its entries.
    fn walk(&mut self) -> Result<(), PackError> {
        let mut left = VecDeque::new();
        let node = self.layer.root();
        let path = PathBuf::from("/");
        let stat = self
            .layer
            .stat(&node)
            .map_err(|e| PackError::Node(path.clone(), e))?;
        let (_, xwhiteouts) = self.add_inode(&node, &stat, (0, WHITEOUT), &path)?;
        left.push_back(Pending {
            number: 0,
            node,
            xwhiteouts,
            path,
        });
        while let Some(dir) = left.pop_front() {
            self.directory(&dir, &mut left)?;
        }
        Ok(())
    }

    fn directory(&mut self, dir: &Pending, left: &mut VecDeque<Pending>) -> Result<(), PackError> {
        // In one piece, and each told in few bytes: there may be millions.
        let mut names = Vec::new();
        let mut entries: Vec<(Span, EntryKind)> = Vec::new();
        let mut too_many = false;
        self.layer
            .read_dir(&dir.node, dir.xwhiteouts, &mut |entry| {
                match push(&mut names, entry.name.as_bytes()) {
                    Ok(span) => entries.push((span, entry.kind)),
                    Err(_) => too_many = true,
                }
                ControlFlow::Continue(())
            })
            .map_err(|e| PackError::Node(dir.path.clone(), e))?;
        if too_many {
            return Err(PackError::TooLarge);
        }
        let name = |span: Span| &names[span.at as usize..][..span.len as usize];
        entries.sort_unstable_by(|a, b| name(a.0).cmp(name(b.0)));
        let first = self.dentry_count;
        let count = u32::try_from(entries.len()).map_err(|_| PackError::TooLarge)?;
        for (span, kind) in entries {
            self.entry(dir, OsStr::from_bytes(name(span)), kind, left)?;
        }
        self.set_names(dir.number, first, count);
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &Pending,
        name: &OsStr,
        kind: EntryKind,
        left: &mut VecDeque<Pending>,
    ) -> Result<(), PackError> {
        let path = dir.path.join(name);
        let found = self
            .layer
            .lookup(&dir.node, name, dir.xwhiteouts)
            .map_err(|e| PackError::Node(path.clone(), e))?;
        let found = match (found, kind) {
            (LayerLookup::Whiteout, EntryKind::Whiteout) => {
                return self.add_dentry(name, WHITEOUT, false).map(drop);
            }
            (LayerLookup::Found(found), EntryKind::Node(kind))
                if found.stat.file_type() == kind =>
            {
                found
            }
            _ => return Err(PackError::Changed(path)),
        };
        let stat = &found.stat;
        let linked = !stat.is_dir() && stat.nlink > 1;
        if let Some(&number) = self.linked.get(&stat.ino).filter(|_| linked) {
            return self
                .add_dentry(name, number, found.beside_whiteout)
                .map(drop);
        }
        let dentry = self.add_dentry(name, self.inode_count, found.beside_whiteout)?;
        let (number, xwhiteouts) =
            self.add_inode(&found.node, stat, (dir.number, dentry), &path)?;
        if linked {
            self.linked.insert(stat.ino, number);
        }
        if stat.is_dir() {
            left.push_back(Pending {
                number,
                node: found.node,
                xwhiteouts,
                path,
            });
        }
        Ok(())
    }

    fn add_dentry(
        &mut self,
        name: &OsStr,
        inode: u32,
        beside_whiteout: bool,
    ) -> Result<u32, PackError> {
        let number = self.dentry_count;
        let name = push(&mut self.names, name.as_bytes())?;
        // A name's length takes one byte; no filesystem here has longer ones.
        if name.len > 255 || number == WHITEOUT {
            return Err(PackError::TooLarge);
        }
        let record = DentryRecord {
            name,
            inode,
            beside_whiteout,
        };
        self.dentries.extend_from_slice(&record.encode());
        self.dentry_count += 1;
        Ok(number)
    }

    /// Its number, and whether files in it may be whiteouts by an xattr.
    fn add_inode(
        &mut self,
        node: &Node,
        stat: &Stat,
        (parent, dentry): (u32, u32),
        path: &std::path::Path,
    ) -> Result<(u32, bool), PackError> {
        let failed = |e| PackError::Node(path.to_owned(), e);
        if stat.dev != self.layer.dev() {
            return Err(PackError::OtherFilesystem(path.to_owned()));
        }
        let number = self.inode_count;
        if number == WHITEOUT - 1 {
            return Err(PackError::TooLarge);
        }
        let mut record = InodeRecord {
            stat: *stat,
            parent,
            dentry,
            ..InodeRecord::default()
        };
        let mut xwhiteouts = false;
        if stat.is_dir() || stat.is_file() {
            let marks = self.layer.marks(node, stat).map_err(failed)?;
            xwhiteouts = marks.opaque == Opaque::XWhiteouts;
            let (flags, data) = Flags::of(&marks);
            record.flags = flags;
            record.data = push(&mut self.blobs, &data)?;
        } else if stat.file_type() == libc::S_IFLNK {
            let target = self.layer.read_link(node).map_err(failed)?;
            record.data = push(&mut self.blobs, target.as_bytes())?;
        }
        record.xattrs = self.xattrs(node, path)?;
        let bytes = record.encode().ok_or(PackError::TooLarge)?;
        self.inodes.extend_from_slice(&bytes);
        self.inode_count += 1;
        Ok((number, xwhiteouts))
    }

    fn xattrs(&mut self, node: &Node, path: &std::path::Path) -> Result<Span, PackError> {
        let failed = |e| PackError::Node(path.to_owned(), e);
        let mut bytes = Vec::new();
        for name in self.layer.list_xattr(node).map_err(failed)? {
            // Gone since: it changes.
            let value = self.layer.get_xattr(node, &name).map_err(failed)?;
            let value = value.ok_or_else(|| PackError::Changed(path.to_owned()))?;
            push_xattr(&mut bytes, name.as_bytes(), &value).ok_or(PackError::TooLarge)?;
        }
        if bytes.is_empty() {
            return Ok(Span::default());
        }
        if let Some(&span) = self.same_xattrs.get(&bytes) {
            return Ok(span);
        }
        let span = push(&mut self.blobs, &bytes)?;
        if self.same_xattrs.len() < REMEMBERED {
            self.same_xattrs.insert(bytes, span);
        }
        Ok(span)
    }

    /// The names of a directory are known only after it has its record.
    fn set_names(&mut self, number: u32, first: u32, count: u32) {
        InodeRecord::patch_names(&mut self.inodes, number, first, count);
    }
}

/// Adds bytes to a part of which an index can tell the place.
fn push(part: &mut Vec<u8>, bytes: &[u8]) -> Result<Span, PackError> {
    let at = u32::try_from(part.len()).map_err(|_| PackError::TooLarge)?;
    let len = u32::try_from(bytes.len()).map_err(|_| PackError::TooLarge)?;
    part.extend_from_slice(bytes);
    Ok(Span { at, len })
}
