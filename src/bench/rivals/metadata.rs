//! Work on names, attributes and small files.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use super::work::Ground;
use crate::bench::error::{BenchError, at};

pub(super) fn walk(_: &Ground, dir: &Path) -> Result<u64, BenchError> {
    fn below(dir: &Path) -> io::Result<u64> {
        let mut count = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            count += 1;
            if entry.metadata()?.is_dir() {
                count += below(&entry.path())?;
            }
        }
        Ok(count)
    }
    below(dir).map_err(at("cannot walk", dir))
}

/// By tar itself, whose output is read: it skips the data when it writes to `/dev/null`.
pub(super) fn tar(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "tar --one-file-system --sort=name -cf - . | cat >/dev/null",
        ])
        .current_dir(dir)
        .stderr(Stdio::null());
    let status = ground.scene.run(&mut command)?;
    if !status.success() {
        return Err(BenchError::Program("tar".into(), status.to_string()));
    }
    Ok(ground.survey.entries as u64)
}

pub(super) fn read_small(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let mut count = 0;
    for name in ground.survey.small.iter().step_by(ground.less) {
        let path = dir.join(name);
        fs::read(&path).map_err(at("cannot read", &path))?;
        count += 1;
    }
    Ok(count)
}

/// As a program that searches libraries and headers along a path.
pub(super) fn missing(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let mut count = 0;
    for name in ground.survey.small.iter().step_by(ground.less) {
        let path = dir.join(name).with_extension("not-there");
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => count += 1,
            Err(e) => return Err(at("cannot look for", &path)(e)),
            Ok(_) => return Err(BenchError::Wrong(format!("{} is there", path.display()))),
        }
    }
    Ok(count)
}

pub(super) fn untar(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let mut command = Command::new("tar");
    command.arg("-xf").arg(&ground.tar.0).arg("-C").arg(dir);
    let status = ground.scene.run(&mut command)?;
    if !status.success() {
        return Err(BenchError::Program("tar".into(), status.to_string()));
    }
    Ok(ground.tar.1)
}

/// The top of what the tar holds.
pub(super) const UNPACKED: &str = "bench-unpacked";

pub(super) fn remove_new(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let path = dir.join(UNPACKED);
    fs::remove_dir_all(&path).map_err(at("cannot remove", &path))?;
    Ok(ground.tar.1)
}

pub(super) fn no_tree(ground: &Ground, _: &Path) -> Option<String> {
    let none = ground.survey.tree.is_none();
    none.then(|| "no directory of the layers has files enough".into())
}

fn tree(ground: &Ground) -> Result<(&Path, u64), BenchError> {
    let tree = ground.survey.tree.as_ref();
    let found = tree.map(|(path, files)| (path.as_path(), *files as u64));
    found.ok_or_else(|| BenchError::Wrong("no directory of the layers has files enough".into()))
}

pub(super) fn remove_lower(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let (tree, files) = tree(ground)?;
    let path = dir.join(tree);
    fs::remove_dir_all(&path).map_err(at("cannot remove", &path))?;
    Ok(files)
}

/// By `mv`, which copies where the filesystem does not rename a lower directory.
pub(super) fn rename(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let (tree, _) = tree(ground)?;
    let mut command = Command::new("mv");
    command.arg(dir.join(tree)).arg(dir.join("bench-moved"));
    let status = ground.scene.run(&mut command)?;
    if !status.success() {
        return Err(BenchError::Program("mv".into(), status.to_string()));
    }
    Ok(1)
}

pub(super) fn chmod(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    fn below(dir: &Path) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                below(&entry.path())?;
            } else if kind.is_file() {
                fs::set_permissions(entry.path(), Permissions::from_mode(0o600))?;
            }
        }
        fs::set_permissions(dir, Permissions::from_mode(0o700))
    }
    let (tree, files) = tree(ground)?;
    let path = dir.join(tree);
    below(&path).map_err(at("cannot change", &path))?;
    Ok(files)
}

/// Two threads, each in a directory of its own.
pub(super) fn create(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let count = 5000 / 2 / ground.less;
    let one = |name: &str| -> Result<(), BenchError> {
        let own = dir.join(name);
        let failed = at("cannot work in", &own);
        let work = || -> io::Result<()> {
            fs::create_dir(&own)?;
            for i in 0..count {
                drop(File::create_new(own.join(format!("f{i}")))?);
            }
            for i in 0..count {
                fs::remove_file(own.join(format!("f{i}")))?;
            }
            fs::remove_dir(&own)
        };
        work().map_err(failed)
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| one("bench-one"));
        let mine = one("bench-two");
        other
            .join()
            .unwrap_or_else(|_| Err(BenchError::Wrong("a thread panicked".into())))
            .and(mine)
    })?;
    Ok(4 * count as u64)
}

pub(super) fn directories(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let count = 1000 / ground.less;
    let work = || -> io::Result<()> {
        for i in 0..count {
            fs::create_dir(dir.join(format!("bench-d{i}")))?;
        }
        for i in 0..count {
            fs::remove_dir(dir.join(format!("bench-d{i}")))?;
        }
        Ok(())
    };
    work().map_err(at("cannot work in", dir))?;
    Ok(2 * count as u64)
}
