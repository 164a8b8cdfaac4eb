//! One program more in a running container, on a terminal. A process of its own holds the terminal, so that the program
//! goes on when the user lets go of it; it ends with the program.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use rustix::process::{Pid, WaitOptions, WaitStatus};

use super::super::error::ContainerError;
use super::super::lifecycle;
use super::super::protocol::Frame;
use super::super::record::Container;
use super::super::runtime::{Runtime, code_of, remove_if_there};
use super::clients::Clients;
use super::streams::Streams;
use super::{DRAIN, LOOK, call, launch, signals, tell, tell_error, wait_for};
use crate::sys::daemon::detach_stdio;

/// What is to be run.
pub(in super::super) struct Beside<'a> {
    pub(in super::super) container: &'a Container,
    pub(in super::super) runtime: &'a Runtime,
    /// The process, as the runtime reads it.
    pub(in super::super) process: &'a Path,
}

/// Files that are gone when the program has been started.
struct Traces(Vec<PathBuf>);

impl Drop for Traces {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| remove_if_there(path));
    }
}

impl Beside<'_> {
    /// Runs it to its end, and tells on standard output when it has been started. `line` leads to whoever is at the
    /// terminal. Gives the exit code of this process, which is to be one of its own.
    pub(in super::super) fn run(&self, line: UnixStream) -> u8 {
        match self.serve(line) {
            Ok(()) => 0,
            Err(e) => {
                if let Err(e) = tell_error(&e) {
                    log::debug!("nobody waits for the error: {e}");
                }
                1
            }
        }
    }

    fn serve(&self, line: UnixStream) -> Result<(), ContainerError> {
        super::stand_alone()?;
        let mut clients = Clients::default();
        call("take in a client of", clients.take_in(line))?;
        let signals = signals()?;
        let (pid, mut streams, ended) = self.start(&signals)?;
        if let Err(e) = tell("started") {
            log::debug!("the command is gone: {e}");
        }
        call("let the command go from", detach_stdio())?;
        let code = match ended {
            Some(status) => code_of(status),
            None => attend(pid, &signals, &mut streams, &mut clients)?,
        };
        drain(&mut streams, &mut clients);
        clients.dismiss(code);
        Ok(())
    }

    /// Has the runtime start the program. Gives its process, its terminal, and how it ended if it has.
    fn start(
        &self,
        signals: &SignalFd,
    ) -> Result<(Pid, Streams, Option<WaitStatus>), ContainerError> {
        let this = std::process::id();
        let at = |suffix: &str| self.container.path(&format!("exec-{this}.{suffix}"));
        let (log, pid_file, socket) = (at("log"), at("pid"), at("sock"));
        let _traces = Traces(vec![log.clone(), pid_file.clone(), socket.clone()]);
        let failed = || ContainerError::io::<io::Error>("listen at", &socket);
        let dir = File::open(&self.container.dir).map_err(failed())?;
        let listener =
            lifecycle::by_descriptor(&socket, |path| UnixListener::bind(path)).map_err(failed())?;
        // A socket's path is short, and the store's need not be.
        let reached = format!("/proc/{this}/fd/{}/exec-{this}.sock", dir.as_raw_fd());
        let mut command =
            self.runtime
                .command(self.container, &log, &["exec", "--detach", "--process"]);
        command
            .arg(self.process)
            .arg("--console-socket")
            .arg(reached)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&self.container.record.id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let runtime = launch::spawn(&mut command, &[])?;
        let runtime = Pid::from_child(&runtime);
        let mut streams = Streams::terminal();
        let mut others: Vec<(Pid, WaitStatus)> = Vec::new();
        let mut taken = false;
        loop {
            let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            if !taken {
                fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return call("wait in", Err(e.into())),
            }
            let offered = fds.get(1).is_some_and(|fd| fd.any().unwrap_or(false));
            if offered {
                call("take the terminal for", streams.take_terminal(&listener))?;
                taken = true;
            }
            others.extend(ended(signals)?);
            let of = |pid: Pid| {
                others
                    .iter()
                    .find(|(other, _)| *other == pid)
                    .map(|(_, status)| *status)
            };
            let Some(status) = of(runtime) else {
                continue;
            };
            if status.exit_status() != Some(0) {
                return Err(self.runtime.refusal(self.runtime.said(&log)));
            }
            // It was sent before the runtime ended.
            if !taken {
                call("take the terminal for", streams.take_terminal(&listener))?;
            }
            let pid = number(&pid_file)?;
            return Ok((pid, streams, of(pid)));
        }
    }
}

/// The process that a file names.
fn number(path: &Path) -> Result<Pid, ContainerError> {
    let failed = || ContainerError::io::<io::Error>("read", path);
    let text = std::fs::read_to_string(path).map_err(failed())?;
    let number = text.trim().parse().ok().and_then(Pid::from_raw);
    number.ok_or_else(|| failed()(io::ErrorKind::InvalidData.into()))
}

/// The children that have ended, after what signals tell.
fn ended(signals: &SignalFd) -> Result<Vec<(Pid, WaitStatus)>, ContainerError> {
    while let Ok(Some(_)) = signals.read_signal() {}
    let mut found = Vec::new();
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(child)) => found.push(child),
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(found),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return call("wait for the children of", Err(e.into())),
        }
    }
}

/// Joins the terminal to the client until the program ends; gives its exit code.
fn attend(
    pid: Pid,
    signals: &SignalFd,
    streams: &mut Streams,
    clients: &mut Clients,
) -> Result<u8, ContainerError> {
    loop {
        let behind = clients.are_behind();
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        for (socket, sends) in clients.sockets() {
            let more = if sends {
                PollFlags::POLLOUT
            } else {
                PollFlags::empty()
            };
            fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN | more));
        }
        if !behind {
            let outputs = streams.outputs.iter();
            fds.extend(outputs.map(|(_, file)| PollFd::new(file.as_fd(), PollFlags::POLLIN)));
        }
        if let Some(input) = streams.input.as_ref().filter(|_| streams.input_waits()) {
            fds.push(PollFd::new(input.as_fd(), PollFlags::POLLOUT));
        }
        call("wait in", wait_for(&mut fds, behind))?;
        // None of these waits for anything.
        streams.write();
        clients.send();
        for frame in clients.receive() {
            match frame {
                Frame::Input(bytes) => streams.put(&bytes),
                Frame::Resize(rows, columns) => streams.resize(rows, columns),
                _ => {}
            }
        }
        if !behind {
            show(streams, clients);
        }
        let status = ended(signals)?.into_iter().find(|(other, _)| *other == pid);
        if let Some((_, status)) = status {
            return Ok(code_of(status));
        }
    }
}

/// Passes on what the terminal shows.
fn show(streams: &mut Streams, clients: &mut Clients) {
    for at in (0..streams.outputs.len()).rev() {
        match streams.read(at) {
            Some(bytes) if bytes.is_empty() => {}
            Some(bytes) => clients.show(&Frame::Output(bytes)),
            None => drop(streams.outputs.remove(at)),
        }
    }
}

/// Takes what is left of the output.
fn drain(streams: &mut Streams, clients: &mut Clients) {
    let begin = Instant::now();
    while !streams.outputs.is_empty() && begin.elapsed() < DRAIN {
        let outputs = streams.outputs.iter();
        let mut fds: Vec<_> = outputs
            .map(|(_, file)| PollFd::new(file.as_fd(), PollFlags::POLLIN))
            .collect();
        if let Err(e) = poll(&mut fds, PollTimeout::from(LOOK)) {
            log::debug!("the terminal: {e}");
        }
        show(streams, clients);
    }
}
