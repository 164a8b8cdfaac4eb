//! Which files the kernel may read and write by itself.

use std::os::unix::fs::MetadataExt;

use super::Union;
use super::error::Result;
use super::inode::Inode;
use super::open::{NodeOpen, SharedFile};
use super::params::PassthroughLower;

impl Union {
    /// Whether a file is to be served by passthrough, by what it is. `made`: the permission bits of one that was made right now.
    pub(super) fn is_fit(
        &self,
        inode: &Inode,
        open: &NodeOpen,
        shared: &SharedFile,
        made: Option<u32>,
    ) -> Result<bool> {
        if shared.upper {
            return self.is_upper_fit(inode, shared, made);
        }
        let known = open.counts.lock().lower_fit;
        if let Some(known) = known {
            return Ok(known);
        }
        let fit = self.is_lower_fit(inode, shared)?;
        open.counts.lock().lower_fit = Some(fit);
        Ok(fit)
    }

    fn is_upper_fit(&self, inode: &Inode, shared: &SharedFile, made: Option<u32>) -> Result<bool> {
        if inode.partial().is_some() {
            // What the kernel would read by itself lacks blocks.
            return Ok(false);
        }
        let mode = match (made, shared.real.as_file()) {
            (Some(mode), _) => mode,
            (None, Some(file)) => file.metadata()?.mode(),
            (None, None) => return Ok(false),
        };
        // The kernel writes to the backing file as a process without CAP_FSETID, which would take suid and sgid
        // away from root's writes too; through the cache it says whose write it is.
        Ok(mode & (libc::S_ISUID | libc::S_ISGID) == 0)
    }

    fn is_lower_fit(&self, inode: &Inode, shared: &SharedFile) -> Result<bool> {
        let Some(file) = shared.real.as_file() else {
            return Ok(false);
        };
        let layer = {
            let state = inode.state.read();
            let Some(lower) = state.lowers.last() else {
                return Ok(false);
            };
            self.stack.lower(lower).clone()
        };
        if !layer.is_protected() {
            return Ok(false);
        }
        if self.params.read_only {
            return Ok(true);
        }
        match self.params.passthrough_lower {
            PassthroughLower::Always => Ok(true),
            PassthroughLower::Never => Ok(false),
            PassthroughLower::Auto => {
                if file.metadata()?.mode() & 0o111 != 0 {
                    return Ok(true);
                }
                let mut magic = [0; 4];
                let n = shared.real.read_at(&mut magic, 0)?;
                Ok(&magic[..n] == b"\x7fELF")
            }
        }
    }
}
