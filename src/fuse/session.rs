//! The threads that serve a connection, and invalidations the other way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread;

use fuser::{Config, INodeNo, Notifier, SessionACL};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::adaptor::Adaptor;
use super::counters::Counters;
use super::init::Settings;
use super::passthrough::{Keeper, Registered};
use super::shared::Shared;
use crate::sys::panics::caught;
use crate::sys::worker::put_in_place;
use crate::union::{Backing, Journal, NodeId, Notify, Union};

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
    /// Where the kernel is to send again what was not answered.
    resend: Option<Arc<OwnedFd>>,
    /// Immutable but for the atomics within.
    counters: Arc<Counters>,
    /// What is to be invalidated: taken by the thread that does it.
    stale: Receiver<Stale>,
    /// Asks the kernel to forget, where there is little memory.
    pruner: Option<Pruner>,
}

impl Session {
    /// Answers the kernel's first message, by which the mount was made. Nothing else is answered, and no thread started, until
    /// [`Session::run`].
    pub fn new(
        union: Arc<Union>,
        connection: Connection,
        access: Access,
        settings: Settings,
    ) -> io::Result<Session> {
        let counters = Arc::new(Counters::new());
        let keeper = match &connection {
            Connection::Own(_) | Connection::Begun(..) => None,
            Connection::Shared(shared) => Some(Keeper {
                device: shared.device.clone(),
                journal: shared.journal.clone(),
            }),
        };
        let shared = Arc::new(Shared::new(
            union.clone(),
            counters.clone(),
            settings,
            keeper.clone(),
        ));
        let adaptor = Adaptor::new(shared.clone());
        let (config, acl) = (config(settings), acl(access));
        let (inner, resend) = match connection {
            Connection::Own(device) => {
                (fuser::Session::from_fd(adaptor, device, acl, config)?, None)
            }
            Connection::Begun(device, init) => {
                let (inner, answer) = join(device.as_fd(), &init, |device| {
                    fuser::Session::from_fd(adaptor, device, acl, config)
                })?;
                rustix::io::write(&device, &answer)?;
                (inner, None)
            }
            Connection::Shared(given) => {
                let device = given.device.as_fd();
                let (inner, answer) = join(device, &given.init, |device| {
                    fuser::Session::from_fd(adaptor, device, acl, config)
                })?;
                if given.first {
                    given.journal.keep_answer(&answer)?;
                    rustix::io::write(device, &answer)?;
                }
                (inner, (!given.first).then_some(given.device))
            }
        };
        if let Some(keeper) = keeper {
            take_over(&union, &keeper, resend.is_some())?;
        }
        if !settings.busy_poll.is_zero() {
            shared.busy_poll.watch(inner.as_fd().try_clone_to_owned()?);
        }
        let (sender, stale) = channel();
        let pruner = match settings.most_nodes {
            Some(most) => Some(Pruner {
                union: Arc::downgrade(&union),
                device: inner.as_fd().try_clone_to_owned()?,
                most,
            }),
            None => None,
        };
        union.set_notify(Arc::new(Invalidator {
            notifier: inner.notifier(),
            may_store: shared.agreed().store,
            may_prune: pruner.is_some(),
            queue: Mutex::new(sender),
        }));
        Ok(Session {
            inner,
            resend,
            counters,
            stale,
            pruner,
        })
    }

    /// Counters of single operations.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Serves requests until the mount is gone; then the union has let go of its layers.
    pub fn run(self) -> io::Result<()> {
        let (stale, notifier, pruner) = (self.stale, self.inner.notifier(), self.pruner);
        thread::Builder::new()
            .name("invalidate".into())
            .spawn(move || {
                one_by_one(&stale, |stale| {
                    invalidate(stale, &notifier, pruner.as_ref())
                });
            })?;
        if let Some(device) = &self.resend {
            ask_to_resend(device)?;
        }
        end_of_connection(self.inner.run())
    }
}

/// What is served.
#[derive(Debug)]
pub enum Connection {
    /// A connection that ends with the process. The kernel's first message is still to be read.
    Own(OwnedFd),
    /// The same, with the first message.
    Begun(OwnedFd, Vec<u8>),
    /// One that outlives it.
    Shared(TakeOver),
}

/// A connection that one process after the other serves.
#[derive(Debug)]
pub struct TakeOver {
    /// The same in all of them.
    pub device: Arc<OwnedFd>,
    /// The kernel's first message (see [`Connection::first_message`]).
    pub init: Vec<u8>,
    /// No process has served it before.
    pub first: bool,
    /// What was told the kernel.
    pub journal: Arc<Journal>,
}

impl Connection {
    /// Reads the kernel's first message, by which the mount was made.
    pub fn first_message(device: impl AsFd) -> io::Result<Vec<u8>> {
        // No less is accepted (`FUSE_MIN_READ_BUFFER`).
        let mut message = vec![0; 64 << 10];
        loop {
            match rustix::io::read(&device, &mut message) {
                Ok(length) => {
                    message.truncate(length);
                    return Ok(message);
                }
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Whether the kernel, as its first message says, sends requests again that nobody answered (Linux 6.9).
pub fn can_resend(init: &[u8]) -> bool {
    /// `FUSE_HAS_RESEND` in the second word of flags, which lies behind the header and four words.
    const HAS_RESEND: u32 = 1 << (39 - 32);
    let flags = init
        .get(56..60)
        .and_then(|flags| <[u8; 4]>::try_from(flags).ok());
    flags.is_some_and(|flags| u32::from_ne_bytes(flags) & HAS_RESEND != 0)
}

/// What a session would answer to the kernel's first message.
pub fn answer_to(
    init: &[u8],
    union: Arc<Union>,
    access: Access,
    settings: Settings,
) -> io::Result<Vec<u8>> {
    let counters = Arc::new(Counters::new());
    let shared = Arc::new(Shared::new(union, counters, settings, None));
    let adaptor = Adaptor::new(shared);
    let config = config(settings);
    let nowhere = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (_, answer) = join(nowhere.as_fd(), init, |device| {
        fuser::Session::from_fd(adaptor, device, acl(access), config)
    })?;
    Ok(answer)
}

fn config(settings: Settings) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(settings.threads.max(1));
    config
}

fn acl(access: Access) -> SessionACL {
    match access {
        Access::AsKernelSays => SessionACL::All,
        Access::RootAndOwner => SessionACL::RootAndOwner,
    }
}

/// Makes a session that has answered the first message, whoever did so before, and returns the answer.
fn join<T: AsFd>(
    device: BorrowedFd<'_>,
    init: &[u8],
    make: impl FnOnce(OwnedFd) -> io::Result<T>,
) -> io::Result<(T, Vec<u8>)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::write(&ours, init)?;
    let session = make(theirs)?;
    let mut answer = vec![0; 4 << 10];
    let length = rustix::io::read(&ours, &mut answer)?;
    answer.truncate(length);
    put_in_place(session.as_fd(), device)?;
    Ok((session, answer))
}

/// Goes on where the process before stopped, if there was one.
fn take_over(union: &Union, keeper: &Keeper, again: bool) -> io::Result<()> {
    if again {
        let wrap = |id| -> Backing { Arc::new(Registered::adopted(id, keeper)) };
        let unused = union
            .adopt(&keeper.journal, &wrap)
            .map_err(io::Error::other)?;
        for id in unused {
            drop(Registered::adopted(id, keeper));
        }
    }
    union.set_journal(keeper.journal.clone());
    if !again {
        union.note_root();
    }
    Ok(())
}

/// Has the kernel send again what it sent and was not answered (`FUSE_NOTIFY_RESEND`).
fn ask_to_resend(device: impl AsFd) -> io::Result<()> {
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16_u32.to_ne_bytes());
    message[4..8].copy_from_slice(&7_u32.to_ne_bytes());
    match rustix::io::write(device, &message) {
        // The mount is gone: whoever reads next is told.
        Ok(_) | Err(Errno::NODEV | Errno::NOTCONN) => Ok(()),
        Err(e) => Err(e.into()),
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
    /// Any that nothing uses, if there are too many.
    Unused,
}

/// Tells the kernel what to cache, and what no more.
struct Invalidator {
    notifier: Notifier,
    /// See `Agreed::store`.
    may_store: bool,
    /// There is a limit to how many nodes the kernel should know.
    may_prune: bool,
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

    fn write_back(&self, node: NodeId) {
        // Drops the pages too; what cannot be written is told by the next fsync.
        if let Err(e) = self.notifier.inval_inode(INodeNo(node), 0, 0) {
            log::debug!("data of node {node} was not written back: {e}");
        }
    }

    fn told_many(&self) {
        if self.may_prune {
            self.later(Stale::Unused);
        }
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

/// Has the kernel forget nodes that nothing uses: who uses one again looks it up again.
#[derive(Debug)]
struct Pruner {
    union: Weak<Union>,
    device: OwnedFd,
    most: usize,
}

impl Pruner {
    fn prune(&self) {
        let Some(union) = self.union.upgrade() else {
            return;
        };
        for nodes in union.nodes_beyond(self.most).chunks(PRUNED_AT_ONCE) {
            match rustix::io::write(&self.device, &prune_message(nodes)) {
                Ok(_) => {}
                // The mount is gone, or the kernel is older than Linux 6.18.
                Err(e) => return log::debug!("nodes are not forgotten: {e}"),
            }
        }
    }
}

/// How many nodes stand in one message.
const PRUNED_AT_ONCE: usize = 500;

/// `FUSE_NOTIFY_PRUNE`: the header (length, code, no request), how many, 12 bytes for later, the nodes. A node is only
/// dropped where no program uses it, and no name that something is mounted on.
fn prune_message(nodes: &[NodeId]) -> Vec<u8> {
    const PRUNE: u32 = 9;
    let length = 16 + 16 + 8 * nodes.len();
    let mut message = Vec::with_capacity(length);
    for word in [length as u32, PRUNE, 0, 0, nodes.len() as u32, 0, 0, 0] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    for node in nodes {
        message.extend_from_slice(&node.to_ne_bytes());
    }
    message
}

/// Until nobody can queue anything any more. A panic costs the one that it happened at: without this thread the kernel would
/// show stale data of all later ones.
fn one_by_one(queue: &Receiver<Stale>, act: impl Fn(Stale)) {
    for stale in queue {
        if let Err(text) = caught(|| act(stale)) {
            log::error!("invalidating {stale:?} panicked: {text}");
        }
    }
}

fn invalidate(stale: Stale, notifier: &Notifier, pruner: Option<&Pruner>) {
    let (node, offset) = match stale {
        Stale::Unused => {
            if let Some(pruner) = pruner {
                pruner.prune();
            }
            return;
        }
        Stale::Data(node) => (node, 0),
        // By the kernel's rule: no data.
        Stale::Attr(node) => (node, -1),
    };
    if let Err(e) = notifier.inval_inode(INodeNo(node), offset, 0) {
        log::debug!("{stale:?} was not invalidated: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_does_not_end_the_thread_that_invalidates() {
        let (sender, queue) = channel();
        for stale in [Stale::Data(2), Stale::Attr(3), Stale::Data(4)] {
            sender.send(stale).unwrap();
        }
        drop(sender);
        let seen = Mutex::new(Vec::new());
        one_by_one(&queue, |stale| match stale {
            Stale::Data(node) => seen.lock().push(node),
            _ => panic!("planned"),
        });
        assert_eq!(*seen.lock(), [2, 4]);
    }
}
