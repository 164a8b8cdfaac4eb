//! The other end of a monitor's socket: those who wait for a container, steer it, or are attached to it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::WaitStatus;
use rustix::termios::{OptionalActions, Termios};

use super::error::ContainerError;
use super::lifecycle::by_descriptor;
use super::protocol::Frame;
use super::record::Container;
use super::runtime::wait_for;

/// How long a monitor may take to let somebody in.
const WELCOME: Duration = Duration::from_secs(10);
/// Signals that are passed on to the program.
const FORWARDED: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// A connection to the monitor of a container.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
}

/// How an attachment came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The program ended with this code.
    Exited(u8),
    /// The user let go, and the program goes on.
    Detached,
    /// The monitor is gone.
    Lost,
}

/// How to be attached.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Standard input goes to the program.
    pub input: bool,
    /// The program has a terminal; where standard input is one as well, it is made raw.
    pub terminal: bool,
    /// Signals go to the program.
    pub signals: bool,
    /// What is typed to let go.
    pub detach_keys: Vec<u8>,
}

fn lost(e: io::Error) -> ContainerError {
    ContainerError::io("speak to", "the monitor")(e)
}

impl Connection {
    /// Connects; `attach`: to be shown the output from now on.
    pub fn open(container: &Container, attach: bool) -> Result<Connection, ContainerError> {
        let path = container.path("attach.sock");
        let stream = by_descriptor(&path, |path| UnixStream::connect(path))
            .map_err(ContainerError::io("reach", &path))?;
        let mut connection = Connection {
            stream,
            received: Vec::new(),
        };
        connection.send(if attach { &Frame::Attach } else { &Frame::Wait })?;
        match connection.next(WELCOME)? {
            Some(Frame::Welcome) => Ok(connection),
            _ => Err(lost(ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Over a socket by which a monitor knows this process already.
    pub(super) fn over(stream: UnixStream) -> Connection {
        Connection {
            stream,
            received: Vec::new(),
        }
    }

    fn send(&mut self, frame: &Frame) -> Result<(), ContainerError> {
        self.stream.write_all(&frame.encode()).map_err(lost)
    }

    /// Sends the program a signal, if it runs already.
    pub fn signal(&mut self, number: i32) -> Result<(), ContainerError> {
        self.send(&Frame::Signal(number))
    }

    /// The next frame; `None` after so long, or where the monitor is gone.
    fn next(&mut self, patience: Duration) -> Result<Option<Frame>, ContainerError> {
        let begin = Instant::now();
        loop {
            if let Some(frame) = Frame::take(&mut self.received).map_err(lost)? {
                return Ok(Some(frame));
            }
            let left = patience.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            let limit = (left < Duration::from_secs(1 << 20)).then_some(left);
            self.stream.set_read_timeout(limit).map_err(lost)?;
            let mut buffer = [0; 16 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => return Err(lost(e)),
            }
        }
    }

    /// Waits for the program's end; `None` after so long, or where the monitor is gone.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<u8>, ContainerError> {
        let begin = Instant::now();
        loop {
            match self.next(patience.saturating_sub(begin.elapsed()))? {
                Some(Frame::Exit(code)) => return Ok(Some(code)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Joins this process's standard streams to the program's, until one of them ends.
    pub fn serve(mut self, how: &Attachment) -> Result<Ended, ContainerError> {
        let mut set = SigSet::from_iter([Signal::SIGWINCH]);
        if how.signals {
            for signal in FORWARDED {
                set.add(signal);
            }
        }
        let failed = ContainerError::io::<io::Error>("take signals for", "the terminal");
        let signals = set
            .thread_block()
            .and_then(|()| {
                SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            })
            .map_err(|e| failed(e.into()))?;
        let raw = Raw::new(how.terminal && how.input).map_err(lost)?;
        let mut keys = DetachKeys::new(&how.detach_keys);
        let mut reads = how.input;
        if how.terminal {
            self.resize()?;
        }
        let ended = loop {
            let (input, output, signalled) = self.ready(reads, &signals).map_err(lost)?;
            if signalled {
                self.forward(&signals, how)?;
            }
            if output && let Some(ended) = self.show()? {
                break ended;
            }
            if input {
                let mut buffer = [0; 16 << 10];
                let length = match rustix::io::read(io::stdin(), &mut buffer) {
                    Ok(length) => length,
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
                    // The terminal is gone: as if it had ended.
                    Err(_) => 0,
                };
                if length == 0 {
                    reads = false;
                    self.unless_gone(&Frame::InputEnd)?;
                    continue;
                }
                let (bytes, detach) = match raw {
                    Some(_) => keys.filter(&buffer[..length]),
                    None => (buffer[..length].to_vec(), false),
                };
                if !bytes.is_empty() {
                    self.unless_gone(&Frame::Input(bytes))?;
                }
                if detach {
                    break Ended::Detached;
                }
            }
        };
        drop(raw);
        Ok(ended)
    }

    /// A program that has just ended takes no input any more, and how it ended is still to be read.
    fn unless_gone(&mut self, frame: &Frame) -> Result<(), ContainerError> {
        match self.stream.write_all(&frame.encode()) {
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                Ok(())
            }
            result => result.map_err(lost),
        }
    }

    fn ready(&self, reads: bool, signals: &SignalFd) -> io::Result<(bool, bool, bool)> {
        let stdin = io::stdin();
        let mut fds = vec![
            PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        if reads {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let any = |at: usize| fds.get(at).is_some_and(|fd| fd.any().unwrap_or(false));
        Ok((any(2), any(0), any(1)))
    }

    fn forward(&mut self, signals: &SignalFd, how: &Attachment) -> Result<(), ContainerError> {
        while let Ok(Some(info)) = signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            if number != Signal::SIGWINCH as i32 {
                self.unless_gone(&Frame::Signal(number))?;
            } else if how.terminal {
                self.resize()?;
            }
        }
        Ok(())
    }

    fn resize(&mut self) -> Result<(), ContainerError> {
        match terminal_size() {
            Some((rows, columns)) => self.unless_gone(&Frame::Resize(rows, columns)),
            None => Ok(()),
        }
    }

    /// Prints what has come.
    fn show(&mut self) -> Result<Option<Ended>, ContainerError> {
        let mut buffer = [0; 64 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Ok(Some(Ended::Lost)),
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(Some(Ended::Lost)),
            Err(e) => return Err(lost(e)),
        }
        while let Some(frame) = Frame::take(&mut self.received).map_err(lost)? {
            let printed = match frame {
                Frame::Output(bytes) => print(&mut io::stdout().lock(), &bytes),
                Frame::Error(bytes) => print(&mut io::stderr().lock(), &bytes),
                Frame::Exit(code) => return Ok(Some(Ended::Exited(code))),
                _ => Ok(()),
            };
            match printed {
                // Whoever reads has seen enough; the program goes on.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
                printed => printed.map_err(ContainerError::io("write", "standard output"))?,
            }
        }
        Ok(None)
    }
}

fn print(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

/// Rows and columns of this process's terminal.
pub fn terminal_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(io::stdin())
        .or_else(|_| rustix::termios::tcgetwinsize(io::stdout()))
        .ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// A terminal that passes everything on as it is typed. Dropped, it is as it was.
struct Raw(Termios);

impl Raw {
    fn new(wanted: bool) -> io::Result<Option<Raw>> {
        let stdin = io::stdin();
        if !wanted || !rustix::termios::isatty(&stdin) {
            return Ok(None);
        }
        let before = rustix::termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(Raw(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let stdin = io::stdin();
        if let Err(e) = rustix::termios::tcsetattr(&stdin, OptionalActions::Drain, &self.0) {
            log::warn!("the terminal stays raw: {e}");
        }
    }
}

/// Finds the keys to let go in what is typed.
struct DetachKeys<'a> {
    keys: &'a [u8],
    seen: usize,
}

impl<'a> DetachKeys<'a> {
    fn new(keys: &'a [u8]) -> Self {
        DetachKeys { keys, seen: 0 }
    }

    /// What goes to the program, and whether the keys are complete. Keys that might go on are held back.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.keys.get(self.seen) == Some(byte) {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.seen]);
            self.seen = 0;
            if self.keys.first() == Some(byte) {
                self.seen = 1;
            } else {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

/// Keys as docker writes them: `ctrl-p,ctrl-q`, or letters.
pub fn parse_keys(text: &str) -> Option<Vec<u8>> {
    let key = |key: &str| match (key.strip_prefix("ctrl-"), key.as_bytes()) {
        (Some(held), _) => match held.as_bytes() {
            [c @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => Some(c & 0x1f),
            _ => None,
        },
        (None, [byte]) if byte.is_ascii() => Some(*byte),
        _ => None,
    };
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(key).collect()
}

/// Runs a child on this process's streams, and passes signals on to it.
pub(super) fn run_forwarding(mut command: Command) -> io::Result<WaitStatus> {
    let mut set = SigSet::from_iter([Signal::SIGCHLD]);
    for signal in FORWARDED {
        set.add(signal);
    }
    let child = command.spawn()?;
    set.thread_block()?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let rustix_pid = rustix::process::Pid::from_child(&child);
    loop {
        // Looked at before each wait: it may have ended before signals were blocked.
        let ended =
            rustix::process::waitpid(Some(rustix_pid), rustix::process::WaitOptions::NOHANG)?;
        if let Some((_, status)) = ended {
            return Ok(status);
        }
        match set.wait()? {
            Signal::SIGCHLD => {}
            signal => {
                if nix::sys::signal::kill(pid, signal).is_err() {
                    return wait_for(&child);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(parse_keys("ctrl-p,ctrl-q"), Some(vec![16, 17]));
        assert_eq!(parse_keys("a,ctrl-["), Some(vec![b'a', 27]));
        assert_eq!(parse_keys(""), Some(vec![]));
        for bad in ["ctrl-", "ctrl-pq", "ab", ",", "ä"] {
            assert_eq!(parse_keys(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_that_do_not_come_to_an_end_reach_the_program() {
        let mut keys = DetachKeys::new(&[16, 17]);
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (vec![], true));
        assert_eq!(DetachKeys::new(&[]).filter(b"x"), (b"x".to_vec(), false));
    }
}
