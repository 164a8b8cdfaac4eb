//! Work by programs: those of the image in a chroot, and those of this machine on the mount.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::work::Ground;
use crate::bench::error::{BenchError, at};
use crate::bench::scene::{Scene, finish};
use crate::bench::system::find_program;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What changes owners.
fn not_root() -> Option<String> {
    (!is_root()).then(|| "needs root".into())
}

/// A plain user may change his root in a user namespace of his own.
fn lacks(dir: &Path, program: &str) -> Option<String> {
    let found = fs::symlink_metadata(dir.join(program)).is_ok();
    let missing = (!found).then(|| format!("the layers have no /{program}"));
    missing.or_else(|| {
        let mut command = Command::new("unshare");
        let may = is_root() || finish(command.args(["--user", "--map-root-user", "true"])).is_ok();
        (!may).then(|| "chroot needs root or user namespaces".into())
    })
}

/// Runs a command line with the mount as its root.
fn inside(ground: &Ground, dir: &Path, script: &str) -> Result<(), BenchError> {
    let mut command = if is_root() {
        Command::new("chroot")
    } else {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "chroot"]);
        command
    };
    command.arg(dir).args(["/bin/sh", "-euc", script]);
    command.env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", "/root").env("LC_ALL", "C");
    quiet(ground, &mut command, "in the image")
}

fn quiet(ground: &Ground, command: &mut Command, name: &str) -> Result<(), BenchError> {
    let status = ground
        .scene
        .run(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
    if status.success() {
        return Ok(());
    }
    Err(BenchError::Program(name.to_owned(), status.to_string()))
}

pub(super) fn no_true(_: &Ground, dir: &Path) -> Option<String> {
    lacks(dir, "bin/true").or_else(|| lacks(dir, "bin/sh"))
}

pub(super) fn exec(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let count = 400 / ground.less;
    let script = format!("i=0; while [ $i -lt {count} ]; do /bin/true; i=$((i+1)); done");
    inside(ground, dir, &script)?;
    Ok(count as u64)
}

pub(super) fn no_python(_: &Ground, dir: &Path) -> Option<String> {
    lacks(dir, "usr/bin/python3").or_else(|| lacks(dir, "bin/sh"))
}

pub(super) fn python(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let script = "for i in 1 2 3 4 5 6; do python3 -c 'import json, email.message, http.client, \
                  unittest, xml.dom.minidom, asyncio'; done";
    inside(ground, dir, script)?;
    Ok(6)
}

/// How many packages are installed, and how many files each has.
const PACKAGES: usize = 10;
const PACKED: usize = 40;
/// Where they lie in the mount.
const DEBS: &str = "bench-debs";

/// Packages with small files, where the program is installed that makes them.
pub(super) fn make_packages(scene: &Scene) -> Result<Option<PathBuf>, BenchError> {
    if find_program("dpkg-deb").is_none() {
        return Ok(None);
    }
    let debs = scene.make_dir("debs")?;
    for number in 0..PACKAGES {
        let name = format!("acetate-bench-{number}");
        let tree = scene.make_dir(&format!("package-{number}"))?;
        let make = || -> std::io::Result<()> {
            let control = tree.join("DEBIAN");
            fs::create_dir_all(&control)?;
            // Whatever the umask is, dpkg-deb takes no other mode.
            fs::set_permissions(&control, Permissions::from_mode(0o755))?;
            let text = format!(
                "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: bench <bench@localhost>\n\
                 Description: files to unpack\n"
            );
            fs::write(control.join("control"), text)?;
            let files = tree.join("usr/share").join(&name);
            for file in 0..PACKED {
                let dir = files.join(format!("d{}", file % 4));
                fs::create_dir_all(&dir)?;
                fs::write(dir.join(format!("f{file}")), vec![b'a'; 300 << (file % 6)])?;
            }
            Ok(())
        };
        make().map_err(at("cannot make the package", &tree))?;
        let mut command = Command::new("dpkg-deb");
        command.args(["--root-owner-group", "-Zgzip", "--build"]);
        finish(command.arg(&tree).arg(debs.join(format!("{name}.deb"))))?;
    }
    Ok(Some(debs))
}

pub(super) fn no_dpkg(ground: &Ground, dir: &Path) -> Option<String> {
    let none = ground.debs.is_none();
    let missing = none.then(|| "dpkg-deb, which makes the packages, is not installed".into());
    missing
        .or_else(|| lacks(dir, "usr/bin/dpkg"))
        .or_else(|| lacks(dir, "bin/sh"))
        .or_else(not_root)
}

pub(super) fn bring_packages(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let Some(debs) = &ground.debs else {
        return Err(BenchError::Wrong("there are no packages".into()));
    };
    let mut command = Command::new("cp");
    command.arg("-r").arg(debs).arg(dir.join(DEBS));
    quiet(ground, &mut command, "cp")?;
    Ok(0)
}

pub(super) fn dpkg(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    inside(ground, dir, &format!("dpkg -i /{DEBS}/*.deb"))?;
    Ok(PACKAGES as u64)
}

pub(super) fn no_git(ground: &Ground, _: &Path) -> Option<String> {
    let none = ground.repository.is_none();
    none.then(|| "git is not installed".into())
}

fn git(ground: &Ground, dir: &Path, arguments: &[&str]) -> Result<(), BenchError> {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args([
        "-c",
        "user.name=bench",
        "-c",
        "user.email=bench@localhost",
        "-c",
        "gc.autoDetach=false",
        "-c",
        "safe.directory=*",
        "-c",
        "init.defaultBranch=main",
    ]);
    quiet(ground, command.args(arguments), "git")
}

/// A repository of two commits to clone.
pub(super) fn make_repository(ground: &Ground, dir: &Path) -> Result<(), BenchError> {
    let files = 1000 / ground.less;
    git(ground, dir, &["init", "-q"])?;
    for commit in ["one", "two"] {
        for i in 0..files {
            let sub = dir.join(format!("d{}", i % 20));
            fs::create_dir_all(&sub).map_err(at("cannot make", &sub))?;
            let path = sub.join(format!("f{i}"));
            fs::write(&path, format!("{commit} {i}\n").repeat(50))
                .map_err(at("cannot write", &path))?;
        }
        git(ground, dir, &["add", "."])?;
        git(ground, dir, &["commit", "-qm", commit])?;
    }
    Ok(())
}

pub(super) fn git_clone(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let Some(repository) = &ground.repository else {
        return Err(BenchError::Wrong("there is no repository".into()));
    };
    let from = repository.to_string_lossy().into_owned();
    git(
        ground,
        dir,
        &["clone", "-q", "--no-hardlinks", &from, "bench-clone"],
    )?;
    let clone = dir.join("bench-clone");
    git(ground, &clone, &["status", "--porcelain"])?;
    git(ground, &clone, &["gc", "-q"])?;
    git(ground, &clone, &["checkout", "-q", "HEAD~1"])?;
    Ok(1)
}

pub(super) fn no_sqlite(_: &Ground, _: &Path) -> Option<String> {
    let none = find_program("sqlite3").is_none();
    none.then(|| "sqlite3 is not installed".into())
}

pub(super) fn sqlite(ground: &Ground, dir: &Path) -> Result<u64, BenchError> {
    let count = 120 / ground.less;
    let mut script = String::from("create table t(a integer primary key, b text);");
    for i in 0..count {
        script.push_str(&format!("insert into t values({i}, hex(zeroblob(300)));"));
    }
    let mut command = Command::new("sqlite3");
    quiet(
        ground,
        command.arg(dir.join("bench-sqlite")).arg(script),
        "sqlite3",
    )?;
    Ok(count as u64)
}
