//! `acetate bench`

use std::ffi::OsString;
use std::fs;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use super::{CliError, output};
use crate::bench::{self, Progress, copy_up, report, rivals, trace};
use crate::image::Store;
use crate::mount;

/// Measures what things cost here, on acetate and on its rivals, in turns
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    CopyUp(CopyUpArgs),
    Rivals(RivalsArgs),
}

/// Where to work, and what becomes of the figures.
#[derive(Args, Debug)]
struct Common {
    /// Where to work [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How often each system takes its turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Another program that mounts like fuse-overlayfs
    #[arg(long, value_name = "PROGRAM")]
    rival: Vec<PathBuf>,
    /// Only systems with this in their name; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Write a page with plots here
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Measures what the first change of a lower file costs
#[derive(Args, Debug)]
struct CopyUpArgs {
    #[command(flatten)]
    common: Common,
    /// The largest file
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
    max_size: u64,
    /// Only the plainest changes
    #[arg(long)]
    quick: bool,
    /// Instead: run a command in the image and tell which files it copies up, and why
    #[arg(long, requires_all = ["image", "command"])]
    trace: bool,
    /// The image of --trace
    #[arg(long, value_name = "REF", requires = "trace")]
    image: Option<OsString>,
    /// The command of --trace
    #[arg(last = true, value_name = "COMMAND", requires = "trace")]
    command: Vec<OsString>,
}

/// Measures everyday work over a stack of layers
#[derive(Args, Debug)]
struct RivalsArgs {
    #[command(flatten)]
    common: Common,
    /// The lower layers, the topmost first; without them a stack is made
    #[arg(long, value_name = "DIR", num_args = 1.., conflicts_with = "image")]
    layers: Vec<PathBuf>,
    /// The layers of this image
    #[arg(long, value_name = "REF")]
    image: Option<OsString>,
    /// Only workloads with this in their name; may be given several times
    #[arg(long, value_name = "NAME")]
    work: Vec<String>,
    /// As this user, without root's rights
    #[arg(long, value_name = "UID")]
    user: Option<u32>,
    /// A tenth of the work
    #[arg(long)]
    quick: bool,
}

/// `4096`, `64K`, `256M`, `10G`, also as `64KiB`.
fn size(text: &str) -> Result<u64, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err("a size is a number with K, M or G behind it".into()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a size is a number with K, M or G behind it")?;
    match number.checked_mul(factor) {
        Some(size) if (4096..=1 << 40).contains(&size) => Ok(size),
        _ => Err("a size lies between 4K and 1024G".into()),
    }
}

/// Shows how far a run is, where somebody looks.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Bar {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {eta:>4} {wide_msg}");
        Bar(match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }
}

impl Progress for Bar {
    fn step(&self, done: u64, all: u64, what: &str) {
        self.0.set_length(all);
        self.0.set_position(done);
        self.0.set_message(what.to_owned());
    }

    fn note(&self, text: &str) {
        self.0.suspend(|| eprintln!("acetate: {text}"));
    }
}

impl Common {
    fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// A page that cannot be written should not cost a run first.
    fn check(&self) -> Result<(), CliError> {
        let Some(path) = &self.html else {
            return Ok(());
        };
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        if path.is_dir() || !parent.unwrap_or(Path::new(".")).is_dir() {
            let text = format!(
                "--html {}: not a file in a directory that exists",
                path.display()
            );
            return Err(CliError::Usage(text));
        }
        Ok(())
    }

    fn write_page(&self, page: impl FnOnce() -> String) -> Result<(), CliError> {
        if let Some(path) = &self.html {
            fs::write(path, page()).map_err(|e| {
                CliError::Bench(bench::BenchError::Io("cannot write", path.clone(), e))
            })?;
        }
        Ok(())
    }
}

impl BenchArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        match self.what {
            What::CopyUp(arguments) => arguments.run(root),
            What::Rivals(arguments) => arguments.run(root),
        }
    }
}

impl RivalsArgs {
    fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        self.common.check()?;
        if let Some(user) = self.user {
            return self.run_as(user);
        }
        let mut layers = self.layers;
        let mut name = if layers.is_empty() {
            "a made stack"
        } else {
            "layers"
        }
        .to_owned();
        // Held until the end, so that nobody removes the layers.
        let mut _image = None;
        if let Some(image) = &self.image {
            let store = Store::open(&mount::store_root(root))?;
            let image = store.prepare(image, None)?;
            layers.clone_from(&image.layers);
            name.clone_from(&image.name);
            _image = Some(image);
        }
        let request = rivals::Request {
            dir: self.common.dir(),
            layers,
            layers_name: name,
            rounds: self.common.rounds,
            rivals: self.common.rival.clone(),
            only: self.common.only.clone(),
            work: self.work,
            quick: self.quick,
        };
        let bar = Bar::new();
        let report = rivals::run(&request, &bar)?;
        bar.0.finish_and_clear();
        self.common.write_page(|| report::rivals_page(&report))?;
        if self.common.json {
            return Ok(output::json(&report)?);
        }
        Ok(output::lines(report::rivals_table(&report))?)
    }

    /// The same as another user, in a directory of his.
    fn run_as(&self, user: u32) -> Result<(), CliError> {
        let failed = |what: &'static str, path: &Path, e| {
            CliError::Bench(bench::BenchError::Io(what, path.to_owned(), e))
        };
        if !rustix::process::geteuid().is_root() {
            return Err(CliError::Usage("--user needs root".into()));
        }
        if self.image.is_some() {
            let text = "--user cannot read root's store: give --layers that the user can read";
            return Err(CliError::Usage(text.into()));
        }
        let base = self.common.dir();
        let own = tempfile::Builder::new()
            .prefix("acetate-bench-user-")
            .tempdir_in(&base)
            .map_err(|e| failed("cannot work in", &base, e))?;
        std::os::unix::fs::chown(own.path(), Some(user), Some(user))
            .map_err(|e| failed("cannot give away", own.path(), e))?;
        let this = std::env::current_exe()
            .map_err(|e| failed("cannot find", Path::new("this program"), e))?;
        let mut words = std::env::args_os().skip(1).peekable();
        let mut command = Command::new(this);
        while let Some(word) = words.next() {
            let text = word.to_string_lossy();
            if text == "--user" || text == "--dir" {
                words.next();
            } else if !text.starts_with("--user=") && !text.starts_with("--dir=") {
                command.arg(word);
            }
        }
        // The page and the table are written with the user's rights; who asked for them is root.
        command
            .arg("--dir")
            .arg(own.path())
            .env("HOME", own.path())
            .env("XDG_RUNTIME_DIR", own.path())
            .uid(user)
            .gid(user);
        let status =
            run_to_its_end(&mut command).map_err(|e| failed("cannot run in", own.path(), e))?;
        if status.success() {
            return Ok(());
        }
        Err(CliError::Bench(bench::BenchError::Wrong(format!(
            "as user {user}: {status}"
        ))))
    }
}

/// Passes signals on, so that the directory is removed after the other process has cleaned up in it.
fn run_to_its_end(command: &mut Command) -> std::io::Result<ExitStatus> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    let mut child = command.spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if let Err(e) = kill(pid, signal) {
                log::debug!("{signal} is not passed on: {e}");
            }
        }
    });
    child.wait()
}

impl CopyUpArgs {
    fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        self.common.check()?;
        if let Some(image) = self.image {
            return run_trace(&self.common, mount::store_root(root), image, self.command);
        }
        let request = copy_up::Request {
            dir: self.common.dir(),
            max_size: self.max_size,
            rounds: self.common.rounds,
            rivals: self.common.rival.clone(),
            only: self.common.only.clone(),
            quick: self.quick,
        };
        let bar = Bar::new();
        let report = copy_up::run(&request, &bar)?;
        bar.0.finish_and_clear();
        self.common.write_page(|| report::copy_up_page(&report))?;
        if self.common.json {
            return Ok(output::json(&report)?);
        }
        Ok(output::lines(report::copy_up_table(&report))?)
    }
}

fn run_trace(
    common: &Common,
    store: PathBuf,
    image: OsString,
    command: Vec<OsString>,
) -> Result<(), CliError> {
    if common.html.is_some() {
        return Err(CliError::Usage(
            "--trace has no page: leave --html away".into(),
        ));
    }
    let report = trace::run(&trace::Request {
        dir: common.dir(),
        store,
        image,
        command,
    })?;
    if common.json {
        output::json(&report)?;
    } else {
        output::lines(report::trace_table(&report))?;
    }
    if report.success {
        return Ok(());
    }
    let text = format!("the command ended with {}", report.status);
    Err(CliError::Bench(bench::BenchError::Wrong(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("4096", 4096),
            ("64K", 65536),
            ("1GiB", 1 << 30),
            ("10g", 10 << 30),
        ] {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "K",
            "1T",
            "-1",
            "0",
            "4095",
            "99999999999999999999G",
            "2048G",
            "1.5M",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
