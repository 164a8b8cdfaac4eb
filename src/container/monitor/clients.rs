//! Those that are connected to a monitor. None of them is waited for.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use super::super::protocol::Frame;

/// So much output may wait for a client before the container is held back for it.
const HELD: usize = 1 << 20;
/// A client that takes nothing for so long is dropped: the container does not stand still for it.
const STALLED: Duration = Duration::from_secs(10);
/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// More at once would be no users.
const MOST: usize = 64;

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    outgoing: Vec<u8>,
    /// It is shown the output.
    attached: bool,
    /// When it last took something, or had nothing to take.
    progress: Instant,
    gone: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// `None`: no more can come.
    listener: Option<UnixListener>,
    all: Vec<Client>,
}

impl Clients {
    pub(super) fn new(listener: UnixListener) -> io::Result<Clients> {
        listener.set_nonblocking(true)?;
        Ok(Clients {
            listener: Some(listener),
            all: Vec::new(),
        })
    }

    /// Where more come from.
    pub(super) fn door(&self) -> Option<&UnixListener> {
        self.listener.as_ref()
    }

    /// Takes one in that is attached from the beginning.
    pub(super) fn take_in(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        self.all.push(Client::new(stream, true));
        Ok(())
    }

    /// Their sockets, and whether something waits to be sent.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (&UnixStream, bool)> {
        self.all.iter().map(|c| (&c.stream, !c.outgoing.is_empty()))
    }

    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        loop {
            match listener.accept() {
                Ok((stream, _)) if self.all.len() < MOST => {
                    if stream.set_nonblocking(true).is_ok() {
                        self.all.push(Client::new(stream, false));
                    }
                }
                Ok(_) => log::warn!("too many clients"),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// What they have said, in order.
    pub(super) fn receive(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for client in &mut self.all {
            client.receive(&mut frames);
        }
        self.all.retain(|client| !client.gone);
        frames
    }

    /// Sends what waits, as far as it is taken.
    pub(super) fn send(&mut self) {
        for client in &mut self.all {
            client.send();
        }
        self.all.retain(|client| !client.gone);
    }

    /// Shows a piece of output to those that are attached.
    pub(super) fn show(&mut self, frame: &Frame) {
        let bytes = frame.encode();
        for client in self.all.iter_mut().filter(|client| client.attached) {
            client.outgoing.extend_from_slice(&bytes);
        }
        self.send();
    }

    /// True while the container is held back for a client.
    pub(super) fn are_behind(&mut self) -> bool {
        for client in &mut self.all {
            if client.outgoing.len() > HELD && client.progress.elapsed() > STALLED {
                log::warn!("a client that takes no output is dropped");
                client.gone = true;
            }
        }
        self.all.retain(|client| !client.gone);
        self.all.iter().any(|client| client.outgoing.len() > HELD)
    }

    /// Tells all how it ended, those that are waiting to be let in too, and lets them go.
    pub(super) fn dismiss(mut self, code: u8) {
        self.accept();
        // Who asked last is to be answered as well.
        drop(self.receive());
        let bytes = Frame::Exit(code).encode();
        for client in &mut self.all {
            client.outgoing.extend_from_slice(&bytes);
            let sent = client
                .stream
                .set_nonblocking(false)
                .and_then(|()| client.stream.set_write_timeout(Some(FAREWELL)))
                .and_then(|()| client.stream.write_all(&client.outgoing));
            if let Err(e) = sent {
                log::debug!("a client does not hear the end: {e}");
            }
        }
    }
}

impl Client {
    fn new(stream: UnixStream, attached: bool) -> Client {
        Client {
            stream,
            received: Vec::new(),
            outgoing: Vec::new(),
            attached,
            progress: Instant::now(),
            gone: false,
        }
    }

    fn receive(&mut self, frames: &mut Vec<Frame>) {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.gone = true,
                Ok(length) => {
                    self.received.extend_from_slice(&buffer[..length]);
                    self.take(frames);
                    if !self.gone && length == buffer.len() {
                        continue;
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.gone = true,
            }
            return;
        }
    }

    fn take(&mut self, frames: &mut Vec<Frame>) {
        loop {
            match Frame::take(&mut self.received) {
                Ok(Some(frame)) => {
                    if matches!(frame, Frame::Attach | Frame::Wait) {
                        self.attached = frame == Frame::Attach;
                        self.outgoing.extend(Frame::Welcome.encode());
                        self.send();
                    }
                    frames.push(frame);
                }
                Ok(None) => return,
                Err(e) => {
                    log::warn!("a client is dropped: {e}");
                    self.gone = true;
                    return;
                }
            }
        }
    }

    fn send(&mut self) {
        if self.outgoing.is_empty() {
            self.progress = Instant::now();
        }
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(length) => {
                    self.outgoing.drain(..length);
                    self.progress = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }
}
