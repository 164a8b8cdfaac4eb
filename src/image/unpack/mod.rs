//! One layer, from its compressed bytes to a tree, in one pass.
//!
//! A reading thread takes the blob, hashes it as it is stored, decompresses it, hashes what comes out, and hands
//! chunks over; the calling thread reads the tar in them and writes the tree. Whether the digests are right is known
//! only at the end, so the tree is written where nobody looks, and the caller publishes it when [`unpack`] is content.

mod content;
mod dress;
mod extract;
mod links;
mod place;

use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use super::compress::{self, CHUNK, Compression, Decoder};
use super::error::ImageError;
use super::hash::{Hasher, HashingReader};
use super::limits::Limits;
use super::tarball::{self, Source, TarError, TarReader};

pub(crate) use extract::Extractor;
pub use extract::Ownership;
pub(crate) use place::{open_beneath, through_proc};

/// Chunks that may wait between the threads: 2 MiB.
const CHUNKS: usize = 8;

/// What is known of a layer before it is read.
#[derive(Clone, Debug)]
pub(crate) struct LayerSource {
    /// How messages call it.
    pub(crate) name: String,
    /// The digest of the bytes as they are stored, where the manifest gives one.
    pub(crate) blob: Option<Digest>,
    /// The digest of the uncompressed tar, from the image's configuration.
    pub(crate) diff_id: Digest,
}

/// What an unpacked layer is, and what of it could not be laid down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Bytes of the uncompressed tar.
    pub size: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// Device nodes that this process may not make: a whiteout stands in their place, so that nothing of the layers
    /// below shows there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Extended attributes that this process may not set, and ACLs that name users without their ids, as `PATH: NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<String>,
    /// Entries that belong to the process, because it may not give them their owner.
    #[serde(default)]
    pub squashed: u64,
}

/// Reads `blob` and writes its tree into `diff`, an empty directory that nobody else looks at.
pub(crate) fn unpack(
    blob: impl Read + Send,
    source: &LayerSource,
    diff: &Path,
    ownership: Ownership,
    limits: &Limits,
) -> Result<LayerInfo, ImageError> {
    let (sender, receiver) = sync_channel(CHUNKS);
    let (returns, spare) = sync_channel(CHUNKS);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read(blob, source, limits, &sender, &spare));
        let mut tar = TarReader::new(Chunks::new(receiver, returns), limits);
        let written = Extractor::new(diff, source.diff_id.to_string(), ownership, limits)
            .and_then(|extractor| extractor.run(&mut tar));
        // What the tar does not need is still part of the digests. A tar that cannot be read is drained as well:
        // that its bytes are not those of the image is the better thing to say. Nothing is drained when the disk is full.
        let mut chunks = tar.into_source();
        let bytes_matter = !matches!(
            written,
            Err(ImageError::EntryIo { .. } | ImageError::Io { .. })
        );
        let drained = if bytes_matter { chunks.drain() } else { Ok(()) };
        drop(chunks);
        let read = reader.join().unwrap_or_else(|_| {
            Err(ImageError::Inconsistent {
                what: source.name.clone(),
                why: "reading it failed unexpectedly".to_owned(),
            })
        });
        match (written, read) {
            (_, Err(digest)) if bytes_matter => Err(digest),
            (Err(e), _) | (_, Err(e)) => Err(e),
            (Ok(mut info), Ok(size)) => {
                drained.map_err(ImageError::io("read", &source.name))?;
                info.size = size;
                Ok(info)
            }
        }
    })
}

/// Reads a blob to its end, only to compare its digests.
pub(crate) fn check(
    blob: impl Read,
    source: &LayerSource,
    limits: &Limits,
) -> Result<u64, ImageError> {
    let (sender, receiver) = sync_channel(CHUNKS);
    let (returns, spare) = sync_channel(CHUNKS);
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            let mut chunks = Chunks::new(receiver, returns);
            // An error is found again where the chunks are made.
            if let Err(e) = chunks.drain() {
                log::debug!("{}: {e}", source.name);
            }
        });
        let size = read(blob, source, limits, &sender, &spare);
        // The scope waits for the thread, and the thread for the end of the chunks.
        drop(sender);
        size
    })
}

/// A piece of the tar, or the reason why there is no more.
type Piece = io::Result<Vec<u8>>;

/// The reading thread: everything up to the end of the blob. Gives the size of the tar.
fn read(
    blob: impl Read,
    source: &LayerSource,
    limits: &Limits,
    sender: &SyncSender<Piece>,
    spare: &Receiver<Vec<u8>>,
) -> Result<u64, ImageError> {
    let (compression, raw) = compress::peek(blob).map_err(ImageError::io("read", &source.name))?;
    if let Compression::Unsupported(format) = compression {
        return Err(ImageError::UnsupportedCompression {
            name: source.name.clone(),
            format,
        });
    }
    // What is not compressed is hashed once, when both digests are of the same kind.
    let once = compression == Compression::Plain
        && source
            .blob
            .as_ref()
            .is_some_and(|blob| blob.algorithm() == source.diff_id.algorithm());
    let hasher = match &source.blob {
        Some(digest) if !once => Some(Hasher::for_digest(digest)?),
        _ => None,
    };
    let raw = HashingReader::new(raw, hasher);
    let mut decoder =
        Decoder::new(compression, raw).map_err(ImageError::io("read", &source.name))?;
    let mut diff_hasher = Hasher::for_digest(&source.diff_id)?;
    let decoded = decode(
        &mut decoder,
        &mut diff_hasher,
        source,
        limits,
        sender,
        spare,
    );
    if let Err(Stop::Error(e @ ImageError::OverLimit { .. })) = decoded {
        return Err(e);
    }
    // A blob with the wrong digest is called so, whatever its decoder has to say.
    let got = decoder
        .into_inner()
        .into_inner()
        .drain()
        .map_err(ImageError::io("read", &source.name))?;
    if let (Some(expected), Some(got)) = (&source.blob, got)
        && expected.as_ref() != got
        && !matches!(decoded, Err(Stop::Abandoned))
    {
        return Err(ImageError::digest(&source.name, expected, got));
    }
    match decoded {
        Ok(size) => {
            let got = diff_hasher.finish();
            if let Some(expected) = &source.blob
                && once
                && got != expected.as_ref()
            {
                return Err(ImageError::digest(&source.name, expected, got));
            }
            if got != source.diff_id.as_ref() {
                let what = format!("the uncompressed {}", source.name);
                return Err(ImageError::digest(what, &source.diff_id, got));
            }
            Ok(size)
        }
        // The writing thread has the reason.
        Err(Stop::Abandoned) => Ok(0),
        Err(Stop::Error(e)) => Err(e),
    }
}

/// Why decoding ended before its end.
enum Stop {
    /// Nobody wants the rest.
    Abandoned,
    Error(ImageError),
}

fn decode<R: Read>(
    decoder: &mut Decoder<HashingReader<R>>,
    hasher: &mut Hasher,
    source: &LayerSource,
    limits: &Limits,
    sender: &SyncSender<Piece>,
    spare: &Receiver<Vec<u8>>,
) -> Result<u64, Stop> {
    let mut size = 0u64;
    loop {
        let mut chunk = spare.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let n = match compress::read_full(decoder, &mut chunk) {
            Ok(n) => n,
            Err(e) => {
                let error = truncated_or_io(&e, &source.name);
                // The tar's reader stops at this point too; that it has gone already is no matter.
                drop(sender.send(Err(e)));
                return Err(Stop::Error(error));
            }
        };
        if n == 0 {
            return Ok(size);
        }
        chunk.truncate(n);
        hasher.update(&chunk);
        size += n as u64;
        let read = decoder.get_ref().count();
        if let Err(e) = limits.check_decompressed(&source.name, read, size) {
            drop(sender.send(Err(io::ErrorKind::FileTooLarge.into())));
            return Err(Stop::Error(e));
        }
        if sender.send(Ok(chunk)).is_err() {
            return Err(Stop::Abandoned);
        }
    }
}

fn truncated_or_io(e: &io::Error, name: &str) -> ImageError {
    if e.kind() == io::ErrorKind::UnexpectedEof {
        return ImageError::Truncated {
            name: name.to_owned(),
            why: "its compressed data ends early".to_owned(),
        };
    }
    // An I/O error has no copy; its kind and text are what is shown.
    ImageError::io("read", name)(io::Error::new(e.kind(), e.to_string()))
}

/// The writing side of the pipe.
struct Chunks {
    receiver: Receiver<Piece>,
    returns: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    ended: bool,
}

impl Chunks {
    fn new(receiver: Receiver<Piece>, returns: SyncSender<Vec<u8>>) -> Chunks {
        Chunks {
            receiver,
            returns,
            current: Vec::new(),
            position: 0,
            ended: false,
        }
    }
    /// Takes everything that is left, so that the reader comes to its end.
    fn drain(&mut self) -> io::Result<()> {
        loop {
            let n = self.fill_buf()?.len();
            if n == 0 {
                return Ok(());
            }
            self.consume(n);
        }
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = {
            let chunk = self.fill_buf()?;
            let n = chunk.len().min(buf.len());
            buf[..n].copy_from_slice(&chunk[..n]);
            n
        };
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.current.len() && !self.ended {
            match self.receiver.recv() {
                Ok(Ok(chunk)) => {
                    let used = std::mem::replace(&mut self.current, chunk);
                    self.position = 0;
                    // A chunk that cannot be given back is freed.
                    drop(self.returns.try_send(used));
                }
                Ok(Err(e)) => {
                    self.ended = true;
                    return Err(e);
                }
                Err(_) => self.ended = true,
            }
        }
        Ok(&self.current[self.position..])
    }
    fn consume(&mut self, n: usize) {
        self.position += n;
    }
}

impl Source for Chunks {}

/// An error of the tar's reader, as one of the layer.
fn tar_error(layer: &str, source: TarError) -> ImageError {
    match source {
        tarball::TarError::Truncated(bytes) => ImageError::Truncated {
            name: format!("layer {layer}"),
            why: format!("its tar ends after {bytes} bytes, inside an entry"),
        },
        source => ImageError::Tar {
            layer: layer.to_owned(),
            source,
        },
    }
}
