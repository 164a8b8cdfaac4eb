//! Mounting and unmounting of FUSE filesystems, directly or by `fusermount3`.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx};
use rustix::io::Errno;
pub use rustix::mount::MountFlags;
use rustix::mount::{FsPickFlags, UnmountFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick};

/// The filesystem type as `mount` and `/proc/mounts` show it.
pub const FS_TYPE: &str = "fuse.acetate";

/// `nosymfollow`, which rustix does not name.
pub const NOSYMFOLLOW: MountFlags = MountFlags::from_bits_retain(256);

/// What the kernel is told of a FUSE mount.
#[derive(Clone, Debug)]
pub struct FuseMount<'a> {
    /// Where it is mounted.
    pub mountpoint: &'a Path,
    /// What is shown as its source.
    pub source: &'a OsStr,
    /// The flags that every filesystem has.
    pub flags: MountFlags,
    /// Other users than the owner may enter.
    pub allow_other: bool,
    /// Options of security modules, such as `context=...`.
    pub security: &'a [OsString],
}

/// Mounts by `mount(2)` on an open `/dev/fuse`. Needs `CAP_SYS_ADMIN` over the mount namespace.
pub fn mount_fuse(device: BorrowedFd<'_>, mount: &FuseMount<'_>) -> io::Result<()> {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    )
    .into_bytes();
    if mount.allow_other {
        data.extend_from_slice(b",allow_other");
    }
    for option in mount.security {
        data.push(b',');
        data.extend_from_slice(option.as_bytes());
    }
    let data = CString::new(data)?;
    Ok(rustix::mount::mount(
        mount.source,
        mount.mountpoint,
        FS_TYPE,
        mount.flags,
        data.as_c_str(),
    )?)
}

/// Gives a mount and its filesystem other flags.
pub fn remount(mountpoint: &Path, flags: MountFlags) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(mountpoint, flags, c"")?)
}

/// Unmounts. `lazy`: detaches the mount now, and lets it end when nobody uses it any more. A plain user's mount is
/// given to `fusermount3`.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    match unmount_here(mountpoint, lazy) {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::PERM) => {
            unmount_by_helper(mountpoint, lazy)
        }
        done => done,
    }
}

fn unmount_here(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    Ok(rustix::mount::unmount(mountpoint, flags)?)
}

/// Unmounts the filesystem with this device number, as the mount table writes it: the one at `mountpoint`, or else where
/// it stands now. Whoever owns a directory above can have moved it and put a way to somebody else's filesystem in its
/// place. A filesystem that covers it is left alone, and so is it.
pub fn unmount_device(device: &str, mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let mut ours = mount_table()?;
    ours.retain(|entry| entry.device == device);
    let entry = ours.iter().rfind(|entry| entry.mountpoint == mountpoint);
    let Some(entry) = entry.or(ours.last()) else {
        return Err(Errno::INVAL.into());
    };
    let (Some(parent), Some(name)) = (entry.mountpoint.parent(), entry.mountpoint.file_name())
    else {
        return unmount(&entry.mountpoint, lazy);
    };
    // From here on nothing that is done to the directories above leads elsewhere.
    let parent = open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // Who serves the mount may be the one who waits for this.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = statx(&parent, name, flags, StatxFlags::MNT_ID)?;
    if found.stx_mnt_id != entry.id {
        let path = entry.mountpoint.display();
        let why = format!("{path} leads to another filesystem, which is not unmounted");
        return Err(io::Error::other(why));
    }
    let place = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string());
    match unmount_here(&place.join(name), lazy) {
        Err(e) if Errno::from_io_error(&e) == Some(Errno::PERM) => {
            // It looks for itself whose mount it is.
            unmount_by_helper(&entry.mountpoint, lazy)
        }
        done => done,
    }
}

fn unmount_by_helper(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for helper in ["fusermount3", "fusermount"] {
        let mut command = Command::new(helper);
        command.arg("-u");
        if lazy {
            command.arg("-z");
        }
        command.arg("--").arg(mountpoint).stdin(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                let text = text.trim();
                let kind = if text.contains("busy") {
                    io::ErrorKind::ResourceBusy
                } else {
                    io::ErrorKind::PermissionDenied
                };
                return Err(io::Error::new(kind, text.to_owned()));
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Takes the right to write away from the filesystem at a mountpoint, for all its mounts in all namespaces, or gives it
/// back. What was written before reaches the filesystem first. `EBUSY`: something is open for writing, or was deleted
/// while open. Needs `CAP_SYS_ADMIN` over the filesystem.
pub fn set_filesystem_read_only(mountpoint: &Path, read_only: bool) -> io::Result<()> {
    // Unlike `mount(2)` this leaves the flags of the single mount alone.
    let picked = fspick(
        rustix::fs::CWD,
        mountpoint,
        FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_NO_AUTOMOUNT,
    )?;
    fsconfig_set_flag(&picked, if read_only { "ro" } else { "rw" })?;
    Ok(fsconfig_reconfigure(&picked)?)
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's number, which `statx` tells of every file.
    pub id: u64,
    /// The mount shows other owners than lie on disk (`MOUNT_ATTR_IDMAP`).
    pub idmapped: bool,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The filesystem type, such as `fuse.acetate`.
    pub fs_type: String,
    /// The device number, `MAJOR:MINOR`.
    pub device: String,
    /// What is mounted.
    pub source: OsString,
}

/// The mounts that the process sees, those on top last.
pub fn mount_table() -> io::Result<Vec<MountEntry>> {
    Ok(parse_table(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mounts that another process sees, which may be in another mount namespace.
pub fn mount_table_of(pid: u32) -> io::Result<Vec<MountEntry>> {
    Ok(parse_table(&std::fs::read(format!(
        "/proc/{pid}/mountinfo"
    ))?))
}

fn parse_table(table: &[u8]) -> Vec<MountEntry> {
    table
        .split(|b| *b == b'\n')
        .filter_map(parse_entry)
        .collect()
}

fn parse_entry(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let end = fields.iter().position(|f| *f == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    Some(MountEntry {
        id: text(fields.first()?).parse().ok()?,
        idmapped: text(fields.get(5)?).split(',').any(|o| o == "idmapped"),
        device: text(fields.get(2)?),
        mountpoint: PathBuf::from(OsStr::from_bytes(&unescape(fields.get(4)?))),
        fs_type: text(fields.get(end + 1)?),
        source: OsStr::from_bytes(&unescape(fields.get(end + 2)?)).to_owned(),
    })
}

/// The table writes blanks and backslashes as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| {
            *first == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit))
        });
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |value, digit| {
                    value.wrapping_mul(8).wrapping_add(digit - b'0')
                }));
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Whether the process is in the initial user namespace, where capabilities count for every filesystem.
pub fn in_initial_user_namespace() -> bool {
    use std::os::unix::fs::MetadataExt;
    /// `PROC_USER_INIT_INO` of the kernel.
    const INITIAL: u64 = 0xEFFF_FFFD;
    std::fs::metadata("/proc/self/ns/user").is_ok_and(|m| m.ino() == INITIAL)
}

/// Lets the kernel read ahead further than FUSE's 128 KiB on the mount of this device number.
pub fn set_read_ahead(device: &str, kib: u32) -> io::Result<()> {
    std::fs::write(
        format!("/sys/class/bdi/{device}/read_ahead_kb"),
        kib.to_string(),
    )
}

/// The device number of what is mounted at a path, as the mount table writes it.
pub fn device_of(path: &Path) -> io::Result<String> {
    let device = rustix::fs::stat(path)?.st_dev;
    Ok(format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    ))
}

/// Whether a path is reached through a mount that shows other owners than lie on disk.
pub fn is_idmapped(path: &Path) -> io::Result<bool> {
    use rustix::fs::CWD;
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    Ok(mount_table()?
        .iter()
        .any(|mount| mount.id == id && mount.idmapped))
}

/// Whether a path lies on a filesystem that is itself stacked on others.
pub fn is_stacked(path: &Path) -> io::Result<bool> {
    const OVERLAYFS: u64 = 0x794c_7630;
    const FUSE: u64 = 0x6573_5546;
    const ECRYPTFS: u64 = 0xf15f;
    let magic = rustix::fs::statfs(path)?.f_type as u64;
    Ok(matches!(magic, OVERLAYFS | FUSE | ECRYPTFS))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A filesystem in memory, which ends with its owner.
    struct Tmpfs(PathBuf);

    impl Tmpfs {
        fn new(dir: &Path) -> Option<Tmpfs> {
            std::fs::create_dir_all(dir).unwrap();
            let made = rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::empty(), c"");
            made.is_ok().then(|| Tmpfs(dir.to_owned()))
        }
    }

    impl Drop for Tmpfs {
        fn drop(&mut self) {
            if let Err(e) = unmount_here(&self.0, true) {
                eprintln!("{}: {e}", self.0.display());
            }
        }
    }

    #[test]
    fn who_moves_the_mount_away_gets_nobody_elses_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (place, moved, victim) = (dir.join("place"), dir.join("moved"), dir.join("victim"));
        let Some(_victims) = Tmpfs::new(&victim.join("m")) else {
            eprintln!("SKIPPED: only root mounts a tmpfs");
            return;
        };
        let ours = Tmpfs::new(&place.join("m")).unwrap();
        let device = device_of(&ours.0).unwrap();
        let mounted = |path: &Path| {
            let table = mount_table().unwrap();
            table.iter().any(|entry| entry.mountpoint == path)
        };
        std::fs::rename(&place, &moved).unwrap();
        std::os::unix::fs::symlink(&victim, &place).unwrap();
        std::mem::forget(ours);
        let ours = Tmpfs(moved.join("m"));
        unmount_device(&device, &place.join("m"), false).unwrap();
        assert!(mounted(&victim.join("m")) && !mounted(&ours.0));
        std::mem::forget(ours);
        unmount_device(&device, &place.join("m"), false).unwrap_err();

        // What covers it is not unmounted in its place.
        let under = Tmpfs::new(&moved.join("m")).unwrap();
        let device = device_of(&under.0).unwrap();
        let over = Tmpfs::new(&moved.join("m")).unwrap();
        unmount_device(&device, &under.0, true).unwrap_err();
        let text = device_of(&over.0).unwrap();
        assert_ne!(text, device);
        drop(over);
        unmount_device(&device, &under.0, true).unwrap();
        assert!(!mounted(&under.0) && mounted(&victim.join("m")));
        std::mem::forget(under);
    }

    #[test]
    fn a_line_of_the_mount_table() {
        let line = br"36 35 0:98 / /mnt/a\040b\134c rw,noatime master:1 - fuse.acetate x\011y rw";
        let entry = parse_entry(line).unwrap();
        assert_eq!(entry.mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!(entry.fs_type, "fuse.acetate");
        assert_eq!(entry.device, "0:98");
        assert_eq!(entry.source, "x\ty");
        assert_eq!((entry.id, entry.idmapped), (36, false));
        let line = b"37 35 8:1 /a /b ro,idmapped - ext4 /dev/x rw";
        assert!(parse_entry(line).unwrap().idmapped);
        assert_eq!(parse_entry(b""), None);
    }
}
