//! Capabilities of the calling thread.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Whether the calling thread has a capability in its effective set. In a user namespace that says nothing about
/// objects outside it.
pub fn has(capability: CapabilitySet) -> io::Result<bool> {
    Ok(capabilities(None)?.effective.contains(capability))
}

/// Whether the calling thread has `CAP_SYS_ADMIN`.
pub fn has_sys_admin() -> io::Result<bool> {
    has(CapabilitySet::SYS_ADMIN)
}

/// While it lives, the calling thread lacks `CAP_FSETID`: its writes and truncations take suid and sgid away as a
/// plain user's do, and so do those that the kernel makes with a backing file registered meanwhile.
#[derive(Debug)]
pub struct WithoutFsetid {
    /// Immutable: the sets to go back to; `None` when the thread had no such capability.
    restore: Option<CapabilitySets>,
    /// Capabilities belong to a thread, so the guard must stay on it.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl WithoutFsetid {
    /// Drops the capability from the effective set.
    pub fn new() -> io::Result<WithoutFsetid> {
        let before = capabilities(None)?;
        let mut restore = None;
        if before.effective.contains(CapabilitySet::FSETID) {
            let mut without = before;
            without.effective.remove(CapabilitySet::FSETID);
            set_capabilities(None, without)?;
            restore = Some(before);
        }
        Ok(WithoutFsetid {
            restore,
            _not_send: std::marker::PhantomData,
        })
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        if let Some(sets) = self.restore.take()
            && let Err(e) = set_capabilities(None, sets)
        {
            log::error!("cannot take CAP_FSETID back: {e}");
        }
    }
}
