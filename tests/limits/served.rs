//! A mount that this process serves itself, with a lower layer that it watches.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use acetate::fuse::{Access, BUSY_POLL, Connection, Session, Settings};
use acetate::layer::dir::{DirLayer, LayerOptions};
use acetate::layer::fdcache::FdCache;
use acetate::layer::format::OverrideStat;
use acetate::layer::upper::{AccessTimes, Namespace, Upper, UpperOptions};
use acetate::sys::fusedev;
use acetate::sys::mount::{FuseMount, MountFlags, mount_fuse, unmount};
use acetate::union::{Params, Union};

use crate::common::connection;
use crate::common::stand::Stand;
use crate::common::watched::{Watch, WatchedLayer};

pub(crate) struct Served {
    pub(crate) merged: PathBuf,
    minor: u32,
    serving: JoinHandle<io::Result<()>>,
}

impl Served {
    /// `threads`: how many serve.
    pub(crate) fn new<W: Watch + 'static>(stand: &Stand, threads: usize, watch: W) -> Served {
        let cache = Arc::new(FdCache::for_this_process());
        let inner = DirLayer::open(&stand.lower, LayerOptions::default(), cache.clone()).unwrap();
        let lower = Arc::new(WatchedLayer { inner, watch });
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
            source: OsStr::new("served"),
            flags: MountFlags::empty(),
            allow_other: true,
            security: &[],
        };
        mount_fuse(device.as_fd(), &mount).unwrap();
        let minor = connection::mounted_at(&merged).unwrap().minor;
        connection::register(minor);
        let settings = Settings {
            passthrough: false,
            stack_depth: 1,
            writeback: false,
            posix_acl: true,
            no_xattrs: false,
            threads,
            busy_poll: BUSY_POLL,
            most_nodes: None,
        };
        let connection = Connection::Own(device);
        let session =
            Session::new(Arc::new(union), connection, Access::AsKernelSays, settings).unwrap();
        Served {
            merged,
            minor,
            serving: thread::spawn(move || session.run()),
        }
    }

    /// Unmounts it.
    pub(crate) fn end(self) {
        unmount(&self.merged, false).unwrap();
        connection::unregister(self.minor);
        self.serving.join().unwrap().unwrap();
    }
}
