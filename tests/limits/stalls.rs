//! A copy of a file's data that takes long keeps nobody waiting but those who need it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
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

/// How long what is not to wait may take.
const LIMIT: Duration = Duration::from_secs(45);

/// Where those who open a file of the layer wait.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
    stats: AtomicUsize,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }
    fn pass(&self) {
        let mut closed = self.closed.lock().unwrap();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while *closed {
            closed = self.opened.wait(closed).unwrap();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits for a condition, which comes true or the test's time is up.
fn until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Debug)]
struct Slow {
    inner: DirLayer,
    gate: Arc<Gate>,
}

impl Layer for Slow {
    fn root(&self) -> Node {
        self.inner.root()
    }
    fn lookup(&self, dir: &Node, name: &OsStr, xwhiteouts: bool) -> io::Result<LayerLookup> {
        self.inner.lookup(dir, name, xwhiteouts)
    }
    fn stat(&self, node: &Node) -> io::Result<Stat> {
        self.gate.stats.fetch_add(1, Ordering::SeqCst);
        self.inner.stat(node)
    }
    fn marks(&self, node: &Node, stat: &Stat) -> io::Result<Marks> {
        self.inner.marks(node, stat)
    }
    fn read_dir(
        &self,
        dir: &Node,
        xwhiteouts: bool,
        sink: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.inner.read_dir(dir, xwhiteouts, sink)
    }
    fn read_link(&self, node: &Node) -> io::Result<OsString> {
        self.inner.read_link(node)
    }
    fn list_xattr(&self, node: &Node) -> io::Result<Vec<OsString>> {
        self.inner.list_xattr(node)
    }
    fn get_xattr(&self, node: &Node, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        self.inner.get_xattr(node, name)
    }
    fn open(&self, node: &Node, access: Access) -> io::Result<RealFile> {
        self.gate.pass();
        self.inner.open(node, access)
    }
    fn handle(&self, node: &Node) -> io::Result<Option<OverlayHandle>> {
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

#[test]
fn the_removal_of_a_name_that_waits_for_a_copy_stops_nothing_else() {
    require!(skip::privileged());
    let _limit = Watchdog::new("stalls", Duration::from_secs(170));
    let stand = Stand::new("stalls");
    for dir in ["a", "b", "c"] {
        fs::create_dir(stand.lower.join(dir)).unwrap();
    }
    fs::write(stand.lower.join("a/name"), "data").unwrap();
    for dir in ["b", "c"] {
        let name = stand.lower.join(dir).join("name");
        fs::hard_link(stand.lower.join("a/name"), name).unwrap();
    }
    let gate = Arc::new(Gate::default());
    let cache = Arc::new(FdCache::for_this_process());
    let inner = DirLayer::open(&stand.lower, LayerOptions::default(), cache.clone()).unwrap();
    let lower = Arc::new(Slow {
        inner,
        gate: gate.clone(),
    });
    let options = UpperOptions {
        namespace: Namespace::Trusted,
        volatile: false,
        override_stat: OverrideStat::Off,
        access_times: AccessTimes::AsBelow,
    };
    let upper = Upper::open(&stand.upper, &stand.work, options, cache).unwrap();
    let union = Union::new(vec![lower], Some(upper), Params::default()).unwrap();
    let merged = stand.scratch.dir("merged");
    let device = fusedev::open().unwrap();
    let mount = FuseMount {
        mountpoint: &merged,
        source: OsStr::new("stalls"),
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
        threads: 2,
        most_nodes: None,
    };
    let union = Arc::new(union);
    let connection = Connection::Own(device);
    let session = Session::new(union.clone(), connection, Who::AsKernelSays, settings).unwrap();
    let serving = thread::spawn(move || session.run());
    fs::create_dir(merged.join("elsewhere")).unwrap();
    for dir in ["a", "b", "c"] {
        // Everything above is in the upper: nothing else is copied up later.
        fs::write(merged.join(dir).join("new"), "").unwrap();
        fs::metadata(merged.join(dir).join("name")).unwrap();
    }
    gate.set(true);
    let (writer, remover, served) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let file = OpenOptions::new().append(true).open(merged.join("a/name"));
            io::Write::write_all(&mut file?, b" and more")
        });
        until(|| gate.waiting.load(Ordering::SeqCst) == 1);
        let before = gate.stats.load(Ordering::SeqCst);
        let remover = scope.spawn(|| fs::remove_file(merged.join("b/name")));
        until(|| gate.stats.load(Ordering::SeqCst) > before);
        let (done, answer) = channel();
        let elsewhere = merged.join("elsewhere");
        scope.spawn(move || {
            let made = (0..20).try_for_each(|at| fs::create_dir(elsewhere.join(at.to_string())));
            // Nobody listens any more where it came too late.
            done.send(made).unwrap_or_default();
        });
        let served = answer.recv_timeout(LIMIT);
        gate.set(false);
        (
            writer.join().unwrap(),
            remover.join().unwrap(),
            served.map_err(|_| "the mount stood still"),
        )
    });
    served.unwrap().unwrap();
    writer.unwrap();
    remover.unwrap();
    assert!(!merged.join("b/name").exists());
    let data = fs::read(merged.join("c/name")).unwrap();
    assert_eq!(data, b"data and more");
    assert_eq!(fs::metadata(merged.join("c/name")).unwrap().nlink(), 2);
    assert_eq!(fs::read(stand.lower.join("b/name")).unwrap(), b"data");
    unmount(&merged, false).unwrap();
    crate::common::connection::unregister(info.minor);
    serving.join().unwrap().unwrap();
}
