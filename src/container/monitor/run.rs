//! One run: the loop of the monitor.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use rustix::process::{Pid, WaitOptions, WaitStatus};

use super::super::error::ContainerError;
use super::super::logs::{LogFile, Stream};
use super::super::protocol::Frame;
use super::super::record::{Container, State, Status, now};
use super::super::runtime::{Runtime, code_of, remove_if_there};
use super::super::users::User;
use super::super::{bundle, lifecycle};
use super::clients::Clients;
use super::launch::{LOG, Launch};
use super::streams::Streams;
use super::{DRAIN, End, LOOK, call, signals, tell, wait_for};
use crate::mount;
use crate::sys::daemon::detach_stdio;

/// What there is to be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Signals,
    Console,
    Listener,
    Output(usize),
    Input,
    Client,
}

/// How far it has come.
#[derive(Debug)]
enum Phase {
    /// The runtime has no configuration yet.
    Waiting,
    /// The runtime, with this process, is starting the program.
    Starting(i32),
    /// The program runs as this process.
    Running(i32),
}

/// Whether the command has ended. It has said all that it says.
fn command_is_gone() -> io::Result<bool> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO)?;
    Ok(fds[0].any().unwrap_or(false))
}

/// A run of a container.
pub(super) struct Run<'a> {
    container: &'a Container,
    runtime: &'a Runtime,
    lock: &'a File,
    user: User,
    signals: SignalFd,
    pub(super) clients: Clients,
    streams: Streams,
    console: Option<(File, UnixListener)>,
    log: LogFile,
    phase: Phase,
    /// The process that keeps the mount alive, a child of this one; `None` where that is one of its children, and not known which.
    daemon: Option<i32>,
    /// Children that ended before it was known who they were.
    ended: HashMap<i32, WaitStatus>,
    /// The runtime, where it was started ahead, until it is its turn.
    ahead: Option<Launch>,
}

impl<'a> Run<'a> {
    /// Gets everything ready for clients and the program. The root filesystem is mounted.
    pub(super) fn new(
        container: &'a Container,
        runtime: &'a Runtime,
        lock: &'a File,
        user: User,
        ahead: Option<Launch>,
    ) -> Result<Run<'a>, ContainerError> {
        let daemon = mount::find(&container.path("rootfs"))?.pid;
        let socket = container.path("attach.sock");
        remove_if_there(&socket);
        let listener = lifecycle::by_descriptor(&socket, |path| UnixListener::bind(path))
            .and_then(Clients::new)
            .map_err(ContainerError::io("listen at", &socket))?;
        let path = container.path("log");
        let log = LogFile::open(path.clone(), container.record.settings.log_limit)
            .map_err(ContainerError::io("open the log", &path))?;
        let signals = signals()?;
        // Its end so far is in no signal that is still to come.
        let mut ended = HashMap::new();
        if let Some(pid) = ahead.as_ref().and_then(|launch| Pid::from_raw(launch.pid)) {
            let found = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
            if let Some((_, status)) = call("ask for the runtime of", found.map_err(Into::into))? {
                ended.insert(pid.as_raw_pid(), status);
            }
        }
        Ok(Run {
            container,
            runtime,
            lock,
            user,
            signals,
            clients: listener,
            streams: Streams::default(),
            console: None,
            log,
            phase: Phase::Waiting,
            daemon: i32::try_from(daemon).ok(),
            ended,
            ahead,
        })
    }

    /// Runs the program to its end, on a terminal of this size.
    pub(super) fn serve(
        &mut self,
        size: Option<(u16, u16)>,
        state: &mut State,
    ) -> Result<(End, Clients), ContainerError> {
        let mut end = if call("listen to the command in", command_is_gone())? {
            Some(End::GivenUp)
        } else {
            self.start(size, state)?
        };
        let end = loop {
            if let Some(end) = end {
                break end;
            }
            let ready = call("wait in", self.wait())?;
            end = self.handle(&ready, state)?;
        };
        if matches!(end, End::MountDied) {
            // Without its root filesystem it can do nothing any more.
            self.signal(Signal::SIGKILL as i32);
        }
        self.drain();
        Ok((end, std::mem::take(&mut self.clients)))
    }

    /// Waits for something to happen.
    fn wait(&mut self) -> io::Result<Vec<Source>> {
        let behind = self.clients.are_behind();
        let mut watched: Vec<(Source, BorrowedFd<'_>, PollFlags)> =
            vec![(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some((_, listener)) = &self.console {
            watched.push((Source::Console, listener.as_fd(), PollFlags::POLLIN));
        }
        if let Some(door) = self.clients.door() {
            watched.push((Source::Listener, door.as_fd(), PollFlags::POLLIN));
        }
        // What the runtime itself prints while it starts is in its log as well.
        if matches!(self.phase, Phase::Running(_)) && !behind {
            for (at, (_, file)) in self.streams.outputs.iter().enumerate() {
                watched.push((Source::Output(at), file.as_fd(), PollFlags::POLLIN));
            }
        }
        if let Some(input) = self
            .streams
            .input
            .as_ref()
            .filter(|_| self.streams.input_waits())
        {
            watched.push((Source::Input, input.as_fd(), PollFlags::POLLOUT));
        }
        for (socket, waits) in self.clients.sockets() {
            let mut flags = PollFlags::POLLIN;
            flags.set(PollFlags::POLLOUT, waits);
            watched.push((Source::Client, socket.as_fd(), flags));
        }
        let mut fds: Vec<PollFd<'_>> = watched
            .iter()
            .map(|(_, fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        wait_for(&mut fds, behind)?;
        let mut ready: Vec<Source> = watched
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| fd.any().unwrap_or(false))
            .map(|((source, _, _), _)| *source)
            .collect();
        ready.dedup();
        Ok(ready)
    }

    fn handle(
        &mut self,
        ready: &[Source],
        state: &mut State,
    ) -> Result<Option<End>, ContainerError> {
        // Outputs from the last to the first: one that ends is taken out.
        for source in ready.iter().rev() {
            match *source {
                Source::Output(at) => self.output(at),
                Source::Input => self.streams.write(),
                Source::Listener => self.clients.accept(),
                Source::Client => {
                    self.clients.send();
                    for frame in self.clients.receive() {
                        self.obey(frame);
                    }
                }
                Source::Console => {
                    if let Some((_, listener)) = self.console.take() {
                        let taken = self.streams.take_terminal(&listener);
                        call("take the terminal for", taken)?;
                        remove_if_there(&self.container.path("console.sock"));
                    }
                }
                Source::Signals => {
                    if let Some(end) = self.on_signals(state)? {
                        return Ok(Some(end));
                    }
                }
            }
        }
        Ok(None)
    }

    fn obey(&mut self, frame: Frame) {
        match frame {
            Frame::Input(bytes) => self.streams.put(&bytes),
            Frame::InputEnd => self.streams.end_input(),
            Frame::Resize(rows, columns) => self.streams.resize(rows, columns),
            Frame::Signal(number) => self.signal(number),
            _ => {}
        }
    }

    /// Sends the program a signal. Its number cannot be another process's: this one has not waited for it yet.
    fn signal(&self, number: i32) {
        let Phase::Running(pid) = self.phase else {
            return;
        };
        let sent = Signal::try_from(number)
            .and_then(|signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal));
        if let Err(e) = sent {
            log::warn!("signal {number} is not sent: {e}");
        }
    }

    fn output(&mut self, at: usize) {
        let Some((stream, _)) = self.streams.outputs.get(at) else {
            return;
        };
        let stream = *stream;
        match self.streams.read(at) {
            Some(bytes) if bytes.is_empty() => {}
            Some(bytes) => {
                if let Err(e) = self.log.append(stream, &bytes) {
                    log::warn!("output is lost to the log: {e}");
                }
                self.clients.show(&match stream {
                    Stream::Output => Frame::Output(bytes),
                    Stream::Error => Frame::Error(bytes),
                });
            }
            None => drop(self.streams.outputs.remove(at)),
        }
    }

    fn start(
        &mut self,
        size: Option<(u16, u16)>,
        state: &mut State,
    ) -> Result<Option<End>, ContainerError> {
        let config = bundle::write_config(self.container, &self.user, size)?;
        let launch = match self.ahead.take() {
            Some(launch) => launch,
            None => Launch::new(self.container, self.runtime, self.lock, false)?,
        };
        self.streams = launch.streams;
        self.console = launch.console;
        if let Some((rows, columns)) = size {
            self.streams.resize(rows, columns);
        }
        self.phase = Phase::Starting(launch.pid);
        if let Some(pending) = launch.pending {
            call("configure the runtime for", pending.release(&config))?;
        }
        // One that was started ahead may have failed already.
        match self.ended.remove(&launch.pid) {
            Some(status) => self.started(status, state),
            None => Ok(None),
        }
    }

    fn on_signals(&mut self, state: &mut State) -> Result<Option<End>, ContainerError> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if i32::try_from(info.ssi_signo) == Ok(Signal::SIGTERM as i32) {
                self.signal(self.container.record.settings.stop_signal);
            }
        }
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(end) = self.child_ended(pid, status, state)? {
                        return Ok(Some(end));
                    }
                }
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return call("wait for the children of", Err(e.into())),
            }
        }
    }

    fn child_ended(
        &mut self,
        pid: Pid,
        status: WaitStatus,
        state: &mut State,
    ) -> Result<Option<End>, ContainerError> {
        let pid = pid.as_raw_pid();
        match self.phase {
            Phase::Starting(runtime) if runtime == pid => self.started(status, state),
            Phase::Running(program) if program == pid => Ok(Some(End::Exited(code_of(status)))),
            _ => {
                if self.mount_died_with(pid) {
                    return Ok(Some(End::MountDied));
                }
                if !matches!(self.phase, Phase::Running(_)) {
                    self.ended.insert(pid, status);
                }
                Ok(None)
            }
        }
    }

    /// Whether nobody serves the mount any more, now that a child has ended. A mount with a supervisor outlives it: the process that
    /// it had serve the mount goes on, or another program with a supervisor of its own, and becomes a child of this one.
    fn mount_died_with(&mut self, pid: i32) -> bool {
        if self.daemon.is_some_and(|daemon| daemon != pid) {
            return false;
        }
        let found = mount::find(&self.container.path("rootfs"));
        // The one that goes on may not have said so yet.
        let next =
            |record: &mount::Record| i32::try_from(record.pid).ok().filter(|next| *next != pid);
        self.daemon = found.as_ref().ok().and_then(next);
        found.is_err()
    }

    /// The runtime has done its work, or not.
    fn started(
        &mut self,
        status: WaitStatus,
        state: &mut State,
    ) -> Result<Option<End>, ContainerError> {
        let log = self.container.path(LOG);
        if status.exit_status() != Some(0) {
            return Err(self.runtime.refusal(self.runtime.said(&log)));
        }
        remove_if_there(&log);
        let pid = self.runtime.pid_of(self.container)?;
        self.phase = Phase::Running(pid);
        // The terminal was sent before the runtime ended.
        if let Some((_, listener)) = self.console.take() {
            call(
                "take the terminal for",
                self.streams.take_terminal(&listener),
            )?;
            remove_if_there(&self.container.path("console.sock"));
        }
        state.status = Status::Running;
        state.pid = Some(pid);
        state.started = Some(now());
        self.container.write_state(state)?;
        if let Err(e) = tell("started") {
            log::debug!("the command is gone: {e}");
        }
        call("let the command go from", detach_stdio())?;
        self.streams.write();
        let ended = self.ended.remove(&pid);
        self.ended.clear();
        Ok(ended.map(|status| End::Exited(code_of(status))))
    }

    /// Takes what is left of the output.
    fn drain(&mut self) {
        let begin = Instant::now();
        while !self.streams.outputs.is_empty() && begin.elapsed() < DRAIN {
            let mut fds: Vec<PollFd<'_>> = self
                .streams
                .outputs
                .iter()
                .map(|(_, file)| PollFd::new(file.as_fd(), PollFlags::POLLIN))
                .collect();
            if poll(&mut fds, PollTimeout::from(LOOK)).is_err() {
                continue;
            }
            let ready: Vec<usize> = fds
                .iter()
                .enumerate()
                .filter(|(_, fd)| fd.any().unwrap_or(false))
                .map(|(at, _)| at)
                .collect();
            for at in ready.into_iter().rev() {
                self.output(at);
            }
        }
    }
}
