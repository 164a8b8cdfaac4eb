//! `acetate bench`

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use super::{CliError, output};
use crate::bench::{self, Progress, copy_up, growth, report, rivals, trace};
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
    Growth(GrowthArgs),
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
    /// Instead of measuring: show what an earlier run wrote with --json
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dir", "rounds", "rival", "only", "quick"])]
    from: Option<PathBuf>,
}

/// Measures what the first change of a lower file costs
#[derive(Args, Debug)]
struct CopyUpArgs {
    #[command(flatten)]
    common: Common,
    /// The largest file. Each turn of a system that copies whole files writes it some ten times: 64M takes a few
    /// minutes in all, 1G half an hour, 10G needs 70 GB and some hours; --only and --change make it less
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = size)]
    max_size: u64,
    /// Only changes with this in their name, such as "write one block"; may be given several times
    #[arg(long, value_name = "NAME")]
    change: Vec<String>,
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
    /// Write the table as Markdown here
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Stop a workload after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
}

/// Measures what more layers, files, programs at once and mounts cost
#[derive(Args, Debug)]
struct GrowthArgs {
    #[command(flatten)]
    common: Common,
    /// Only this; may be given several times
    #[arg(long, value_name = "WHAT", value_parser = axis)]
    what: Vec<growth::Axis>,
    /// The largest tree; 1000000 takes some minutes
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    max_files: u64,
    /// A tenth of each
    #[arg(long)]
    quick: bool,
    /// Stop a step after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
}

fn axis(text: &str) -> Result<growth::Axis, String> {
    let found = growth::Axis::ALL.iter().find(|axis| axis.name() == text);
    found.copied().ok_or_else(|| {
        let names = growth::Axis::ALL.map(growth::Axis::name);
        format!("one of {}", names.join(", "))
    })
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

    fn check(&self) -> Result<(), CliError> {
        can_write("--html", self.html.as_deref())
    }

    fn write_page(&self, page: impl FnOnce() -> String) -> Result<(), CliError> {
        write(self.html.as_deref(), page)
    }

    /// What an earlier run found out.
    fn earlier<T: DeserializeOwned>(&self) -> Result<Option<T>, CliError> {
        let Some(path) = &self.from else {
            return Ok(None);
        };
        let failed = |e| CliError::Bench(bench::BenchError::Io("cannot read", path.clone(), e));
        let text = fs::read_to_string(path).map_err(failed)?;
        let report = serde_json::from_str(&text);
        report.map(Some).map_err(|e| failed(e.into()))
    }
}

/// A file that cannot be written should not cost a run first.
fn can_write(option: &str, path: Option<&Path>) -> Result<(), CliError> {
    let Some(path) = path else {
        return Ok(());
    };
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    if path.is_dir() || !parent.unwrap_or(Path::new(".")).is_dir() {
        let text = format!(
            "{option} {}: not a file in a directory that exists",
            path.display()
        );
        return Err(CliError::Usage(text));
    }
    // Whoever may not write there learns it now; what is there already stays until there is something new.
    let failed = |e| CliError::Bench(bench::BenchError::Io("cannot write", path.to_owned(), e));
    let is_new = fs::symlink_metadata(path).is_err();
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(failed)?;
    if is_new {
        fs::remove_file(path).map_err(failed)?;
    }
    Ok(())
}

fn write(path: Option<&Path>, text: impl FnOnce() -> String) -> Result<(), CliError> {
    if let Some(path) = path {
        fs::write(path, text()).map_err(|e| {
            CliError::Bench(bench::BenchError::Io("cannot write", path.to_owned(), e))
        })?;
    }
    Ok(())
}

impl BenchArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        match self.what {
            What::CopyUp(arguments) => arguments.run(root),
            What::Rivals(arguments) => arguments.run(root),
            What::Growth(arguments) => arguments.run(),
        }
    }
}

impl RivalsArgs {
    fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        self.common.check()?;
        can_write("--markdown", self.markdown.as_deref())?;
        if let Some(report) = self.common.earlier()? {
            return self.show(&report);
        }
        if let Some(user) = self.user {
            return self.run_as(user, root);
        }
        let mut layers = self.layers.clone();
        let mut name = if layers.is_empty() {
            "a made stack"
        } else {
            "layers"
        }
        .to_owned();
        // Held until the end, so that nobody removes the layers.
        let mut _held = None;
        let mut image = None;
        if let Some(reference) = &self.image {
            let at = mount::store_root(root);
            let prepared = Store::open(&at)?.prepare(reference, None)?;
            layers.clone_from(&prepared.layers);
            name.clone_from(&prepared.name);
            _held = Some(prepared);
            let store = fs::canonicalize(&at)
                .map_err(|e| CliError::Bench(bench::BenchError::Io("no store at", at, e)))?;
            image = Some(bench::StoredImage {
                store,
                name: reference.clone(),
            });
        }
        let request = rivals::Request {
            dir: self.common.dir(),
            layers,
            layers_name: name,
            rounds: self.common.rounds,
            rivals: self.common.rival.clone(),
            only: self.common.only.clone(),
            work: self.work.clone(),
            quick: self.quick,
            image,
            limit: Duration::from_secs(self.limit),
        };
        let bar = Bar::new();
        let report = rivals::run(&request, &bar)?;
        bar.0.finish_and_clear();
        self.show(&report)
    }

    fn show(&self, report: &rivals::Report) -> Result<(), CliError> {
        self.common.write_page(|| report::rivals_page(report))?;
        write(self.markdown.as_deref(), || report::rivals_markdown(report))?;
        if self.common.json {
            return Ok(output::json(report)?);
        }
        Ok(output::lines(report::rivals_table(report))?)
    }

    /// The same as another user, in a directory of his.
    fn run_as(&self, user: u32, root: Option<PathBuf>) -> Result<(), CliError> {
        let failed = |what: &'static str, path: &Path, e| {
            CliError::Bench(bench::BenchError::Io(what, path.to_owned(), e))
        };
        if !rustix::process::geteuid().is_root() {
            return Err(CliError::Usage("--user needs root".into()));
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
        if let Some(image) = &self.image {
            let store = mount::store_root(root);
            hand_over(&this, &store, image, own.path(), user)?;
        }
        let mut words = std::env::args_os().skip(1).peekable();
        let mut command = Command::new(&this);
        while let Some(word) = words.next() {
            let text = word.to_string_lossy();
            let elsewhere = ["--user", "--dir", "--root"];
            if elsewhere.iter().any(|option| text == *option) {
                words.next();
            } else if !elsewhere
                .iter()
                .any(|option| text.starts_with(&format!("{option}=")))
            {
                command.arg(word);
            }
        }
        // The page and the table are written with the user's rights; who asked for them is root.
        command
            .arg("--dir")
            .arg(own.path())
            .env("HOME", own.path())
            .env("XDG_RUNTIME_DIR", own.path())
            .env("ACETATE_ROOT", own.path().join(STORE))
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

/// A plain user's store, in the directory that he works in.
const STORE: &str = "store";

/// Gives a plain user an image of root's store, in a store of his own.
fn hand_over(
    this: &Path,
    store: &Path,
    image: &OsStr,
    own: &Path,
    user: u32,
) -> Result<(), CliError> {
    let archive = own.join("image.tar");
    let mut save = Command::new(this);
    save.arg("--root").arg(store).args(["image", "save", "-o"]);
    let mut load = Command::new(this);
    load.arg("--root").arg(own.join(STORE));
    load.args(["image", "load", "-i"]).arg(&archive);
    load.env("HOME", own).env("XDG_RUNTIME_DIR", own);
    for command in [
        save.arg(&archive).arg(image),
        Command::new("chown").arg(user.to_string()).arg(&archive),
        load.uid(user).gid(user),
    ] {
        let status = run_to_its_end(command.stdout(Stdio::null()));
        let status = status
            .map_err(|e| CliError::Bench(bench::BenchError::Io("cannot run in", own.into(), e)))?;
        if !status.success() {
            let text = format!("{command:?}: {status}");
            return Err(CliError::Bench(bench::BenchError::Wrong(text)));
        }
    }
    fs::remove_file(&archive)
        .map_err(|e| CliError::Bench(bench::BenchError::Io("cannot remove", archive, e)))
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

impl GrowthArgs {
    fn run(self) -> Result<(), CliError> {
        self.common.check()?;
        let report = match self.common.earlier()? {
            Some(report) => report,
            None => {
                let bar = Bar::new();
                let request = growth::Request {
                    dir: self.common.dir(),
                    rounds: self.common.rounds,
                    rivals: self.common.rival.clone(),
                    only: self.common.only.clone(),
                    axes: self.what,
                    max_files: self.max_files,
                    quick: self.quick,
                    limit: Duration::from_secs(self.limit),
                };
                let report = growth::run(&request, &bar)?;
                bar.0.finish_and_clear();
                report
            }
        };
        self.common.write_page(|| report::growth_page(&report))?;
        if self.common.json {
            return Ok(output::json(&report)?);
        }
        Ok(output::lines(report::growth_table(&report))?)
    }
}

impl CopyUpArgs {
    fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        self.common.check()?;
        if let Some(image) = self.image {
            return run_trace(&self.common, mount::store_root(root), image, self.command);
        }
        if let Some(report) = self.common.earlier()? {
            return show_copy_up(&self.common, &report);
        }
        let request = copy_up::Request {
            dir: self.common.dir(),
            max_size: self.max_size,
            rounds: self.common.rounds,
            rivals: self.common.rival.clone(),
            only: self.common.only.clone(),
            change: self.change,
            quick: self.quick,
        };
        let bar = Bar::new();
        let report = copy_up::run(&request, &bar)?;
        bar.0.finish_and_clear();
        show_copy_up(&self.common, &report)
    }
}

fn show_copy_up(common: &Common, report: &copy_up::Report) -> Result<(), CliError> {
    common.write_page(|| report::copy_up_page(report))?;
    if common.json {
        return Ok(output::json(report)?);
    }
    Ok(output::lines(report::copy_up_table(report))?)
}

fn run_trace(
    common: &Common,
    store: PathBuf,
    image: OsString,
    command: Vec<OsString>,
) -> Result<(), CliError> {
    let report = trace::run(&trace::Request {
        dir: common.dir(),
        store,
        image,
        command,
    })?;
    common.write_page(|| report::trace_page(&report))?;
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
