//! Times `podman run --rm IMAGE true` on the kernel's overlayfs, on fuse-overlayfs and on acetate:
//! `cargo run --release --example podman -- [--runs N] [--rival PROGRAM]... [--folder DIR] [-- PODMAN'S OPTIONS OF run]`.
//!
//! Everything is done in turns, on an image of busybox alone. `--rival` names a mount program beside the `fuse-overlayfs` of
//! the search path. A container in a container may need `-- --ulimit nofile=20000:20000 --runtime runc` and the like.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// This program under this name is the mount program.
const ACETATE: &str = "acetate";

fn main() -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from);
    if name.is_some_and(|name| name.ends_with(ACETATE)) {
        return acetate::cli::run(std::env::args_os());
    }
    match Plan::parse(std::env::args_os().skip(1)).and_then(|plan| plan.compare()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("podman: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is to be measured.
struct Plan {
    runs: usize,
    rivals: Vec<PathBuf>,
    folder: PathBuf,
    /// For `podman run`.
    options: Vec<OsString>,
}

impl Plan {
    fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Plan> {
        let mut plan = Plan {
            runs: 15,
            rivals: Vec::new(),
            folder: std::env::temp_dir(),
            options: Vec::new(),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().context("a value is missing");
            match word.to_str() {
                Some("--runs") => plan.runs = value()?.to_string_lossy().parse()?,
                Some("--rival") => plan.rivals.push(value()?.into()),
                Some("--folder") => plan.folder = value()?.into(),
                Some("--") => {
                    plan.options = words.collect();
                    break;
                }
                _ => bail!("unknown word {}", word.display()),
            }
        }
        Ok(plan)
    }

    fn compare(&self) -> Result<()> {
        let dir = tempfile::Builder::new()
            .prefix("acetate-")
            .tempdir_in(&self.folder)?;
        let ours = dir.path().join(ACETATE);
        fs::copy(std::env::current_exe()?, &ours)?;
        let archive = image(dir.path())?;
        let mut programs = vec![("kernel overlayfs".to_owned(), None)];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .map(|dir| dir.join("fuse-overlayfs"))
            .find(|file| file.is_file());
        for rival in found.iter().chain(&self.rivals) {
            programs.push((rival.display().to_string(), Some(rival.clone())));
        }
        programs.push((ACETATE.to_owned(), Some(ours)));
        let stores: Vec<Store> = programs
            .into_iter()
            .enumerate()
            .map(|(number, (name, program))| Store {
                name,
                // podman takes no folder of more than 50 characters.
                dir: dir.path().join(number.to_string()),
                program,
            })
            .collect();
        for store in &stores {
            let import = ["import", "-q"].map(OsString::from);
            store.run(
                &import,
                &[archive.as_os_str().into(), "localhost/bb:1".into()],
            )?;
            // The first run of all makes what later ones find.
            store.start(&self.options)?;
        }
        let mut times = vec![Vec::new(); stores.len()];
        for _ in 0..self.runs {
            for (store, times) in stores.iter().zip(&mut times) {
                times.push(store.start(&self.options)?);
            }
        }
        println!(
            "podman run --rm, milliseconds of {} runs in turns: median, least",
            self.runs
        );
        for (store, times) in stores.iter().zip(&mut times) {
            times.sort();
            let millis = |time: &Duration| time.as_secs_f64() * 1000.0;
            println!(
                "{:<40} {:>8.1} {:>8.1}",
                store.name,
                millis(&times[times.len() / 2]),
                millis(&times[0]),
            );
        }
        Ok(())
    }
}

/// A root filesystem of busybox as a tar.
fn image(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("image");
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is needed")?;
    std::os::unix::fs::symlink("busybox", root.join("bin/true"))?;
    let tar = dir.join("image.tar");
    let mut command = Command::new("tar");
    command.arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".");
    if !command.status()?.success() {
        bail!("tar failed");
    }
    Ok(tar)
}

/// podman with a store of its own.
struct Store {
    name: String,
    dir: PathBuf,
    program: Option<PathBuf>,
}

impl Store {
    fn run(&self, command: &[OsString], words: &[OsString]) -> Result<()> {
        let mut podman = Command::new("podman");
        for (flag, name) in [("--root", "s"), ("--runroot", "r"), ("--tmpdir", "t")] {
            podman.arg(flag).arg(self.dir.join(name));
        }
        podman.args(["--storage-driver", "overlay", "--events-backend", "file"]);
        podman.args(["--cgroup-manager", "cgroupfs"]);
        if let Some(program) = &self.program {
            let mut option = OsString::from("overlay.mount_program=");
            option.push(program);
            podman.arg("--storage-opt").arg(option);
        }
        podman.args(command).args(words).stdin(Stdio::null());
        let output = podman.output().context("podman is needed")?;
        if !output.status.success() {
            bail!("{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn start(&self, options: &[OsString]) -> Result<Duration> {
        let mut command: Vec<OsString> = ["run", "--rm", "--network", "none"]
            .map(OsString::from)
            .into();
        command.extend_from_slice(options);
        let begin = Instant::now();
        self.run(&command, &["localhost/bb:1".into(), "true".into()])?;
        Ok(begin.elapsed())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // podman binds its store onto itself, which keeps the folder from being removed.
        let bound = self.dir.join("s/overlay");
        if let Err(e) = rustix::mount::unmount(&bound, rustix::mount::UnmountFlags::DETACH)
            && e != rustix::io::Errno::INVAL
            && e != rustix::io::Errno::NOENT
        {
            eprintln!("{}: {e}", bound.display());
        }
    }
}
