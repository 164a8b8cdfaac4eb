//! The standard streams of a container, seen from outside: three pipes, or a terminal.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, PipeReader, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::termios::Winsize;

use super::super::logs::Stream;

/// More waits in the client.
const INPUT_HELD: usize = 1 << 20;

/// The outer ends.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// What is read, until its end.
    pub(super) outputs: Vec<(Stream, File)>,
    /// Where input goes; `None`: it has ended, or there was none.
    pub(super) input: Option<File>,
    waiting: Vec<u8>,
    ends: bool,
    terminal: bool,
    size: Option<(u16, u16)>,
}

fn nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(
        &fd,
        flags | rustix::fs::OFlags::NONBLOCK,
    )?)
}

fn outer_reader(pipe: PipeReader) -> io::Result<File> {
    nonblocking(&pipe)?;
    Ok(File::from(OwnedFd::from(pipe)))
}

fn outer_writer(pipe: PipeWriter) -> io::Result<File> {
    nonblocking(&pipe)?;
    Ok(File::from(OwnedFd::from(pipe)))
}

impl Streams {
    /// Makes pipes, and gives their inner ends to the command.
    pub(super) fn pipes(command: &mut Command, interactive: bool) -> io::Result<Streams> {
        let mut streams = Streams::default();
        if interactive {
            let (inner, outer) = io::pipe()?;
            command.stdin(inner);
            streams.input = Some(outer_writer(outer)?);
        } else {
            command.stdin(Stdio::null());
        }
        let (outer, inner) = io::pipe()?;
        command.stdout(inner);
        streams.outputs.push((Stream::Output, outer_reader(outer)?));
        let (outer, inner) = io::pipe()?;
        command.stderr(inner);
        streams.outputs.push((Stream::Error, outer_reader(outer)?));
        Ok(streams)
    }

    /// A terminal that is yet to come.
    pub(super) fn terminal() -> Streams {
        Streams {
            terminal: true,
            ..Streams::default()
        }
    }

    /// Takes the terminal from the runtime, which has connected.
    pub(super) fn take_terminal(&mut self, listener: &UnixListener) -> io::Result<()> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let master = File::from(receive_descriptor(&stream)?);
        nonblocking(&master)?;
        self.input = Some(master.try_clone()?);
        self.outputs.push((Stream::Output, master));
        if let Some((rows, columns)) = self.size {
            self.resize(rows, columns);
        }
        Ok(())
    }

    /// The terminal has another size.
    pub(super) fn resize(&mut self, rows: u16, columns: u16) {
        self.size = Some((rows, columns));
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        if let Some(master) = self.input.as_ref().filter(|_| self.terminal)
            && let Err(e) = rustix::termios::tcsetwinsize(master, size)
        {
            log::debug!("the terminal keeps its size: {e}");
        }
    }

    /// Input for the container.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        let coming = self.input.is_some() || self.terminal;
        if coming && self.waiting.len() < INPUT_HELD {
            self.waiting.extend_from_slice(bytes);
            self.write();
        }
    }

    /// No more input. A terminal has no such end.
    pub(super) fn end_input(&mut self) {
        self.ends = !self.terminal;
        self.write();
    }

    pub(super) fn input_waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes input as far as it is taken.
    pub(super) fn write(&mut self) {
        while let Some(input) = self.input.as_mut().filter(|_| !self.waiting.is_empty()) {
            match input.write(&self.waiting) {
                Ok(length) => {
                    self.waiting.drain(..length);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // Nobody reads any more.
                Err(_) => {
                    self.waiting.clear();
                    self.ends = !self.terminal;
                }
            }
        }
        if self.ends && self.waiting.is_empty() {
            self.input = None;
        }
    }

    /// Reads a piece of an output; `None` at its end, empty where there is nothing now.
    pub(super) fn read(&mut self, at: usize) -> Option<Vec<u8>> {
        let (_, file) = self.outputs.get_mut(at)?;
        let mut buffer = vec![0; 32 << 10];
        match file.read(&mut buffer) {
            Ok(0) => None,
            Ok(length) => {
                buffer.truncate(length);
                Some(buffer)
            }
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                Some(Vec::new())
            }
            // A terminal whose last user is gone answers EIO.
            Err(_) => None,
        }
    }
}

/// Takes a descriptor that is passed over a socket.
fn receive_descriptor(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut name)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("the runtime sent no terminal"))
}
