//! What is measured: acetate in its modes, its rivals, and what containers were stored on before there were unions.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde::{Deserialize, Serialize};

use super::disk::Filesystem;
use super::error::{BenchError, at};
use super::scene::{Scene, finish, reap};

/// How a system makes lower files writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// This program.
    Acetate,
    /// The kernel's overlayfs.
    Kernel,
    /// A mount program with overlayfs' options.
    FuseOverlayfs,
    Unionfs,
    /// Every file is copied whole, as the `vfs` driver of engines does.
    Copy,
    /// Every file is cloned.
    Reflink,
    /// A writable snapshot of the whole volume.
    Snapshot,
    /// No union at all: the files are written where they are.
    Plain,
}

/// One system.
#[derive(Clone, Debug)]
pub(super) struct System {
    pub(super) kind: Kind,
    pub(super) fs: Filesystem,
    pub(super) options: &'static str,
    pub(super) program: PathBuf,
    pub(super) info: SystemInfo,
}

/// A system for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Short, and its own.
    pub name: String,
    /// What it is.
    pub about: String,
    /// What it worked on.
    pub filesystem: Filesystem,
}

/// A system that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}

impl System {
    pub(super) fn new(
        name: &str,
        kind: Kind,
        fs: Filesystem,
        options: &'static str,
        program: &Path,
        about: &str,
    ) -> System {
        System {
            kind,
            fs,
            options,
            program: program.to_owned(),
            info: SystemInfo {
                name: name.to_owned(),
                about: about.to_owned(),
                filesystem: fs,
            },
        }
    }

    /// A daemon serves it.
    pub(super) fn has_daemon(&self) -> bool {
        matches!(
            self.kind,
            Kind::Acetate | Kind::FuseOverlayfs | Kind::Unionfs
        )
    }

    /// It shows a stack of layers; the others know one directory.
    pub(super) fn is_union(&self) -> bool {
        self.has_daemon() || self.kind == Kind::Kernel
    }
}

/// This program, for mounts of its own.
pub(super) fn this_program() -> Result<PathBuf, BenchError> {
    std::env::current_exe().map_err(at("cannot find", Path::new("this program")))
}

/// Where a program lies on the search path.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A program under the name that reports call it by.
pub(super) type Named = (String, PathBuf);

/// The unions that this machine may have, by the name of each. Whether one works is seen when it is mounted.
pub(super) fn mount_programs(rivals: &[PathBuf]) -> Result<(Vec<Named>, Vec<Left>), BenchError> {
    let mut found = Vec::new();
    let mut left = Vec::new();
    for rival in rivals {
        if !rival.is_file() {
            let text = format!("--rival {}: no such program", rival.display());
            return Err(BenchError::Usage(text));
        }
    }
    let installed = find_program("fuse-overlayfs");
    if installed.is_none() {
        left.push(Left {
            name: "fuse-overlayfs".into(),
            why: "not installed".into(),
        });
    }
    for program in rivals.iter().chain(&installed) {
        let name = versioned_name(program);
        let same = found.iter().filter(|(other, _)| *other == name).count();
        let name = if same == 0 {
            name
        } else {
            format!("{name} #{}", same + 1)
        };
        found.push((name, program.clone()));
    }
    Ok((found, left))
}

/// `fuse-overlayfs 2.0.0`, as the program says itself.
fn versioned_name(program: &Path) -> String {
    let base = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let said = finish(Command::new(program).arg("--version")).unwrap_or_default();
    let version = said
        .lines()
        .find_map(|line| line.strip_prefix(base.as_str())?.split_whitespace().last());
    match version {
        Some(version) => format!("{base} {version}"),
        None => base,
    }
}

/// An image in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Where the store lies.
    pub store: PathBuf,
    /// The image's name in it.
    pub name: OsString,
}

/// Where one mount has its parts. The lowers are directories below `base`, so that five hundred of their names fit into a page.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) base: PathBuf,
    /// Topmost first.
    pub(super) lowers: Vec<PathBuf>,
    /// Holds the upper, the workdir and the mount point.
    pub(super) private: PathBuf,
    /// The lowers are this image's layers, and this program finds them itself.
    pub(super) image: Option<StoredImage>,
}

/// A mounted system, or the directory that stands for it.
#[derive(Debug)]
pub(super) struct Mounted {
    /// Where programs work.
    pub(super) dir: PathBuf,
    daemon: Option<Child>,
    mounted: bool,
}

impl Mounted {
    /// The daemon's process.
    pub(super) fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    pub(super) fn unmount(self, scene: &Scene) -> Result<(), BenchError> {
        if self.mounted {
            scene.unmount(&self.dir)?;
        }
        self.daemon.map_or(Ok(()), reap)
    }
}

impl System {
    /// Mounts it at a place, whose private directory is made here.
    pub(super) fn mount(&self, scene: &Scene, place: &Place) -> Result<Mounted, BenchError> {
        let private = |name: &str| {
            let dir = place.private.join(name);
            fs::create_dir_all(&dir).map_err(at("cannot make", &dir))?;
            Ok::<_, BenchError>(dir)
        };
        if self.kind == Kind::Snapshot {
            return self.snapshot(place);
        }
        let upper = private("upper")?;
        if !self.is_union() {
            return Ok(Mounted {
                dir: upper,
                daemon: None,
                mounted: false,
            });
        }
        let (work, dir) = (private("work")?, private("merged")?);
        let mut command = match self.kind {
            Kind::Kernel => {
                let mut command = Command::new("mount");
                command.args(["-t", "overlay", "overlay"]);
                command
            }
            _ => Command::new(&self.program),
        };
        command.current_dir(&place.base);
        if self.kind == Kind::Unionfs {
            command.args(["-f", "-o", "cow,use_ino,suid,dev,allow_other"]);
            command.arg(unionfs_branches(place, &upper)).arg(&dir);
        } else if let (Kind::Acetate, Some(image)) = (self.kind, &place.image) {
            command.arg("--root").arg(&image.store);
            command.args(["mount", "--foreground", "--upper"]);
            command.arg(&upper).arg("--work").arg(&work);
            if !self.options.is_empty() {
                command.args(["-o", self.options]);
            }
            command.arg(&image.name).arg(&dir);
        } else {
            if self.kind != Kind::Kernel {
                command.arg("-f");
            }
            let options = overlay_options(place, &upper, &work, self.options);
            command.arg("-o").arg(options).arg(&dir);
        }
        let daemon = if self.has_daemon() {
            Some(scene.serve_by(&dir, command.process_group(0))?)
        } else {
            scene.mount_by(&dir, &mut command)?;
            None
        };
        Ok(Mounted {
            dir,
            daemon,
            mounted: true,
        })
    }

    fn snapshot(&self, place: &Place) -> Result<Mounted, BenchError> {
        let lowest = place
            .lowers
            .last()
            .ok_or_else(|| BenchError::Wrong("a snapshot needs a volume to be one of".into()))?;
        let dir = place.private.join("snapshot");
        fs::create_dir_all(&place.private).map_err(at("cannot make", &place.private))?;
        finish(
            Command::new(&self.program)
                .args(["subvolume", "snapshot"])
                .arg(place.base.join(lowest))
                .arg(&dir),
        )?;
        Ok(Mounted {
            dir,
            daemon: None,
            mounted: false,
        })
    }

    /// Removes what a mount wrote.
    pub(super) fn wipe(&self, place: &Place) -> Result<(), BenchError> {
        if self.kind == Kind::Snapshot {
            let dir = place.private.join("snapshot");
            finish(
                Command::new(&self.program)
                    .args(["subvolume", "delete", "--commit-after"])
                    .arg(dir),
            )?;
        }
        fs::remove_dir_all(&place.private).map_err(at("cannot remove", &place.private))
    }
}

fn overlay_options(place: &Place, upper: &Path, work: &Path, more: &str) -> OsString {
    let mut text = OsString::from("lowerdir=");
    for (i, lower) in place.lowers.iter().enumerate() {
        if i > 0 {
            text.push(":");
        }
        text.push(lower);
    }
    text.push(",upperdir=");
    text.push(upper);
    text.push(",workdir=");
    text.push(work);
    if !more.is_empty() {
        text.push(",");
        text.push(more);
    }
    text
}

fn unionfs_branches(place: &Place, upper: &Path) -> OsString {
    let mut text = upper.as_os_str().to_owned();
    text.push("=RW");
    for lower in &place.lowers {
        text.push(":");
        text.push(place.base.join(lower));
        text.push("=RO");
    }
    text
}

/// Of the systems, those whose names contain one of the given words; all of them where there is none.
pub(super) fn only(
    words: &[String],
    mut all: Vec<System>,
    mut left: Vec<Left>,
) -> Result<(Vec<System>, Vec<Left>), BenchError> {
    if !words.is_empty() {
        let wanted = |name: &str| words.iter().any(|part| name.contains(part.as_str()));
        all.retain(|system| wanted(&system.info.name));
        left.retain(|left| wanted(&left.name));
        if all.is_empty() {
            let text = format!("no system here is called like {}", words.join(", "));
            return Err(BenchError::Usage(text));
        }
    }
    Ok((all, left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_the_layers_topmost_first() {
        let place = Place {
            base: "/b".into(),
            lowers: vec!["t".into(), "base".into()],
            private: "/p".into(),
            image: None,
        };
        let options = overlay_options(&place, Path::new("/u"), Path::new("/w"), "metacopy=on");
        assert_eq!(
            options,
            "lowerdir=t:base,upperdir=/u,workdir=/w,metacopy=on"
        );
        let branches = unionfs_branches(&place, Path::new("/u"));
        assert_eq!(branches, "/u=RW:/b/t=RO:/b/base=RO");
    }

    #[test]
    fn a_rival_that_is_not_there_is_an_error() {
        let error = mount_programs(&["/nowhere/rival".into()]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/rival"), "{error}");
    }
}
