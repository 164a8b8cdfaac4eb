//! Filesystems of our own in files, so that the bytes that reach the disk are nobody else's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::error::{BenchError, at};
use super::scene::{Scene, finish, with_sbin};

/// A filesystem's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// With its journal on a device of its own, so that what is counted is data and metadata in place.
    Ext4,
    /// With reflinks.
    Xfs,
    /// With reflinks and snapshots.
    Btrfs,
    /// Whatever the scratch directory lies on: without root nothing can be mounted, and nothing counted.
    Host,
}

impl Filesystem {
    /// As `mount -t` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Filesystem::Ext4 => "ext4",
            Filesystem::Xfs => "xfs",
            Filesystem::Btrfs => "btrfs",
            Filesystem::Host => "host",
        }
    }
}

const JOURNAL: u64 = 128 << 20;
/// What `mkfs.xfs` takes at least.
const SMALLEST: u64 = 400 << 20;

/// A filesystem to work in.
#[derive(Debug)]
pub(super) struct Disk {
    /// Where it is mounted.
    pub(super) dir: PathBuf,
    /// Counts what is written; `None` on the host's own filesystem.
    device: Option<PathBuf>,
    root: File,
}

/// What a disk was at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    written: Option<u64>,
    used: u64,
}

impl Disk {
    pub(super) fn new(scene: &Scene, fs: Filesystem, size: u64) -> Result<Disk, BenchError> {
        let dir = scene.make_dir(&format!("disk-{}", fs.name()))?;
        let device = match fs {
            Filesystem::Host => None,
            _ => Some(mount_image(scene, fs, size.max(SMALLEST), &dir)?),
        };
        let root = File::open(&dir).map_err(at("cannot open", &dir))?;
        Ok(Disk { dir, device, root })
    }

    /// Writes out what is cached, and reads the counters.
    pub(super) fn settle(&self) -> Result<Mark, BenchError> {
        rustix::fs::syncfs(&self.root).map_err(|e| at("cannot sync", &self.dir)(e.into()))?;
        let stat = rustix::fs::fstatvfs(&self.root)
            .map_err(|e| at("cannot ask for the space of", &self.dir)(e.into()))?;
        let written = match &self.device {
            Some(device) => Some(sectors_written(device)? * 512),
            None => None,
        };
        Ok(Mark {
            written,
            used: (stat.f_blocks - stat.f_bfree) * stat.f_frsize,
        })
    }
}

impl Mark {
    /// Bytes that were written since then; `None` where nothing counts them.
    pub(super) fn written_since(&self, before: &Mark) -> Option<u64> {
        Some(self.written?.saturating_sub(before.written?))
    }

    /// Bytes of space that were taken since then.
    pub(super) fn used_since(&self, before: &Mark) -> u64 {
        self.used.saturating_sub(before.used)
    }
}

fn image(scene: &Scene, name: &str, size: u64) -> Result<PathBuf, BenchError> {
    let path = scene.dir().join(name);
    File::create_new(&path)
        .and_then(|file| file.set_len(size))
        .map_err(at("cannot make", &path))?;
    scene.attach(&path)
}

fn mount_image(
    scene: &Scene,
    fs: Filesystem,
    size: u64,
    dir: &Path,
) -> Result<PathBuf, BenchError> {
    let device = image(scene, &format!("{}.img", fs.name()), size)?;
    let mut mkfs = Command::new(format!("mkfs.{}", fs.name()));
    with_sbin(&mut mkfs);
    let mut options = "noatime".to_owned();
    match fs {
        Filesystem::Ext4 => {
            let journal = image(scene, "journal.img", JOURNAL)?;
            let mut command = Command::new("mke2fs");
            finish(
                with_sbin(&mut command)
                    .args(["-q", "-F", "-b", "4096", "-O", "journal_dev"])
                    .arg(&journal),
            )?;
            // Tables that are written later would be counted as somebody's change.
            mkfs.args(["-q", "-F", "-b", "4096", "-E"])
                .arg("lazy_itable_init=0,nodiscard")
                .arg("-J")
                .arg(format!("device={}", journal.display()));
            options = format!("{options},journal_path={}", journal.display());
        }
        Filesystem::Xfs => {
            mkfs.args(["-q", "-f", "-m", "reflink=1"]);
        }
        Filesystem::Btrfs | Filesystem::Host => {
            mkfs.args(["-q", "-f", "-m", "single"]);
        }
    }
    finish(mkfs.arg(&device))?;
    let mut mount = Command::new("mount");
    mount.args(["-t", fs.name(), "-o", &options]);
    scene.mount_by(dir, mount.arg(&device).arg(dir))?;
    Ok(device)
}

fn sectors_written(device: &Path) -> Result<u64, BenchError> {
    let name = device.file_name().unwrap_or_default();
    let path = Path::new("/sys/block").join(name).join("stat");
    let text = fs::read_to_string(&path).map_err(at("cannot read", &path))?;
    // Documentation/block/stat.rst: the seventh is the sectors written, of 512 bytes whatever the device has.
    let field = text.split_whitespace().nth(6).and_then(|f| f.parse().ok());
    field.ok_or_else(|| BenchError::Wrong(format!("{} makes no sense: {text}", path.display())))
}
