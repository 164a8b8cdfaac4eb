//! `acetate bench`

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::{CliError, output};
use crate::bench::{self, Progress, copy_up, report};

/// Measures what things cost here, on acetate and on its rivals, in turns
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    CopyUp(CopyUpArgs),
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
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.what {
            What::CopyUp(arguments) => arguments.run(),
        }
    }
}

impl CopyUpArgs {
    fn run(self) -> Result<(), CliError> {
        self.common.check()?;
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
