//! A mount over one or two lower layers whose every trace is checked at the end.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::common::{Acetate, Mount, Scratch, Tree, TreeOptions, Watchdog};

/// A time long ago, so that any change of an access or modification time shows.
pub const OLD: i64 = 1_000_000_000;

/// A mount, its layers, and what they held before.
#[derive(Debug)]
pub struct Rig {
    /// The mount, which goes before the place where it lies.
    pub mount: Mount,
    /// Where all of it lies.
    pub scratch: Scratch,
    /// The lower layer.
    pub lower: PathBuf,
    /// The upper layer.
    pub upper: PathBuf,
    before: Tree,
    _limit: Watchdog,
}

/// Sets the access and modification times of everything below `dir` to [`OLD`], the access time earlier, so that
/// even a `relatime` mount would move it at the next read.
pub fn age(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            age(&entry.path());
        }
        set_times(&entry.path(), OLD - 1000, OLD);
    }
    set_times(dir, OLD - 1000, OLD);
}

/// Sets times, not following a symlink.
pub fn set_times(path: &Path, atime: i64, mtime: i64) {
    let at = |tv_sec| rustix::fs::Timespec { tv_sec, tv_nsec: 0 };
    let times = rustix::fs::Timestamps {
        last_access: at(atime),
        last_modification: at(mtime),
    };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        path,
        &times,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

impl Rig {
    /// Builds the lower layer by `build` and mounts it under an empty upper.
    pub fn new(name: &str, options: &str, build: impl FnOnce(&Path)) -> Rig {
        let limit = Watchdog::new(name, Duration::from_secs(180));
        let scratch = Scratch::new(name);
        let (lower, upper, work) = (
            scratch.dir("lower"),
            scratch.dir("upper"),
            scratch.dir("work"),
        );
        build(&lower);
        age(&lower);
        let before = Tree::read(&lower, TreeOptions::UNTOUCHED).unwrap();
        let mount = Acetate::new(scratch.join("merged"))
            .lowers(&[&lower])
            .upper(&upper, &work)
            .options(options)
            .mount();
        Rig {
            scratch,
            lower,
            upper,
            mount,
            before,
            _limit: limit,
        }
    }

    /// A path in the mount.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mount.join(name)
    }

    /// A counter of `acetate stats`.
    pub fn counter(&self, name: &str) -> u64 {
        stats(self.mount.path())[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no counter {name}"))
    }

    /// How often the daemon was asked for an operation.
    pub fn operation(&self, name: &str) -> u64 {
        stats(self.mount.path())["operations"]
            .as_array()
            .unwrap()
            .iter()
            .find(|o| o["name"] == name)
            .map_or(0, |o| o["count"].as_u64().unwrap())
    }

    /// Unmounts, which must succeed at once and without a word, and checks that the lower layer is what it was
    /// and that the upper shows what `check` asks for.
    pub fn finish(self, check: impl FnOnce(&Path)) {
        let log = self.mount.unmount().unwrap();
        assert_eq!(log.trim(), "", "the daemon complained");
        self.before.assert_same(
            &Tree::read(&self.lower, TreeOptions::UNTOUCHED).unwrap(),
            "the lower layer was touched",
        );
        check(&self.upper);
    }
}

/// `acetate stats DIR --json`. A daemon in the foreground is mounted a little before it can be asked.
pub fn stats(dir: &Path) -> serde_json::Value {
    let begin = Instant::now();
    loop {
        let output = Command::new(env!("CARGO_BIN_EXE_acetate"))
            .args([OsStr::new("stats"), dir.as_os_str(), OsStr::new("--json")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).unwrap();
        }
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(begin.elapsed() < Duration::from_secs(30), "{error}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `act` as another user with one group and no rights over files.
pub fn as_user<T: Send>(uid: u32, gid: u32, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                // The filesystem ids belong to a thread, and leaving uid 0 takes its rights over files along.
                setfsgid(Gid::from_raw(gid));
                setfsuid(Uid::from_raw(uid));
                assert_eq!(setfsuid(Uid::from_raw(uid)).as_raw(), uid);
                act()
            })
            .join()
            .unwrap()
    })
}

/// Runs `act` under another umask, which is the thread's own.
pub fn with_umask<T: Send>(umask: u32, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
                nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
                act()
            })
            .join()
            .unwrap()
    })
}

/// Opens with the flags of `open(2)`.
pub fn open(path: &Path, flags: i32) -> io::Result<File> {
    let access = flags & libc::O_ACCMODE;
    OpenOptions::new()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .mode(0o644)
        .custom_flags(flags & !libc::O_ACCMODE)
        .open(path)
}

/// Opens with `O_CREAT`, which the standard library keeps to itself.
pub fn open_creat(path: &Path, flags: i32, mode: u32) -> io::Result<File> {
    let flags = rustix::fs::OFlags::from_bits_retain(
        u32::try_from(flags | libc::O_CREAT | libc::O_CLOEXEC).unwrap(),
    );
    let mode = rustix::fs::Mode::from_raw_mode(mode);
    Ok(File::from(rustix::fs::open(path, flags, mode)?))
}

/// All that a descriptor reads, from its beginning.
pub fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read_at(&mut buffer, data.len() as u64)? {
            0 => return Ok(data),
            n => data.extend_from_slice(&buffer[..n]),
        }
    }
}
