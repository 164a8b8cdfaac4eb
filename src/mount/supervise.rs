//! The process that waits while another serves the mount, and starts one that takes over when that dies.
//!
//! The mount is composed in the supervisor, which then waits and does nothing else. A worker is a copy of it that shares its
//! table of open files: what is open for a file that has no name any more stays open when the worker dies, and so do the
//! locks of the layers, the record and the control socket. Whatever a worker opens is therefore closed by the next one,
//! but for what the journal names; and what was open before the first worker is closed by none before the mount ends,
//! since the next one knows it by its number.
//!
//! A worker that crashes again and again is not started for ever: see [`CRASHES`] and [`KILLS`]. Then one more is started that
//! refuses every change, so that what is there can be read, and says why in its log; when that crashes too, the mount is
//! left without anyone, as that of a daemon that died.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sys::daemon::open_descriptors;
use crate::sys::shared_log::{SharedLog, Word};
use crate::sys::worker::{self, Ending, Event, Side};
use crate::union::{BROKEN, Journal};

/// So many crashes within [`WINDOW`] are a loop.
const CRASHES: usize = 5;

/// See [`CRASHES`].
const WINDOW: Duration = Duration::from_secs(60);

/// So many workers in a row that were killed before they had served a single request, for as long as [`WINDOW`]: for want of
/// memory, most likely. Fewer, or for a shorter time, may be those of a machine that is busy.
const KILLS: u32 = 20;

/// [`Word::Phase`]: the mount answers.
const READY: u64 = 1;

/// [`Word::Phase`]: the mount is gone, and what belonged to it is being put away.
const ENDING: u64 = 2;

/// What this process does for the mount.
#[derive(Debug)]
pub(super) enum Role {
    /// It serves it as long as it lives.
    Alone,
    /// It serves it until another takes over.
    Worker(Worker),
}

impl Role {
    /// Says, when it is asked, whether another process goes on with the mount when this one ends.
    pub(super) fn next(&self) -> impl Fn() -> bool + use<> {
        let log = match self {
            Role::Alone => None,
            Role::Worker(worker) => Some(worker.log.clone()),
        };
        move || {
            log.as_ref()
                .is_some_and(|log| log.get(Word::Phase) == READY)
        }
    }
}

/// One of the processes that serve a mount.
#[derive(Debug)]
pub(super) struct Worker {
    /// None was before it.
    pub(super) first: bool,
    /// What it tells the next one.
    pub(super) journal: Arc<Journal>,
    /// Why it is to refuse every change.
    pub(super) read_only: Option<String>,
    log: Arc<SharedLog>,
}

impl Worker {
    /// Another may take over from now on.
    pub(super) fn say_ready(&self) {
        self.log.set(Word::Phase, READY);
    }

    /// No other is to take over any more.
    pub(super) fn say_ending(&self) {
        self.log.set(Word::Phase, ENDING);
    }
}

/// How many have died of late, and how.
#[derive(Debug)]
struct Deaths {
    crashes: [Option<Instant>; CRASHES],
    next: usize,
    /// In a row, without a request served.
    kills: u32,
    /// When the first of them was.
    killed_since: Option<Instant>,
}

/// What is to be done after a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Again,
    Loop,
}

impl Deaths {
    fn new() -> Deaths {
        Deaths {
            crashes: [None; CRASHES],
            next: 0,
            kills: 0,
            killed_since: None,
        }
    }

    fn add(&mut self, ending: Ending, served: bool, now: Instant) -> Verdict {
        if served {
            self.kills = 0;
            self.killed_since = None;
        }
        if ending == Ending::Killed {
            if served {
                return Verdict::Again;
            }
            self.kills = self.kills.saturating_add(1);
            let since = *self.killed_since.get_or_insert(now);
            return if self.kills >= KILLS && now.duration_since(since) >= WINDOW {
                Verdict::Loop
            } else {
                Verdict::Again
            };
        }
        self.crashes[self.next] = Some(now);
        self.next = (self.next + 1) % CRASHES;
        // The oldest of as many as count is the one that is overwritten next.
        match self.crashes[self.next] {
            Some(first) if now.duration_since(first) < WINDOW => Verdict::Loop,
            _ => Verdict::Again,
        }
    }
}

/// Becomes the supervisor. Returns in each worker, and in this process only where there can be none. `in_background` is called
/// once the mount answers. Precondition: there is no other thread.
pub(super) fn start(mut in_background: impl FnMut() -> io::Result<()>) -> io::Result<Role> {
    if !worker::is_single_threaded()? {
        log::warn!("no supervisor: the process has several threads");
        return Ok(Role::Alone);
    }
    let log = Arc::new(SharedLog::new()?);
    worker::block_signals()?;
    let own = open_descriptors()?;
    let mut deaths = Deaths::new();
    let mut before: Option<Ending> = None;
    let mut read_only = false;
    // From here on the supervisor allocates nothing.
    loop {
        let served = log.get(Word::Progress);
        let running = match worker::start()? {
            Side::Worker => return take_up(log, &own, before, read_only),
            Side::Supervisor(running) => running,
        };
        let ending = watch(running, &mut in_background)?;
        if log.get(Word::Phase) != READY {
            if log.get(Word::Phase) == BROKEN {
                log::error!("the mount has lost its daemon: {ending:?}");
            }
            std::process::exit(exit_code(ending));
        }
        let verdict = deaths.add(ending, log.get(Word::Progress) != served, Instant::now());
        if verdict == Verdict::Loop {
            if read_only {
                log::error!(
                    "the mount is left without a daemon: the last ones ended so: {ending:?}"
                );
                std::process::exit(exit_code(ending));
            }
            read_only = true;
            deaths = Deaths::new();
        }
        before = Some(ending);
    }
}

fn exit_code(ending: Ending) -> i32 {
    match ending {
        Ending::Exited(code) => code,
        Ending::Killed | Ending::Crashed(_) => 1,
    }
}

/// Waits until a worker has ended.
fn watch(
    running: worker::Worker,
    in_background: &mut impl FnMut() -> io::Result<()>,
) -> io::Result<Ending> {
    loop {
        let asked = match worker::wait(running)? {
            Event::Ended(ending) => return Ok(ending),
            // Where nobody waits for the mount, nobody wants it.
            Event::Ready => match in_background() {
                Ok(()) => continue,
                Err(_) => nix::sys::signal::Signal::SIGTERM,
            },
            Event::Asked(signal) => signal,
        };
        // It may have ended by now, which the next turn finds out.
        worker::pass_on(running, asked).or_else(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => Ok(()),
            _ => Err(e),
        })?;
    }
}

/// What a new worker finds.
fn take_up(
    log: Arc<SharedLog>,
    own: &[RawFd],
    before: Option<Ending>,
    read_only: bool,
) -> io::Result<Role> {
    let journal = if before.is_some() {
        Journal::take_up(log.clone())
    } else {
        Journal::new(log.clone())
    };
    if let Some(before) = before {
        match before {
            Ending::Killed => log::warn!("the daemon was killed: another one takes over"),
            Ending::Crashed(signal) => {
                log::error!("the daemon was ended by {signal}: another one takes over");
            }
            Ending::Exited(code) => {
                log::error!("the daemon ended with exit code {code}: another one takes over");
            }
        }
        let kept = journal.left_open();
        let left: Vec<RawFd> = open_descriptors()?
            .into_iter()
            .filter(|fd| own.binary_search(fd).is_err() && !is_kept(*fd, &kept))
            .collect();
        worker::close_left(&left);
    }
    Ok(Role::Worker(Worker {
        first: before.is_none(),
        journal,
        read_only: read_only.then(|| {
            format!("its daemon was ended {CRASHES} times within {WINDOW:?}, or for that long {KILLS} times or more before it served anything")
        }),
        log,
    }))
}

/// Whether a descriptor is the one of a file without a name that the journal says it is.
fn is_kept(fd: RawFd, kept: &HashMap<RawFd, u64>) -> bool {
    kept.get(&fd)
        .is_some_and(|ino| worker::inode_of(fd).is_ok_and(|found| found == *ino))
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    const CRASH: Ending = Ending::Crashed(Signal::SIGSEGV);

    #[test]
    fn crashes_close_to_each_other_are_a_loop() {
        let mut deaths = Deaths::new();
        let begin = Instant::now();
        for n in 1..CRASHES {
            let at = begin + Duration::from_secs(n as u64);
            assert_eq!(deaths.add(CRASH, true, at), Verdict::Again);
        }
        let at = begin + Duration::from_secs(10);
        assert_eq!(deaths.add(CRASH, true, at), Verdict::Loop);
    }

    #[test]
    fn crashes_now_and_then_are_none() {
        let mut deaths = Deaths::new();
        let begin = Instant::now();
        for n in 0..100 {
            let at = begin + WINDOW / 4 * n;
            assert_eq!(deaths.add(CRASH, false, at), Verdict::Again, "{n}");
        }
    }

    #[test]
    fn being_killed_is_a_loop_only_where_nothing_is_served() {
        let mut deaths = Deaths::new();
        let now = Instant::now();
        for _ in 0..1000 {
            assert_eq!(deaths.add(Ending::Killed, true, now), Verdict::Again);
        }
        for _ in 0..10 * KILLS {
            assert_eq!(deaths.add(Ending::Killed, false, now), Verdict::Again);
        }
        let later = now + WINDOW;
        assert_eq!(deaths.add(Ending::Killed, true, later), Verdict::Again);
        for _ in 0..10 * KILLS {
            assert_eq!(deaths.add(Ending::Killed, false, later), Verdict::Again);
        }
        let later = later + WINDOW;
        assert_eq!(deaths.add(Ending::Killed, false, later), Verdict::Loop);
    }
}
