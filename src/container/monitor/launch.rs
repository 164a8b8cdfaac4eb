//! The start of the runtime, which may come before its configuration is known: crun and runc take milliseconds to be
//! loaded, in which the root filesystem can be mounted. `config.json` leads to a pipe then, at whose end they wait.

use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use nix::sys::signal::SigSet;
use rustix::io::FdFlags;

use super::super::error::ContainerError;
use super::super::lifecycle;
use super::super::record::Container;
use super::super::runtime::{Runtime, remove_if_there};
use super::call;
use super::streams::Streams;

/// A runtime that was started.
pub(super) struct Launch {
    /// Its process.
    pub(super) pid: i32,
    /// The container's.
    pub(super) streams: Streams,
    /// Where it sends the terminal.
    pub(super) console: Option<(File, UnixListener)>,
    /// `None`: it had its configuration from the beginning.
    pub(super) pending: Option<Pending>,
}

/// A runtime that waits for its configuration. Dropped, there is none: the runtime ends, and has not done anything yet.
pub(super) struct Pending(PipeWriter);

/// Makes `config.json` the end of a pipe.
fn lead_to_pipe(container: &Container) -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    let path = container.path("config.json");
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let target = format!("/proc/self/fd/{}", reader.as_raw_fd());
    std::os::unix::fs::symlink(target, &path)?;
    Ok((reader, writer))
}

impl Launch {
    /// Starts the runtime; `ahead`: before `config.json` is written.
    pub(super) fn new(
        container: &Container,
        runtime: &Runtime,
        lock: &File,
        ahead: bool,
    ) -> Result<Launch, ContainerError> {
        let log = container.path(LOG);
        remove_if_there(&log);
        let pid_file = container.path("pid");
        remove_if_there(&pid_file);
        let words = ["run", "--detach", "--bundle"];
        let mut command = runtime.command(container, &log, &words);
        command.arg(&container.dir);
        if runtime.needs_pid_file() {
            command.arg("--pid-file").arg(&pid_file);
        }
        let mut console = None;
        let streams = if container.record.settings.terminal {
            // A socket's path is short, and the store's need not be.
            let path = container.path("console.sock");
            remove_if_there(&path);
            let failed = || ContainerError::io::<io::Error>("listen at", &path);
            let dir = File::open(&container.dir).map_err(failed())?;
            let listener = lifecycle::by_descriptor(&path, |path| UnixListener::bind(path))
                .map_err(failed())?;
            let reached = format!(
                "/proc/{}/fd/{}/console.sock",
                std::process::id(),
                dir.as_raw_fd()
            );
            command.arg("--console-socket").arg(reached);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            console = Some((dir, listener));
            Streams::terminal()
        } else {
            let streams = Streams::pipes(&mut command, container.record.settings.interactive);
            call("make pipes for", streams)?
        };
        command.arg(&container.record.id);
        let pipe = if ahead {
            Some(call("make a pipe for", lead_to_pipe(container))?)
        } else {
            None
        };
        // The runtime holds the container's lock too: where this process is killed, nobody clears away what is still
        // coming into being.
        let mut inherited = vec![lock.as_fd()];
        inherited.extend(pipe.as_ref().map(|(reader, _)| reader.as_fd()));
        let child = spawn(&mut command, &inherited)?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        Ok(Launch {
            pid,
            streams,
            console,
            pending: pipe.map(|(_, writer)| Pending(writer)),
        })
    }
}

/// What the runtime has to say.
pub(super) const LOG: &str = "runtime-start.log";

/// Starts a command that has these descriptors too.
pub(super) fn spawn(
    command: &mut std::process::Command,
    inherited: &[BorrowedFd<'_>],
) -> Result<std::process::Child, ContainerError> {
    let inherit = |flags| -> Result<(), ContainerError> {
        for fd in inherited {
            call(
                "hand down descriptors of",
                rustix::io::fcntl_setfd(fd, flags).map_err(Into::into),
            )?;
        }
        Ok(())
    };
    inherit(FdFlags::empty())?;
    // Nor may the program be started with signals blocked: it would not get them. What comes meanwhile is seen when the
    // runtime ends.
    let mask = |set: SigSet| set.thread_set_mask().map_err(Into::into);
    let blocked = call(
        "ask for the signals of",
        SigSet::thread_get_mask().map_err(Into::into),
    )?;
    call("unblock signals for", mask(SigSet::empty()))?;
    let child = call("run the runtime for", command.spawn());
    call("block signals for", mask(blocked))?;
    inherit(FdFlags::CLOEXEC)?;
    child
}

impl Pending {
    /// Gives the runtime its configuration, which lies in `config.json` by now.
    pub(super) fn release(mut self, config: &[u8]) -> io::Result<()> {
        match self.0.write_all(config) {
            // It has ended, and said why; or it read the file.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }
}
