//! Why something is copied up, and for whom.

use super::error::{Error, Result};
use super::types::Caller;
use crate::sys::task;

/// Why something is copied up, and for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cause {
    /// What a program did.
    pub reason: &'static str,
    /// The thread that waits for it; 0 where that is not known.
    thread: u32,
}

impl Cause {
    pub(crate) fn new(reason: &'static str, caller: &Caller) -> Cause {
        Cause {
            reason,
            thread: caller.pid,
        }
    }

    /// Whether nobody waits for it any more. FUSE tells by a request of its own, which the library answers by itself, so the
    /// thread is looked at. As with the kernel's overlayfs only a fatal signal counts.
    pub(crate) fn is_void(&self) -> bool {
        task::is_being_killed(self.thread)
    }

    /// `EINTR` where nobody waits for it any more.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_void() {
            return Err(Error::Errno(libc::EINTR));
        }
        Ok(())
    }
}

impl From<&'static str> for Cause {
    /// By whom is not known: it goes on to its end.
    fn from(reason: &'static str) -> Cause {
        Cause { reason, thread: 0 }
    }
}
