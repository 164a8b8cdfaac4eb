//! What must hold before anything is touched.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit, setrlimit};

use super::error::MountError;
use crate::layer::error::{LayerError, UpperError};
use crate::sys::mount::{FS_TYPE, mount_table};

/// What a directory is to the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Lower,
    Upper,
    Work,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Lower => "layer",
            Role::Upper => "upper directory",
            Role::Work => "workdir",
        }
    }
}

/// A directory that takes part in the mount.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) role: Role,
    /// Absolute, without symlinks.
    pub(super) path: PathBuf,
    /// Device and inode number. Immutable.
    pub(super) id: (u64, u64),
}

fn id(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

impl Place {
    /// Finds a directory that was found before: `id` are its device and inode number.
    pub(super) fn find_again(role: Role, path: &Path, id: (u64, u64)) -> Result<Place, MountError> {
        let place = Place::find(role, path)?;
        if place.id == id {
            Ok(place)
        } else {
            Err(UpperError::Replaced(role.name(), path.to_owned()).into())
        }
    }

    /// Finds a directory.
    pub(super) fn find(role: Role, path: &Path) -> Result<Place, MountError> {
        let found = fs::metadata(path).and_then(|found| Ok((found, path.canonicalize()?)));
        let path = path.to_owned();
        match found {
            Ok((found, canonical)) if found.is_dir() => Ok(Place {
                role,
                path: canonical,
                id: id(&found),
            }),
            Ok(_) => Err(not_a_directory(role, path)),
            Err(e) => Err(match (e.kind(), role) {
                (io::ErrorKind::NotFound, Role::Lower) => LayerError::Missing(path).into(),
                (io::ErrorKind::NotFound, _) => UpperError::Missing(role.name(), path).into(),
                (io::ErrorKind::NotADirectory, _) => not_a_directory(role, path),
                (io::ErrorKind::PermissionDenied, Role::Lower) => {
                    LayerError::Unreadable(path).into()
                }
                (io::ErrorKind::PermissionDenied, _) => {
                    UpperError::Unwritable(role.name(), path).into()
                }
                (_, Role::Lower) => LayerError::Io(path, e).into(),
                (_, _) => UpperError::Io(role.name(), path, e).into(),
            }),
        }
    }
}

fn not_a_directory(role: Role, path: PathBuf) -> MountError {
    match role {
        Role::Lower => LayerError::NotADirectory(path).into(),
        Role::Upper | Role::Work => UpperError::NotADirectory(role.name(), path).into(),
    }
}

/// No directory may be, or lie inside, another one, as on the kernel's overlayfs: a change by one way would show up by
/// the other. Upper and workdir are compared with each other where the upper is opened.
pub(super) fn apart(places: &[Place]) -> Result<(), MountError> {
    let mut roots: HashMap<(u64, u64), &Place> = HashMap::new();
    for place in places {
        if let Some(other) = roots.insert(place.id, place)
            && !own_pair(place, other)
        {
            return Err(MountError::SameLayer {
                path: place.path.clone(),
                roles: format!("{} and as {}", other.role.name(), place.role.name()),
            });
        }
    }
    let mut known: HashMap<&Path, Option<(u64, u64)>> = HashMap::new();
    for place in places {
        for above in place.path.ancestors().skip(1) {
            let above_id = *known
                .entry(above)
                .or_insert_with(|| fs::metadata(above).ok().map(|found| id(&found)));
            // Above a mountpoint lies another filesystem, from which the layer cannot be seen.
            let Some(above_id) = above_id.filter(|above| above.0 == place.id.0) else {
                break;
            };
            if let Some(outer) = roots.get(&above_id)
                && !own_pair(place, outer)
            {
                return Err(MountError::Overlap {
                    role: place.role.name(),
                    path: place.path.clone(),
                    outer_role: outer.role.name(),
                    outer: outer.path.clone(),
                });
            }
        }
    }
    Ok(())
}

fn own_pair(a: &Place, b: &Place) -> bool {
    a.role != Role::Lower && b.role != Role::Lower
}

/// Finds the mountpoint: absolute, without symlinks.
pub(super) fn mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let wrong = |what| {
        Err(MountError::Mountpoint {
            path: path.to_owned(),
            what,
        })
    };
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return wrong("is not a directory"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return wrong("does not exist: create it first");
        }
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            return Err(MountError::Dead(path.to_owned()));
        }
        Err(e) => return Err(MountError::Path("the mountpoint", path.to_owned(), e)),
    }
    let path = path
        .canonicalize()
        .map_err(|e| MountError::Path("the mountpoint", path.to_owned(), e))?;
    let table = mount_table().map_err(|e| MountError::Io("/proc/self/mountinfo", e))?;
    let top = table.iter().rev().find(|entry| entry.mountpoint == path);
    if top.is_some_and(|entry| entry.fs_type == FS_TYPE) {
        // Attributes may be answered from the kernel's memory, this is not.
        if rustix::fs::statfs(&path).err() == Some(rustix::io::Errno::NOTCONN) {
            return Err(MountError::Dead(path));
        }
        return Err(MountError::Mountpoint {
            path,
            what: "has an acetate mount already: take that away by acetate umount",
        });
    }
    Ok(path)
}

/// A mount below its own upper would serve its requests by asking itself.
pub(super) fn mountpoint_outside(mountpoint: &Path, places: &[Place]) -> Result<(), MountError> {
    for place in places {
        if place.role != Role::Lower
            && mountpoint != place.path
            && mountpoint.starts_with(&place.path)
        {
            return Err(MountError::Mountpoint {
                path: mountpoint.to_owned(),
                what: "lies inside the upper directory or the workdir: choose another",
            });
        }
    }
    Ok(())
}

/// Takes as many open files as the process may have, and says how many.
pub(super) fn raise_file_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(e) => {
            log::info!("the limit of open files stays as it is: {e}");
            before.unwrap_or(u64::MAX)
        }
    }
}

/// Names the limit where an error comes from it.
pub(super) fn explain_file_limit(error: MountError, limit: u64) -> MountError {
    let too_many = match &error {
        MountError::Layer(LayerError::Io(_, e))
        | MountError::Upper(UpperError::Io(_, _, e))
        | MountError::Path(_, _, e)
        | MountError::Io(_, e) => e.raw_os_error() == Some(libc::EMFILE),
        MountError::Union(e) => e.errno() == libc::EMFILE,
        _ => false,
    };
    if too_many {
        MountError::TooManyFiles(limit)
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(dir: &Path, names: &[(Role, &str)]) -> Vec<Place> {
        names
            .iter()
            .map(|(role, name)| {
                fs::create_dir_all(dir.join(name)).unwrap();
                Place::find(*role, &dir.join(name)).unwrap()
            })
            .collect()
    }

    #[test]
    fn overlapping_layers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        use Role::{Lower, Upper, Work};
        for (names, right) in [
            (vec![(Lower, "a"), (Lower, "b")], true),
            (vec![(Lower, "a"), (Lower, "a")], false),
            (vec![(Lower, "a"), (Lower, "a/x/y")], false),
            (vec![(Lower, "a/x"), (Lower, "a")], false),
            (vec![(Lower, "a"), (Upper, "u"), (Work, "w")], true),
            (vec![(Lower, "a"), (Upper, "a/u"), (Work, "w")], false),
            (vec![(Lower, "u/a"), (Upper, "u"), (Work, "w")], false),
            (vec![(Lower, "a"), (Upper, "u"), (Work, "a/w")], false),
            // Left to the one who opens them, who knows more of the two.
            (vec![(Lower, "a"), (Upper, "u"), (Work, "u/w")], true),
        ] {
            assert_eq!(apart(&places(dir, &names)).is_ok(), right, "{names:?}");
        }
        std::os::unix::fs::symlink("a", dir.join("link")).unwrap();
        let linked = [
            Place::find(Lower, &dir.join("a")).unwrap(),
            Place::find(Lower, &dir.join("link")).unwrap(),
        ];
        assert!(apart(&linked).is_err());
    }

    #[test]
    fn a_missing_mountpoint_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let error = mountpoint(&missing).unwrap_err().to_string();
        assert!(error.contains("missing does not exist"), "{error}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = mountpoint(&file).unwrap_err().to_string();
        assert!(error.contains("file is not a directory"), "{error}");
    }
}
