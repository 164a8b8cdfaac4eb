//! What all requests of a mount have in common: they are counted, their panics answer `EIO`, and the long ones keep no
//! other waiting.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use super::busy_poll::BusyPoll;
use super::counters::{Counters, Op};
use super::init::{Agreed, Settings};
use super::passthrough::{Keeper, Registrar};
use crate::sys::panics::caught;
use crate::union::Union;

/// Shared by all threads that serve a mount.
#[derive(Debug)]
pub(super) struct Shared {
    /// Immutable.
    pub(super) union: Arc<Union>,
    /// Immutable.
    pub(super) settings: Settings,
    /// Set once, before the first request.
    agreed: OnceLock<Agreed>,
    /// Atomics.
    counters: Arc<Counters>,
    /// How many threads are at work that may take long. Atomic.
    long: AtomicUsize,
    /// Protects itself.
    pub(super) busy_poll: BusyPoll,
    /// Where the mount outlives the process. Immutable.
    keeper: Option<Keeper>,
}

impl Shared {
    pub(super) fn new(
        union: Arc<Union>,
        counters: Arc<Counters>,
        settings: Settings,
        keeper: Option<Keeper>,
    ) -> Shared {
        Shared {
            union,
            settings,
            agreed: OnceLock::new(),
            counters,
            long: AtomicUsize::new(0),
            busy_poll: BusyPoll::new(settings.busy_poll, settings.threads),
            keeper,
        }
    }

    /// Keeps what was agreed on with the kernel.
    pub(super) fn agree(&self, agreed: Agreed) {
        if self.agreed.set(agreed).is_err() {
            log::error!("the kernel made the mount twice");
        }
    }

    /// What was agreed on with the kernel: nothing, before it has made the mount.
    pub(super) fn agreed(&self) -> Agreed {
        self.agreed.get().copied().unwrap_or_default()
    }

    /// Whether the mount is there, to be served by another process.
    pub(super) fn goes_on(&self) -> bool {
        self.keeper
            .as_ref()
            .is_some_and(|keeper| is_connected(&keeper.device))
    }

    /// How files are registered for passthrough.
    pub(super) fn registrar(&self) -> Registrar {
        Registrar {
            enabled: self.agreed().passthrough,
            keeper: self.keeper.clone(),
        }
    }

    /// Does the work of one request on a thread of the session, which reads the next one after it. A panic in it drops the
    /// reply, which then answers `EIO`, and the mount goes on.
    pub(super) fn serve(&self, op: Op, work: impl FnOnce(&Union)) {
        let came = Instant::now();
        self.busy_poll.begin();
        let took = self.work(op, came, work);
        self.busy_poll.wait(came, came + took);
    }

    /// Returns how long it took.
    fn work(&self, op: Op, start: Instant, work: impl FnOnce(&Union)) -> Duration {
        if let Err(text) = caught(|| work(&self.union)) {
            log::error!("{} panicked and answers EIO: {text}", op.name());
        }
        let took = start.elapsed();
        self.counters.add(op, took);
        if let Some(keeper) = &self.keeper {
            keeper.journal.count();
        }
        took
    }

    /// Asks something on whose answer no data hangs. A panic, which was logged, means no: the thread must not end of it.
    pub(super) fn ask(&self, question: impl FnOnce(&Union) -> bool) -> bool {
        caught(|| question(&self.union)).unwrap_or(false)
    }

    /// As `serve`; but where only one thread of the session may be left, work that may take long is handed to a thread of its
    /// own. Otherwise a few copies of large files, or programs that wait for one of them, would stop the whole mount. What
    /// is short does not count: that thread is free in a moment.
    pub(super) fn serve_long(
        self: &Arc<Shared>,
        op: Op,
        long: bool,
        work: impl FnOnce(&Union, Turn) + Send + 'static,
    ) {
        if !long {
            return self.serve(op, |union| work(union, Turn(None)));
        }
        let others = self.long.fetch_add(1, Ordering::Relaxed);
        let turn = Turn(Some(self.clone()));
        if others + 1 < self.settings.threads {
            return self.serve(op, |union| work(union, turn));
        }
        // Shared with the new thread, so that the work is not lost where there can be none.
        let slot = Arc::new(Mutex::new(Some((work, turn))));
        let (shared, theirs) = (self.clone(), slot.clone());
        let started = thread::Builder::new()
            .name(op.name().into())
            .spawn(move || {
                let work = theirs.lock().take();
                if let Some((work, turn)) = work {
                    shared.work(op, Instant::now(), |union| work(union, turn));
                }
            });
        if let Err(e) = started {
            log::debug!("{} is served here: {e}", op.name());
            let work = slot.lock().take();
            if let Some((work, turn)) = work {
                self.serve(op, |union| work(union, turn));
            }
        }
    }
}

/// Of a device whose mount is gone the kernel says that it has an error (`fuse_dev_poll`).
fn is_connected(device: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    match poll(&mut asked, PollTimeout::ZERO) {
        Ok(_) => !asked[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLERR)),
        Err(e) => {
            log::warn!("whether the mount is there is not known: {e}");
            true
        }
    }
}

/// Held by a thread while it does long work. To be dropped just before the reply: the program that it wakes may ask for
/// the next such work at once, while this thread is still on its way back.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Shared>>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.long.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
