//! Backing files: open files that the kernel serves by itself.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use fuser::{BackingId, ReplyCreate, ReplyOpen};

use crate::sys::caps::WithoutFsetid;
use crate::sys::worker::close_backing;
use crate::union::{Backing, BackingOpener, Journal};

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

/// How files are registered on a mount.
#[derive(Clone, Debug)]
pub(super) struct Registrar {
    /// The kernel agreed to passthrough.
    pub(super) enabled: bool,
    /// Where the mount outlives the process: what is registered does so too.
    pub(super) keeper: Option<Keeper>,
}

/// What files are registered with that outlive the process.
#[derive(Clone, Debug)]
pub(super) struct Keeper {
    pub(super) device: Arc<OwnedFd>,
    pub(super) journal: Arc<Journal>,
}

/// A registered file, which the process that comes next takes over.
#[derive(Debug)]
pub(super) struct Registered {
    id: u32,
    keeper: Keeper,
}

impl Registered {
    /// One that the process before registered.
    pub(super) fn adopted(id: u32, keeper: &Keeper) -> Registered {
        Registered {
            id,
            keeper: keeper.clone(),
        }
    }

    fn new(id: u32, keeper: &Keeper) -> Registered {
        keeper.journal.backing(id);
        Registered::adopted(id, keeper)
    }

    /// What a reply wants for a moment.
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // First, as the number may be another file's as soon as it is closed.
        self.keeper.journal.unbacked(self.id);
        if let Err(e) = close_backing(&self.keeper.device, self.id) {
            log::debug!("backing file {} is not closed: {e}", self.id);
        }
    }
}

/// Registers backing files for the request at hand.
pub(super) struct Opener<'a> {
    reply: &'a dyn Registers,
    registrar: &'a Registrar,
}

impl<'a> Opener<'a> {
    pub(super) fn for_open(reply: &'a ReplyOpen, registrar: &'a Registrar) -> Opener<'a> {
        Opener { reply, registrar }
    }
    pub(super) fn for_create(reply: &'a ReplyCreate, registrar: &'a Registrar) -> Opener<'a> {
        Opener { reply, registrar }
    }
}

impl BackingOpener for Opener<'_> {
    fn open_backing(&self, fd: BorrowedFd<'_>, writable: bool) -> io::Result<Backing> {
        if !self.registrar.enabled {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // The kernel writes to a backing file with the credentials that registered it: with CAP_FSETID among them a
        // plain user's write would leave suid and sgid in place.
        let _guard = writable.then(WithoutFsetid::new).transpose()?;
        let id = self.reply.register(fd)?;
        Ok(match &self.registrar.keeper {
            Some(keeper) => Arc::new(Registered::new(id.into_raw(), keeper)),
            None => Arc::new(id),
        })
    }

    fn id_of(&self, backing: &Backing) -> u32 {
        registered(backing).map_or(0, Registered::id)
    }
}

/// The same, where it outlives the process.
pub(super) fn registered(backing: &Backing) -> Option<&Registered> {
    backing.downcast_ref()
}

/// The registered file behind the union's opaque handle.
pub(super) fn backing_id(backing: &Backing) -> Option<&BackingId> {
    backing.downcast_ref()
}
