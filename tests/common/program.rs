//! Other people's programs: run with a time limit, their words kept.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status; `None` when the time limit ended it.
    pub status: Option<ExitStatus>,
    /// Standard output and error, in the order of writing.
    pub text: String,
    /// How long it took.
    pub elapsed: Duration,
}

impl Finished {
    /// True where it exited with 0.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|s| s.success())
    }

    /// The exit code; `None` for a signal or the time limit.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|s| s.code())
    }

    /// The last lines of what it printed.
    pub fn tail(&self, lines: usize) -> String {
        let all: Vec<&str> = self.text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Runs a program to its end, or kills it and its children after `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    let begin = Instant::now();
    let mut log = tempfile::tempfile().unwrap();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log.try_clone().unwrap())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if begin.elapsed() >= limit {
            let group = Pid::from_raw(i32::try_from(child.id()).unwrap());
            if let Err(e) = killpg(group, Signal::SIGKILL) {
                eprintln!("kill group {group}: {e}");
            }
            child.wait().unwrap();
            break None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    };
    Finished {
        status,
        text: text_of(&mut log),
        elapsed: begin.elapsed(),
    }
}

/// Runs a program that must succeed, and returns what it printed.
#[track_caller]
pub fn must(command: &mut Command, limit: Duration) -> String {
    let finished = run(command, limit);
    assert!(
        finished.success(),
        "{command:?}: {:?} after {:?}:\n{}",
        finished.status,
        finished.elapsed,
        finished.tail(60)
    );
    finished.text
}

/// Where a program lies: on the search path, or where cargo and Debian put what is not on everybody's.
pub fn find(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .chain(cargo.map(|dir| dir.join("bin")))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{name} is not installed"))
}

fn text_of(log: &mut File) -> String {
    let mut bytes = Vec::new();
    log.rewind().unwrap();
    log.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
