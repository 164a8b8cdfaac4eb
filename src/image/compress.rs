//! Compression, told by the bytes themselves: media types lie.

use std::io::{self, BufRead, BufReader, Read};

/// The longest magic number that is looked for.
const MAGIC: usize = 6;
/// How much is read at a time.
pub(crate) const CHUNK: usize = 256 << 10;
/// The largest zstd window that is decoded: 128 MiB, as zstd's own tool has it. A larger one is a way to make
/// the reader take memory.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not, or in no way that is known.
    Plain,
    /// gzip, of one or several members.
    Gzip,
    /// zstd, of one or several frames.
    Zstd,
    /// Known by name, but not decoded.
    Unsupported(&'static str),
}

/// Tells by the first bytes.
pub(crate) fn detect(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame, with which zstd:chunked and some seekable files begin.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Compression::Unsupported("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Unsupported("xz"),
        [0x5d, 0, 0, ..] => Compression::Unsupported("lzma"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Compression::Unsupported("lz4"),
        _ => Compression::Plain,
    }
}

/// Reads up to the length of a magic number without losing it.
pub(crate) fn peek<R: Read>(mut reader: R) -> io::Result<(Compression, Peeked<R>)> {
    let mut start = Vec::with_capacity(MAGIC);
    reader.by_ref().take(MAGIC as u64).read_to_end(&mut start)?;
    let compression = detect(&start);
    Ok((compression, io::Cursor::new(start).chain(reader)))
}

/// A reader whose first bytes were looked at.
pub(crate) type Peeked<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// A decompressing reader.
pub(crate) enum Decoder<R: Read> {
    /// Bytes as they are.
    Plain(BufReader<R>),
    /// gzip.
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<R>>>),
    /// zstd.
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Decoder<R> {
    /// Decodes `reader`; `Unsupported` is read as it is and so must be refused before.
    pub(crate) fn new(compression: Compression, reader: R) -> io::Result<Decoder<R>> {
        let reader = BufReader::with_capacity(CHUNK, reader);
        Ok(match compression {
            Compression::Gzip => {
                Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(reader)))
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Decoder::Zstd(Box::new(decoder))
            }
            Compression::Plain | Compression::Unsupported(_) => Decoder::Plain(reader),
        })
    }
    /// The compressed side, to read what the decoder left unread.
    pub(crate) fn into_inner(self) -> BufReader<R> {
        match self {
            Decoder::Plain(r) => r,
            Decoder::Gzip(r) => r.into_inner(),
            Decoder::Zstd(r) => r.finish(),
        }
    }
    /// The compressed side, to see how much of it was read.
    pub(crate) fn get_ref(&self) -> &R {
        match self {
            Decoder::Plain(r) => r.get_ref(),
            Decoder::Gzip(r) => r.get_ref().get_ref(),
            Decoder::Zstd(r) => r.get_ref().get_ref(),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            // Large reads go past the buffer, so this is no second copy.
            Decoder::Plain(r) => r.read(buf),
            Decoder::Gzip(r) => r.read(buf),
            Decoder::Zstd(r) => r.read(buf),
        }
    }
}

/// Fills `buf` as far as the stream goes.
pub(crate) fn read_full(reader: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match reader.read(&mut buf[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

impl<R: BufRead + io::Seek> super::tarball::Source for Seekable<R> {
    fn skip(&mut self, n: u64) -> io::Result<u64> {
        let here = self.0.stream_position()?;
        let target = here.saturating_add(n).min(self.1);
        self.0.seek(io::SeekFrom::Start(target))?;
        Ok(target - here)
    }
}

/// A file of known length, in which skipping is seeking.
#[derive(Debug)]
pub(crate) struct Seekable<R>(pub(crate) R, pub(crate) u64);

impl<R: BufRead> Read for Seekable<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: BufRead> BufRead for Seekable<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }
    fn consume(&mut self, n: usize) {
        self.0.consume(n);
    }
}
