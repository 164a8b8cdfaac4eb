//! The output that a container leaves: lines of a time, a stream, `F` or `P` (a part, whose line goes on), and the text,
//! as Kubernetes and podman keep theirs. Bytes stay as they are.

use std::fs::File;
use std::io::{self, Write};

use super::record::now;

/// A longer part is cut: whoever reads the log need not hold it whole.
const LONGEST: usize = 16 << 10;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Output,
    /// Standard error.
    Error,
}

/// A part of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it was written, in nanoseconds since the epoch.
    pub time: u64,
    /// Where to.
    pub stream: Stream,
    /// What, with the end of its line if it has come to it.
    pub text: Vec<u8>,
}

/// Writes output to a log, as it comes.
pub(super) fn append(log: &mut File, stream: Stream, output: &[u8]) -> io::Result<()> {
    let word = match stream {
        Stream::Output => "stdout",
        Stream::Error => "stderr",
    };
    let time = now();
    let mut lines = Vec::with_capacity(output.len() + 64);
    for line in output.split_inclusive(|b| *b == b'\n') {
        let (text, end) = match line.split_last() {
            Some((b'\n', text)) => (text, 'F'),
            _ => (line, 'P'),
        };
        let mut parts = text.chunks(LONGEST).peekable();
        if parts.peek().is_none() {
            writeln!(lines, "{time} {word} {end} ")?;
        }
        while let Some(part) = parts.next() {
            let tag = if parts.peek().is_none() { end } else { 'P' };
            write!(lines, "{time} {word} {tag} ")?;
            lines.extend_from_slice(part);
            lines.push(b'\n');
        }
    }
    log.write_all(&lines)
}

/// Reads one line of a log, without its end. `None`: it is none.
pub fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Output,
        b"stderr" => Stream::Error,
        _ => return None,
    };
    let whole = fields.next()? == b"F";
    let mut text = fields.next()?.to_vec();
    if whole {
        text.push(b'\n');
    }
    Some(Entry { time, stream, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn output_comes_back_byte_by_byte() {
        let mut log = tempfile::tempfile().unwrap();
        let long = vec![b'x'; 3 * LONGEST + 1];
        let pieces: [&[u8]; 6] = [b"a\nb", b"c\n\n", b"\xff\0 \r\n", b"", &long, b"\nno end"];
        for piece in pieces {
            append(&mut log, Stream::Output, piece).unwrap();
        }
        append(&mut log, Stream::Error, b"e").unwrap();
        let mut bytes = Vec::new();
        log.rewind().unwrap();
        log.read_to_end(&mut bytes).unwrap();
        let entries: Vec<Entry> = bytes
            .strip_suffix(b"\n")
            .unwrap()
            .split(|b| *b == b'\n')
            .map(|line| parse(line).unwrap())
            .collect();
        let text = |stream| -> Vec<u8> {
            let of = entries.iter().filter(|e| e.stream == stream);
            of.flat_map(|e| e.text.clone()).collect()
        };
        assert_eq!(text(Stream::Output), pieces.concat());
        assert_eq!(text(Stream::Error), b"e");
        assert_eq!(parse(b"garbage"), None);
    }
}
