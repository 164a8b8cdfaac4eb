//! A panic within one operation: the program that asked is told `EIO`, and everything else goes on.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use acetate::fuse::{Access as Who, Connection, Session, Settings};
use acetate::layer::dir::{DirLayer, LayerOptions};
use acetate::layer::fdcache::FdCache;
use acetate::layer::format::OverrideStat;
use acetate::layer::upper::{AccessTimes, Namespace, Upper, UpperOptions};
use acetate::layer::{
    Access, Layer, LayerEntry, LayerLookup, Marks, Node, OverlayHandle, RealFile, Stat,
};
use acetate::sys::fusedev;
use acetate::sys::mount::{FuseMount, MountFlags, mount_fuse, unmount};
use acetate::union::{Params, Union};

use crate::common::stand::Stand;
use crate::common::{Watchdog, skip};
use crate::require;

/// Fewer than there are panics.
const THREADS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Method {
    None,
    Lookup,
    Stat,
    Marks,
    ReadDir,
    ReadLink,
    ListXattr,
    GetXattr,
    Open,
    Handle,
}

/// A layer that panics when it is next asked for what was armed.
#[derive(Debug)]
struct Panicky {
    inner: DirLayer,
    armed: Arc<AtomicU8>,
}

impl Panicky {
    fn meet(&self, method: Method) {
        let (armed, none) = (method as u8, Method::None as u8);
        let order = Ordering::SeqCst;
        if self
            .armed
            .compare_exchange(armed, none, order, order)
            .is_ok()
        {
            panic!("planned: {method:?}");
        }
    }
}

impl Layer for Panicky {
    fn root(&self) -> Node {
        self.inner.root()
    }
    fn lookup(&self, dir: &Node, name: &OsStr, xwhiteouts: bool) -> io::Result<LayerLookup> {
        self.meet(Method::Lookup);
        self.inner.lookup(dir, name, xwhiteouts)
    }
    fn stat(&self, node: &Node) -> io::Result<Stat> {
        self.meet(Method::Stat);
        self.inner.stat(node)
    }
    fn marks(&self, node: &Node, stat: &Stat) -> io::Result<Marks> {
        self.meet(Method::Marks);
        self.inner.marks(node, stat)
    }
    fn read_dir(
        &self,
        dir: &Node,
        xwhiteouts: bool,
        sink: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.meet(Method::ReadDir);
        self.inner.read_dir(dir, xwhiteouts, sink)
    }
    fn read_link(&self, node: &Node) -> io::Result<OsString> {
        self.meet(Method::ReadLink);
        self.inner.read_link(node)
    }
    fn list_xattr(&self, node: &Node) -> io::Result<Vec<OsString>> {
        self.meet(Method::ListXattr);
        self.inner.list_xattr(node)
    }
    fn get_xattr(&self, node: &Node, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        self.meet(Method::GetXattr);
        self.inner.get_xattr(node, name)
    }
    fn open(&self, node: &Node, access: Access) -> io::Result<RealFile> {
        self.meet(Method::Open);
        self.inner.open(node, access)
    }
    fn handle(&self, node: &Node) -> io::Result<Option<OverlayHandle>> {
        self.meet(Method::Handle);
        self.inner.handle(node)
    }
    fn stat_by_handle(&self, handle: &OverlayHandle) -> io::Result<Option<Stat>> {
        self.inner.stat_by_handle(handle)
    }
    fn ino_of_handle(&self, handle: &OverlayHandle) -> Option<u64> {
        self.inner.ino_of_handle(handle)
    }
    fn is_protected(&self) -> bool {
        self.inner.is_protected()
    }
    fn statfs(&self) -> io::Result<nix::sys::statvfs::Statvfs> {
        self.inner.statfs()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    fn dev(&self) -> u64 {
        self.inner.dev()
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
    let armed = Arc::new(AtomicU8::new(Method::None as u8));
    let cache = Arc::new(FdCache::for_this_process());
    let inner = DirLayer::open(&stand.lower, LayerOptions::default(), cache.clone()).unwrap();
    let lower = Arc::new(Panicky {
        inner,
        armed: armed.clone(),
    });
    let options = UpperOptions {
        namespace: Namespace::Trusted,
        volatile: false,
        override_stat: OverrideStat::Off,
        access_times: AccessTimes::AsBelow,
    };
    let upper = Upper::open(&stand.upper, &stand.work, options, cache).unwrap();
    let union = Union::new(vec![lower], Some(upper), Params::default()).unwrap();
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Error);
    let merged = stand.scratch.dir("merged");
    let device = fusedev::open().unwrap();
    let mount = FuseMount {
        mountpoint: &merged,
        source: OsStr::new("panics"),
        flags: MountFlags::empty(),
        allow_other: true,
        security: &[],
    };
    mount_fuse(device.as_fd(), &mount).unwrap();
    let info = crate::common::connection::mounted_at(&merged).unwrap();
    crate::common::connection::register(info.minor);
    let settings = Settings {
        passthrough: false,
        stack_depth: 1,
        writeback: false,
        posix_acl: true,
        no_xattrs: false,
        threads: THREADS,
        most_nodes: None,
    };
    let union = Arc::new(union);
    let session = Session::new(
        union.clone(),
        Connection::Own(device),
        Who::AsKernelSays,
        settings,
    )
    .unwrap();
    let serving = std::thread::spawn(move || session.run());
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
        armed.store(method as u8, Ordering::SeqCst);
        let result = operation(&dir);
        let met = armed.swap(Method::None as u8, Ordering::SeqCst) == Method::None as u8;
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
    unmount(&merged, false).unwrap();
    crate::common::connection::unregister(info.minor);
    serving.join().unwrap().unwrap();
    drop(union);
    assert!(
        stand.left_in_work().is_empty(),
        "{:?}",
        stand.left_in_work()
    );
}
