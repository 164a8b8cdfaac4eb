//! `mount -o remount`: other flags for a mount that is there.

use std::path::Path;

use super::error::MountError;
use super::options::MountOptions;
use crate::sys::mount::{self as sys_mount, FS_TYPE, mount_table};

/// Gives a mount the flags of `options`, such as `ro`; those that are not named are cleared, as mount(2) does. All else stays as
/// it was mounted.
pub fn remount(mountpoint: &Path, options: &MountOptions) -> Result<(), MountError> {
    let path = mountpoint
        .canonicalize()
        .map_err(|e| MountError::Path("the mountpoint", mountpoint.to_owned(), e))?;
    let table = mount_table().map_err(|e| MountError::Io("/proc/self/mountinfo", e))?;
    let top = table.iter().rev().find(|entry| entry.mountpoint == path);
    if top.is_none_or(|entry| entry.fs_type != FS_TYPE) {
        return Err(MountError::Mountpoint {
            path,
            what: "has no acetate mount",
        });
    }
    if !options.read_only() && super::control::info(&path)?.read_only {
        return Err(MountError::Mountpoint {
            path,
            what: "was mounted read-only, so that there is nowhere to write to",
        });
    }
    sys_mount::remount(&path, options.flags)
        .map_err(|e| MountError::Path("cannot remount", path, e))
}
