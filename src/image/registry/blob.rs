//! A blob that comes from a registry while it is read, in as many pieces as the network makes of it.
//!
//! What arrives is appended to a file below the store's `partial`, and read from there. The file is locked by who
//! fetches. It survives a broken connection, a change to another mirror and the death of the process; the digest of the
//! whole is compared by who reads, so a file that a crash left with wrong bytes is found out and fetched anew.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::Digest;
use parking_lot::Mutex;
use reqwest::{Method, Response, StatusCode, header};
use tokio::runtime::Handle;

use super::super::error::ImageError;
use super::super::partial;
use super::super::store::RemoteBlob;
use super::super::tee;
use super::client::Client;
use super::error::{self, Question, RegistryError};
use super::progress::{LayerEvent, Progress};
use super::retry::Backoff;

/// Progress is told in steps of this many bytes.
const STEP: u64 = 256 << 10;
/// How much is written before its writeback is begun.
const WINDOW: u64 = 8 << 20;
/// A connection that brought as much was a good one.
const GOOD: u64 = 4096;

/// A blob to be fetched.
pub(super) struct Download {
    /// Immutable.
    handle: Handle,
    /// Immutable.
    client: Arc<Client>,
    /// Immutable: the path of the repository.
    repository: String,
    /// Immutable.
    digest: Digest,
    /// Immutable: bytes that its descriptor promises.
    size: u64,
    /// Immutable: the file of what has arrived.
    path: PathBuf,
    /// Immutable.
    progress: Arc<dyn Progress>,
    /// Immutable: the image, as users name it.
    image: String,
    /// Leaf lock.
    outcome: Mutex<Outcome>,
    /// Leaf lock: keeps the file locked, so that nobody takes it for one that was left, until the store has it.
    held: Mutex<Option<File>>,
}

/// What happened to a download.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// Why the registry could not give it.
    pub(super) failure: Option<RegistryError>,
    /// It did not begin with its first byte.
    pub(super) resumed: bool,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Download({} from {})", self.digest, self.client.name())
    }
}

impl Download {
    #[expect(
        clippy::too_many_arguments,
        reason = "what makes a download, each once"
    )]
    pub(super) fn new(
        handle: Handle,
        client: Arc<Client>,
        repository: &str,
        image: &str,
        digest: &Digest,
        size: u64,
        folder: &Path,
        progress: Arc<dyn Progress>,
    ) -> Download {
        let name = format!("{}-{}", digest.algorithm(), digest.digest());
        Download {
            handle,
            client,
            repository: repository.to_owned(),
            digest: digest.clone(),
            size,
            path: folder.join(name),
            progress,
            image: image.to_owned(),
            outcome: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// What happened so far.
    pub(super) fn outcome(&self) -> Outcome {
        self.outcome.lock().clone()
    }

    fn tell(&self, event: LayerEvent) {
        self.progress.layer(&self.digest, self.size, event);
    }

    fn wrong(&self, why: String) -> RegistryError {
        RegistryError::Wrong {
            host: self.client.name().to_owned(),
            what: format!("blob {}", self.digest),
            why,
        }
    }
}

impl RemoteBlob for Download {
    fn open(&self) -> Result<Box<dyn Read + Send + '_>, ImageError> {
        // Whoever fetches it once more must not wait for himself.
        *self.held.lock() = None;
        let file = partial::open(&self.path)?;
        let mut have = file
            .metadata()
            .map_err(ImageError::io("read", &self.path))?
            .len();
        if have > self.size {
            file.set_len(0)
                .map_err(ImageError::io("write", &self.path))?;
            have = 0;
        }
        // The copy shares the lock.
        let held = file
            .try_clone()
            .map_err(ImageError::io("open", &self.path))?;
        *self.held.lock() = Some(held);
        self.outcome.lock().resumed = have > 0;
        if have > 0 {
            log::info!("{}: {have} of {} bytes are here", self.digest, self.size);
        }
        self.tell(LayerEvent::Downloading(have));
        Ok(Box::new(Incoming {
            download: self,
            file,
            position: 0,
            have,
            told: have,
            begun: have,
            answer: None,
            skip: 0,
            brought: 0,
            backoff: Backoff::default(),
        }))
    }

    fn file(&self) -> &Path {
        &self.path
    }

    fn accepted(&self) {
        self.tell(LayerEvent::PullComplete);
        // One that was published is gone; one that was only read is not needed any more.
        partial::remove(&self.path);
        *self.held.lock() = None;
    }

    fn refuse(&self) {
        partial::remove(&self.path);
        *self.held.lock() = None;
    }
}

/// The blob as it arrives.
struct Incoming<'a> {
    download: &'a Download,
    /// Locked.
    file: File,
    /// Up to where it was read.
    position: u64,
    /// Up to where it is in the file.
    have: u64,
    /// Up to where progress was told.
    told: u64,
    /// Up to where writeback was begun.
    begun: u64,
    answer: Option<Response>,
    /// Bytes of the answer that the file has already.
    skip: u64,
    /// Bytes that the current connection brought.
    brought: u64,
    backoff: Backoff,
}

impl Incoming<'_> {
    /// Waits for more of it, at least a byte.
    fn fetch(&mut self) -> io::Result<()> {
        let handle = self.download.handle.clone();
        let chunk = handle.block_on(self.chunk()).map_err(|e| {
            self.download.outcome.lock().failure = Some(e.clone());
            io::Error::other(e)
        })?;
        self.file.write_all_at(&chunk, self.have)?;
        self.have += chunk.len() as u64;
        if self.have - self.begun >= WINDOW {
            tee::begin_writeback(&self.file, self.begun);
            self.begun = self.have;
        }
        if self.have - self.told >= STEP || self.have == self.download.size {
            self.told = self.have;
            self.download.tell(LayerEvent::Downloading(self.have));
        }
        if self.have == self.download.size {
            self.download.tell(LayerEvent::Downloaded);
        }
        Ok(())
    }

    /// The next bytes of it; an error when it has been tried often enough.
    async fn chunk(&mut self) -> Result<Vec<u8>, RegistryError> {
        loop {
            let mut answer = match self.answer.take() {
                Some(answer) => answer,
                None => self.ask().await?,
            };
            let why = match answer.chunk().await {
                Ok(Some(bytes)) => {
                    self.answer = Some(answer);
                    let skipped = self.skip.min(bytes.len() as u64);
                    self.skip -= skipped;
                    let bytes = &bytes[usize::try_from(skipped).unwrap_or(bytes.len())..];
                    if bytes.is_empty() {
                        continue;
                    }
                    let left = self.download.size - self.have;
                    if bytes.len() as u64 > left {
                        return Err(self.download.wrong(format!(
                            "it is longer than the {} bytes of its descriptor",
                            self.download.size
                        )));
                    }
                    self.brought += bytes.len() as u64;
                    if self.brought >= GOOD {
                        self.backoff.reset();
                    }
                    return Ok(bytes.to_vec());
                }
                Ok(None) => format!(
                    "it ends after {} of {} bytes",
                    self.have, self.download.size
                ),
                Err(e) => error::reason(&e),
            };
            let host = self.download.client.name();
            log::info!("{}: {host}: {why}", self.download.digest);
            match self.backoff.next(None) {
                Some(pause) => {
                    self.download.tell(LayerEvent::Retrying(why));
                    tokio::time::sleep(pause).await;
                }
                None => {
                    return Err(RegistryError::BrokeOff {
                        host: host.to_owned(),
                        why,
                    });
                }
            }
        }
    }

    /// Asks for what is missing.
    async fn ask(&mut self) -> Result<Response, RegistryError> {
        let download = self.download;
        let client = &download.client;
        let path = format!("v2/{}/blobs/{}", download.repository, download.digest);
        let question = Question {
            action: "pull",
            subject: download.image.clone(),
            what: format!("blob {} of {}", download.digest, download.image),
        };
        let have = self.have;
        let scope = format!("repository:{}:pull", download.repository);
        let answer = client
            .send(Method::GET, &client.url(&path)?, &scope, |request| {
                if have == 0 {
                    request
                } else {
                    request.header(header::RANGE, format!("bytes={have}-"))
                }
            })
            .await?;
        self.brought = 0;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.headers().get(header::CONTENT_RANGE);
                let range = range.and_then(|value| value.to_str().ok()).unwrap_or("");
                if first_of(range) != Some(have) {
                    return Err(download.wrong(format!("the bytes from {have} on are {range:?}")));
                }
                self.skip = 0;
            }
            // It does not know ranges.
            status if status.is_success() => {
                if let Some(length) = answer.content_length()
                    && length != download.size
                {
                    return Err(download.wrong(format!(
                        "it has {length} bytes instead of {}",
                        download.size
                    )));
                }
                self.skip = have;
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(download.wrong(format!(
                    "it is shorter than the {} bytes of its descriptor",
                    download.size
                )));
            }
            _ => return Err(client.refusal(answer, &question).await),
        }
        Ok(answer)
    }
}

/// Where a range begins, by its header: `bytes 10-99/100`.
fn first_of(range: &str) -> Option<u64> {
    let rest = range.trim().strip_prefix("bytes")?.trim_start();
    rest.split_once('-')?.0.parse().ok()
}

impl Read for Incoming<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || self.position == self.download.size {
            return Ok(0);
        }
        if self.position == self.have {
            self.fetch()?;
        }
        let there = usize::try_from(self.have - self.position).unwrap_or(usize::MAX);
        let length = there.min(buf.len());
        let n = self.file.read_at(&mut buf[..length], self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(first_of("bytes 10-99/100"), Some(10));
        assert_eq!(first_of("bytes 0-0/*"), Some(0));
        assert_eq!(first_of("bytes */100"), None);
        assert_eq!(first_of(""), None);
    }
}
