//! A process that does the work of another, and leaves its open files to the next one.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, execv, fork, setpgid};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{set_child_subreaper, set_parent_process_death_signal};

/// Which of the two processes is running.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// The one that waits.
    Supervisor(Worker),
    /// The new one.
    Worker,
}

/// A process that works.
#[derive(Clone, Copy, Debug)]
pub struct Worker(Pid);

/// What the supervisor was woken by.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// The worker has ended.
    Ended(Ending),
    /// The worker says that it serves.
    Ready,
    /// Somebody asks the mount to end.
    Asked(Signal),
    /// Somebody asks for another binary.
    Upgrade,
    /// The other process has ended that was waited for.
    OtherEnded(Ending),
    /// Nothing happened for as long as was to be waited.
    Overdue,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this code.
    Exited(i32),
    /// Somebody killed it, or the kernel did for want of memory.
    Killed,
    /// A fault of its own.
    Crashed(Signal),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Exited(code) => write!(f, "it ended with exit code {code}"),
            Ending::Killed => write!(f, "it was killed"),
            Ending::Crashed(signal) => write!(f, "it was ended by {signal}"),
        }
    }
}

/// What a supervisor waits for.
fn signals() -> SigSet {
    SigSet::from_iter([
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGCHLD,
        Signal::SIGUSR1,
        UPGRADE,
    ])
}

/// By which a worker is told that its supervisor has died, and a supervisor that its worker serves.
pub const NOTICE: Signal = Signal::SIGUSR1;

/// By which a supervisor is asked to have another binary take over.
pub const UPGRADE: Signal = Signal::SIGUSR2;

/// Blocks the signals that a supervisor waits for, in this process and the workers that it starts.
pub fn block_signals() -> io::Result<()> {
    Ok(signals().thread_block()?)
}

/// Whether there is no other thread.
pub fn is_single_threaded() -> io::Result<bool> {
    Ok(std::fs::read_dir("/proc/self/task")?.count() == 1)
}

/// Makes a second process, which has memory of its own and shares the table of open files: what it opens stays open when it
/// dies. Precondition: this is the only thread (see [`is_single_threaded`]), also at every later call.
pub fn start() -> io::Result<Side> {
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the new process has memory and a stack of its own, as after fork(2); this is the only thread,
    // so no lock is held by a thread that the new process does not have.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // In a group of its own: what is typed at a terminal reaches the supervisor, which passes it on.
            let alone = setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(io::Error::from);
            let notice = rustix::process::Signal::USR1;
            let told = alone.and_then(|()| Ok(set_parent_process_death_signal(Some(notice))?));
            if let Err(e) = told {
                // Of what fails here the caller would think that there is no new process.
                log::error!("the daemon does not start: {e}");
                leave(1);
            }
            Ok(Side::Worker)
        }
        pid => Ok(Side::Supervisor(Worker(Pid::from_raw(pid as libc::pid_t)))),
    }
}

/// How a process ended, once it has. Allocates nothing.
fn ended(process: Pid) -> io::Result<Option<Ending>> {
    match waitpid(process, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Ok(Some(Ending::Exited(code))),
        Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)) => Ok(Some(Ending::Killed)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(Ending::Crashed(signal))),
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// How often a supervisor looks whether its worker is [`Stuck`], of which nothing tells it.
const LOOK: Duration = Duration::from_secs(1);

/// Waits for something to happen, also for the end of another process, and until a time. A worker that is stuck counts as
/// killed.
pub fn wait_beside(
    worker: Worker,
    other: Option<Worker>,
    until: Option<Instant>,
    stuck: &mut Stuck,
) -> io::Result<Event> {
    loop {
        stuck.take_away()?;
        if let Some(ending) = ended(worker.0)? {
            return Ok(Event::Ended(ending));
        }
        if is_stuck(worker.0) {
            stuck.add(worker);
            return Ok(Event::Ended(Ending::Killed));
        }
        if let Some(other) = other
            && let Some(ending) = ended(other.0)?
        {
            return Ok(Event::OtherEnded(ending));
        }
        let look = Instant::now() + LOOK;
        match next_signal(Some(until.map_or(look, |until| until.min(look))))? {
            None if until.is_some_and(|until| until <= Instant::now()) => {
                return Ok(Event::Overdue);
            }
            None => {}
            Some(libc::SIGCHLD) => {}
            Some(libc::SIGUSR1) => return Ok(Event::Ready),
            Some(libc::SIGUSR2) => return Ok(Event::Upgrade),
            Some(number) => {
                let signal = Signal::try_from(number).map_err(io::Error::from)?;
                return Ok(Event::Asked(signal));
            }
        }
    }
}

/// One of the signals that a supervisor waits for; `None` when the time is over.
fn next_signal(until: Option<Instant>) -> io::Result<Option<i32>> {
    let set = signals();
    loop {
        // The kernel's own limit is the end of time.
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: i64::from(left.subsec_nanos()) as _,
        });
        let limit = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the set and the time outlive the call, and nothing else is asked for.
        let got = unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), limit) };
        if got > 0 {
            return Ok(Some(got));
        }
        match nix::errno::Errno::last() {
            nix::errno::Errno::EAGAIN => return Ok(None),
            nix::errno::Errno::EINTR => {}
            e => return Err(e.into()),
        }
    }
}

/// Makes a process that leads a group of its own and shares nothing with this one, to become another program: see
/// [`become_program`]. Precondition: this is the only thread.
pub fn start_apart() -> io::Result<Side> {
    // SAFETY: this is the only thread, so no lock is held by a thread that the new process does not have.
    match unsafe { fork() }? {
        ForkResult::Child => {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            Ok(Side::Worker)
        }
        ForkResult::Parent { child } => {
            // Whichever of the two is first: it must be there before the group is signalled.
            match setpgid(child, child) {
                Ok(()) | Err(nix::errno::Errno::EACCES | nix::errno::Errno::ESRCH) => {}
                Err(e) => return Err(e.into()),
            }
            Ok(Side::Supervisor(Worker(child)))
        }
    }
}

/// Lets another program go on in this process, with the descriptors `kept` by the same numbers, and the standard three. Returns
/// only when that cannot be.
pub fn become_program(path: &CString, arguments: &[CString], kept: &[RawFd]) -> io::Error {
    for fd in kept {
        // SAFETY: of a number that is not open the kernel says so; nothing is closed.
        let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
        if let Err(e) = fcntl_setfd(fd, FdFlags::empty()) {
            return e.into();
        }
    }
    match execv(path, arguments) {
        Ok(never) => match never {},
        Err(e) => {
            // This process may go on.
            keep_to_itself(kept).err().unwrap_or_else(|| e.into())
        }
    }
}

/// No program that this process starts inherits these. Fails where one is not open.
pub fn keep_to_itself(given: &[RawFd]) -> io::Result<()> {
    for fd in given {
        // SAFETY: of a number that is not open the kernel says so; nothing is closed.
        let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
        let flags = fcntl_getfd(fd)?;
        fcntl_setfd(fd, flags | FdFlags::CLOEXEC)?;
    }
    Ok(())
}

/// From now on what the children of this process leave behind are its own children, or no more.
pub fn inherit_orphans(wanted: bool) -> io::Result<()> {
    Ok(set_child_subreaper(wanted.then(rustix::process::getpid))?)
}

/// Ends a process that leads a group, and all of the group, and waits until all are gone. Precondition: see
/// [`inherit_orphans`].
pub fn end_group(leader: Worker) -> io::Result<()> {
    let group = Pid::from_raw(-leader.0.as_raw());
    loop {
        match kill(group, Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => return Err(e.into()),
        }
        match waitpid(group, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ECHILD) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Ends a worker, and waits until it is gone, or [`Stuck`].
pub fn end(worker: Worker, stuck: &mut Stuck) -> io::Result<()> {
    match kill(worker.0, Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(e) => return Err(e.into()),
    }
    loop {
        match waitpid(worker.0, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if is_stuck(worker.0) => {
                stuck.add(worker);
                return Ok(());
            }
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            Err(nix::errno::Errno::EINTR) => {}
            Ok(_) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Workers that were killed and cannot end before another serves their mount: threads of theirs wait in the kernel for the
/// answer to requests.
#[derive(Debug, Default)]
pub struct Stuck(Vec<Pid>);

impl Stuck {
    fn add(&mut self, worker: Worker) {
        self.0.push(worker.0);
    }

    /// Those that have ended by now are taken away.
    fn take_away(&mut self) -> io::Result<()> {
        let mut at = 0;
        while let Some(process) = self.0.get(at) {
            match ended(*process)? {
                Some(_) => drop(self.0.swap_remove(at)),
                None => at += 1,
            }
        }
        Ok(())
    }
}

/// Whether a process is [`Stuck`]: all of its threads are dead, or were killed while they told a FUSE connection something, which
/// may take until requests are answered that nobody answers any more. None of them runs anything of its own again: a signal
/// that kills is the first that a thread finds on its way back from the kernel. What cannot be told is no.
///
/// Such a thread can be waited for by nobody who is to answer those requests, and does no harm to him.
fn is_stuck(process: Pid) -> bool {
    let proc = PathBuf::from(format!("/proc/{process}"));
    if !is_dead(&proc) {
        return false;
    }
    let Ok(tasks) = std::fs::read_dir(proc.join("task")) else {
        return false;
    };
    let mut left = 0;
    for task in tasks {
        let Ok(task) = task.map(|task| task.path()) else {
            return false;
        };
        if !is_dead(&task) {
            if !is_killed(&task) || !tells_a_connection(&task) {
                return false;
            }
            left += 1;
        }
    }
    left > 0
}

/// Whether a task, by its folder in `/proc`, has ended, and is kept for others of its process alone.
fn is_dead(task: &Path) -> bool {
    let Ok(stat) = std::fs::read_to_string(task.join("stat")) else {
        return false;
    };
    // Behind the name, which may hold anything.
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().next());
    matches!(state, Some("Z" | "X"))
}

/// Whether a signal waits for a task that ends it.
fn is_killed(task: &Path) -> bool {
    let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigPnd:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (libc::SIGKILL - 1)) != 0)
}

/// Whether a task sleeps in a write to a FUSE device, of those that are open here.
fn tells_a_connection(task: &Path) -> bool {
    let call = std::fs::read_to_string(task.join("syscall")).unwrap_or_default();
    let mut words = call.split_whitespace();
    let number = words
        .next()
        .and_then(|word| word.parse::<libc::c_long>().ok());
    if !matches!(number, Some(libc::SYS_write | libc::SYS_writev)) {
        return false;
    }
    let fd = words
        .next()
        .and_then(|word| RawFd::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    fd.is_some_and(is_fuse_device)
}

fn is_fuse_device(fd: RawFd) -> bool {
    /// `FUSE_MINOR`, of the miscellaneous devices.
    const FUSE: (u32, u32) = (10, 229);
    // SAFETY: of a number that is not open the kernel says so; nothing is closed.
    let stat = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(fd) });
    stat.is_ok_and(|stat| {
        let device = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        device == FUSE && stat.st_mode & libc::S_IFMT == libc::S_IFCHR
    })
}

/// Stands by, with nothing open, until all that this process started, and what those left behind, have ended; passes signals on
/// to the process that `current` names. Returns how the last one ended.
pub fn stand_by(current: impl Fn() -> u32) -> io::Result<Ending> {
    let mut last = Ending::Exited(0);
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => {
                last = Ending::Exited(code);
                continue;
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                last = Ending::Crashed(signal);
                continue;
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ECHILD) => return Ok(last),
            Err(e) => return Err(e.into()),
        }
        let signal = match next_signal(None)? {
            Some(number @ (libc::SIGTERM | libc::SIGINT | libc::SIGHUP)) => {
                Signal::try_from(number).map_err(io::Error::from)?
            }
            _ => continue,
        };
        // Whoever told the number may lie: nobody but a child is signalled.
        let process = Pid::from_raw(current().cast_signed());
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        if process.as_raw() > 1 && waitid(Id::Pid(process), flags).is_ok() {
            pass_on(Worker(process), signal)?;
        }
    }
}

impl Worker {
    /// Its number.
    pub fn number(self) -> u32 {
        self.0.as_raw().cast_unsigned()
    }
}

/// The process that started this one.
pub fn parent() -> u32 {
    nix::unistd::getppid().as_raw().cast_unsigned()
}

/// Passes a signal on.
pub fn pass_on(worker: Worker, signal: Signal) -> io::Result<()> {
    Ok(kill(worker.0, signal)?)
}

/// Tells the supervisor that the worker serves: to be called by another process that the supervisor started, as a worker in
/// its sandbox may signal nobody.
pub fn say_ready() -> io::Result<()> {
    Ok(kill(nix::unistd::getppid(), NOTICE)?)
}

/// Closes what a dead worker left open. Precondition: nothing in this process owns one of them.
pub fn close_left(left: &[RawFd]) {
    for fd in left {
        // SAFETY: the worker that owned it is dead, and this process never did.
        drop(unsafe { OwnedFd::from_raw_fd(*fd) });
    }
}

/// The inode number of what a descriptor is open on.
pub fn inode_of(fd: RawFd) -> io::Result<u64> {
    // SAFETY: of a number that is not open the kernel says so; nothing is closed.
    let stat = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(fd) })?;
    Ok(stat.st_ino as u64)
}

/// Takes over a descriptor that a dead worker left open. Precondition: nothing in this process owns it.
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: as above; the caller takes each number once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes a descriptor that the process was started with. Precondition: nothing in this process owns it. Fails where it is not
/// open.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: of a number that is not open the kernel says so; nothing is closed.
    fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) })?;
    Ok(adopt(fd))
}

/// A second descriptor of what a number is open on.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: of a number that is not open the kernel says so; nothing is closed.
    Ok(rustix::io::fcntl_dupfd_cloexec(
        unsafe { BorrowedFd::borrow_raw(fd) },
        3,
    )?)
}

/// Ends this process, and nothing of what it has: what would be put away is put away by another.
pub fn leave(code: i32) -> ! {
    // SAFETY: nothing of this process is used any more.
    unsafe { libc::_exit(code) }
}

/// Lets `number` stand for another open file from now on.
pub fn put_in_place(number: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are open; the number stays open and keeps its owner.
    let result = unsafe { libc::dup3(file.as_raw_fd(), number.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Closes a file that was registered with a FUSE connection for passthrough (`FUSE_DEV_IOC_BACKING_CLOSE`).
pub fn close_backing(device: impl AsFd, id: u32) -> io::Result<()> {
    /// `_IOW(229, 2, uint32_t)`.
    const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;
    // SAFETY: the kernel reads four bytes, which outlive the call.
    let result = unsafe {
        libc::ioctl(
            device.as_fd().as_raw_fd(),
            BACKING_CLOSE as _,
            std::ptr::from_ref(&id),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The registered file as what replies by [`fuser::ReplyOpen`] want. It must be turned raw again.
pub fn wrap_for_open(reply: &fuser::ReplyOpen, id: u32) -> fuser::BackingId {
    // SAFETY: the number is that of a registered file of this connection, whose owner closes it.
    unsafe { reply.wrap_backing(id) }
}

/// As [`wrap_for_open`], for [`fuser::ReplyCreate`].
pub fn wrap_for_create(reply: &fuser::ReplyCreate, id: u32) -> fuser::BackingId {
    // SAFETY: as above.
    unsafe { reply.wrap_backing(id) }
}
