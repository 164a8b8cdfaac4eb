//! The output that a container leaves: lines of a time, a stream, `F` or `P` (a part, whose line goes on), and the text,
//! as Kubernetes and podman keep theirs. Bytes stay as they are.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::record::{Container, LogLimit, now};

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

/// The log of a container, on its monitor's side.
#[derive(Debug)]
pub(super) struct LogFile {
    /// Immutable: the newest file; an older one has `.1` behind its name, and so on.
    path: PathBuf,
    file: File,
    /// Bytes in the newest file.
    written: u64,
    /// Immutable.
    limit: Option<LogLimit>,
}

fn older(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if number > 0 {
        name.push(format!(".{number}"));
    }
    name.into()
}

fn open_end(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.append(true).create(true).mode(0o600).open(path)
}

impl LogFile {
    /// Opens it, to be gone on with.
    pub(super) fn open(path: PathBuf, limit: Option<LogLimit>) -> io::Result<LogFile> {
        let file = open_end(&path)?;
        Ok(LogFile {
            written: file.metadata()?.len(),
            path,
            file,
            limit,
        })
    }

    /// Writes output, as it comes.
    pub(super) fn append(&mut self, stream: Stream, output: &[u8]) -> io::Result<()> {
        let lines = format(stream, output)?;
        let mut rest = &lines[..];
        while !rest.is_empty() {
            let fits = self.fitting(rest);
            if fits == 0 {
                self.rotate()?;
                continue;
            }
            let (now, later) = rest.split_at(fits);
            self.file.write_all(now)?;
            self.written += fits as u64;
            rest = later;
        }
        Ok(())
    }

    /// How many bytes of these lines the newest file may take: whole lines, and one at least where it is empty.
    fn fitting(&self, lines: &[u8]) -> usize {
        let Some(limit) = self.limit else {
            return lines.len();
        };
        let room = limit.size.saturating_sub(self.written);
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(lines.len());
        let whole = |at: usize| at + 1;
        let end = |byte: &u8| *byte == b'\n';
        match lines[..room].iter().rposition(end) {
            Some(at) => whole(at),
            None if self.written > 0 => 0,
            None => lines.iter().position(end).map_or(lines.len(), whole),
        }
    }

    /// The oldest file goes, and a new one is begun. Whoever reads one goes on reading it.
    fn rotate(&mut self) -> io::Result<()> {
        let files = self.limit.map_or(1, |limit| limit.files);
        for number in (0..files.saturating_sub(1)).rev() {
            match fs::rename(older(&self.path, number), older(&self.path, number + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if files < 2 {
            fs::remove_file(&self.path)?;
        }
        self.file = open_end(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

/// The log of a container, on the side of those who read it.
#[derive(Debug)]
pub struct LogReader {
    /// Immutable: the newest file.
    path: PathBuf,
    /// The inode of the last of `left`.
    newest: Option<u64>,
    /// The oldest first.
    left: VecDeque<BufReader<File>>,
}

impl LogReader {
    /// Opens it at its beginning. One that is not there yet is empty.
    pub fn open(container: &Container) -> io::Result<LogReader> {
        let mut reader = LogReader {
            path: container.path("log"),
            newest: None,
            left: VecDeque::new(),
        };
        reader.look()?;
        Ok(reader)
    }

    /// Opens the files that were begun since the newest one that is known.
    fn look(&mut self) -> io::Result<bool> {
        let (known, mut last) = (self.newest, None);
        let mut found = VecDeque::new();
        for number in 0.. {
            let file = match File::open(older(&self.path, number)) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(e),
            };
            let inode = file.metadata()?.ino();
            if Some(inode) == known {
                break;
            }
            // It got this name after it was opened by the one before.
            if Some(inode) == last {
                continue;
            }
            if number == 0 {
                self.newest = Some(inode);
            }
            last = Some(inode);
            found.push_front(BufReader::new(file));
        }
        let any = !found.is_empty();
        self.left.append(&mut found);
        Ok(any)
    }

    /// Adds what there is of the next line to `line`: until it ends in a newline, there may be more later.
    pub fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<()> {
        loop {
            if let Some(file) = self.left.front_mut()
                && file.read_until(b'\n', line)? > 0
            {
                return Ok(());
            }
            if self.left.len() > 1 {
                self.left.pop_front();
            } else if !self.look()? {
                return Ok(());
            }
            // Once more: it may have been written to until the next one was begun.
        }
    }
}

/// The lines of a log for a piece of output.
fn format(stream: Stream, output: &[u8]) -> io::Result<Vec<u8>> {
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
    Ok(lines)
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

    fn reader(path: &Path) -> LogReader {
        LogReader {
            path: path.to_owned(),
            newest: None,
            left: VecDeque::new(),
        }
    }

    fn rest(reader: &mut LogReader) -> Vec<Entry> {
        let mut found = Vec::new();
        loop {
            let mut line = Vec::new();
            reader.read_line(&mut line).unwrap();
            match line.strip_suffix(b"\n") {
                Some(line) => found.push(parse(line).unwrap()),
                None => return found,
            }
        }
    }

    fn text(entries: &[Entry], stream: Stream) -> Vec<u8> {
        let of = entries.iter().filter(|e| e.stream == stream);
        of.flat_map(|e| e.text.clone()).collect()
    }

    #[test]
    fn output_comes_back_byte_by_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(path.clone(), None).unwrap();
        let long = vec![b'x'; 3 * LONGEST + 1];
        let pieces: [&[u8]; 6] = [b"a\nb", b"c\n\n", b"\xff\0 \r\n", b"", &long, b"\nno end"];
        for piece in pieces {
            log.append(Stream::Output, piece).unwrap();
        }
        log.append(Stream::Error, b"e").unwrap();
        let entries = rest(&mut reader(&path));
        assert_eq!(text(&entries, Stream::Output), pieces.concat());
        assert_eq!(text(&entries, Stream::Error), b"e");
        assert_eq!(parse(b"garbage"), None);
    }

    #[test]
    fn a_log_with_a_limit_keeps_the_newest_and_its_followers_miss_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let limit = LogLimit {
            size: 400,
            files: 3,
        };
        let mut log = LogFile::open(path.clone(), Some(limit)).unwrap();
        let mut follower = reader(&path);
        let mut followed = Vec::new();
        let mut all = Vec::new();
        for n in 0..100 {
            let line = format!("line {n}\n").into_bytes();
            log.append(Stream::Output, &line).unwrap();
            all.extend(line);
            if n % 7 == 0 {
                followed.extend(rest(&mut follower));
            }
        }
        followed.extend(rest(&mut follower));
        assert_eq!(text(&followed, Stream::Output), all);
        let kept = text(&rest(&mut reader(&path)), Stream::Output);
        assert!(all.ends_with(&kept) && kept.len() < all.len(), "{kept:?}");
        let sizes: Vec<u64> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= 400), "{sizes:?}");
        // One file alone begins anew.
        let limit = LogLimit {
            size: 100,
            files: 1,
        };
        let path = dir.path().join("alone");
        let mut log = LogFile::open(path.clone(), Some(limit)).unwrap();
        for _ in 0..10 {
            log.append(Stream::Output, b"a line of some length\n")
                .unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() <= 100);
        assert!(!dir.path().join("alone.1").exists());
    }
}
