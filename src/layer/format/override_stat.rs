//! Owner, mode and type kept in an xattr, for filesystems on which the process may not set the real ones.
//!
//! The value is `UID:GID:MODE`, the mode in octal, and optionally `:TYPE`: `dir`, `file`, `symlink`, `pipe`, `socket`,
//! `block-MAJOR-MINOR` or `char-MAJOR-MINOR`.

use std::ffi::OsStr;

use serde::{Deserialize, Serialize};

use crate::layer::Stat;

/// Whether owner and mode are read from and written to an xattr (`xattr_permissions` of fuse-overlayfs).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OverrideStat {
    /// The file's own owner and mode count.
    #[default]
    Off,
    /// `xattr_permissions=1`: `security.fuseoverlayfs.override_stat`.
    Privileged,
    /// `xattr_permissions=2`: `user.containers.override_stat`.
    User,
}

/// The xattr that a layer keeps them in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::layer) enum OverrideXattr {
    Privileged,
    Containers,
    User,
}

impl OverrideXattr {
    /// In the order in which a layer's root is asked for them.
    pub(in crate::layer) const ALL: [OverrideXattr; 3] = [
        OverrideXattr::Privileged,
        OverrideXattr::Containers,
        OverrideXattr::User,
    ];

    pub(in crate::layer) fn name(self) -> &'static OsStr {
        OsStr::new(match self {
            OverrideXattr::Privileged => "security.fuseoverlayfs.override_stat",
            OverrideXattr::Containers => "user.containers.override_stat",
            OverrideXattr::User => "user.fuseoverlayfs.override_stat",
        })
    }

    /// Whoever owns a file may set it.
    pub(in crate::layer) fn is_users(self) -> bool {
        self != OverrideXattr::Privileged
    }

    pub(super) fn is_name(name: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        Self::ALL.iter().any(|x| x.name().as_bytes() == name)
    }

    pub(in crate::layer) fn of(option: OverrideStat) -> Option<OverrideXattr> {
        match option {
            OverrideStat::Off => None,
            OverrideStat::Privileged => Some(OverrideXattr::Privileged),
            OverrideStat::User => Some(OverrideXattr::Containers),
        }
    }
}

/// What the xattr says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::layer) struct OverrideValue {
    pub(in crate::layer) uid: u32,
    pub(in crate::layer) gid: u32,
    /// Permission bits.
    pub(in crate::layer) mode: u32,
    /// Type bits and device number.
    pub(in crate::layer) kind: Option<(u32, u64)>,
}

impl OverrideValue {
    pub(in crate::layer) fn parse(value: &[u8]) -> Option<OverrideValue> {
        let text = std::str::from_utf8(value).ok()?;
        let mut fields = text.trim_end_matches('\0').splitn(4, ':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
        let kind = match fields.next() {
            None => None,
            Some(kind) => Some(parse_kind(kind)?),
        };
        Some(OverrideValue {
            uid,
            gid,
            mode: mode & 0o7777,
            kind,
        })
    }

    pub(in crate::layer) fn encode(&self) -> String {
        let OverrideValue { uid, gid, mode, .. } = self;
        let mut text = format!("{uid}:{gid}:{mode:04o}");
        if let Some((kind, rdev)) = self.kind {
            let (major, minor) = (libc::major(rdev), libc::minor(rdev));
            text.push(':');
            match kind {
                libc::S_IFDIR => text.push_str("dir"),
                libc::S_IFLNK => text.push_str("symlink"),
                libc::S_IFIFO => text.push_str("pipe"),
                libc::S_IFSOCK => text.push_str("socket"),
                libc::S_IFBLK => text.push_str(&format!("block-{major}-{minor}")),
                libc::S_IFCHR => text.push_str(&format!("char-{major}-{minor}")),
                _ => text.push_str("file"),
            }
        }
        text
    }

    /// What a stat says of owner, mode and type.
    pub(in crate::layer) fn of(stat: &Stat) -> OverrideValue {
        OverrideValue {
            uid: stat.uid,
            gid: stat.gid,
            mode: stat.mode & 0o7777,
            kind: Some((stat.file_type(), stat.rdev)),
        }
    }

    pub(in crate::layer) fn apply(&self, stat: &mut Stat) {
        stat.uid = self.uid;
        stat.gid = self.gid;
        stat.mode = stat.file_type() | self.mode;
        if let Some((kind, rdev)) = self.kind
            && stat.is_file()
            && kind != libc::S_IFDIR
        {
            stat.mode = kind | self.mode;
            stat.rdev = rdev;
        }
    }
}

fn parse_kind(text: &str) -> Option<(u32, u64)> {
    let (word, device) = match text.split_once(['-', ':']) {
        Some((word, device)) => (word, Some(device)),
        None => (text, None),
    };
    let kind = match word {
        "dir" => libc::S_IFDIR,
        "file" => libc::S_IFREG,
        "symlink" => libc::S_IFLNK,
        "pipe" => libc::S_IFIFO,
        "socket" => libc::S_IFSOCK,
        "block" => libc::S_IFBLK,
        "char" => libc::S_IFCHR,
        _ => return None,
    };
    let rdev = match device {
        Some(device) if matches!(kind, libc::S_IFBLK | libc::S_IFCHR) => {
            let (major, minor) = device.split_once(['-', ':'])?;
            libc::makedev(major.parse().ok()?, minor.parse().ok()?)
        }
        // Nothing else is a device, whatever stands behind it.
        _ => 0,
    };
    Some((kind, rdev))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_containers_storage_writes() {
        let plain = OverrideValue::parse(b"1000:1011:0644").unwrap();
        assert_eq!((plain.uid, plain.gid, plain.mode), (1000, 1011, 0o644));
        assert_eq!(plain.kind, None);
        let file = OverrideValue::parse(b"1012:1022:4755:file").unwrap();
        assert_eq!((file.mode, file.kind), (0o4755, Some((libc::S_IFREG, 0))));
        let device = OverrideValue::parse(b"1000:1001:0600:block-5-6").unwrap();
        assert_eq!(device.kind, Some((libc::S_IFBLK, libc::makedev(5, 6))));
        for bad in [
            "",
            "1:2",
            "a:1:644",
            "1:1:999",
            "1:1:644:what",
            "1:1:644:char-1",
        ] {
            assert_eq!(OverrideValue::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for text in [
            "1000:1011:0644:file",
            "0:0:1777:dir",
            "1:2:0666:pipe",
            "1:2:0700:socket",
            "1:2:0600:block-8-0",
            "1:2:0600:char-1-3",
            "4294967294:2:0600",
        ] {
            let value = OverrideValue::parse(text.as_bytes()).unwrap();
            assert_eq!(value.encode(), text);
        }
    }
}
