//! A disk that remembers: a file of a filesystem in user space, on which a loop device lies, so that every write, discard and
//! flush of the filesystem on it comes by.
//!
//! The loop device turns a flush into an fsync of its file, has a write with FUA followed by one, and answers a write when the
//! file's write has returned. So what lies before a flush in the record was answered before the flush was.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, Session, WriteFlags,
};

use crate::common::{connection, program};

const FILE: INodeNo = INodeNo(2);
const NAME: &str = "disk";
const TTL: Duration = Duration::from_secs(3600);

/// What reached the disk, in order.
#[derive(Debug)]
pub(crate) enum Event {
    Write { at: u64, data: Vec<u8> },
    Discard { at: u64, len: u64 },
    Flush,
}

/// Everything since the disk was made.
#[derive(Debug, Default)]
pub(crate) struct Record {
    events: Mutex<Vec<Event>>,
    /// How many there are.
    count: AtomicUsize,
}

impl Record {
    fn add(&self, event: Event) {
        let mut events = self.events.lock().unwrap();
        events.push(event);
        self.count.store(events.len(), Ordering::SeqCst);
    }

    /// How many events there were until now.
    pub(crate) fn position(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(crate) fn into_events(self) -> Vec<Event> {
        self.events.into_inner().unwrap()
    }
}

/// The filesystem that serves the file.
struct Server {
    file: File,
    size: u64,
    record: Arc<Record>,
}

impl Server {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let dir = ino == INodeNo::ROOT;
        FileAttr {
            ino,
            size: if dir { 0 } else { self.size },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if dir {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

fn errno(e: &std::io::Error) -> Errno {
    Errno::from_i32(e.raw_os_error().unwrap_or(libc::EIO))
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.size.saturating_sub(offset)) as usize;
        let mut data = vec![0; len];
        match self.file.read_exact_at(&mut data, offset) {
            Ok(()) => reply.data(&data),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Err(e) = self.file.write_all_at(data, offset) {
            return reply.error(errno(&e));
        }
        self.record.add(Event::Write {
            at: offset,
            data: data.to_vec(),
        });
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.record.add(Event::Flush);
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        if let Err(e) = discard(&self.file, offset, length) {
            return reply.error(errno(&e));
        }
        self.record.add(Event::Discard {
            at: offset,
            len: length,
        });
        reply.ok();
    }
}

/// Makes a range of an image read as zeros.
pub(crate) fn discard(file: &File, at: u64, len: u64) -> std::io::Result<()> {
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, at, len)?)
}

/// The disk, served.
pub(crate) struct Disk {
    dir: PathBuf,
    session: Option<BackgroundSession>,
    connection: Option<u32>,
    pub(crate) record: Arc<Record>,
}

impl Disk {
    /// Serves an image, which is changed, in a new directory.
    pub(crate) fn new(image: &Path, dir: PathBuf) -> Disk {
        fs::create_dir_all(&dir).unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(image)
            .unwrap();
        let size = file.metadata().unwrap().len();
        let record = Arc::new(Record::default());
        let server = Server {
            file,
            size,
            record: record.clone(),
        };
        let session = Session::new(server, &dir, &Config::default()).unwrap();
        let session = session.spawn().unwrap();
        let connection = connection::mounted_at(&dir).map(|m| m.minor);
        if let Some(minor) = connection {
            connection::register(minor);
        }
        Disk {
            dir,
            session: Some(session),
            connection,
            record,
        }
    }

    /// The file that a filesystem can be mounted from.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Ends it; the record is whole then.
    pub(crate) fn end(mut self) -> Vec<Event> {
        self.stop();
        let record = std::mem::take(&mut self.record);
        drop(self);
        Arc::into_inner(record).unwrap().into_events()
    }

    fn stop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        // The loop device lets go of the file a moment after its filesystem was unmounted.
        crate::common::mount::detach(&self.dir);
        if let Some(minor) = self.connection.take() {
            connection::unregister(minor);
        }
        if let Err(e) = session.join() {
            eprintln!("the disk's server: {e}");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The filesystem on an image, mounted.
pub(crate) struct Mounted {
    dir: PathBuf,
    image: PathBuf,
}

/// How long a filesystem may be in use after its unmount: a mount namespace that was copied meanwhile, by whatever program, holds it.
const BUSY: Duration = Duration::from_secs(120);

/// Whether a loop device has this file.
fn is_attached(image: &Path) -> bool {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices
        .filter_map(|device| fs::read(device.path().join("loop/backing_file")).ok())
        .any(|backing| backing.trim_ascii_end() == image.as_os_str().as_bytes())
}

impl Mounted {
    /// Mounts it, which replays its journal; the error is the program's.
    pub(crate) fn try_new(fstype: &str, image: &Path, dir: PathBuf) -> Result<Mounted, String> {
        fs::create_dir_all(&dir).unwrap();
        let mut mount = Command::new("mount");
        // Where the disk before is in use for longer than is waited for.
        let options = if fstype == "xfs" {
            "loop,nouuid"
        } else {
            "loop"
        };
        mount
            .args(["-t", fstype, "-o", options])
            .arg(image)
            .arg(&dir);
        let finished = program::run(&mut mount, Duration::from_secs(60));
        if finished.success() {
            return Ok(Mounted {
                dir,
                image: image.to_owned(),
            });
        }
        Err(finished.text)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Makes everything on it durable.
    pub(crate) fn sync(&self) {
        rustix::fs::syncfs(File::open(&self.dir).unwrap()).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        crate::common::mount::detach(&self.dir);
        // Two of the same uuid cannot be mounted at once.
        let begin = Instant::now();
        while is_attached(&self.image) {
            if begin.elapsed() > BUSY {
                eprintln!("{} is in use still", self.image.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// An empty filesystem with directories for upper and work. The error says what the machine lacks.
pub(crate) fn format(fstype: &str, image: &Path, dir: PathBuf) -> Result<(), String> {
    crate::common::skip::program(&format!("mkfs.{fstype}"))?;
    crate::common::skip::filesystem(fstype)?;
    let (size, words): (u64, &[&str]) = match fstype {
        "ext4" => (
            48 << 20,
            &[
                "-q",
                "-F",
                "-J",
                "size=4",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
                "-N",
                "4096",
            ],
        ),
        "xfs" => (300 << 20, &["-q", "-f"]),
        _ => (160 << 20, &["-q", "-f"]),
    };
    File::create(image).unwrap().set_len(size).unwrap();
    let mut mkfs = Command::new(program::find(&format!("mkfs.{fstype}"))?);
    program::must(mkfs.args(words).arg(image), Duration::from_secs(60));
    let mounted = Mounted::try_new(fstype, image, dir)?;
    for name in ["upper", "work"] {
        fs::create_dir(mounted.path().join(name)).unwrap();
    }
    mounted.sync();
    Ok(())
}

/// Copies an image without its zeros.
pub(crate) fn copy(from: &Path, to: &Path) {
    let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    to.set_len(from.metadata().unwrap().len()).unwrap();
    let mut at = 0;
    let mut buf = vec![0; 1 << 20];
    loop {
        let data = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return,
            Err(e) => panic!("{e}"),
        };
        let hole = rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(data)).unwrap();
        at = data;
        while at < hole {
            let len = buf.len().min((hole - at) as usize);
            from.read_exact_at(&mut buf[..len], at).unwrap();
            for (number, page) in buf[..len].chunks(4096).enumerate() {
                if page.iter().any(|b| *b != 0) {
                    to.write_all_at(page, at + 4096 * number as u64).unwrap();
                }
            }
            at += len as u64;
        }
    }
}
