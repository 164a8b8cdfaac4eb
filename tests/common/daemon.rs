//! The processes of a mount: the one that was started, and the one that serves where that is another.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a process may take to end, or to stop.
const LIMIT: Duration = Duration::from_secs(90);

fn number(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

/// The process that a supervisor has serve its mount at the moment. `None`: there is none just now, or this one serves it itself.
pub fn worker_of(supervisor: u32) -> Option<u32> {
    let children = format!("/proc/{supervisor}/task/{supervisor}/children");
    let children = fs::read_to_string(children).ok()?;
    let worker = children.split_whitespace().find(|pid| {
        // One that was killed may have a thread that waits for the next one.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains("(acetate-outside)") && !stat.contains(") Z "))
    });
    worker?.parse().ok()
}

/// The process that serves the mount of a daemon: that one itself, or the one that it supervises.
pub fn serving(daemon: u32) -> u32 {
    worker_of(daemon).unwrap_or(daemon)
}

/// The letter by which the kernel tells what a process does; `None` once it is gone.
fn state_of(pid: u32) -> Option<char> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("State:"));
    line?.trim().chars().next()
}

fn wait_until(pid: u32, reached: impl Fn(Option<char>) -> bool) {
    let begin = Instant::now();
    while !reached(state_of(pid)) {
        assert!(begin.elapsed() < LIMIT, "{pid}: {:?}", state_of(pid));
        thread::sleep(Duration::from_millis(1));
    }
}

fn send(pid: u32, signal: Signal) {
    match kill(number(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => panic!("{signal} to {pid}: {e}"),
    }
}

/// Waits until a process has ended, whether or not anybody has taken note of that.
pub fn wait_for_end(pid: u32) {
    wait_until(pid, |state| matches!(state, None | Some('Z' | 'X')));
}

/// Kills a daemon so that nobody goes on with its mount, as a crash of the machine's last hope would: where it supervises another,
/// that one too.
pub fn kill_for_good(daemon: u32) {
    // Stopped, it starts no other.
    send(daemon, Signal::SIGSTOP);
    wait_until(daemon, |state| {
        matches!(state, None | Some('T' | 't' | 'Z' | 'X'))
    });
    let worker = worker_of(daemon);
    for pid in [worker, Some(daemon)].into_iter().flatten() {
        send(pid, Signal::SIGKILL);
        wait_for_end(pid);
    }
}
