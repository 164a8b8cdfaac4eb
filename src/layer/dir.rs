//! A layer that is a plain directory tree.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::error::LayerError;
use super::fdcache::FdCache;
use super::{Access, Layer, LayerEntry, LayerLookup, Marks, Node, OverlayHandle, RealFile, Stat};

/// How a [`DirLayer`] is opened.
#[derive(Clone, Copy, Debug)]
pub struct LayerOptions {
    /// Regular files may be metacopies (see [`super::Marks::metacopy`]). False spares looking, for layers that
    /// were unpacked from an archive and so hold none.
    pub metacopy: bool,
}

impl Default for LayerOptions {
    fn default() -> Self {
        LayerOptions { metacopy: true }
    }
}

/// A read-only layer that is a plain directory tree.
#[derive(Debug)]
pub struct DirLayer {
    _private: (),
}

impl DirLayer {
    /// Opens a layer, through a private read-only mount clone where the process may make one.
    pub fn open(
        path: &Path,
        options: LayerOptions,
        cache: Arc<FdCache>,
    ) -> Result<DirLayer, LayerError> {
        let _ = (options, cache);
        Err(LayerError::Missing(path.to_owned()))
    }
    /// Whether the layer is reached through a read-only mount clone: only then may its files be passthrough backings.
    pub fn is_protected(&self) -> bool {
        false
    }
}

impl Layer for DirLayer {
    fn root(&self) -> Node {
        Node::Index(0)
    }
    fn lookup(&self, _: &Node, _: &OsStr, _: bool) -> io::Result<LayerLookup> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn stat(&self, _: &Node) -> io::Result<Stat> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn marks(&self, _: &Node, _: &Stat) -> io::Result<Marks> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn read_dir(
        &self,
        _: &Node,
        _: bool,
        _: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn read_link(&self, _: &Node) -> io::Result<OsString> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn list_xattr(&self, _: &Node) -> io::Result<Vec<OsString>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn get_xattr(&self, _: &Node, _: &OsStr) -> io::Result<Option<Vec<u8>>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn open(&self, _: &Node, _: Access) -> io::Result<RealFile> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn handle(&self, _: &Node) -> io::Result<Option<OverlayHandle>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn stat_by_handle(&self, _: &OverlayHandle) -> io::Result<Option<Stat>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn statfs(&self) -> io::Result<nix::sys::statvfs::Statvfs> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn describe(&self) -> String {
        String::new()
    }
    fn dev(&self) -> u64 {
        0
    }
}
