//! Images of the store to a registry: first the blobs that it lacks, then the manifest that needs them.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_core::Stream;
use oci_spec::image::{Descriptor, Digest};
use parking_lot::Mutex;
use reqwest::{Body, Method, Response, StatusCode, Url, header};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::super::catalog::StoredImage;
use super::super::error::ImageError;
use super::super::hash::{self, Hasher};
use super::super::lock::Hold;
use super::super::reference::Reference;
use super::super::store::Store;
use super::Registry;
use super::client::Client;
use super::error::{self, Question, RegistryError};
use super::progress::{LayerEvent, Progress};
use super::pull::{DIGEST_HEADER, shown};
use super::retry::{self, Backoff};

/// Blobs that are sent at once.
const UPLOADS: usize = 4;
/// Bytes that are read and sent at once.
const CHUNK: usize = 256 << 10;
/// Chunks that wait to be sent.
const CHUNKS: usize = 2;
/// Repositories that are tried as the source of a blob.
const SOURCES: usize = 3;

/// What a push left at the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The complete name.
    pub name: String,
    /// The tag, or the digest where there is none.
    pub tag: String,
    /// The manifest's digest.
    pub digest: String,
    /// The manifest's bytes.
    pub size: u64,
}

/// A blob to be sent.
struct Upload {
    digest: Digest,
    size: u64,
    /// Stays readable when the store loses the blob.
    file: File,
    /// The configuration is sent like a layer, and not told of.
    is_layer: bool,
    /// Repositories of the same registry that may have it.
    sources: Vec<String>,
}

/// A repository to send to.
struct Target<'a> {
    registry: &'a Registry,
    client: Arc<Client>,
    reference: &'a Reference,
    progress: &'a Arc<dyn Progress>,
}

/// Why a blob did not get there.
enum Failure {
    /// It may get there the next time.
    Passing(RegistryError),
    Final(RegistryError),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        Failure::Final(error)
    }
}

impl Store {
    /// Sends the image `image` (a name or an id) to where `target` says.
    pub fn push(
        &self,
        registry: &Registry,
        image: &str,
        target: &Reference,
        progress: &Arc<dyn Progress>,
    ) -> Result<Pushed, ImageError> {
        if target.digest().is_some() {
            return Err(ImageError::InvalidReference {
                reference: target.to_string(),
                why: "cannot push a digest reference: name a tag",
            });
        }
        let images = self.images()?;
        let image = self.select(images.clone(), image)?;
        let manifest = self.read_blob(&image.digest)?;
        let uploads = self.uploads(&image, &images, target)?;
        let target = Target {
            registry,
            client: registry.connect_to(target.registry(), target.repository())?,
            reference: target,
            progress,
        };
        target.send_all(&uploads)?;
        let tag = target.reference.tag().unwrap_or_default();
        target.send_manifest(&image, tag, &manifest)?;
        Ok(Pushed {
            name: target.reference.to_string(),
            tag: tag.to_owned(),
            digest: image.digest.to_string(),
            size: manifest.len() as u64,
        })
    }

    /// The blobs of an image, each once, open.
    fn uploads(
        &self,
        image: &StoredImage,
        images: &[StoredImage],
        target: &Reference,
    ) -> Result<Vec<Upload>, ImageError> {
        let _blobs = self.lock_blobs(Hold::Shared)?;
        let mut seen = HashSet::new();
        let mut uploads = Vec::new();
        let layers = image.manifest.layers().iter().map(|layer| (layer, true));
        for (descriptor, is_layer) in layers.chain([(image.manifest.config(), false)]) {
            let digest = hash::parse(descriptor.digest().as_ref(), "the manifest")?;
            if !seen.insert(digest.to_string()) {
                continue;
            }
            let path = self.blob_path(&digest);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(ImageError::MissingBlob {
                        name: self.root().display().to_string(),
                        blob: digest.to_string(),
                        by: "manifest",
                    });
                }
                Err(e) => return Err(ImageError::io("open", &path)(e)),
            };
            let size = file
                .metadata()
                .map_err(ImageError::io("read", &path))?
                .len();
            if size != descriptor.size() {
                return Err(ImageError::WrongSize {
                    what: path.display().to_string(),
                    expected: descriptor.size(),
                    got: size,
                });
            }
            uploads.push(Upload {
                sources: sources(descriptor, images, target),
                digest,
                size,
                file,
                is_layer,
            });
        }
        Ok(uploads)
    }
}

/// Other repositories of the target's registry that may have a blob: those of images here that need it.
fn sources(blob: &Descriptor, images: &[StoredImage], target: &Reference) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let having = images.iter().filter(|image| {
        image
            .manifest
            .layers()
            .iter()
            .any(|layer| layer.digest() == blob.digest())
    });
    for name in having.flat_map(|image| &image.references) {
        let Ok(reference) = Reference::parse(name) else {
            continue;
        };
        let repository = reference.repository().to_owned();
        if reference.registry() == target.registry()
            && repository != target.repository()
            && !found.contains(&repository)
        {
            found.push(repository);
        }
    }
    found.truncate(SOURCES);
    found
}

impl Target<'_> {
    fn question(&self, what: String) -> Question {
        Question {
            action: "push",
            subject: self.reference.familiar_name(),
            what,
        }
    }

    fn scope(&self) -> String {
        format!("repository:{}:pull,push", self.reference.repository())
    }

    fn tell(&self, upload: &Upload, event: LayerEvent) {
        if upload.is_layer {
            self.progress.layer(&upload.digest, upload.size, event);
        }
    }

    /// Sends the blobs, several at once.
    fn send_all(&self, uploads: &[Upload]) -> Result<(), RegistryError> {
        for upload in uploads {
            self.tell(upload, LayerEvent::Preparing);
        }
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let error = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..UPLOADS.min(uploads.len()) {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let Some(upload) = uploads.get(next.fetch_add(1, Ordering::Relaxed)) else {
                            break;
                        };
                        if let Err(e) = self.registry.wait(self.send(upload)) {
                            failed.store(true, Ordering::Relaxed);
                            error.lock().get_or_insert(e);
                        }
                    }
                });
            }
        });
        match error.into_inner() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// Sends a blob, again and again if need be.
    async fn send(&self, upload: &Upload) -> Result<(), RegistryError> {
        let mut backoff = Backoff::default();
        loop {
            match self.try_send(upload).await {
                Ok(event) => {
                    self.tell(upload, event);
                    return Ok(());
                }
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Passing(e)) => match backoff.next(None) {
                    None => return Err(e),
                    Some(pause) => {
                        self.tell(upload, LayerEvent::Retrying(e.to_string()));
                        tokio::time::sleep(pause).await;
                    }
                },
            }
        }
    }

    async fn try_send(&self, upload: &Upload) -> Result<LayerEvent, Failure> {
        let client = &self.client;
        let repository = self.reference.repository();
        let question = self.question(format!(
            "blob {} of {}",
            upload.digest,
            shown(self.reference)
        ));
        let url = client.url(&format!("v2/{repository}/blobs/{}", upload.digest))?;
        let known = client
            .send(Method::HEAD, &url, &self.scope(), |request| request)
            .await?;
        match known.status() {
            StatusCode::OK => return Ok(LayerEvent::AlreadyPushed),
            StatusCode::NOT_FOUND => {}
            // Some let nobody look who may push all the same; the upload will tell.
            status => log::debug!("{}: {status} for {}", client.name(), upload.digest),
        }
        let (place, source) = self.begin(upload, &question).await?;
        match place {
            None => Ok(LayerEvent::MountedFrom(source)),
            Some(place) => {
                self.transfer(upload, place, &question).await?;
                Ok(LayerEvent::Pushed)
            }
        }
    }

    /// Has the registry take the blob from another repository; or else opens an upload, and gives its address.
    async fn begin(
        &self,
        upload: &Upload,
        question: &Question,
    ) -> Result<(Option<Url>, String), Failure> {
        let repository = self.reference.repository();
        let url = self
            .client
            .url(&format!("v2/{repository}/blobs/uploads/"))?;
        for source in &upload.sources {
            let mut mount = url.clone();
            mount
                .query_pairs_mut()
                .append_pair("mount", upload.digest.as_ref())
                .append_pair("from", source);
            let scope = format!("{} repository:{source}:pull", self.scope());
            let answer = self.post(&mount, &scope).await?;
            match answer.status() {
                StatusCode::CREATED => return Ok((None, source.clone())),
                StatusCode::ACCEPTED => return Ok((Some(self.location(&answer)?), String::new())),
                // The source is not there, or not for us.
                status => log::debug!("{}: {status} for a mount from {source}", self.client.name()),
            }
        }
        let answer = self.post(&url, &self.scope()).await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(self.client.refusal(answer, question).await.into());
        }
        Ok((Some(self.location(&answer)?), String::new()))
    }

    async fn post(&self, url: &Url, scope: &str) -> Result<Response, RegistryError> {
        self.client
            .send(Method::POST, url, scope, |request| {
                request.header(header::CONTENT_LENGTH, 0)
            })
            .await
    }

    fn location(&self, answer: &Response) -> Result<Url, RegistryError> {
        let text = answer
            .headers()
            .get(header::LOCATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| RegistryError::Wrong {
                host: self.client.name().to_owned(),
                what: "an upload".to_owned(),
                why: "it has no address".to_owned(),
            })?;
        self.client.resolve(answer.url(), text)
    }

    /// Sends the bytes in one request: uploads in pieces are several times slower.
    async fn transfer(
        &self,
        upload: &Upload,
        mut place: Url,
        question: &Question,
    ) -> Result<(), Failure> {
        place
            .query_pairs_mut()
            .append_pair("digest", upload.digest.as_ref());
        let file = upload
            .file
            .try_clone()
            .map_err(|e| self.unreadable(upload, &e))?;
        let (sender, receiver) = channel(CHUNKS);
        let (digest, size) = (upload.digest.clone(), upload.size);
        let reading = tokio::task::spawn_blocking(move || read_blob(&file, &digest, size, &sender));
        let chunks = Chunks {
            receiver,
            sent: 0,
            told: 0,
            digest: upload.is_layer.then(|| upload.digest.clone()),
            size: upload.size,
            progress: Arc::clone(self.progress),
        };
        let answer = self
            .client
            .once(Method::PUT, &place, &self.scope(), |request| {
                request
                    .header(header::CONTENT_LENGTH, upload.size)
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .body(Body::wrap_stream(chunks))
            })
            .await;
        if let Ok(Err(e)) = reading.await
            && e.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(self.unreadable(upload, &e).into());
        }
        match answer {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => {
                // A token may have run out on the way.
                let passing = retry::is_transient(answer.status())
                    || answer.status() == StatusCode::UNAUTHORIZED && self.client.may_log_in();
                let refusal = self.client.refusal(answer, question).await;
                Err(if passing {
                    Failure::Passing(refusal)
                } else {
                    Failure::Final(refusal)
                })
            }
            Err(e) => {
                let broke = RegistryError::BrokeOff {
                    host: self.client.name().to_owned(),
                    why: error::reason(&e),
                };
                Err(if retry::may_pass(&e) {
                    Failure::Passing(broke)
                } else {
                    Failure::Final(broke)
                })
            }
        }
    }

    fn unreadable(&self, upload: &Upload, error: &io::Error) -> RegistryError {
        RegistryError::Wrong {
            host: "the store".to_owned(),
            what: format!("blob {}", upload.digest),
            why: error.to_string(),
        }
    }

    fn send_manifest(
        &self,
        image: &StoredImage,
        tag: &str,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        let path = format!("v2/{}/manifests/{tag}", self.reference.repository());
        let url = self.client.url(&path)?;
        let question = self.question(format!("manifest for {}", shown(self.reference)));
        let media_type = image.descriptor.media_type().to_string();
        let scope = self.scope();
        let sent = self
            .client
            .demand(Method::PUT, &url, &scope, &question, |request| {
                request
                    .header(header::CONTENT_TYPE, &media_type)
                    .body(bytes.to_vec())
            });
        let answer = self.registry.wait(sent)?;
        let got = answer
            .headers()
            .get(DIGEST_HEADER)
            .and_then(|value| value.to_str().ok());
        match got {
            Some(got) if got != image.digest.as_ref() => Err(RegistryError::Wrong {
                host: self.client.name().to_owned(),
                what: question.what,
                why: format!("it took it for {got} instead of {}", image.digest),
            }),
            _ => Ok(()),
        }
    }
}

/// Reads a blob and hands it on. Its last bytes only go when its digest is right: what is damaged here must not become
/// whole elsewhere.
fn read_blob(
    file: &File,
    digest: &Digest,
    size: u64,
    to: &Sender<io::Result<Vec<u8>>>,
) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut hasher =
        Hasher::for_digest(digest).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let mut offset = 0;
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    while offset < size {
        let length = usize::try_from(size - offset).unwrap_or(CHUNK).min(CHUNK);
        let mut chunk = vec![0; length];
        if let Err(e) = file.read_exact_at(&mut chunk, offset) {
            let told = io::Error::new(e.kind(), e.to_string());
            to.blocking_send(Err(told)).map_err(gone)?;
            return Err(e);
        }
        hasher.update(&chunk);
        offset += chunk.len() as u64;
        if offset == size && hasher.clone().finish() != digest.as_ref() {
            let damaged = || io::Error::other("it is damaged: run `acetate image verify`");
            to.blocking_send(Err(damaged())).map_err(gone)?;
            return Err(damaged());
        }
        to.blocking_send(Ok(chunk)).map_err(gone)?;
    }
    Ok(())
}

/// The bytes of a blob on their way out.
struct Chunks {
    receiver: Receiver<io::Result<Vec<u8>>>,
    sent: u64,
    told: u64,
    /// `None` for what nobody wants to hear of.
    digest: Option<Digest>,
    size: u64,
    progress: Arc<dyn Progress>,
}

impl Stream for Chunks {
    type Item = io::Result<Vec<u8>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.receiver.poll_recv(context);
        if let Poll::Ready(Some(Ok(chunk))) = &polled {
            self.sent += chunk.len() as u64;
            let step = self.sent - self.told >= CHUNK as u64 || self.sent == self.size;
            if step && let Some(digest) = &self.digest {
                self.progress
                    .layer(digest, self.size, LayerEvent::Pushing(self.sent));
                self.told = self.sent;
            }
        }
        polled
    }
}
