//! What containerd is told to mount.
//!
//! A snapshot without parents is a bind mount of its own directory, and a view of one layer a read-only bind of that
//! layer. All else is a union: containerd makes it by `mount.fuse3 overlay DIR -o ... -t acetate`, so that the mount lies
//! where containerd wants it, in containerd's own mount namespace, and lives and dies with it. Without that helper the
//! snapshotter mounts the union itself and hands out a bind of it.
//!
//! Copy-up of metadata alone and of parts is switched off: a committed snapshot is a plain layer that any other program can read.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::SnapshotError;
use super::idmap::IdMapping;
use super::proto::Mount;
use super::record::{Root, SnapshotKind};
use crate::mount::{self, MountError};
use crate::sys::mount::mount_table;

/// Where programs lie for services whose environment says nothing.
const STANDARD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A file in a committed snapshot is whole, and no part of it lies elsewhere.
const WHOLE_FILES: [&str; 2] = ["metacopy=off", "partial=off"];

/// Who makes the union's mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountBy {
    /// containerd where `mount.fuse3` is installed, else the snapshotter.
    #[default]
    Auto,
    /// containerd, by `mount.fuse3`.
    Helper,
    /// The snapshotter, which hands out a bind mount.
    Snapshotter,
}

/// A snapshot as its mount needs it.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) kind: SnapshotKind,
    /// The topmost first.
    pub(super) parents: Vec<u64>,
    /// Owners are mapped.
    pub(super) mapping: Option<IdMapping>,
}

/// Makes mounts.
#[derive(Debug)]
pub(super) struct Mounter {
    /// `fuse3.` and the program; `None` where the snapshotter mounts itself. Immutable.
    helper_type: Option<String>,
    /// This program. Immutable.
    program: PathBuf,
}

impl Mounter {
    pub(super) fn new(by: MountBy) -> std::io::Result<Mounter> {
        let program = std::env::current_exe()?;
        let helper = match by {
            MountBy::Auto => find("mount.fuse3").is_some(),
            MountBy::Helper => true,
            MountBy::Snapshotter => false,
        };
        let helper_type = helper.then(|| {
            // By its path where it is not the one that the helper would find by name.
            let named = find("acetate").and_then(|found| found.canonicalize().ok());
            match program.to_str() {
                Some(path) if named.as_deref() != Some(&program) => format!("fuse3.{path}"),
                _ => "fuse3.acetate".to_owned(),
            }
        });
        Ok(Mounter {
            helper_type,
            program,
        })
    }

    /// Says how mounts are made.
    pub(super) fn describe(&self) -> String {
        match &self.helper_type {
            Some(kind) => format!("containerd mounts by mount.fuse3, as {kind}"),
            None => "the snapshotter keeps the mounts".to_owned(),
        }
    }

    /// What containerd is to mount. Where the snapshotter mounts, it is mounted now.
    pub(super) fn mounts(&self, root: &Root, stack: &Stack) -> Result<Vec<Mount>, SnapshotError> {
        let writable = stack.kind == SnapshotKind::Active;
        let plain = match (stack.parents.as_slice(), writable) {
            ([], _) => Some(root.fs(stack.id)),
            ([only], false) if stack.mapping.is_none() => Some(root.fs(*only)),
            _ => None,
        };
        if let Some(source) = plain {
            return Ok(vec![bind(&source, writable)]);
        }
        let options = self.union(root, stack);
        let Some(helper_type) = &self.helper_type else {
            let dir = root.mount(stack.id);
            self.keep(&dir, &options, &stack.name)?;
            return Ok(vec![bind(&dir, writable)]);
        };
        Ok(vec![Mount {
            r#type: helper_type.clone(),
            source: "overlay".into(),
            target: String::new(),
            options,
        }])
    }

    fn union(&self, root: &Root, stack: &Stack) -> Vec<String> {
        let lowers: Vec<String> = stack
            .parents
            .iter()
            .map(|id| root.fs(*id).display().to_string())
            .collect();
        let mut options = vec![format!("lowerdir={}", lowers.join(":"))];
        if stack.kind == SnapshotKind::Active {
            options.push(format!("upperdir={}", root.fs(stack.id).display()));
            options.push(format!("workdir={}", root.work(stack.id).display()));
            options.extend(WHOLE_FILES.iter().map(|option| (*option).to_owned()));
        } else {
            options.push("ro".to_owned());
        }
        if let Some(mapping) = &stack.mapping {
            options.extend(mapping.options());
        }
        options
    }

    /// Mounts the union at a directory of ours, unless it is mounted there.
    fn keep(&self, dir: &Path, options: &[String], name: &str) -> Result<(), SnapshotError> {
        match mount::find(dir) {
            Ok(_) => return Ok(()),
            Err(MountError::Dead(_)) => end(dir)?,
            Err(_) => {}
        }
        match std::fs::create_dir(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(SnapshotError::io("create", dir)(e));
            }
            _ => {}
        }
        let output = Command::new(&self.program)
            .arg("overlay")
            .arg(dir)
            .arg("-o")
            .arg(options.join(","))
            .stdin(Stdio::null())
            .output()
            .map_err(SnapshotError::io("run", &self.program))?;
        if output.status.success() {
            return Ok(());
        }
        Err(SnapshotError::Mount {
            name: name.to_owned(),
            text: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

/// Takes away the mount that the snapshotter keeps at a directory, if there is one, and the directory.
pub(super) fn end(dir: &Path) -> Result<(), SnapshotError> {
    if !dir.exists() && !is_mountpoint(dir) {
        return Ok(());
    }
    let failed = |e: MountError| SnapshotError::Mount {
        name: dir.display().to_string(),
        text: e.to_string(),
    };
    // A bind of it may be somebody's still: it ends with that one, which nobody waits for here.
    match mount::unmount(dir, true) {
        Ok(()) | Err(MountError::NotMounted(_)) => {}
        Err(e) => return Err(failed(e)),
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(SnapshotError::io("remove", dir)(e))
        }
        _ => Ok(()),
    }
}

/// A dead mount's directory cannot be asked whether it exists.
fn is_mountpoint(dir: &Path) -> bool {
    mount_table().is_ok_and(|table| table.iter().any(|entry| entry.mountpoint == dir))
}

fn bind(source: &Path, writable: bool) -> Mount {
    Mount {
        r#type: "bind".into(),
        source: source.display().to_string(),
        target: String::new(),
        options: vec![if writable { "rw" } else { "ro" }.into(), "rbind".into()],
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(std::env::split_paths(OsStr::new(STANDARD_PATH)))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
