//! Backing files: open files that the kernel serves by itself.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fuser::{BackingId, ReplyCreate, ReplyOpen};

use crate::sys::caps::WithoutFsetid;
use crate::union::{Backing, BackingOpener};

/// A reply by whose connection a backing file can be registered.
trait Registers {
    fn register(&self, fd: BorrowedFd<'_>) -> io::Result<BackingId>;
}

impl Registers for ReplyOpen {
    fn register(&self, fd: BorrowedFd<'_>) -> io::Result<BackingId> {
        self.open_backing(fd)
    }
}

impl Registers for ReplyCreate {
    fn register(&self, fd: BorrowedFd<'_>) -> io::Result<BackingId> {
        self.open_backing(fd)
    }
}

/// Registers backing files for the request at hand.
pub(super) struct Opener<'a> {
    reply: &'a dyn Registers,
    enabled: bool,
}

impl<'a> Opener<'a> {
    /// `enabled`: the kernel agreed to passthrough.
    pub(super) fn for_open(reply: &'a ReplyOpen, enabled: bool) -> Opener<'a> {
        Opener { reply, enabled }
    }
    pub(super) fn for_create(reply: &'a ReplyCreate, enabled: bool) -> Opener<'a> {
        Opener { reply, enabled }
    }
}

impl BackingOpener for Opener<'_> {
    fn open_backing(&self, fd: BorrowedFd<'_>, writable: bool) -> io::Result<Backing> {
        if !self.enabled {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // The kernel writes to a backing file with the credentials that registered it: with CAP_FSETID among them a
        // plain user's write would leave suid and sgid in place.
        let _guard = writable.then(WithoutFsetid::new).transpose()?;
        Ok(Arc::new(self.reply.register(fd)?))
    }
}

/// The registered file behind the union's opaque handle.
pub(super) fn backing_id(backing: &Backing) -> Option<&BackingId> {
    backing.downcast_ref()
}
