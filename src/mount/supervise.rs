//! The process that waits while another serves the mount, and starts one that takes over when that dies.
//!
//! The mount is composed in the supervisor, which then waits and does nothing else. A worker is a copy of it that shares its
//! table of open files: what is open for a file that has no name any more stays open when the worker dies, and so do the
//! locks of the layers, the record and the control socket. Whatever a worker opens is therefore closed by the next one,
//! but for what the journal names; and what was open before the first worker is closed by none before the mount ends,
//! since the next one knows it by its number.
//!
//! A worker that crashes again and again is not started for ever: see [`CRASHES`] and [`IN_VAIN`]. Then one more is started that
//! refuses every change, so that what is there can be read, and says why in its log; when that crashes too, the mount is
//! left without anyone, as that of a daemon that died. Between workers that serve nothing there is a pause, see
//! [`LONGEST_PAUSE`]: what keeps them from starting, as a limit to the number of processes does, may pass.
//!
//! Another program can go on with the mount (see `handover`): it is started beside the worker, to find out whether it can;
//! then the worker is ended and the other program is started anew, as a supervisor with all that is open, whose worker takes over
//! as any other does. This supervisor ends when that worker serves the mount, and otherwise starts one of its own. When
//! the other program's workers crash within [`PROBATION`], it becomes this program again.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::handover::{Former, Handover, Part, left_open};
use crate::sys::daemon::{close_all_but, open_descriptors};
use crate::sys::shared_log::{SharedLog, Word};
use crate::sys::worker::{self, Ending, Event, Side, Stuck};
use crate::union::{BROKEN, Journal};

/// So many crashes within [`WINDOW`] are a loop.
const CRASHES: usize = 5;

/// See [`CRASHES`].
const WINDOW: Duration = Duration::from_secs(60);

/// So many workers in a row that were killed before they had served a single request, or ended with an error, for as long as
/// [`WINDOW`]: for want of memory, most likely. Fewer, or for a shorter time, may be those of a machine that is busy.
const IN_VAIN: u32 = 20;

/// How long it takes until the second worker is started after one that served nothing; each time twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long another program may take to see whether it can go on with the mount, and then to do so.
const LIMIT: Duration = Duration::from_secs(30);

/// When another program crashes so soon after it took the mount over, the one before takes it back.
const PROBATION: Duration = Duration::from_secs(60);

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

    /// No other process is to take over any more.
    pub(super) fn say_ending(&self) {
        if let Role::Worker(worker) = self {
            worker.log.set(Word::Phase, ENDING);
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
}

/// How many have died of late, and how.
#[derive(Debug)]
struct Deaths {
    crashes: [Option<Instant>; CRASHES],
    next: usize,
    /// In a row, without a request served or with an error.
    in_vain: u32,
    /// When the first of them was.
    in_vain_since: Option<Instant>,
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
            in_vain: 0,
            in_vain_since: None,
        }
    }

    /// How long the next worker is to wait: the first after one that served not at all.
    fn pause(&self) -> Duration {
        match self.in_vain.checked_sub(2) {
            None => Duration::ZERO,
            Some(before) => FIRST_PAUSE
                .saturating_mul(1 << before.min(16))
                .min(LONGEST_PAUSE),
        }
    }

    fn add(&mut self, ending: Ending, served: bool, now: Instant) -> Verdict {
        // One that ends by itself could not start, or not all of its threads, whatever the others of them served.
        if served && !matches!(ending, Ending::Exited(_)) {
            self.in_vain = 0;
            self.in_vain_since = None;
        } else {
            self.in_vain = self.in_vain.saturating_add(1);
            let since = *self.in_vain_since.get_or_insert(now);
            if self.in_vain >= IN_VAIN && now.duration_since(since) >= WINDOW {
                return Verdict::Loop;
            }
        }
        if !matches!(ending, Ending::Crashed(_)) {
            return Verdict::Again;
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

/// What a supervisor is given.
pub(super) struct Setup {
    pub(super) log: Arc<SharedLog>,
    /// By which another program can go on; `None` where nobody could ask for it.
    pub(super) handover: Option<Handover>,
    /// Somebody waits for this very process to end.
    pub(super) awaited: bool,
    /// Another program had the mount before.
    pub(super) succession: Option<Succession>,
}

/// What a supervisor knows of the program that had the mount before.
pub(super) struct Succession {
    /// To be gone back to; `None` in one that was gone back to.
    pub(super) former: Option<Former>,
}

/// What became of a worker.
enum Outcome {
    Ended(Ending),
    /// Another program has found that it can go on.
    Convinced,
}

/// Becomes the supervisor. Returns in each worker. `when_ready` is called each time that a worker serves the mount.
/// Precondition: there is no other thread.
pub(super) fn start(
    setup: Setup,
    mut when_ready: impl FnMut() -> io::Result<()>,
) -> io::Result<Role> {
    worker::block_signals()?;
    let log = setup.log.clone();
    let mut own = open_descriptors()?;
    let succeeds = setup.succession.is_some();
    if succeeds {
        // Those belong to the workers.
        let left = left_open(log.as_fd().as_raw_fd())?;
        own.retain(|fd| !left.contains(fd));
    }
    let former = setup.succession.as_ref().and_then(|s| s.former.as_ref());
    let begin = Instant::now();
    let mut ready = false;
    let mut deaths = Deaths::new();
    let mut before: Option<Ending> = None;
    let mut read_only = false;
    let mut stuck = Stuck::default();
    // From here on the supervisor keeps nothing more in memory, until it is asked for another program.
    loop {
        let served = log.get(Word::Progress);
        let started = match worker::start() {
            // There is a mount, which no more than waits meanwhile.
            Err(e) if log.get(Word::Phase) == READY => {
                log::error!("the daemon is not started: {e}");
                std::thread::sleep(LONGEST_PAUSE / 10);
                continue;
            }
            started => started?,
        };
        let running = match started {
            Side::Worker => {
                return take_up(log, &own, succeeds, before, read_only);
            }
            Side::Supervisor(running) => running,
        };
        let outcome = watch(running, &setup, &mut stuck, || {
            ready = true;
            when_ready()
        })?;
        let ending = match (outcome, &setup.handover) {
            (Outcome::Ended(ending), _) => ending,
            (Outcome::Convinced, Some(handover)) => {
                worker::end(running, &mut stuck)?;
                hand_over(handover, &setup)?;
                log::error!("this program goes on with the mount: the other one failed");
                if log.get(Word::Phase) != READY {
                    std::process::exit(0);
                }
                before = Some(Ending::Killed);
                continue;
            }
            (Outcome::Convinced, None) => Ending::Killed,
        };
        if log.get(Word::Phase) != READY {
            if log.get(Word::Phase) == BROKEN {
                log::error!("the mount has lost its daemon: {ending:?}");
            }
            std::process::exit(exit_code(ending));
        }
        if let (Some(former), Some(handover)) = (former, &setup.handover) {
            if !ready {
                handover.answer(&format!(
                    "its first process did not serve the mount: {ending}"
                ));
                std::process::exit(1);
            }
            if ending != Ending::Killed && begin.elapsed() < PROBATION {
                log::error!(
                    "the daemon of the new program: {ending}; the program before takes the mount back"
                );
                let e = handover.go_back(former);
                log::error!("it does not: {e}");
            }
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
        // What is asked of it meanwhile waits, as programs do.
        std::thread::sleep(deaths.pause());
    }
}

fn exit_code(ending: Ending) -> i32 {
    match ending {
        Ending::Exited(code) => code,
        Ending::Killed | Ending::Crashed(_) => 1,
    }
}

/// Passes a signal on. Who is to get it may have ended by now, which is found out soon.
fn pass_on(to: worker::Worker, signal: nix::sys::signal::Signal) -> io::Result<()> {
    worker::pass_on(to, signal).or_else(|e| match e.raw_os_error() {
        Some(libc::ESRCH) => Ok(()),
        _ => Err(e),
    })
}

/// Waits until a worker has ended, or another program can go on with the mount.
fn watch(
    running: worker::Worker,
    setup: &Setup,
    stuck: &mut Stuck,
    mut when_ready: impl FnMut() -> io::Result<()>,
) -> io::Result<Outcome> {
    let mut rehearsal: Option<(worker::Worker, Instant)> = None;
    let answer = |text: &str| setup.handover.iter().for_each(|h| h.answer(text));
    loop {
        let (other, until) = rehearsal.unzip();
        match worker::wait_beside(running, other, until, stuck)? {
            Event::Ended(ending) => {
                if let Some(other) = other {
                    worker::end_group(other)?;
                    answer("the daemon died meanwhile: try again");
                }
                return Ok(Outcome::Ended(ending));
            }
            // Where nobody waits for the mount, nobody wants it.
            Event::Ready => {
                if when_ready().is_err() {
                    pass_on(running, nix::sys::signal::Signal::SIGTERM)?;
                }
            }
            Event::Asked(signal) => pass_on(running, signal)?,
            Event::Upgrade if other.is_some() => {}
            Event::Upgrade if setup.log.get(Word::Phase) != READY => {
                answer("the mount is only being made, or is gone");
            }
            Event::Upgrade => match setup.handover.as_ref().map(rehearse) {
                Some(Ok(started)) => rehearsal = Some((started, Instant::now() + LIMIT)),
                Some(Err(e)) => answer(&format!("no process can be started: {e}")),
                None => {}
            },
            Event::OtherEnded(ending) => {
                if let Some(other) = other {
                    worker::end_group(other)?;
                }
                rehearsal = None;
                if ending == Ending::Exited(0) {
                    return Ok(Outcome::Convinced);
                }
                answer(&format!("it cannot go on with a mount: {ending}"));
            }
            Event::Overdue => {
                if let Some(other) = other {
                    worker::end_group(other)?;
                }
                rehearsal = None;
                answer(&format!("it did not say within {LIMIT:?} whether it can"));
            }
        }
    }
}

/// Starts the other program, to find out whether it can go on with the mount.
fn rehearse(handover: &Handover) -> io::Result<worker::Worker> {
    match worker::start_apart()? {
        Side::Supervisor(started) => Ok(started),
        Side::Worker => become_other(handover, Part::Rehearse),
    }
}

fn become_other(handover: &Handover, part: Part) -> ! {
    let e = handover.become_successor(part);
    handover.answer(&e.to_string());
    worker::leave(1)
}

/// Has the other program go on. Precondition: nobody serves the mount. Returns when that failed, and nothing is left of it.
fn hand_over(handover: &Handover, setup: &Setup) -> io::Result<()> {
    worker::inherit_orphans(true)?;
    let successor = match worker::start_apart() {
        Ok(Side::Supervisor(successor)) => successor,
        Ok(Side::Worker) => become_other(handover, Part::GoOn),
        Err(e) => {
            handover.answer(&format!("no process can be started: {e}"));
            return worker::inherit_orphans(false);
        }
    };
    let until = Instant::now() + LIMIT;
    let failed = loop {
        match worker::wait_beside(successor, None, Some(until), &mut Stuck::default()) {
            // What a worker's own process outside says may have been under way.
            Ok(Event::Ready)
                if setup.log.get(Word::Supervisor) == u64::from(successor.number()) =>
            {
                return let_go(setup);
            }
            Ok(Event::Ready | Event::Upgrade | Event::OtherEnded(_)) => {}
            Ok(Event::Asked(signal)) => pass_on(successor, signal)?,
            Ok(Event::Ended(ending)) => break format!("it did not serve the mount: {ending}"),
            Ok(Event::Overdue) => break format!("it did not serve the mount within {LIMIT:?}"),
            Err(e) => break e.to_string(),
        }
    };
    // Never may two serve one mount.
    worker::end_group(successor)?;
    worker::inherit_orphans(false)?;
    handover.answer(&failed);
    log::error!("another program did not take over: {failed}");
    Ok(())
}

/// Another supervisor has the mount.
fn let_go(setup: &Setup) -> io::Result<()> {
    if !setup.awaited {
        worker::leave(0);
    }
    close_all_but(&[])?;
    let log = &setup.log;
    let ending = worker::stand_by(|| u32::try_from(log.get(Word::Supervisor)).unwrap_or(0))?;
    worker::leave(exit_code(ending))
}

/// What a new worker finds.
fn take_up(
    log: Arc<SharedLog>,
    own: &[RawFd],
    succeeds: bool,
    before: Option<Ending>,
    read_only: bool,
) -> io::Result<Role> {
    let journal = if before.is_some() || succeeds {
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
        first: before.is_none() && !succeeds,
        journal,
        read_only: read_only.then(|| {
            format!("its daemon was ended {CRASHES} times within {WINDOW:?}, or for that long {IN_VAIN} times or more before it served anything")
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
            assert_eq!(deaths.add(CRASH, true, at), Verdict::Again, "{n}");
        }
    }

    #[test]
    fn being_killed_or_unable_to_start_is_a_loop_only_where_nothing_is_served() {
        for ending in [Ending::Killed, Ending::Exited(1)] {
            let mut deaths = Deaths::new();
            let now = Instant::now();
            for _ in 0..1000 {
                assert_eq!(deaths.add(Ending::Killed, true, now), Verdict::Again);
            }
            for _ in 0..10 * IN_VAIN {
                assert_eq!(deaths.add(ending, false, now), Verdict::Again);
            }
            let later = now + WINDOW;
            assert_eq!(deaths.add(Ending::Killed, true, later), Verdict::Again);
            for _ in 0..10 * IN_VAIN {
                assert_eq!(deaths.add(ending, false, later), Verdict::Again);
            }
            let later = later + WINDOW;
            assert_eq!(deaths.add(ending, false, later), Verdict::Loop);
        }
    }

    #[test]
    fn pauses_grow_where_nothing_is_served() {
        let mut deaths = Deaths::new();
        let now = Instant::now();
        deaths.add(Ending::Killed, true, now);
        assert_eq!(deaths.pause(), Duration::ZERO);
        deaths.add(Ending::Killed, false, now);
        assert_eq!(deaths.pause(), Duration::ZERO);
        let mut waited = Duration::ZERO;
        for _ in 0..6 {
            deaths.add(Ending::Exited(1), false, now);
            waited += deaths.pause();
        }
        assert_eq!(waited, FIRST_PAUSE * 63);
        for _ in 0..100 {
            deaths.add(CRASH, false, now);
        }
        assert_eq!(deaths.pause(), LONGEST_PAUSE);
        deaths.add(CRASH, true, now);
        assert_eq!(deaths.pause(), Duration::ZERO);
    }
}
