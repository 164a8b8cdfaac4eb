//! The threads that serve a connection, and invalidations the other way.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use fuser::{Config, INodeNo, Notifier, SessionACL};
use parking_lot::Mutex;

use super::adaptor::Adaptor;
use super::counters::Counters;
use super::init::Settings;
use super::shared::Shared;
use crate::union::{NodeId, Notify, Union};

/// Whose requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All that the kernel lets through: with `allow_other` everybody's.
    AsKernelSays,
    /// Those of root and of the daemon's own user.
    RootAndOwner,
}

/// A connection to the kernel on which the mount was made already.
#[derive(Debug)]
pub struct Session {
    /// Owned.
    inner: fuser::Session<Adaptor>,
    /// Immutable but for the atomics within.
    counters: Arc<Counters>,
    /// What is to be invalidated: taken by the thread that does it.
    stale: Receiver<Stale>,
}

impl Session {
    /// Answers the kernel's first message on `device`, by which the mount was made. Nothing else is answered, and no thread
    /// started, until [`Session::run`].
    pub fn new(
        union: Arc<Union>,
        device: OwnedFd,
        access: Access,
        settings: Settings,
    ) -> io::Result<Session> {
        let counters = Arc::new(Counters::new());
        let shared = Arc::new(Shared::new(union.clone(), counters.clone(), settings));
        let adaptor = Adaptor::new(shared.clone());
        let mut config = Config::default();
        config.n_threads = Some(settings.threads.max(1));
        let acl = match access {
            Access::AsKernelSays => SessionACL::All,
            Access::RootAndOwner => SessionACL::RootAndOwner,
        };
        let inner = fuser::Session::from_fd(adaptor, device, acl, config)?;
        let (sender, stale) = channel();
        union.set_notify(Arc::new(Invalidator {
            notifier: inner.notifier(),
            may_store: shared.agreed().store,
            queue: Mutex::new(sender),
        }));
        Ok(Session {
            inner,
            counters,
            stale,
        })
    }

    /// Counters of single operations.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Serves requests until the mount is gone; then the union has let go of its layers.
    pub fn run(self) -> io::Result<()> {
        let (stale, notifier) = (self.stale, self.inner.notifier());
        thread::Builder::new()
            .name("invalidate".into())
            .spawn(move || invalidate(&stale, &notifier))?;
        end_of_connection(self.inner.run())
    }
}

/// A thread that was fetching a request while the last unmount ended the connection is told that it was aborted, the other
/// threads that the device is gone (`fuse_dev_do_read` in Linux's `fs/fuse/dev.c`): both are the end, and neither an error.
fn end_of_connection(served: io::Result<()>) -> io::Result<()> {
    served.or_else(|e| match e.kind() {
        io::ErrorKind::ConnectionAborted => Ok(()),
        _ => Err(e),
    })
}

/// What the kernel is to forget of a node.
#[derive(Clone, Copy, Debug)]
enum Stale {
    Data(NodeId),
    Attr(NodeId),
}

/// Tells the kernel what to cache, and what no more.
struct Invalidator {
    notifier: Notifier,
    /// See `Agreed::store`.
    may_store: bool,
    /// Protects itself; held only to queue.
    queue: Mutex<Sender<Stale>>,
}

impl Invalidator {
    fn later(&self, stale: Stale) {
        if self.queue.lock().send(stale).is_err() {
            log::error!("{stale:?} was not invalidated: the thread for it has ended");
        }
    }
}

impl Notify for Invalidator {
    /// Directly: the kernel takes no lock for it that a request could hold.
    fn inval_attr(&self, node: NodeId) {
        if let Err(e) = self.notifier.inval_inode(INodeNo(node), -1, 0) {
            log::debug!("attributes of node {node} were not invalidated: {e}");
        }
    }

    /// By a thread of its own: the kernel waits for pages that may be waiting for the very request that asks.
    fn inval_data(&self, node: NodeId) {
        self.later(Stale::Data(node));
    }

    /// By a thread of its own: where the kernel is about to drop the node, it waits for the writes of that node's data, and
    /// whoever asks for the node waits for the kernel.
    fn inval_attr_later(&self, node: NodeId) {
        self.later(Stale::Attr(node));
    }

    fn store(&self, node: NodeId, data: &[u8]) {
        if !self.may_store {
            return;
        }
        // Where it fails the kernel asks for the data as ever.
        if let Err(e) = self.notifier.store(INodeNo(node), 0, data) {
            log::debug!("data of node {node} was not stored: {e}");
        }
    }
}

fn invalidate(queue: &Receiver<Stale>, notifier: &Notifier) {
    for stale in queue {
        let (node, offset) = match stale {
            Stale::Data(node) => (node, 0),
            // By the kernel's rule: no data.
            Stale::Attr(node) => (node, -1),
        };
        if let Err(e) = notifier.inval_inode(INodeNo(node), offset, 0) {
            log::debug!("{stale:?} was not invalidated: {e}");
        }
    }
}
