//! A layer of which a test is told what it is asked.

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::io;
use std::ops::ControlFlow;

use acetate::layer::dir::DirLayer;
use acetate::layer::{
    Access, Layer, LayerEntry, LayerLookup, Marks, Node, OverlayHandle, RealFile, Stat,
};

/// What a layer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Method {
    Lookup = 1,
    Stat,
    Marks,
    ReadDir,
    ReadLink,
    ListXattr,
    GetXattr,
    Open,
    Handle,
}

/// Who is told.
pub trait Watch: Debug + Send + Sync {
    /// The layer is about to answer.
    fn asked(&self, method: Method);

    /// Whether its filesystem has file handles.
    fn has_handles(&self) -> bool {
        true
    }

    /// Whether a file may be looked at by its handle. Who may not knows the handle's number only.
    fn may_open_handles(&self) -> bool {
        true
    }
}

/// A plain directory that is watched.
#[derive(Debug)]
pub struct WatchedLayer<W> {
    pub inner: DirLayer,
    pub watch: W,
}

impl<W: Watch> Layer for WatchedLayer<W> {
    fn root(&self) -> Node {
        self.inner.root()
    }
    fn lookup(&self, dir: &Node, name: &OsStr, xwhiteouts: bool) -> io::Result<LayerLookup> {
        self.watch.asked(Method::Lookup);
        self.inner.lookup(dir, name, xwhiteouts)
    }
    fn stat(&self, node: &Node) -> io::Result<Stat> {
        self.watch.asked(Method::Stat);
        self.inner.stat(node)
    }
    fn marks(&self, node: &Node, stat: &Stat) -> io::Result<Marks> {
        self.watch.asked(Method::Marks);
        self.inner.marks(node, stat)
    }
    fn read_dir(
        &self,
        dir: &Node,
        xwhiteouts: bool,
        sink: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.watch.asked(Method::ReadDir);
        self.inner.read_dir(dir, xwhiteouts, sink)
    }
    fn read_link(&self, node: &Node) -> io::Result<OsString> {
        self.watch.asked(Method::ReadLink);
        self.inner.read_link(node)
    }
    fn list_xattr(&self, node: &Node) -> io::Result<Vec<OsString>> {
        self.watch.asked(Method::ListXattr);
        self.inner.list_xattr(node)
    }
    fn get_xattr(&self, node: &Node, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        self.watch.asked(Method::GetXattr);
        self.inner.get_xattr(node, name)
    }
    fn open(&self, node: &Node, access: Access) -> io::Result<RealFile> {
        self.watch.asked(Method::Open);
        self.inner.open(node, access)
    }
    fn handle(&self, node: &Node) -> io::Result<Option<OverlayHandle>> {
        self.watch.asked(Method::Handle);
        if !self.watch.has_handles() {
            return Ok(None);
        }
        self.inner.handle(node)
    }
    fn stat_by_handle(&self, handle: &OverlayHandle) -> io::Result<Option<Stat>> {
        if !self.watch.has_handles() || !self.watch.may_open_handles() {
            return Ok(None);
        }
        self.inner.stat_by_handle(handle)
    }
    fn ino_of_handle(&self, handle: &OverlayHandle) -> Option<u64> {
        let has = self.watch.has_handles();
        has.then(|| self.inner.ino_of_handle(handle)).flatten()
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
