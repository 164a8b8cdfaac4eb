//! A lower file is held open for reading while it is written to in every way there is.
//!
//! The lower layer stays byte-identical with its access time, the upper has the write, a new open reads it, the
//! inode number stays, a lock taken before still excludes, and the old reader reads the new data.
//!
//! The differences of a reader that the kernel serves from the lower file itself (`passthrough_lower=always`, and
//! programs with `auto`), each asserted here:
//! - the old reader keeps the old data whole, or reads the new, never a mix or an error;
//! - a lock taken by the old reader does not exclude one taken on the new node;
//! - reopening the reader's descriptor through `/proc/self/fd`, or a bind mount of the file, for writing may answer
//!   `ESTALE`; nothing has changed then.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{FlockOperation, flock};

use crate::common::skip;
use crate::map::Map;
use crate::require;
use crate::rig::{OLD, Rig, open, open_creat, read_all};

const SIZE: usize = 256 << 10;
const BLOCK: usize = 4096;

/// How the held file is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serve {
    /// `passthrough_lower=never`.
    Never,
    /// `passthrough_lower=auto`, a file that is edited rather than run.
    AutoData,
    /// `passthrough_lower=auto`, a file that is run.
    AutoProgram,
    /// `passthrough_lower=always`.
    Always,
    /// No passthrough at all, as without privilege: the kernel caches writes.
    Off,
}

impl Serve {
    fn options(self) -> &'static str {
        match self {
            Serve::Never => "passthrough_lower=never",
            Serve::AutoData | Serve::AutoProgram => "passthrough_lower=auto",
            Serve::Always => "passthrough_lower=always",
            Serve::Off => "passthrough=off",
        }
    }

    /// The kernel reads the lower file itself for the reader.
    fn reader_is_passthrough(self) -> bool {
        matches!(self, Serve::AutoProgram | Serve::Always)
    }
}

/// How the held file is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Write,
    Append,
    SharedMap,
    Creat,
    OpenTruncate,
    TruncatePath,
    OtherLink,
    BindMount,
    ProcFd,
    EightThreads,
}

fn original() -> Vec<u8> {
    (0..SIZE)
        .map(|i| b'a' + u8::try_from((i / BLOCK) % 26).unwrap())
        .collect()
}

fn patched(offset: usize, patch: &[u8]) -> Vec<u8> {
    let mut data = original();
    data[offset..offset + patch.len()].copy_from_slice(patch);
    data
}

fn block(i: usize) -> Vec<u8> {
    vec![b'0' + u8::try_from(i).unwrap(); BLOCK]
}

/// Unmounts on drop what a test bound somewhere.
struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(e) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("umount {}: {e}", self.0.display());
        }
    }
}

fn bind(from: &Path, to: PathBuf) -> Bound {
    File::create(&to).unwrap();
    mount(
        Some(from),
        &to,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
    Bound(to)
}

const PATCH: &[u8] = b"written through the mount";
const AT: usize = 5000;

/// Writes and says what the file must hold then.
fn write(rig: &Rig, way: Way, reader: &File, bound: Option<&Bound>) -> io::Result<Vec<u8>> {
    let path = rig.at("file");
    let patch_at = |file: io::Result<File>| -> io::Result<Vec<u8>> {
        file?.write_all_at(PATCH, AT as u64)?;
        Ok(patched(AT, PATCH))
    };
    Ok(match way {
        Way::Write => patch_at(open(&path, libc::O_RDWR))?,
        Way::Creat => patch_at(open_creat(&path, libc::O_RDWR, 0o644))?,
        Way::OtherLink => patch_at(open(&rig.at("dir/other"), libc::O_WRONLY))?,
        Way::BindMount => patch_at(open(&bound.unwrap().0, libc::O_RDWR))?,
        Way::ProcFd => {
            let name = format!("/proc/self/fd/{}", reader.as_raw_fd());
            patch_at(open(Path::new(&name), libc::O_RDWR))?
        }
        Way::Append => {
            // The descriptor's own position stands at 0; only O_APPEND puts the data at the end.
            open(&path, libc::O_WRONLY | libc::O_APPEND)?.write_all_at(PATCH, 0)?;
            [original(), PATCH.to_vec()].concat()
        }
        Way::SharedMap => {
            let file = open(&path, libc::O_RDWR)?;
            let mut map = Map::shared(&file, SIZE)?;
            map.write(AT, PATCH);
            assert_eq!(read_all(&open(&path, libc::O_RDONLY)?)?, patched(AT, PATCH));
            map.sync()?;
            patched(AT, PATCH)
        }
        Way::OpenTruncate => {
            open(&path, libc::O_WRONLY | libc::O_TRUNC)?.write_all_at(PATCH, 0)?;
            PATCH.to_vec()
        }
        Way::TruncatePath => {
            nix::unistd::truncate(&path, 1000)?;
            original()[..1000].to_vec()
        }
        Way::EightThreads => {
            let start = Barrier::new(8);
            thread::scope(|scope| {
                for i in 0..8 {
                    let (start, path) = (&start, &path);
                    scope.spawn(move || {
                        start.wait();
                        let file = open(path, libc::O_RDWR).unwrap();
                        file.write_all_at(&block(i), (i * 3 * BLOCK) as u64)
                            .unwrap();
                        let again = open(path, libc::O_RDONLY).unwrap();
                        let mut seen = vec![0; BLOCK];
                        again
                            .read_exact_at(&mut seen, (i * 3 * BLOCK) as u64)
                            .unwrap();
                        assert_eq!(seen, block(i), "thread {i} does not read its write");
                    });
                }
            });
            let mut data = original();
            for i in 0..8 {
                data[i * 3 * BLOCK..][..BLOCK].copy_from_slice(&block(i));
            }
            data
        }
    })
}

fn held(serve: Serve, way: Way) {
    require!(skip::privileged());
    let rig = Rig::new("held", serve.options(), |lower| {
        fs::write(lower.join("file"), original()).unwrap();
        let mode = if serve == Serve::AutoProgram {
            0o755
        } else {
            0o644
        };
        fs::set_permissions(lower.join("file"), fs::Permissions::from_mode(mode)).unwrap();
        fs::create_dir(lower.join("dir")).unwrap();
        fs::hard_link(lower.join("file"), lower.join("dir/other")).unwrap();
    });
    let path = rig.at("file");
    let reader = open(&path, libc::O_RDONLY).unwrap();
    assert_eq!(
        rig.counter("passthrough_opens") > 0,
        serve.reader_is_passthrough(),
        "the reader is not served as this case wants it"
    );
    assert!(read_all(&reader).unwrap() == original());
    let inode = reader.metadata().unwrap().ino();
    flock(&reader, FlockOperation::LockExclusive).unwrap();
    let bound = (way == Way::BindMount).then(|| bind(&path, rig.scratch.join("bound")));

    let written = write(&rig, way, &reader, bound.as_ref());
    let expected = match written {
        Ok(written) => written,
        Err(e)
            if e.raw_os_error() == Some(libc::ESTALE)
                && serve.reader_is_passthrough()
                && matches!(way, Way::BindMount | Way::ProcFd) =>
        {
            assert!(read_all(&open(&path, libc::O_RDONLY).unwrap()).unwrap() == original());
            write(&rig, Way::Write, &reader, None).unwrap()
        }
        Err(e) => panic!("{way:?}: {e}"),
    };

    for name in ["file", "dir/other"] {
        let new = read_all(&open(&rig.at(name), libc::O_RDONLY).unwrap()).unwrap();
        assert!(
            new == expected,
            "a new open of {name} does not read the write"
        );
        let meta = fs::metadata(rig.at(name)).unwrap();
        assert_eq!(meta.ino(), inode, "st_ino of {name} changed");
        assert_eq!(meta.size(), expected.len() as u64, "size of {name}");
        assert_eq!(meta.nlink(), 2, "links of {name}");
        assert!(meta.mtime() > OLD, "the write left the time of {name}");
    }
    let old = read_all(&reader).unwrap();
    let kept = serve.reader_is_passthrough() && old == original();
    assert!(
        old == expected || kept,
        "the old reader reads {} bytes of neither state",
        old.len()
    );
    assert_eq!(
        reader.metadata().unwrap().ino(),
        inode,
        "st_ino of the old reader changed"
    );

    let second = open(&path, libc::O_RDONLY).unwrap();
    let lock = flock(&second, FlockOperation::NonBlockingLockExclusive);
    if !serve.reader_is_passthrough() {
        assert_eq!(
            lock,
            Err(rustix::io::Errno::AGAIN),
            "the lock does not exclude any more"
        );
    }
    drop(second);
    drop(reader);

    // Once the reader is gone, everything is as if it had never been.
    let last = open(&path, libc::O_RDWR).unwrap();
    assert!(read_all(&last).unwrap() == expected);
    // A program that another thread of the tests is starting has the reader until it runs.
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(e) = flock(&last, FlockOperation::NonBlockingLockExclusive) {
        assert!(Instant::now() < end, "the lock is not given back: {e}");
        thread::yield_now();
    }
    drop(last);
    drop(bound);
    rig.finish(|upper| {
        // One inode has two names, and the upper need have but one of them.
        let names = ["file", "dir/other"].map(|name| upper.join(name));
        let found: Vec<&PathBuf> = names.iter().filter(|name| name.exists()).collect();
        assert!(!found.is_empty(), "the upper has neither name");
        for name in found {
            assert!(
                fs::read(name).unwrap() == expected,
                "the upper lacks the write"
            );
        }
    });
}

macro_rules! matrix {
    ($($module:ident: $serve:ident;)*) => {$(
        mod $module {
            use super::{Serve::$serve, Way, held};
            #[test] fn written() { held($serve, Way::Write) }
            #[test] fn appended() { held($serve, Way::Append) }
            #[test] fn written_through_a_shared_map() { held($serve, Way::SharedMap) }
            #[test] fn opened_with_o_creat() { held($serve, Way::Creat) }
            #[test] fn opened_with_o_trunc() { held($serve, Way::OpenTruncate) }
            #[test] fn truncated_by_path() { held($serve, Way::TruncatePath) }
            #[test] fn written_by_another_hard_link() { held($serve, Way::OtherLink) }
            #[test] fn written_through_a_bind_mount_of_the_file() { held($serve, Way::BindMount) }
            #[test] fn written_through_proc_self_fd() { held($serve, Way::ProcFd) }
            #[test] fn written_by_eight_threads() { held($serve, Way::EightThreads) }
        }
    )*};
}

matrix! {
    passthrough_lower_never: Never;
    passthrough_lower_auto_data: AutoData;
    passthrough_lower_auto_program: AutoProgram;
    passthrough_lower_always: Always;
    passthrough_off: Off;
}
