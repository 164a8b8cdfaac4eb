//! Times the same work on kernel overlayfs, on fuse-overlayfs where it is installed, and on acetate:
//! `cargo run --release --example compare`, as root. The README's figures come from it.

mod work;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use work::{TASKS, Task};

/// This program under this name is the `acetate` command.
const ACETATE: &str = "acetate";

/// How often everything is done; the best time of each counts, as nothing makes a machine faster than it is.
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    if std::env::args_os()
        .next()
        .is_some_and(|name| name == ACETATE)
    {
        return acetate::cli::run(std::env::args_os());
    }
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("compare: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// A union filesystem to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kernel,
    FuseOverlayfs,
    Acetate,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Kernel => "kernel overlayfs",
            Kind::FuseOverlayfs => "fuse-overlayfs",
            Kind::Acetate => "acetate",
        }
    }

    fn mount(self, options: &str, dir: &Path) -> Result<Command> {
        let mut command = match self {
            Kind::Kernel => {
                let mut command = Command::new("mount");
                command.args(["-t", "overlay", "overlay"]);
                command
            }
            Kind::FuseOverlayfs => Command::new("fuse-overlayfs"),
            Kind::Acetate => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg0(ACETATE);
                command
            }
        };
        command.arg("-o").arg(options).arg(dir);
        Ok(command)
    }
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// A mount over the prepared layers with an upper of its own.
struct Mounted {
    base: PathBuf,
    dir: PathBuf,
}

impl Mounted {
    fn new(kind: Kind, base: &Path, layers: &[PathBuf]) -> Result<Mounted> {
        let at = |name: &str| base.join(name);
        for name in ["upper", "work", "merged"] {
            fs::create_dir_all(at(name))?;
        }
        let lowers: Vec<_> = layers.iter().map(|l| l.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lowers.join(":"),
            at("upper").display(),
            at("work").display()
        );
        run(&mut kind.mount(&options, &at("merged"))?)?;
        Ok(Mounted {
            base: base.to_owned(),
            dir: at("merged"),
        })
    }

    fn unmount(self) -> Result<()> {
        run(Command::new("umount").arg(&self.dir))?;
        // The daemon of a FUSE mount may hold the upper for a moment.
        std::thread::sleep(Duration::from_millis(200));
        fs::remove_dir_all(&self.base)?;
        Ok(())
    }
}

fn measure(kind: Kind, task: &Task, base: &Path, layers: &[PathBuf]) -> Result<Duration> {
    let mounted = Mounted::new(kind, base, layers)?;
    (task.prepare)(&mounted.dir)?;
    let begin = Instant::now();
    (task.run)(&mounted.dir)?;
    let time = begin.elapsed();
    mounted.unmount()?;
    Ok(time)
}

fn compare() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the kernel's overlayfs has to be mounted for comparison: run it as root");
    }
    let mut kinds = vec![Kind::Kernel, Kind::FuseOverlayfs, Kind::Acetate];
    if Command::new("fuse-overlayfs")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("fuse-overlayfs is not installed, so it is left out");
        kinds.retain(|k| *k != Kind::FuseOverlayfs);
    }
    let scratch = tempfile::Builder::new()
        .prefix("acetate-compare-")
        .tempdir()?;
    let layers = work::layers(scratch.path()).context("preparing the layers")?;
    let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    println!("| milliseconds, best of {ROUNDS} | {} |", names.join(" | "));
    println!("|---|{}", "---:|".repeat(kinds.len()));
    for task in TASKS {
        let mut best = vec![Duration::MAX; kinds.len()];
        // In turns, so that what else the machine does meets all alike.
        for _ in 0..ROUNDS {
            for (kind, best) in kinds.iter().zip(&mut best) {
                let base = scratch.path().join("mount");
                let time = measure(*kind, task, &base, &layers)
                    .with_context(|| format!("{} on {}", task.name, kind.name()))?;
                *best = time.min(*best);
            }
        }
        let cells: Vec<_> = best
            .iter()
            .map(|time| format!("{:.1}", time.as_secs_f64() * 1e3))
            .collect();
        println!("| {} | {} |", task.name, cells.join(" | "));
    }
    Ok(())
}
