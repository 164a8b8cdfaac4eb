//! A panic within one operation: the program that asked is told `EIO`, and everything else goes on.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::stand::Stand;
use crate::common::watched::{Method, Watch};
use crate::common::{Watchdog, skip};
use crate::require;
use crate::served::Served;

/// Fewer than there are panics.
const THREADS: usize = 2;

/// Panics when the layer is next asked for what is armed: a [`Method`], or nothing.
#[derive(Clone, Debug, Default)]
struct Panicky(Arc<AtomicU8>);

const NOTHING: u8 = 0;

impl Watch for Panicky {
    fn asked(&self, method: Method) {
        let order = Ordering::SeqCst;
        let met = self.0.compare_exchange(method as u8, NOTHING, order, order);
        assert!(met.is_err(), "planned: {method:?}");
    }
}

/// What was logged.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Error
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }
    fn flush(&self) {}
}

type Operation = fn(&Path) -> io::Result<()>;

/// What panics, how the log calls the operation on whose way it does, and the operation.
const OPERATIONS: [(Method, &str, Operation); 12] = [
    (Method::Lookup, "lookup", |dir| {
        fs::metadata(dir.join("file")).map(drop)
    }),
    (Method::Marks, "lookup", |dir| {
        fs::metadata(dir.join("inner")).map(drop)
    }),
    (Method::ReadDir, "readdir", |dir| {
        fs::read_dir(dir)?.try_for_each(|e| e.map(drop))
    }),
    (Method::ReadLink, "readlink", |dir| {
        fs::read_link(dir.join("link")).map(drop)
    }),
    (Method::Open, "open", |dir| {
        fs::read(dir.join("file")).map(drop)
    }),
    // Within a copy-up, while its locks are held.
    (Method::Stat, "setattr", chmod),
    (Method::Handle, "setattr", chmod),
    (Method::ListXattr, "setattr", chmod),
    (Method::GetXattr, "setattr", chmod),
    (Method::Open, "open", append),
    (Method::ListXattr, "open", append),
    (Method::ReadLink, "rename", |dir| {
        fs::rename(dir.join("link"), dir.join("moved"))
    }),
];

fn chmod(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o640))
}

fn append(dir: &Path) -> io::Result<()> {
    use std::io::Write;
    let file = fs::OpenOptions::new().append(true).open(dir.join("file"));
    file?.write_all(b"more")
}

#[test]
fn a_panic_is_an_error_of_one_operation() {
    require!(skip::privileged());
    let _limit = Watchdog::new("panics", Duration::from_secs(120));
    let stand = Stand::new("panics");
    for at in 0..OPERATIONS.len() {
        let dir = stand.lower.join(format!("dir-{at}"));
        fs::create_dir_all(dir.join("inner")).unwrap();
        fs::write(dir.join("file"), "data").unwrap();
        symlink("file", dir.join("link")).unwrap();
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir.join("file"), "user.a", b"value", none).unwrap();
    }
    let armed = Panicky::default();
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Error);
    let served = Served::new(&stand, THREADS, armed.clone());
    let merged = &served.merged;
    let mut wrong = Vec::new();
    for (at, (method, name, operation)) in OPERATIONS.into_iter().enumerate() {
        let dir = merged.join(format!("dir-{at}"));
        // The directory is known, and nothing in it but what the operation is about.
        fs::metadata(&dir).unwrap();
        if !matches!(method, Method::Lookup | Method::Marks | Method::ReadDir) {
            for entry in ["file", "link"] {
                fs::symlink_metadata(dir.join(entry)).unwrap();
            }
        }
        LINES.0.lock().unwrap().clear();
        armed.0.store(method as u8, Ordering::SeqCst);
        let result = operation(&dir);
        let met = armed.0.swap(NOTHING, Ordering::SeqCst) == NOTHING;
        // The program may be told before the log is.
        let told = format!("panicked and answers EIO: planned: {method:?}");
        let is_told = |line: &String| line.starts_with(name) && line.ends_with(&told);
        while met && !LINES.0.lock().unwrap().iter().any(is_told) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
        if errno != Some(libc::EIO) || !met {
            wrong.push(format!("{method:?} of {name}: {result:?}, {met}"));
        }
        // No lock is held, and nothing half done.
        if let Err(e) = operation(&dir) {
            wrong.push(format!("{method:?} of {name}, again: {e}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(fs::read(merged.join("dir-9/file")).unwrap(), b"datamore");
    served.end();
    assert!(
        stand.left_in_work().is_empty(),
        "{:?}",
        stand.left_in_work()
    );
}
