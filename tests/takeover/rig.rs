//! A supervised mount, and its daemon's end.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::common::{Acetate, Mount, Scratch, Watchdog, daemon};

/// How long a process may take to start or to end.
const LIMIT: Duration = Duration::from_secs(90);

/// A mount that outlives its daemon.
pub struct Rig {
    pub mount: Mount,
    pub upper: PathBuf,
    pub scratch: Scratch,
    _limit: Watchdog,
}

impl Rig {
    pub fn new(name: &str, limit: Duration, build: impl FnOnce(&Path)) -> Rig {
        Rig::with_options(name, limit, "", build)
    }

    pub fn with_options(
        name: &str,
        limit: Duration,
        options: &str,
        build: impl FnOnce(&Path),
    ) -> Rig {
        let watchdog = Watchdog::new(name, limit);
        let scratch = Scratch::new(name);
        let (lower, upper, work) = (
            scratch.dir("lower"),
            scratch.dir("upper"),
            scratch.dir("work"),
        );
        build(&lower);
        let mount = Acetate::new(scratch.join("merged"))
            .lowers(&[&lower])
            .upper(&upper, &work)
            .options("supervise=on")
            .options(options)
            .mount();
        // It is there before it is served, and before its processes have their names.
        fs::metadata(mount.path()).unwrap();
        Rig {
            mount,
            upper,
            scratch,
            _limit: watchdog,
        }
    }

    pub fn supervisor(&self) -> u32 {
        self.mount.started().unwrap()
    }

    /// The process that serves the mount, once there is one.
    pub fn worker(&self) -> Pid {
        let begin = Instant::now();
        loop {
            if let Some(pid) = worker_of(self.supervisor()) {
                return pid;
            }
            assert!(begin.elapsed() < LIMIT, "no worker: {}", self.mount.log());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the process that serves the mount.
    pub fn end(&self, signal: Signal) {
        kill(self.worker(), signal).unwrap();
    }
}

/// The process that a supervisor waits for, if there is one at the moment.
pub fn worker_of(supervisor: u32) -> Option<Pid> {
    daemon::worker_of(supervisor).map(|pid| Pid::from_raw(pid.cast_signed()))
}

/// The process that acts for a supervisor's workers outside of their sandbox.
pub fn outside_of(supervisor: u32) -> Option<Pid> {
    let children = format!("/proc/{supervisor}/task/{supervisor}/children");
    let children = fs::read_to_string(children).ok()?;
    let outside = children.split_whitespace().find(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "acetate-outside")
    });
    Some(Pid::from_raw(outside?.parse().ok()?))
}

/// Waits until a process is gone.
pub fn wait_for_end(pid: Pid) {
    let begin = Instant::now();
    while kill(pid, None) != Err(Errno::ESRCH) {
        assert!(begin.elapsed() < LIMIT, "{pid} does not end");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Asks a child of this process to end until it has, and leaves it to whoever owns it.
pub fn end_child(pid: Pid, ask: impl Fn()) {
    let begin = Instant::now();
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    let mut asked = Instant::now();
    ask();
    while waitid(Id::Pid(pid), flags) == Ok(WaitStatus::StillAlive) {
        assert!(begin.elapsed() < LIMIT, "{pid} does not end");
        if asked.elapsed() > LIMIT / 20 {
            asked = Instant::now();
            ask();
        }
        thread::sleep(Duration::from_millis(1));
    }
}
