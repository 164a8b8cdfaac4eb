//! What an operation did, in a form that two filesystems can agree on.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Data; printed by its runs.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())?;
        if self.0.len() <= 64 {
            return write!(f, " \"{}\"", self.0.escape_ascii());
        }
        // The pattern repeats within a seed, so where it changes is what tells two contents apart.
        let mut sum = 0_u64;
        for (at, page) in self.0.chunks(4096).enumerate() {
            sum = page.iter().fold(sum, |s, b| {
                s.wrapping_mul(1_099_511_628_211) ^ u64::from(*b)
            });
            let zero = page.iter().all(|b| *b == 0);
            write!(
                f,
                " {at}:{}",
                if zero {
                    "-".into()
                } else {
                    format!("{:04x}", sum & 0xffff)
                }
            )?;
        }
        Ok(())
    }
}

/// A time stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// Set during the test by the clock.
    Now,
    /// Anything else, to the nanosecond.
    At(i64, i64),
}

/// Attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Size; 0 for directories, where it means nothing.
    pub size: i64,
    pub rdev: u64,
    pub nlink: u64,
    pub mtime: Stamp,
    pub atime: Stamp,
}

impl Attr {
    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
}

fn stamp(sec: i64, nsec: i64) -> Stamp {
    // The clock of time stamps may lag by a tick.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let now = i64::try_from(now).unwrap();
    if (now - 7200..=now + 1).contains(&sec) {
        Stamp::Now
    } else {
        Stamp::At(sec, nsec)
    }
}

impl Attr {
    /// Takes what can be compared; numbers that mean nothing for a type are 0.
    fn normal(self) -> Attr {
        let kind = self.mode & libc::S_IFMT;
        let device = matches!(kind, libc::S_IFCHR | libc::S_IFBLK);
        let is_dir = kind == libc::S_IFDIR;
        Attr {
            // The kernel's overlayfs updates it in the upper by reading, whatever the mounts say.
            atime: if is_dir { Stamp::Now } else { self.atime },
            size: if is_dir { 0 } else { self.size },
            rdev: if device { self.rdev } else { 0 },
            ..self
        }
    }
}

impl From<&libc::stat> for Attr {
    fn from(stat: &libc::stat) -> Attr {
        let attr = Attr {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size,
            rdev: stat.st_rdev,
            nlink: stat.st_nlink,
            mtime: stamp(stat.st_mtime, stat.st_mtime_nsec),
            atime: stamp(stat.st_atime, stat.st_atime_nsec),
        };
        attr.normal()
    }
}

impl From<&Metadata> for Attr {
    fn from(meta: &Metadata) -> Attr {
        let attr = Attr {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            size: i64::try_from(meta.size()).unwrap(),
            rdev: meta.rdev(),
            nlink: meta.nlink(),
            mtime: stamp(meta.mtime(), meta.mtime_nsec()),
            atime: stamp(meta.atime(), meta.atime_nsec()),
        };
        attr.normal()
    }
}

/// What an operation returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Done,
    Number(u64),
    Data(Bytes),
    Attr(Attr),
    /// Sorted names with the type that the listing gives.
    Names(Vec<(String, u8)>),
    /// Sorted names.
    List(Vec<String>),
}

/// A name for a message.
pub fn show(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

/// Result of an operation, and what is wrong whatever the others say.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    pub result: Result<Value, i32>,
    pub broken: Vec<String>,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(value) => write!(f, "{value:?}")?,
            Err(errno) => write!(f, "{:?}", nix::errno::Errno::from_raw(*errno))?,
        }
        for broken in &self.broken {
            write!(f, " BROKEN: {broken}")?;
        }
        Ok(())
    }
}
