//! A process that does the work of another, and leaves its open files to the next one.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::set_parent_process_death_signal;

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

/// What a supervisor waits for.
fn signals() -> SigSet {
    SigSet::from_iter([
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGCHLD,
        Signal::SIGUSR1,
    ])
}

/// By which a worker is told that its supervisor has died, and a supervisor that its worker serves.
pub const NOTICE: Signal = Signal::SIGUSR1;

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
            nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            let notice = rustix::process::Signal::USR1;
            set_parent_process_death_signal(Some(notice))?;
            Ok(Side::Worker)
        }
        pid => Ok(Side::Supervisor(Worker(Pid::from_raw(pid as libc::pid_t)))),
    }
}

/// Waits for something to happen. Allocates nothing.
pub fn wait(worker: Worker) -> io::Result<Event> {
    let waited = signals();
    loop {
        match waitpid(worker.0, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Event::Ended(Ending::Exited(code))),
            Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)) => {
                return Ok(Event::Ended(Ending::Killed));
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(Event::Ended(Ending::Crashed(signal)));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        match waited.wait() {
            Ok(Signal::SIGCHLD) | Err(nix::errno::Errno::EINTR) => {}
            Ok(NOTICE) => return Ok(Event::Ready),
            Ok(signal) => return Ok(Event::Asked(signal)),
            Err(e) => return Err(e.into()),
        }
    }
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
