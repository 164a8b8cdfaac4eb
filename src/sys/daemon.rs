//! Going into the background.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Which of the two processes is running.
#[derive(Debug)]
pub enum Forked {
    /// The one that the command was started as: it waits for what the daemon says.
    Parent {
        /// What the daemon writes.
        from_daemon: PipeReader,
        /// The daemon.
        daemon: Pid,
    },
    /// The new one.
    Daemon {
        /// Where it says that it is ready.
        to_parent: PipeWriter,
    },
}

/// Makes a second process. Fails when there are other threads, which would not exist in it.
pub fn fork_daemon() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "cannot fork: the process has several threads",
        ));
    }
    let (reader, writer) = io::pipe()?;
    // SAFETY: this is the only thread, so no lock is held by a thread that the new process does not have.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Forked::Parent {
            from_daemon: reader,
            daemon: child,
        }),
        ForkResult::Child => {
            drop(reader);
            setsid()?;
            // Whoever interrupts the starter means this process too, until the mount answers.
            set_parent_process_death_signal(Some(Signal::TERM))?;
            Ok(Forked::Daemon { to_parent: writer })
        }
    }
}

/// Which of two processes is running that go on side by side.
#[derive(Debug)]
pub enum Beside {
    /// The one that was there, with the number of the new one.
    Old(Pid),
    /// The new one. All descriptors are its own as well, so that those it does not need must be closed:
    /// [`close_all_but`].
    New,
}

/// Makes a process that goes on beside this one. Fails when there are other threads, which would not exist in it.
pub fn fork_beside() -> io::Result<Beside> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "cannot fork: the process has several threads",
        ));
    }
    // SAFETY: this is the only thread, so no lock is held by a thread that the new process does not have.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Beside::Old(child)),
        ForkResult::Child => Ok(Beside::New),
    }
}

/// Closes all descriptors but the standard three and `kept`, whoever owns them. What owned them must never be used, nor
/// dropped, again: to be called in a new process that does nothing of what the old one did.
pub fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<libc::c_uint> = kept.iter().map(|fd| *fd as libc::c_uint).collect();
    kept.sort_unstable();
    let mut from: libc::c_uint = 3;
    for last in kept.into_iter().map(Some).chain([None]) {
        let until = last.map_or(libc::c_uint::MAX, |fd| fd.saturating_sub(1));
        if until >= from {
            // SAFETY: the caller gives up whatever owned these descriptors.
            if unsafe { libc::syscall(libc::SYS_close_range, from, until, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if let Some(fd) = last {
            from = from.max(fd + 1);
        }
    }
    Ok(())
}

/// The daemon goes on when its starter ends.
pub fn outlive_starter() -> io::Result<()> {
    Ok(set_parent_process_death_signal(None)?)
}

/// Waits for a daemon that has ended, and says how.
pub fn how_it_ended(daemon: Pid) -> String {
    match waitpid(daemon, None) {
        Ok(WaitStatus::Exited(_, code)) => format!("it ended with exit code {code}"),
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("it was killed by {signal}"),
        Ok(status) => format!("{status:?}"),
        Err(e) => e.to_string(),
    }
}

/// Standard input, output and error lead nowhere from now on.
pub fn detach_stdio() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

/// Standard input and output are these from now on, and errors lead nowhere.
pub fn take_stdio(input: impl AsFd, output: impl AsFd) -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    dup2_stdin(input)?;
    dup2_stdout(output)?;
    dup2_stderr(&null)?;
    Ok(())
}

/// All open descriptors, in order.
pub fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<RawFd>().ok());
        found.extend(number);
    }
    // The one that read the directory is closed by now.
    found.retain(|fd| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok());
    found.sort_unstable();
    Ok(found)
}

/// Descriptors that the process was started with, beside the standard three.
#[derive(Debug)]
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// To be called before the process opens anything of its own.
    pub fn at_start() -> io::Result<Inherited> {
        let mut found = open_descriptors()?;
        found.retain(|fd| *fd > 2);
        Ok(Inherited(found))
    }

    /// Closes them: a daemon must not keep its starter's pipes and locks alive. Paths such as `/proc/self/fd/N` among
    /// the layers must have been opened by now.
    pub fn close(self) {
        for fd in self.0 {
            // SAFETY: the descriptor was open when the process started, so nothing in it owns it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
