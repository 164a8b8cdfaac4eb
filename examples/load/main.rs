//! Times `image load` beside `podman load`, and beside decompressing and hashing the same layers and nothing else:
//! `cargo run --release --example load -- ARCHIVE [FOLDER]`, as root. `ARCHIVE` is what `docker save` wrote; the README's
//! figures come from `tests/debian.rs`'s image. `FOLDER`, on the disk to measure, needs room for ten times the archive.
//!
//! Everything is done in turns, each time in a new folder, and nothing is removed before the end: ext4 is slow to give
//! out inodes that were just freed. The disk is idle when a turn begins, and the archive is in memory.

mod alone;
mod measure;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use measure::{Sample, median, run};

/// This program under this name is the `acetate` command.
const ACETATE: &str = "acetate";
/// How often everything is done; the median counts.
const ROUNDS: usize = 3;
/// Images for `ls`.
const IMAGES: usize = 1000;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == ACETATE) {
        return acetate::cli::run(std::env::args_os());
    }
    let (archive, folder) = (arguments.next(), arguments.next());
    let result = match archive {
        Some(archive) if archive == alone::FLAG => alone::run(folder.as_deref()),
        Some(archive) => compare(&archive, folder.as_deref()),
        None => Err(anyhow::anyhow!("usage: load ARCHIVE [FOLDER]")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("load: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Folders that each turn gets anew.
struct Places {
    dir: tempfile::TempDir,
    next: usize,
}

impl Places {
    fn next(&mut self) -> Result<PathBuf> {
        self.next += 1;
        let place = self.dir.path().join(self.next.to_string());
        fs::create_dir(&place)?;
        // What others left to be written is no part of what is measured.
        rustix::fs::syncfs(fs::File::open(&place)?)?;
        Ok(place)
    }
}

fn compare(archive: &OsStr, folder: Option<&OsStr>) -> Result<()> {
    let folder = folder.map_or_else(std::env::temp_dir, PathBuf::from);
    // podman takes a folder's path for a name as well, and names have no capitals.
    let dir = tempfile::Builder::new()
        .prefix(&format!("acetate-load-{}", std::process::id()))
        .rand_bytes(0)
        .tempdir_in(folder)?;
    let layout = dir.path().join("layout");
    alone::gzip_layout(Path::new(archive), &layout)?;
    let mut places = Places { dir, next: 0 };
    let forms = [
        ("docker archive", archive.to_owned()),
        ("gzip OCI layout", layout.into_os_string()),
    ];
    println!("medians of {ROUNDS}, in turns              seconds      CPU    memory");
    for (name, source) in &forms {
        let mut samples: [Vec<Sample>; 3] = Default::default();
        for _ in 0..ROUNDS {
            samples[0].push(run(alone_command(source)?)?);
            samples[1].push(run(acetate(
                &places.next()?,
                ["image", "load", "-i"],
                source,
            )?)?);
            if let Some(command) = podman(&places.next()?, source) {
                samples[2].push(run(command)?);
            }
        }
        for (who, samples) in ["decompress and hash", "acetate", "podman"]
            .iter()
            .zip(&samples)
        {
            match median(samples) {
                Some(sample) => println!("{name:<16} {who:<20} {sample}"),
                None => println!("{name:<16} {who:<20} is not installed"),
            }
        }
    }
    listing(&mut places)?;
    commit(&mut places, archive)
}

fn this() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program")
}

fn alone_command(source: &OsStr) -> Result<Command> {
    let mut command = Command::new(this()?);
    command.arg(alone::FLAG).arg(source);
    Ok(command)
}

/// `acetate` on a store in `place`.
fn acetate<const N: usize>(
    place: &Path,
    arguments: [&str; N],
    last: impl AsRef<OsStr>,
) -> Result<Command> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(this()?);
    command.arg0(ACETATE).arg("--root").arg(place.join("store"));
    command.args(arguments).arg(last);
    Ok(command)
}

fn podman(place: &Path, source: &OsStr) -> Option<Command> {
    let found = Command::new("podman").arg("--version").output();
    if !found.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let mut command = Command::new("podman");
    for (flag, name) in [("--root", "s"), ("--runroot", "r"), ("--tmpdir", "t")] {
        command.arg(flag).arg(place.join(name));
    }
    command.args(["--storage-driver", "overlay", "load", "-q", "-i"]);
    command.arg(source);
    Some(command)
}

/// Times `ls` in a store of many images.
fn listing(places: &mut Places) -> Result<()> {
    let place = places.next()?;
    let many = place.join("many.tar");
    alone::many_images(&many, IMAGES)?;
    run(acetate(&place, ["image", "load", "-q", "-i"], &many)?)?;
    let mut samples = Vec::new();
    for _ in 0..3 * ROUNDS {
        samples.push(run(acetate(&place, ["image"], "ls")?)?);
    }
    if let Some(sample) = median(&samples) {
        println!("ls of {IMAGES} images                      {sample}");
    }
    Ok(())
}

/// Times the commit of ten changed files.
fn commit(places: &mut Places, archive: &OsStr) -> Result<()> {
    let place = places.next()?;
    let root = place.join("root");
    fs::create_dir(&root)?;
    let loaded = run(acetate(&place, ["image", "load", "-q", "-i"], archive)?)?;
    let image = loaded.output.lines().next().unwrap_or_default().to_owned();
    run(acetate(&place, ["mount", &image], &root)?)?;
    let mut samples = Vec::new();
    let mut work = || -> Result<()> {
        for round in 0..3 * ROUNDS {
            for file in 0..10 {
                fs::write(root.join(format!("etc/new-{file}")), format!("{round}"))?;
            }
            let name: OsString = format!("changed:{round}").into();
            let target = root.to_string_lossy().into_owned();
            samples.push(run(acetate(&place, ["image", "commit", &target], name)?)?);
        }
        Ok(())
    };
    let worked = work();
    run(acetate(&place, ["umount"], &root)?)?;
    worked?;
    if let Some(sample) = median(&samples) {
        println!("commit of 10 files                      {sample}");
    }
    Ok(())
}
