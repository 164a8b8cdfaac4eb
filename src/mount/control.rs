//! Questions to a running mount: one line of JSON each way on a socket beside its record.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::MountError;
use super::outside::Outside;
use super::state::{self, Found, Record};
use crate::fuse::Counters;
use crate::sys::mount::{mount_table, set_filesystem_read_only};
use crate::sys::panics::caught;
use crate::union::{Change, Completed, Explanation, StatsSnapshot, Union};

/// A client that says nothing must not keep others waiting.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// A diff of a large upper takes its time.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);
/// How long nobody is listened to after somebody could not be.
const PAUSE: Duration = Duration::from_millis(100);
/// Longer than any question: a path, in JSON.
const LONGEST_QUESTION: u64 = 64 << 10;

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Question {
    Info,
    Stats,
    Diff,
    Unnamed,
    /// The path from the mount's root, as bytes.
    Explain(Vec<u8>),
    /// The same.
    Complete(Vec<u8>),
    /// Whether the filesystem is to be read-only.
    ReadOnly(bool),
}

/// What is answered: one of the two.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer<T> {
    Ok(T),
    Error(String),
}

/// What a mount tells of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Its record.
    #[serde(flatten)]
    pub record: Record,
    /// Files are served by the kernel where they can be.
    pub passthrough: bool,
    /// Writes are cached by the kernel.
    pub writeback: bool,
    /// Every change is refused.
    pub read_only: bool,
}

/// A path of a socket is at most 107 bytes long, so it is reached by its directory's descriptor.
fn by_descriptor<T>(path: &Path, reach: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(parent)?;
    reach(&PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
}

/// Answers questions until the process ends. The union may end before.
pub(super) struct Control {
    path: PathBuf,
}

/// A place where it can be asked, by nobody yet.
pub(super) struct Place {
    path: PathBuf,
    listener: UnixListener,
}

impl Place {
    /// One that was made before, and is held by this descriptor.
    pub(super) fn held(dir: &Path, id: &str, listener: OwnedFd) -> Place {
        Place {
            path: state::socket_path(dir, id),
            listener: listener.into(),
        }
    }

    /// By what it is held.
    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Makes the socket of the mount that is named `id`.
pub(super) fn listen(dir: &Path, id: &str) -> io::Result<Place> {
    let path = state::socket_path(dir, id);
    let listener = by_descriptor(&path, |path| UnixListener::bind(path))?;
    Ok(Place { path, listener })
}

impl Control {
    pub(super) fn start(
        place: &Place,
        info: Info,
        union: &Arc<Union>,
        counters: Arc<Counters>,
        outside: &Arc<Outside>,
    ) -> io::Result<Control> {
        let (path, listener) = (place.path.clone(), place.listener.try_clone()?);
        let outside = outside.clone();
        let union = Arc::downgrade(union);
        thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for client in listener.incoming() {
                    let client = match client {
                        Ok(client) => client,
                        Err(e) => {
                            // That of too many open files lasts, and the client that waits is met again at once.
                            log::warn!("a question was not heard: {e}");
                            thread::sleep(PAUSE);
                            continue;
                        }
                    };
                    let (info, union) = (info.clone(), union.clone());
                    let (counters, outside) = (counters.clone(), outside.clone());
                    // On a thread of its own: a completion takes its time.
                    let started = thread::Builder::new().name("answer".into()).spawn(move || {
                        let answered = converse(client, |question| {
                            answer(question, &info, &union, &counters, &outside)
                        });
                        if let Err(e) = answered {
                            log::debug!("a question was not answered: {e}");
                        }
                    });
                    if let Err(e) = started {
                        log::warn!("a question was not answered: {e}");
                    }
                }
            })?;
        Ok(Control { path })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        state::remove(&self.path);
    }
}

/// Reads a question and sends its answer: an error where finding it panics.
fn converse(
    client: UnixStream,
    answer: impl FnOnce(Question) -> io::Result<Vec<u8>>,
) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_LIMIT))?;
    client.set_write_timeout(Some(CLIENT_LIMIT))?;
    let mut line = String::new();
    BufReader::new((&client).take(LONGEST_QUESTION)).read_line(&mut line)?;
    let question: Question = serde_json::from_str(&line)?;
    let asked = format!("{question:?}");
    let mut text = match caught(|| answer(question)) {
        Ok(text) => text?,
        Err(text) => {
            log::error!("{asked} panicked: {text}");
            let told = Answer::<()>::Error("a fault in the daemon: its log tells more".into());
            serde_json::to_vec(&told)?
        }
    };
    text.push(b'\n');
    (&client).write_all(&text)
}

fn answer(
    question: Question,
    info: &Info,
    union: &Weak<Union>,
    counters: &Counters,
    outside: &Outside,
) -> io::Result<Vec<u8>> {
    Ok(match (question, union.upgrade()) {
        (_, None) => serde_json::to_vec(&Answer::<()>::Error("the mount is gone".into()))?,
        (Question::Info, _) => serde_json::to_vec(&Answer::Ok(info))?,
        (Question::Stats, Some(union)) => {
            let mut stats = union.stats();
            stats.operations = counters.snapshot();
            serde_json::to_vec(&Answer::Ok(stats))?
        }
        (Question::Diff, Some(union)) => to_json(union.diff())?,
        (Question::Unnamed, Some(union)) => to_json(union.unnamed())?,
        (Question::Explain(path), Some(union)) => {
            use std::os::unix::ffi::OsStrExt;
            let path = Path::new(std::ffi::OsStr::from_bytes(&path));
            to_json(union.explain(path))?
        }
        (Question::Complete(path), Some(union)) => {
            use std::os::unix::ffi::OsStrExt;
            let path = Path::new(std::ffi::OsStr::from_bytes(&path));
            to_json(union.complete(path, &|| false))?
        }
        (Question::ReadOnly(wanted), Some(_)) => to_json(outside.set_read_only(wanted))?,
    })
}

/// The daemon sees the mount where it made it, which its clients in other namespaces may not.
pub(super) fn set_own_read_only(mountpoint: &Path, wanted: bool) -> io::Result<()> {
    let here = mount_table()?
        .iter()
        .filter(|entry| entry.mountpoint == mountpoint)
        .count();
    // Of several the last is meant by the path, which may be somebody else's.
    if here != 1 {
        let text = format!("{here} filesystems are mounted there");
        return Err(io::Error::other(text));
    }
    set_filesystem_read_only(mountpoint, wanted).map_err(|e| match e.kind() {
        io::ErrorKind::ResourceBusy => io::Error::other("a file is open for writing"),
        _ => e,
    })
}

fn to_json<T: Serialize, E: std::fmt::Display>(result: Result<T, E>) -> io::Result<Vec<u8>> {
    let answer = match result {
        Ok(value) => Answer::Ok(value),
        Err(e) => Answer::Error(e.to_string()),
    };
    Ok(serde_json::to_vec(&answer)?)
}

/// Asks a mount about a path.
fn put<T: for<'de> Deserialize<'de>>(
    found: &Found,
    about: &Path,
    question: &Question,
) -> Result<T, MountError> {
    let path = state::socket_path(&found.dir, &found.record.id);
    let asked = || -> io::Result<Answer<T>> {
        let mut stream = by_descriptor(&path, |path| UnixStream::connect(path))?;
        // Completing may have to copy any amount.
        let limit = match question {
            Question::Complete(_) => None,
            _ => Some(ANSWER_LIMIT),
        };
        stream.set_read_timeout(limit)?;
        let mut text = serde_json::to_vec(question)?;
        text.push(b'\n');
        stream.write_all(&text)?;
        Ok(serde_json::from_reader(BufReader::new(stream))?)
    };
    match asked().map_err(|e| MountError::Path("the control socket", path.clone(), e))? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(text) => Err(MountError::Answer(about.to_owned(), text)),
    }
}

/// What a mount tells of itself.
pub fn info(dir: &Path) -> Result<Info, MountError> {
    put(&state::living_at(dir)?, dir, &Question::Info)
}

/// Counters of a mount.
pub fn stats(dir: &Path) -> Result<StatsSnapshot, MountError> {
    put(&state::living_at(dir)?, dir, &Question::Stats)
}

/// What a mount changes against its layers.
pub fn diff(dir: &Path) -> Result<Vec<Change>, MountError> {
    put(&state::living_at(dir)?, dir, &Question::Diff)
}

/// Inode numbers of changed files that no name in the upper leads to.
pub fn unnamed(dir: &Path) -> Result<Vec<u64>, MountError> {
    put(&state::living_at(dir)?, dir, &Question::Unnamed)
}

/// Which layer a path in a mount comes from.
pub fn explain(path: &Path) -> Result<Explanation, MountError> {
    use std::os::unix::ffi::OsStrExt;
    let (found, inside) = state::living_around(path)?;
    put(
        &found,
        path,
        &Question::Explain(inside.as_os_str().as_bytes().to_vec()),
    )
}

/// Copies the rest of a file that was copied up by blocks, or of all of a mount where `path` is its mountpoint.
pub fn complete(path: &Path) -> Result<Completed, MountError> {
    use std::os::unix::ffi::OsStrExt;
    let (found, inside) = state::living_around(path)?;
    put(
        &found,
        path,
        &Question::Complete(inside.as_os_str().as_bytes().to_vec()),
    )
}

/// Makes a mount read-only, wherever it is visible, or writable again. Fails where a file is open for writing.
pub fn set_read_only(dir: &Path, read_only: bool) -> Result<(), MountError> {
    put(&state::living_at(dir)?, dir, &Question::ReadOnly(read_only))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_the_client_that_asked() {
        let (asking, asked) = UnixStream::pair().unwrap();
        (&asking).write_all(b"\"diff\"\n").unwrap();
        converse(asked, |_| panic!("planned")).unwrap();
        match serde_json::from_reader(&asking).unwrap() {
            Answer::<Vec<Change>>::Error(text) => assert!(text.contains("fault"), "{text}"),
            answer => panic!("{answer:?}"),
        }
    }
}
