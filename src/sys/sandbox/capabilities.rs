//! The capabilities that a union needs.

use std::io;

use rustix::thread::{
    CapabilitySet, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// What stays, as far as the process had it.
fn needed() -> CapabilitySet {
    // Files are made on behalf of programs whose rights the kernel has checked at the mount: with any owner, mode and number.
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
        // Locks of files and their flags.
        | CapabilitySet::LINUX_IMMUTABLE
        | CapabilitySet::LEASE
        // The blocks that a filesystem reserves for root, and no quota, as root has on any filesystem.
        | CapabilitySet::SYS_RESOURCE
        // Labels of SELinux and Smack in `security.` xattrs.
        | CapabilitySet::MAC_ADMIN
        // `trusted.` xattrs, passthrough; what else it would open the other walls deny.
        | CapabilitySet::SYS_ADMIN
}

/// Gives up all others for good.
pub(super) fn keep_needed() -> io::Result<()> {
    set_no_new_privs(true)?;
    let now = capabilities(None)?;
    if now.permitted.is_empty() {
        return Ok(());
    }
    clear_ambient_capability_set()?;
    let keep = needed();
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for one in CapabilitySet::all().iter() {
            if !keep.contains(one) {
                match remove_capability_from_bounding_set(one) {
                    Ok(()) => {}
                    // The kernel is older than the capability.
                    Err(rustix::io::Errno::INVAL) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
    }
    let mut kept = now;
    kept.permitted &= keep;
    kept.effective &= keep;
    kept.inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, kept)?)
}
