//! Small filesystems in files, mounted by loop devices.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::scratch::Scratch;
use super::skip;

/// A loop-mounted filesystem, unmounted on drop.
#[derive(Debug)]
pub struct LoopImage {
    dir: PathBuf,
    mounted: bool,
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

impl LoopImage {
    /// Makes and mounts a filesystem of type `ext4`, `xfs` or `btrfs` with `size` bytes. The error says
    /// what this machine lacks.
    pub fn new(scratch: &Scratch, fstype: &str, size: u64) -> Result<LoopImage, String> {
        Self::with_options(scratch, fstype, size, &[], "loop")
    }

    /// The same, with arguments for `mkfs` and options for `mount` (which must include `loop`).
    pub fn with_options(
        scratch: &Scratch,
        fstype: &str,
        size: u64,
        mkfs: &[&str],
        options: &str,
    ) -> Result<LoopImage, String> {
        skip::program(&format!("mkfs.{fstype}"))?;
        let file = tempfile::Builder::new()
            .prefix(fstype)
            .tempfile_in(scratch.path())
            .and_then(|f| f.keep().map_err(|e| e.error))
            .map_err(|e| e.to_string())?;
        file.0.set_len(size).map_err(|e| e.to_string())?;
        run(Command::new("sh")
            .arg("-c")
            .arg("PATH=$PATH:/usr/sbin:/sbin; exec \"$@\"")
            .arg("sh")
            .arg(format!("mkfs.{fstype}"))
            .args(if fstype == "ext4" {
                &["-q", "-F"][..]
            } else {
                &["-q", "-f"][..]
            })
            .args(mkfs)
            .arg(&file.1))?;
        Self::mounted(&file.1, fstype, options)
    }

    /// Mounts a filesystem that a file holds already.
    pub fn mounted(file: &Path, fstype: &str, options: &str) -> Result<LoopImage, String> {
        let dir = file.with_extension("mnt");
        std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        run(Command::new("mount")
            .args(["-t", fstype, "-o", options])
            .arg(file)
            .arg(&dir))?;
        Ok(LoopImage { dir, mounted: true })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Unmounts it, which fails while something in it is in use.
    pub fn unmount(mut self) -> nix::Result<()> {
        nix::mount::umount(&self.dir)?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for LoopImage {
    fn drop(&mut self) {
        if self.mounted
            && let Err(e) = nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH)
        {
            eprintln!("umount {}: {e}", self.dir.display());
        }
    }
}
