//! The tar itself: ustar headers, and PAX records for what those cannot hold.

use std::io::{self, Read, Write};

use crate::image::{acl, pax};
use crate::layer::{Stat, Timestamp};

/// The largest number that seven octal digits hold: owners and device numbers.
const OCTAL_7: u64 = 0o7_777_777;
/// The same for eleven: sizes and times.
const OCTAL_11: u64 = 0o77_777_777_777;
/// The unit of a tar.
const BLOCK: u64 = 512;

/// A piece of a sparse file that holds data: offset and length in bytes.
pub(super) type Extent = (u64, u64);

/// What an entry is, and what its header says beyond the attributes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind<'a> {
    Directory,
    /// Of so many bytes.
    File(u64),
    /// Of so many bytes, of which only these are written.
    Sparse(u64, &'a [Extent]),
    Symlink(&'a [u8]),
    HardLink(&'a [u8]),
    Fifo,
    Char,
    Block,
}

/// Writes a tar to `output`, entry by entry.
#[derive(Debug)]
pub(super) struct TarWriter<W> {
    output: W,
}

impl<W: Write> TarWriter<W> {
    pub(super) fn new(output: W) -> TarWriter<W> {
        TarWriter { output }
    }

    /// Writes the header of an entry. `path` has no slash at either end; empty, it is the root.
    pub(super) fn header(
        &mut self,
        path: &[u8],
        kind: Kind<'_>,
        stat: &Stat,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> io::Result<()> {
        let mut records = Vec::new();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(match kind {
            Kind::Directory => tar::EntryType::Directory,
            Kind::File(_) | Kind::Sparse(..) => tar::EntryType::Regular,
            Kind::Symlink(_) => tar::EntryType::Symlink,
            Kind::HardLink(_) => tar::EntryType::Link,
            Kind::Fifo => tar::EntryType::Fifo,
            Kind::Char => tar::EntryType::Char,
            Kind::Block => tar::EntryType::Block,
        });
        let mut name = path.to_vec();
        if path.is_empty() {
            name = b".".to_vec();
        }
        if matches!(kind, Kind::Directory) {
            name.push(b'/');
        }
        let mut size = 0;
        let mut map = Vec::new();
        match kind {
            Kind::File(length) => size = length,
            Kind::Sparse(length, extents) => {
                // PAX format 1.0: the map stands before the data, and the name that old readers see is another one.
                map = sparse_map(extents);
                size = map.len() as u64 + extents.iter().map(|e| e.1).sum::<u64>();
                record(&mut records, b"GNU.sparse.major", b"1");
                record(&mut records, b"GNU.sparse.minor", b"0");
                record(&mut records, b"GNU.sparse.name", &name);
                let length = length.to_string();
                record(&mut records, b"GNU.sparse.realsize", length.as_bytes());
                name = stand_in(&name);
            }
            _ => {}
        }
        if name.len() > 100 {
            record(&mut records, b"path", &name);
        }
        if let Kind::Symlink(target) | Kind::HardLink(target) = kind {
            if target.len() > 100 {
                record(&mut records, b"linkpath", target);
            }
            let length = target.len().min(100);
            header.as_old_mut().linkname[..length].copy_from_slice(&target[..length]);
        }
        let length = name.len().min(100);
        header.as_old_mut().name[..length].copy_from_slice(&name[..length]);
        header.set_mode(stat.mode & 0o7777);
        header.set_uid(number(&mut records, b"uid", stat.uid.into(), OCTAL_7));
        header.set_gid(number(&mut records, b"gid", stat.gid.into(), OCTAL_7));
        header.set_size(number(&mut records, b"size", size, OCTAL_11));
        header.set_mtime(time(&mut records, stat.mtime));
        if matches!(kind, Kind::Char | Kind::Block) {
            let (major, minor) = (libc::major(stat.rdev), libc::minor(stat.rdev));
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        header.set_cksum();
        // A hard link is the file that was written before, with its attributes.
        if !matches!(kind, Kind::HardLink(_)) {
            for (name, value) in xattrs {
                let key = [b"SCHILY.xattr.", &pax::encode_key(name)[..]].concat();
                record(&mut records, &key, value);
                // The same for tars that know no such attributes. Readers of both find them equal.
                if let Some((_, key)) = acl::FORMS.iter().find(|(acl, _)| acl == name)
                    && let Some(text) = acl::to_text(value)
                {
                    record(&mut records, key, text.as_bytes());
                }
            }
        }
        if !records.is_empty() {
            self.extended(&records)?;
        }
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(&map)
    }

    /// The entry that holds the PAX records of the next one.
    fn extended(&mut self, records: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        let name = b"PaxHeaders/entry";
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_mode(0o644);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(records)?;
        self.pad(records.len() as u64)
    }

    /// Writes exactly `length` bytes of an entry's data; an error where there are fewer.
    pub(super) fn data(
        &mut self,
        reader: &mut impl Read,
        length: u64,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            let want = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            match reader.read(&mut buffer[..want]) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "it became shorter while it was read",
                    ));
                }
                Ok(n) => {
                    self.output.write_all(&buffer[..n])?;
                    left -= n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Fills the last block of data of which `length` bytes were written.
    pub(super) fn pad(&mut self, length: u64) -> io::Result<()> {
        let zeros = [0; BLOCK as usize];
        let rest = (BLOCK - length % BLOCK) % BLOCK;
        self.output.write_all(&zeros[..rest as usize])
    }

    /// Ends the tar.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK as usize])?;
        self.output.flush()?;
        Ok(self.output)
    }
}

/// A PAX record: its own length, which counts its own digits, the key and the value.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(length.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

/// What the header says of a number; the record says it where that is too small.
fn number(pax: &mut Vec<u8>, key: &[u8], value: u64, limit: u64) -> u64 {
    if value <= limit {
        return value;
    }
    record(pax, key, value.to_string().as_bytes());
    0
}

/// The same for a time, of which a header holds whole seconds since 1970.
fn time(pax: &mut Vec<u8>, time: Timestamp) -> u64 {
    let seconds = u64::try_from(time.sec).unwrap_or_default();
    if time.nsec == 0 && time.sec >= 0 && seconds <= OCTAL_11 {
        return seconds;
    }
    // Seconds are rounded down, nanoseconds count upwards; the text has one sign for both.
    let text = if time.sec < 0 && time.nsec > 0 {
        format!("-{}.{:09}", -(time.sec + 1), 1_000_000_000 - time.nsec)
    } else {
        format!("{}.{:09}", time.sec, time.nsec)
    };
    record(pax, b"mtime", text.as_bytes());
    seconds.min(OCTAL_11)
}

fn sparse_map(extents: &[Extent]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len()).into_bytes();
    for (offset, length) in extents {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}

/// The name in a sparse entry's header.
fn stand_in(path: &[u8]) -> Vec<u8> {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => [&path[..slash], b"/GNUSparseFile.0", &path[slash..]].concat(),
        None => [b"GNUSparseFile.0/", path].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        let length_of = |value: &[u8]| {
            let mut pax = Vec::new();
            record(&mut pax, b"k", value);
            let said: usize = pax
                .split(|&b| b == b' ')
                .next()
                .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
                .unwrap();
            assert_eq!(said, pax.len());
            said
        };
        for n in 0..1200 {
            length_of(&vec![b'x'; n]);
        }
        assert_eq!(length_of(b"v"), 6);
    }

    #[test]
    fn times_before_1970_have_one_sign() {
        let said = |sec, nsec| {
            let mut pax = Vec::new();
            time(&mut pax, Timestamp { sec, nsec });
            String::from_utf8(pax).unwrap()
        };
        assert_eq!(said(5, 0), "");
        assert!(said(5, 7).contains("mtime=5.000000007\n"));
        assert!(said(-2, 500_000_000).contains("mtime=-1.500000000\n"));
        assert!(said(-1, 999_999_999).contains("mtime=-0.000000001\n"));
        assert!(said(-3, 0).contains("mtime=-3.000000000\n"));
    }
}
