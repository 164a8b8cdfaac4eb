//! The records of the journal.
//!
//! A record is its length (4 bytes), its kind (1) and its fields, in the machine's own byte order: the reader runs on the same
//! machine. [`FORM`] changes with the form.

use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use super::listing::Cookies;
use super::types::{HandleId, NodeId};

/// The form of the records: a process of another form must not read them.
pub const FORM: u32 = 2;

/// A lower part of a file without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LowerPlace {
    /// The path in the layer.
    Path(Vec<u8>),
    /// The number in an indexed layer.
    Index(u64),
}

/// How a file is reached that has lost its last name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Grave {
    /// The upper part: a descriptor that stays open, and the inode number that it must have.
    pub(super) upper: Option<(RawFd, u64)>,
    /// A removed directory.
    pub(super) dead: bool,
    /// The upper part holds attributes only.
    pub(super) metacopy: bool,
    /// The lower parts, topmost first, with the number of their layer.
    pub(super) lowers: Vec<(u16, LowerPlace)>,
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenFile {
    pub(super) node: NodeId,
    pub(super) flags: i32,
    pub(super) passthrough: bool,
    pub(super) mapper: bool,
    /// It was opened on the upper's file.
    pub(super) upper: bool,
    /// The registered file, with passthrough.
    pub(super) backing: u32,
}

/// One change of what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// A node that the kernel did not know before: one lookup.
    Node {
        node: NodeId,
        ino: u64,
        file_type: u32,
        /// Inode number of the upper part on disk; 0 without one.
        real: u64,
        /// How many lookups.
        lookups: u64,
    },
    Lookup(NodeId),
    Forget(NodeId, u64),
    Name {
        ino: u64,
        parent: u64,
        name: &'a [u8],
    },
    Unname {
        ino: u64,
        parent: u64,
        name: &'a [u8],
    },
    Grave {
        ino: u64,
        file_type: u32,
        grave: Grave,
    },
    Open(HandleId, OpenFile),
    Release(HandleId),
    Backing(u32),
    Unbacked(u32),
    /// What a request that must not be done twice is about to do: its number, and an inode number that tells afterwards
    /// whether it was done.
    Intent(u64, u64),
    /// The cookies of a directory's entries, by its inode number: all, or those that were given since the last such record.
    Listing(u64, Cookies),
    /// What is known of many nodes and files at once: see `checkpoint`. Only the first of a log.
    Checkpoint(&'a [u8]),
}

/// Writes a record's fields.
struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }
    fn bytes(&mut self, value: &[u8]) {
        self.u32(value.len() as u32);
        self.0.extend_from_slice(value);
    }
}

/// Reads a record's fields.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.take(8)?.try_into().ok()?))
    }
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }
}

impl<'a> Record<'a> {
    /// Appends the record to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let mut to = Writer(out);
        to.u32(0);
        match self {
            Record::Node {
                node,
                ino,
                file_type,
                real,
                lookups,
            } => {
                to.u8(1);
                to.u64(*node);
                to.u64(*ino);
                to.u32(*file_type);
                to.u64(*real);
                to.u64(*lookups);
            }
            Record::Lookup(node) => {
                to.u8(2);
                to.u64(*node);
            }
            Record::Forget(node, count) => {
                to.u8(3);
                to.u64(*node);
                to.u64(*count);
            }
            Record::Name { ino, parent, name } | Record::Unname { ino, parent, name } => {
                to.u8(if matches!(self, Record::Name { .. }) {
                    4
                } else {
                    5
                });
                to.u64(*ino);
                to.u64(*parent);
                to.bytes(name);
            }
            Record::Grave {
                ino,
                file_type,
                grave,
            } => {
                to.u8(6);
                to.u64(*ino);
                to.u32(*file_type);
                encode_grave(grave, &mut to);
            }
            Record::Open(handle, open) => {
                to.u8(7);
                to.u64(*handle);
                to.u64(open.node);
                to.u32(open.flags as u32);
                to.u8(u8::from(open.passthrough)
                    | u8::from(open.mapper) << 1
                    | u8::from(open.upper) << 2);
                to.u32(open.backing);
            }
            Record::Release(handle) => {
                to.u8(8);
                to.u64(*handle);
            }
            Record::Backing(id) => {
                to.u8(9);
                to.u32(*id);
            }
            Record::Unbacked(id) => {
                to.u8(10);
                to.u32(*id);
            }
            Record::Intent(unique, subject) => {
                to.u8(11);
                to.u64(*unique);
                to.u64(*subject);
            }
            Record::Listing(ino, cookies) => {
                to.u8(12);
                to.u64(*ino);
                to.u64(cookies.from);
                to.u64(cookies.next);
                to.u64(cookies.names.len() as u64);
                for (cookie, name) in &cookies.names {
                    to.u64(*cookie);
                    to.bytes(name);
                }
            }
            Record::Checkpoint(table) => {
                to.u8(13);
                to.0.extend_from_slice(table);
            }
        }
        let length = ((out.len() - start) as u32).to_ne_bytes();
        out[start..start + 4].copy_from_slice(&length);
    }

    /// The first record, and what follows it; `None` at the end, or where no record can be read.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<(Record<'a>, &'a [u8])> {
        let length = Reader(bytes).u32()? as usize;
        let (whole, rest) = bytes.split_at_checked(length)?;
        let mut from = Reader(whole.get(4..)?);
        let record = match from.u8()? {
            1 => Record::Node {
                node: from.u64()?,
                ino: from.u64()?,
                file_type: from.u32()?,
                real: from.u64()?,
                lookups: from.u64()?,
            },
            2 => Record::Lookup(from.u64()?),
            3 => Record::Forget(from.u64()?, from.u64()?),
            4 => Record::Name {
                ino: from.u64()?,
                parent: from.u64()?,
                name: from.bytes()?,
            },
            5 => Record::Unname {
                ino: from.u64()?,
                parent: from.u64()?,
                name: from.bytes()?,
            },
            6 => Record::Grave {
                ino: from.u64()?,
                file_type: from.u32()?,
                grave: decode_grave(&mut from)?,
            },
            7 => {
                let handle = from.u64()?;
                let (node, flags, bits) = (from.u64()?, from.u32()? as i32, from.u8()?);
                let open = OpenFile {
                    node,
                    flags,
                    passthrough: bits & 1 != 0,
                    mapper: bits & 2 != 0,
                    upper: bits & 4 != 0,
                    backing: from.u32()?,
                };
                Record::Open(handle, open)
            }
            8 => Record::Release(from.u64()?),
            9 => Record::Backing(from.u32()?),
            10 => Record::Unbacked(from.u32()?),
            11 => Record::Intent(from.u64()?, from.u64()?),
            12 => {
                let ino = from.u64()?;
                let mut cookies = Cookies {
                    from: from.u64()?,
                    next: from.u64()?,
                    names: Vec::new(),
                };
                for _ in 0..from.u64()? {
                    let cookie = from.u64()?;
                    cookies.names.push((cookie, from.bytes()?.to_vec()));
                }
                Record::Listing(ino, cookies)
            }
            13 => Record::Checkpoint(from.0),
            _ => return None,
        };
        Some((record, rest))
    }
}

fn encode_grave(grave: &Grave, to: &mut Writer<'_>) {
    to.u8(u8::from(grave.dead)
        | u8::from(grave.metacopy) << 1
        | u8::from(grave.upper.is_some()) << 2);
    let (fd, real) = grave.upper.unwrap_or((-1, 0));
    to.u32(fd as u32);
    to.u64(real);
    to.u32(grave.lowers.len() as u32);
    for (layer, place) in &grave.lowers {
        to.u32(u32::from(*layer));
        match place {
            LowerPlace::Path(path) => {
                to.u8(0);
                to.bytes(path);
            }
            LowerPlace::Index(index) => {
                to.u8(1);
                to.u64(*index);
            }
        }
    }
}

fn decode_grave(from: &mut Reader<'_>) -> Option<Grave> {
    let bits = from.u8()?;
    let (fd, real) = (from.u32()? as RawFd, from.u64()?);
    let mut grave = Grave {
        upper: (bits & 4 != 0).then_some((fd, real)),
        dead: bits & 1 != 0,
        metacopy: bits & 2 != 0,
        lowers: Vec::new(),
    };
    for _ in 0..from.u32()? {
        let layer = u16::try_from(from.u32()?).ok()?;
        let place = match from.u8()? {
            0 => LowerPlace::Path(from.bytes()?.to_vec()),
            _ => LowerPlace::Index(from.u64()?),
        };
        grave.lowers.push((layer, place));
    }
    Some(grave)
}

/// A name as it is written down.
pub(super) fn name(ino: u64, parent: u64, name: &OsStr) -> Record<'_> {
    Record::Name {
        ino,
        parent,
        name: name.as_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let records = [
            Record::Node {
                node: 5,
                ino: 6,
                file_type: libc::S_IFREG,
                real: 7,
                lookups: 1,
            },
            Record::Lookup(5),
            Record::Forget(5, 2),
            Record::Name {
                ino: 6,
                parent: 1,
                name: b"a\n\xff",
            },
            Record::Unname {
                ino: 6,
                parent: 1,
                name: b"",
            },
            Record::Grave {
                ino: 6,
                file_type: libc::S_IFREG,
                grave: Grave {
                    upper: Some((9, 77)),
                    dead: true,
                    metacopy: true,
                    lowers: vec![
                        (1, LowerPlace::Path(b"x/y".to_vec())),
                        (2, LowerPlace::Index(8)),
                    ],
                },
            },
            Record::Open(
                3,
                OpenFile {
                    node: 5,
                    flags: libc::O_RDWR,
                    passthrough: true,
                    mapper: false,
                    upper: true,
                    backing: 4,
                },
            ),
            Record::Release(3),
            Record::Backing(4),
            Record::Unbacked(4),
            Record::Intent(10, 6),
            Record::Listing(
                6,
                Cookies {
                    from: 2,
                    next: 9,
                    names: vec![(3, b"a".to_vec()), (5, b"b".to_vec())],
                },
            ),
            Record::Checkpoint(b"table"),
        ];
        let mut bytes = Vec::new();
        for record in &records {
            record.encode(&mut bytes);
        }
        let mut rest = &bytes[..];
        for record in &records {
            let (read, after) = Record::decode(rest).unwrap();
            assert_eq!(read, *record);
            rest = after;
        }
        assert!(Record::decode(rest).is_none());
        // Cut anywhere, what is left is read or refused, and nothing else.
        for end in 0..bytes.len() {
            let mut rest = &bytes[..end];
            while let Some((_, after)) = Record::decode(rest) {
                rest = after;
            }
        }
    }
}
