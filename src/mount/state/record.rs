//! The record of a mount: what it holds, how it is written and locked, and what of it is believed.
//!
//! Whoever lists mounts makes paths of what a record says, with all rights; the process that serves the mount is not trusted
//! that far. So that process holds the record by a descriptor that cannot be written to, and a reader believes no id but that
//! which the file is named by.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::image::ImageOrigin;

/// A path in JSON: a string where it is UTF-8, else its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Text(String),
    Bytes(Vec<u8>),
}

pub(in crate::mount) mod path_text {
    use super::{OsStrExt, OsStringExt, Path, PathBuf, PathText};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::ffi::OsString;

    pub(in crate::mount) fn serialize<S: Serializer>(
        path: &Path,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => PathText::Text(text.to_owned()),
            None => PathText::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
        .serialize(to)
    }

    pub(in crate::mount) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<PathBuf, D::Error> {
        Ok(match PathText::deserialize(from)? {
            PathText::Text(text) => text.into(),
            PathText::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}

/// What a daemon leaves for others to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Names the mount among the others.
    pub id: String,
    /// Where it is mounted: absolute, without symlinks.
    #[serde(with = "path_text")]
    pub mountpoint: PathBuf,
    /// The image, or how the mount calls itself.
    pub source: String,
    /// The image, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageOrigin>,
    /// Topmost first.
    pub layers: Vec<String>,
    /// Where changes go.
    pub upper: Option<String>,
    /// The workdir beside it.
    #[serde(default)]
    pub work: Option<String>,
    /// Its marks lie in `user.` xattrs of the upper. Those that did not tell it are older than 0.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userxattr: Option<bool>,
    /// The upper is thrown away at unmount.
    pub private: bool,
    /// The daemon.
    pub pid: u32,
    /// What acts for the daemon outside of its sandbox, in the mount namespace that the mount was made in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<u32>,
    /// When it was mounted, in seconds since the epoch.
    pub since: u64,
    /// Where the daemon writes its log.
    pub log: Option<String>,
    /// The version of the program that serves it. Those that did not tell it are older than 0.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where that program lay when it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
    /// The daemon is a supervisor: the mount outlives the process that serves it, and can go over to another program.
    #[serde(default)]
    pub supervised: bool,
}

/// A mount that others can find. Dropped, it is not to be found any more.
#[derive(Debug)]
pub(in crate::mount) struct Registration {
    dir: PathBuf,
    id: String,
    /// Locked until the daemon ends, and open for reading alone.
    lock: File,
}

pub(in crate::mount) fn record_path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.json"))
}

pub(in crate::mount) fn socket_path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.sock"))
}

/// Where a record is written.
fn temporary_path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.new"))
}

impl Registration {
    /// Publishes a record.
    pub(in crate::mount) fn new(dir: &Path, record: &Record) -> io::Result<Registration> {
        let registration = Registration::prepare(dir, record)?;
        registration.publish()?;
        Ok(registration)
    }

    /// Writes a record, to be published later.
    pub(in crate::mount) fn prepare(dir: &Path, record: &Record) -> io::Result<Registration> {
        let temporary = temporary_path(dir, &record.id);
        File::create_new(&temporary)?.write_all(&serde_json::to_vec(record)?)?;
        // This one is inherited by the process that serves the mount: what that is made to do must not change the record.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::open(&temporary, flags, Mode::empty())?;
        // The lock is the file's, whatever its name.
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Registration {
            dir: dir.to_owned(),
            id: record.id.clone(),
            lock: File::from(lock),
        })
    }

    /// From now on others find it, in place of one that was there.
    pub(in crate::mount) fn publish(&self) -> io::Result<()> {
        fs::rename(
            temporary_path(&self.dir, &self.id),
            record_path(&self.dir, &self.id),
        )
    }

    /// By what it is held.
    pub(in crate::mount) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

/// Takes away what was prepared and never published.
pub(in crate::mount) fn take_back(dir: &Path, id: &str) {
    remove(&temporary_path(dir, id));
}

/// Another process is the daemon of a mount from now on. The record stays locked as long as this process lives.
pub(in crate::mount) fn set_daemon(dir: &Path, id: &str, pid: u32) -> io::Result<()> {
    let (record, _) = read_record(&record_path(dir, id))?;
    // The one that was made first takes the record away.
    let record = Record {
        pid,
        supervised: false,
        ..record
    };
    std::mem::forget(Registration::new(dir, &record)?);
    Ok(())
}

impl Registration {
    /// Withdraws the record. It stays locked until the last process ends that shares the open files of this one: who waits
    /// for that, as [`unmount`] does, waits for the supervisor too.
    pub(in crate::mount) fn withdraw(self) {
        remove(&record_path(&self.dir, &self.id));
        std::mem::forget(self);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        remove(&record_path(&self.dir, &self.id));
    }
}

/// Best effort: what stays is swept by the next command.
pub(in crate::mount) fn remove(path: &Path) {
    if let Err(e) = fs::remove_file(path)
        && e.kind() != io::ErrorKind::NotFound
    {
        log::info!("{} is not removed: {e}", path.display());
    }
}

pub(in crate::mount) fn is_locked(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// A record, and whether its daemon is alive. One that calls itself otherwise than its file is called is refused.
pub(in crate::mount) fn read_record(path: &Path) -> io::Result<(Record, bool)> {
    let file = File::open(path)?;
    let alive = is_locked(&file)?;
    // Read whole: the parser asks an unbuffered file for each byte.
    let record: Record = serde_json::from_reader(io::BufReader::new(file))?;
    if !is_id(&record.id) || path.file_stem() != Some(OsStr::new(&record.id)) {
        let what = format!("it says that it is the record of {:?}", record.id);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok((record, alive))
}

/// Ids are numbers in hexadecimal, joined by dashes: names of files, and never paths.
fn is_id(text: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    !text.is_empty() && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn record(id: &str) -> Record {
        Record {
            id: id.into(),
            mountpoint: PathBuf::from(OsString::from_vec(b"/a/\xff".to_vec())),
            source: "s".into(),
            image: None,
            layers: vec!["/l".into()],
            upper: None,
            work: None,
            userxattr: None,
            private: false,
            pid: 1,
            outside: None,
            since: 2,
            log: None,
            version: None,
            binary: None,
            supervised: false,
        }
    }

    #[test]
    fn a_record_lives_as_long_as_its_registration() {
        let dir = tempfile::tempdir().unwrap();
        let path = record_path(dir.path(), "a");
        let registration = Registration::new(dir.path(), &record("a")).unwrap();
        let (read, alive) = read_record(&path).unwrap();
        assert_eq!(read, record("a"));
        assert!(alive);
        let copy = dir.path().join("copy");
        fs::create_dir(&copy).unwrap();
        let copy = record_path(&copy, "a");
        fs::hard_link(&path, &copy).unwrap();
        drop(registration);
        assert!(!path.exists());
        assert!(!read_record(&copy).unwrap().1);
    }

    /// Whoever has the descriptor of the lock, as the process has that serves the mount, has no way to change what it tells.
    #[test]
    fn the_lock_of_a_record_cannot_be_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let registration = Registration::new(dir.path(), &record("a")).unwrap();
        let lock = registration.lock();
        let refused = rustix::io::pwrite(lock, b"{}", 0).unwrap_err();
        assert_eq!(refused, Errno::BADF);
        assert!(rustix::fs::ftruncate(lock, 0).is_err());
        let path = record_path(dir.path(), "a");
        assert_eq!(read_record(&path).unwrap().0, record("a"));
    }

    #[test]
    fn a_record_is_not_believed_to_be_another_mounts() {
        let dir = tempfile::tempdir().unwrap();
        for (name, id) in [
            ("ab-1", "ab-2"),
            ("ab-1", "../ab-1"),
            ("ab-1", "/etc/passwd"),
            ("ab-1", ""),
            // What no mount is called, also where the file is.
            ("x", "x"),
        ] {
            let path = record_path(dir.path(), name);
            fs::write(&path, serde_json::to_vec(&record(id)).unwrap()).unwrap();
            let refused = read_record(&path).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{name} {id}");
        }
        let path = record_path(dir.path(), "ab-1");
        fs::write(&path, serde_json::to_vec(&record("ab-1")).unwrap()).unwrap();
        assert!(!read_record(&path).unwrap().1);
    }
}
