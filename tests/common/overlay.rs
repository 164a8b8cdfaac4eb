//! The kernel's overlayfs, with the same shape as the mounts of acetate.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::MntFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::mount::{detach, umount_patiently};

/// How long an upper may be in use that will be let go of by itself, on a machine with much else to do.
const BUSY: Duration = Duration::from_secs(60);

/// A kernel overlayfs mount, unmounted on drop.
#[derive(Debug)]
pub struct Overlay {
    dir: Option<PathBuf>,
}

impl Overlay {
    /// Mounts `lowers` (the first is the topmost) under `upper` and its workdir at `dir`, with options
    /// spelled as in `mount -o`. An upper that is in use is waited for: a mount namespace that was copied
    /// meanwhile, by whatever program, holds a mount for a moment longer than its unmount.
    pub fn mount<L: AsRef<Path>>(
        dir: &Path,
        lowers: &[L],
        upper: Option<(&Path, &Path)>,
        options: &str,
    ) -> std::io::Result<Overlay> {
        let begin = Instant::now();
        loop {
            match Overlay::mount_once(dir, lowers, upper, options) {
                Err(e)
                    if e.kind() == std::io::ErrorKind::ResourceBusy && begin.elapsed() < BUSY =>
                {
                    thread::sleep(Duration::from_millis(10));
                }
                result => return result,
            }
        }
    }

    fn mount_once<L: AsRef<Path>>(
        dir: &Path,
        lowers: &[L],
        upper: Option<(&Path, &Path)>,
        options: &str,
    ) -> std::io::Result<Overlay> {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "source", "overlay")?;
        for lower in lowers {
            fsconfig_set_string(&fs, "lowerdir+", lower.as_ref())?;
        }
        if let Some((upper, work)) = upper {
            fsconfig_set_string(&fs, "upperdir", upper)?;
            fsconfig_set_string(&fs, "workdir", work)?;
        }
        let mut attributes = MountAttrFlags::empty();
        for option in options.split(',').filter(|o| !o.is_empty()) {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&fs, key, value)?,
                None if option == "noatime" => attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME,
                None => fsconfig_set_flag(&fs, option)?,
            }
        }
        fsconfig_create(&fs)?;
        let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_mount(
            &mount,
            "",
            rustix::fs::CWD,
            dir,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        Ok(Overlay {
            dir: Some(dir.to_owned()),
        })
    }

    /// The merged directory.
    pub fn path(&self) -> &Path {
        self.dir.as_deref().unwrap()
    }

    /// Unmounts it; fails while something in it is in use.
    pub fn unmount(mut self) -> nix::Result<()> {
        umount_patiently(self.path(), MntFlags::empty())?;
        self.dir = None;
        Ok(())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            detach(dir);
        }
    }
}
