//! What a monitor and those that are attached to it say to each other: frames of a type, a length and so many bytes.

use std::io;

/// The longest frame that is taken: longer ones are no frames.
pub(super) const LONGEST: usize = 1 << 16;
/// Type and length.
const HEADER: usize = 5;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// To the monitor, first of all: show me the output from now on.
    Attach,
    /// To the monitor, first of all: tell me only how it ends.
    Wait,
    /// To the monitor: for standard input.
    Input(Vec<u8>),
    /// To the monitor: standard input has ended.
    InputEnd,
    /// To the monitor: the terminal has so many rows and columns now.
    Resize(u16, u16),
    /// To the monitor: send the program this signal.
    Signal(i32),
    /// To the client: it is known, and nothing of what comes now is missed.
    Welcome,
    /// To the client: standard output.
    Output(Vec<u8>),
    /// To the client: standard error.
    Error(Vec<u8>),
    /// To the client, last of all: the program has ended with this code.
    Exit(u8),
}

impl Frame {
    /// As bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, body): (u8, &[u8]) = match self {
            Frame::Attach => (b'a', &[]),
            Frame::Wait => (b'w', &[]),
            Frame::Input(bytes) => (b'i', bytes),
            Frame::InputEnd => (b'c', &[]),
            Frame::Resize(rows, columns) => {
                let [a, b] = rows.to_be_bytes();
                let [c, d] = columns.to_be_bytes();
                return [b's', 0, 0, 0, 4, a, b, c, d].to_vec();
            }
            Frame::Signal(number) => (b'k', &number.to_be_bytes()),
            Frame::Welcome => (b'h', &[]),
            Frame::Output(bytes) => (b'o', bytes),
            Frame::Error(bytes) => (b'e', bytes),
            Frame::Exit(code) => (b'x', &[*code]),
        };
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    /// Takes the first frame out of what was received; `None` where it is not whole yet.
    pub(super) fn take(received: &mut Vec<u8>) -> io::Result<Option<Frame>> {
        let Some(header) = received.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, length @ ..] = *header;
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST {
            return Err(io::Error::other("a frame is too long"));
        }
        let Some(body) = received.get(HEADER..HEADER + length) else {
            return Ok(None);
        };
        let frame = match (kind, body) {
            (b'a', []) => Frame::Attach,
            (b'w', []) => Frame::Wait,
            (b'i', _) => Frame::Input(body.to_vec()),
            (b'c', []) => Frame::InputEnd,
            (b's', &[a, b, c, d]) => {
                Frame::Resize(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
            }
            (b'k', &[a, b, c, d]) => Frame::Signal(i32::from_be_bytes([a, b, c, d])),
            (b'h', []) => Frame::Welcome,
            (b'o', _) => Frame::Output(body.to_vec()),
            (b'e', _) => Frame::Error(body.to_vec()),
            (b'x', &[code]) => Frame::Exit(code),
            _ => return Err(io::Error::other("an unknown frame")),
        };
        received.drain(..HEADER + length);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_whatever_the_cuts() {
        let frames = [
            Frame::Attach,
            Frame::Wait,
            Frame::Input(b"x\0y".to_vec()),
            Frame::InputEnd,
            Frame::Resize(24, 513),
            Frame::Signal(15),
            Frame::Welcome,
            Frame::Output(vec![7; LONGEST]),
            Frame::Error(Vec::new()),
            Frame::Exit(137),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for step in [1, 3, 4096] {
            let (mut received, mut found) = (Vec::new(), Vec::new());
            for part in bytes.chunks(step) {
                received.extend_from_slice(part);
                while let Some(frame) = Frame::take(&mut received).unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, frames, "in steps of {step}");
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for bytes in [&b"o\xff\xff\xff\xff"[..], b"q\0\0\0\0", b"s\0\0\0\x01x"] {
            assert!(Frame::take(&mut bytes.to_vec()).is_err(), "{bytes:?}");
        }
    }
}
