//! The bytes of an index: see the [module](super) for how they lie.

use crate::layer::{Marks, Opaque, Stat, Timestamp};

/// The first bytes of an index.
pub(super) const MAGIC: [u8; 8] = *b"acetpack";
/// The version of the format.
pub(super) const VERSION: u32 = 1;
/// Bytes of the header.
pub(super) const HEADER: usize = 128;
/// Bytes of the body that have a checksum of their own.
pub(super) const BLOCK: usize = 4096;
/// Bytes of the record of an inode.
pub(super) const INODE: usize = 128;
/// Bytes of the record of a name.
pub(super) const DENTRY: usize = 12;
/// No inode: the name is a whiteout.
pub(super) const WHITEOUT: u32 = u32::MAX;

/// Which tree an index tells of, and how it was read. An index tells nothing about any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Inode number of the root directory.
    pub(super) ino: u64,
    /// Its last change: a copy of the tree has another one, whatever inode numbers it has.
    pub(super) ctime: Timestamp,
    /// Its owner and group as the process sees them.
    pub(super) owner: (u32, u32),
    /// How the layer was opened: [`Identity::METACOPY`] and the like.
    pub(super) options: u32,
    /// A digest of what decides how the process sees owners and attributes.
    pub(super) view: [u8; 32],
}

impl Identity {
    /// Regular files may be metacopies.
    pub(super) const METACOPY: u32 = 1;
    /// `.wh.` names are whiteouts.
    pub(super) const DOT_WHITEOUTS: u32 = 2;
    /// The filesystem has xattrs.
    pub(super) const XATTRS: u32 = 4;
    /// It has POSIX ACLs.
    pub(super) const ACLS: u32 = 8;
    /// Redirects and metacopies in `user.` xattrs do not count.
    pub(super) const PRIVILEGED: u32 = 16;
    /// The number of the xattr in which owners and modes are kept, from 1; 0 for none.
    pub(super) const OVERRIDE_SHIFT: u32 = 8;
}

/// The decoded header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) identity: Identity,
    /// How many inodes.
    pub(super) inodes: u32,
    /// How many names.
    pub(super) dentries: u32,
    /// Bytes of all names.
    pub(super) names: u64,
    /// Bytes of all link targets, marks and xattrs.
    pub(super) blobs: u64,
}

impl Header {
    /// Bytes of the body; `None` when no file has as many.
    pub(super) fn body(&self) -> Option<u64> {
        (u64::from(self.inodes) * INODE as u64 + u64::from(self.dentries) * DENTRY as u64)
            .checked_add(self.names)?
            .checked_add(self.blobs)
    }

    /// The header's bytes, with `checksum` in its place.
    pub(super) fn encode(&self, checksum: u32) -> [u8; HEADER] {
        let mut out = Fields::new([0; HEADER]);
        out.put(&MAGIC);
        out.put(&VERSION.to_le_bytes());
        out.put(&checksum.to_le_bytes());
        out.put(&self.identity.options.to_le_bytes());
        out.put(&self.inodes.to_le_bytes());
        out.put(&self.dentries.to_le_bytes());
        out.put(&self.names.to_le_bytes());
        out.put(&self.blobs.to_le_bytes());
        out.put(&self.identity.ino.to_le_bytes());
        out.put(&self.identity.ctime.sec.to_le_bytes());
        out.put(&self.identity.ctime.nsec.to_le_bytes());
        out.put(&self.identity.owner.0.to_le_bytes());
        out.put(&self.identity.owner.1.to_le_bytes());
        out.put(&self.identity.view);
        out.bytes
    }

    /// Reads what follows the magic bytes, the version and the checksum.
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Header {
        let mut from = Taken { bytes, at: 16 };
        let options = from.u32();
        let (inodes, dentries, names, blobs) = (from.u32(), from.u32(), from.u64(), from.u64());
        Header {
            inodes,
            dentries,
            names,
            blobs,
            identity: Identity {
                options,
                ino: from.u64(),
                ctime: Timestamp {
                    sec: from.u64().cast_signed(),
                    nsec: from.u32(),
                },
                owner: (from.u32(), from.u32()),
                view: from.take(),
            },
        }
    }
}

/// One inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InodeRecord {
    /// Without the device, which the layer knows.
    pub(super) stat: Stat,
    /// The directory that has its first name; its own number for the root.
    pub(super) parent: u32,
    /// Its first name.
    pub(super) dentry: u32,
    /// Directories: where its names begin.
    pub(super) first: u32,
    /// Directories: how many there are.
    pub(super) count: u32,
    /// The target of a symlink; what [`Flags`] announce.
    pub(super) data: Span,
    /// See [`xattrs`].
    pub(super) xattrs: Span,
    /// What marks there are.
    pub(super) flags: Flags,
}

/// A piece of the names or of the blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) at: u32,
    pub(super) len: u32,
}

/// The marks of an inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags(pub(super) u32);

impl Flags {
    const OPAQUE: u32 = 1;
    const XWHITEOUTS: u32 = 2;
    const METACOPY: u32 = 4;
    /// The data begin with a redirect and its length before it.
    const REDIRECT: u32 = 8;
    /// The data end with the record of a partial file.
    const PARTIAL: u32 = 16;

    /// The flags of these marks, and the data that go with them.
    pub(super) fn of(marks: &Marks) -> (Flags, Vec<u8>) {
        use std::os::unix::ffi::OsStrExt;
        let mut flags = match marks.opaque {
            Opaque::No => 0,
            Opaque::Yes => Flags::OPAQUE,
            Opaque::XWhiteouts => Flags::XWHITEOUTS,
        };
        if marks.metacopy {
            flags |= Flags::METACOPY;
        }
        let mut data = Vec::new();
        if let Some(redirect) = &marks.redirect {
            flags |= Flags::REDIRECT;
            data.extend_from_slice(&(redirect.len() as u32).to_le_bytes());
            data.extend_from_slice(redirect.as_bytes());
        }
        if let Some(partial) = &marks.partial {
            flags |= Flags::PARTIAL;
            data.extend_from_slice(partial);
        }
        (Flags(flags), data)
    }

    /// Whether the data tell something.
    pub(super) fn has_data(self) -> bool {
        self.0 & (Flags::REDIRECT | Flags::PARTIAL) != 0
    }

    /// The marks; `None` when the data are not what the flags announce.
    pub(super) fn marks(self, data: &[u8]) -> Option<Marks> {
        use std::os::unix::ffi::OsStrExt;
        let mut marks = Marks {
            opaque: match self.0 & (Flags::OPAQUE | Flags::XWHITEOUTS) {
                Flags::OPAQUE => Opaque::Yes,
                Flags::XWHITEOUTS => Opaque::XWhiteouts,
                _ => Opaque::No,
            },
            metacopy: self.0 & Flags::METACOPY != 0,
            ..Marks::default()
        };
        let mut rest = data;
        if self.0 & Flags::REDIRECT != 0 {
            let (len, after) = rest.split_first_chunk()?;
            let (redirect, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            marks.redirect = Some(std::ffi::OsStr::from_bytes(redirect).to_owned());
            rest = after;
        }
        if self.0 & Flags::PARTIAL != 0 {
            marks.partial = Some(rest.to_vec());
        }
        Some(marks)
    }
}

impl InodeRecord {
    /// As it lies in the file. `None`: a field is larger than any filesystem has it.
    pub(super) fn encode(&self) -> Option<[u8; INODE]> {
        let stat = &self.stat;
        let mut out = Fields::new([0; INODE]);
        for field in [stat.ino, stat.size, stat.blocks, stat.rdev] {
            out.put(&field.to_le_bytes());
        }
        for time in [stat.atime, stat.mtime, stat.ctime] {
            out.put(&time.sec.to_le_bytes());
            out.put(&time.nsec.to_le_bytes());
        }
        let nlink = u32::try_from(stat.nlink).ok()?;
        for field in [
            stat.mode,
            nlink,
            stat.uid,
            stat.gid,
            stat.blksize,
            self.parent,
            self.dentry,
            self.first,
            self.count,
            self.data.at,
            self.data.len,
            self.xattrs.at,
            self.xattrs.len,
            self.flags.0,
        ] {
            out.put(&field.to_le_bytes());
        }
        Some(out.bytes)
    }

    /// Sets `first` and `count` of one of several records in a row.
    pub(super) fn patch_names(records: &mut [u8], number: u32, first: u32, count: u32) {
        // The fields above them: four of 8 bytes, three times, seven of 4 bytes.
        const FIRST: usize = 4 * 8 + 3 * 12 + 7 * 4;
        if let Some(record) = records.as_chunks_mut::<INODE>().0.get_mut(number as usize) {
            record[FIRST..FIRST + 4].copy_from_slice(&first.to_le_bytes());
            record[FIRST + 4..FIRST + 8].copy_from_slice(&count.to_le_bytes());
        }
    }

    pub(super) fn decode(bytes: &[u8; INODE], dev: u64) -> InodeRecord {
        let mut from = Taken { bytes, at: 0 };
        let (ino, size, blocks, rdev) = (from.u64(), from.u64(), from.u64(), from.u64());
        let mut time = || Timestamp {
            sec: from.u64().cast_signed(),
            nsec: from.u32(),
        };
        let (atime, mtime, ctime) = (time(), time(), time());
        let stat = Stat {
            dev,
            ino,
            mode: from.u32(),
            nlink: u64::from(from.u32()),
            uid: from.u32(),
            gid: from.u32(),
            rdev,
            size,
            blocks,
            blksize: from.u32(),
            atime,
            mtime,
            ctime,
        };
        InodeRecord {
            stat,
            parent: from.u32(),
            dentry: from.u32(),
            first: from.u32(),
            count: from.u32(),
            data: from.span(),
            xattrs: from.span(),
            flags: Flags(from.u32()),
        }
    }
}

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct DentryRecord {
    /// Where the name lies among the names.
    pub(super) name: Span,
    /// The inode, or [`WHITEOUT`].
    pub(super) inode: u32,
    /// A whiteout of the same name stands beside it.
    pub(super) beside_whiteout: bool,
}

impl DentryRecord {
    pub(super) fn encode(&self) -> [u8; DENTRY] {
        let mut out = Fields::new([0; DENTRY]);
        out.put(&self.name.at.to_le_bytes());
        out.put(&self.inode.to_le_bytes());
        out.put(&[self.name.len as u8, u8::from(self.beside_whiteout)]);
        out.bytes
    }

    pub(super) fn decode(bytes: &[u8; DENTRY]) -> DentryRecord {
        let mut from = Taken { bytes, at: 0 };
        let (at, inode) = (from.u32(), from.u32());
        let [len, beside] = from.take();
        DentryRecord {
            name: Span {
                at,
                len: u32::from(len),
            },
            inode,
            beside_whiteout: beside & 1 != 0,
        }
    }
}

/// Adds one xattr to the others of an inode. `None`: it is longer than any filesystem keeps.
pub(super) fn push_xattr(out: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Option<()> {
    out.push(u8::try_from(name.len()).ok()?);
    out.extend_from_slice(name);
    out.extend_from_slice(&u32::try_from(value.len()).ok()?.to_le_bytes());
    out.extend_from_slice(value);
    Some(())
}

/// The xattrs of an inode, name and value; an item is `None` when the bytes are not what they should be.
pub(super) fn xattrs(bytes: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest.take().filter(|bytes| !bytes.is_empty())?;
        let one = || {
            let (&len, after) = bytes.split_first()?;
            let (name, after) = after.split_at_checked(usize::from(len))?;
            let (len, after) = after.split_first_chunk()?;
            let (value, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            Some((name, value, after))
        };
        Some(one().map(|(name, value, after)| {
            rest = Some(after);
            (name, value)
        }))
    })
}

/// Fields one after the other, into an array that has room for all of them.
struct Fields<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Fields<N> {
    fn new(bytes: [u8; N]) -> Fields<N> {
        Fields { bytes, at: 0 }
    }

    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

/// And from one.
struct Taken<'a, const N: usize> {
    bytes: &'a [u8; N],
    at: usize,
}

impl<const N: usize> Taken<'_, N> {
    fn take<const M: usize>(&mut self) -> [u8; M] {
        let mut field = [0; M];
        field.copy_from_slice(&self.bytes[self.at..self.at + M]);
        self.at += M;
        field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn span(&mut self) -> Span {
        Span {
            at: self.u32(),
            len: self.u32(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back() {
        let record = InodeRecord {
            stat: Stat {
                dev: 7,
                ino: 1 << 40,
                mode: 0o104_755,
                nlink: 3,
                uid: u32::MAX - 1,
                gid: 5,
                rdev: 0x0103,
                size: u64::MAX,
                blocks: 8,
                blksize: 4096,
                atime: Timestamp { sec: -1, nsec: 2 },
                mtime: Timestamp { sec: 3, nsec: 4 },
                ctime: Timestamp { sec: 5, nsec: 6 },
            },
            parent: 8,
            dentry: 9,
            first: 10,
            count: 11,
            data: Span { at: 12, len: 13 },
            xattrs: Span { at: 14, len: 15 },
            flags: Flags(16),
        };
        let mut bytes = record.encode().unwrap();
        let back = InodeRecord::decode(&bytes, 7);
        assert_eq!(record, back);
        InodeRecord::patch_names(&mut bytes, 0, 20, 21);
        let back = InodeRecord::decode(&bytes, 7);
        assert_eq!((back.parent, back.dentry), (8, 9));
        assert_eq!((back.first, back.count), (20, 21));
        assert_eq!(back.data, record.data);
    }

    #[test]
    fn xattrs_that_are_cut_end_with_none() {
        let mut bytes = Vec::new();
        push_xattr(&mut bytes, b"user.a", b"1").unwrap();
        push_xattr(&mut bytes, b"user.b", b"").unwrap();
        let all: Vec<_> = xattrs(&bytes).collect();
        assert_eq!(
            all,
            [
                Some((&b"user.a"[..], &b"1"[..])),
                Some((&b"user.b"[..], &b""[..]))
            ]
        );
        for cut in 1..bytes.len() {
            let all: Vec<_> = xattrs(&bytes[..cut]).collect();
            assert!(cut == 12 || all.last() == Some(&None), "{cut}: {all:?}");
        }
    }
}
