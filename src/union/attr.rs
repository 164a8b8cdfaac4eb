//! Attributes: showing and changing them.

use std::sync::Arc;
use std::time::Duration;

use super::Union;
use super::cause::Cause;
use super::copy_up::Copy;
use super::error::{Error, Result};
use super::inode::{Inode, NlinkBase, UpperPart};
use super::types::{Attr, Caller, HandleId, NodeId, SetAttr, SetTime};
use crate::layer::upper::TimeSet;
use crate::layer::{Layer, Stat};

/// The kernel's 32-bit encoding of a device number, as FUSE carries it.
pub(crate) fn encode_dev(dev: u64) -> u32 {
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse of [`encode_dev`].
pub(crate) fn decode_dev(dev: u32) -> u64 {
    let major = (dev & 0xf_ff00) >> 8;
    let minor = (dev & 0xff) | ((dev >> 12) & 0xf_ff00);
    libc::makedev(major, minor)
}

impl Union {
    /// Attributes as a program sees them.
    pub(crate) fn attr(&self, inode: &Arc<Inode>, stat: &Stat) -> Result<Attr> {
        let nlink = self.nlink(inode, stat)?;
        let blocks = self.blocks(inode, stat)?;
        Ok(Attr {
            ino: self.shown_number(inode, stat),
            mode: stat.mode,
            nlink: u32::try_from(nlink).unwrap_or(u32::MAX),
            uid: self.params.ids.uid_inside(stat.uid),
            gid: self.params.ids.gid_inside(stat.gid),
            rdev: encode_dev(stat.rdev),
            size: stat.size,
            blocks,
            blksize: stat.blksize,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
        })
    }

    /// A metacopy file has the blocks of its data.
    fn blocks(&self, inode: &Inode, stat: &Stat) -> Result<u64> {
        let partial = inode.partial().is_some();
        let data = {
            let state = inode.state.read();
            let is_meta =
                state.metacopy || partial || (state.upper.is_none() && state.lowers.len() > 1);
            if inode.is_dir() || !is_meta {
                return Ok(stat.blocks);
            }
            state.lowers.last().cloned()
        };
        let Some(lower) = data else {
            return Ok(stat.blocks);
        };
        let below = self.stack.lower(&lower).stat(&lower.node)?.blocks;
        // Of a partial file more may be allocated than the lower has.
        Ok(if partial {
            below.max(stat.blocks)
        } else {
            below
        })
    }

    /// How many subdirectories a directory has, all its layers together.
    fn subdirs(&self, inode: &Inode) -> Result<u32> {
        let dir = Self::dir_part(inode)?;
        if dir.listing.lock().is_none() {
            let _ops = dir.ops.lock();
            self.load_listing(inode, usize::MAX)?;
        }
        Ok(dir.listing.lock().as_ref().map_or(0, |l| l.subdirs()))
    }

    pub(crate) fn nlink(&self, inode: &Arc<Inode>, stat: &Stat) -> Result<u64> {
        let (merged, dead, indexed, nameless_lower) = {
            let state = inode.state.read();
            let parts = state.lowers.len() + usize::from(state.upper.is_some());
            (
                inode.is_dir() && parts > 1,
                state.dead,
                state.indexed().cloned(),
                state.upper.is_none() && state.dentries.is_empty(),
            )
        };
        if inode.is_dir() {
            if dead {
                return Ok(0);
            }
            if self.params.static_nlink {
                return Ok(1);
            }
            if !merged {
                return Ok(stat.nlink);
            }
            // As on ext4: its own name, `.`, and `..` of each subdirectory.
            return Ok(2 + u64::from(self.subdirs(inode)?));
        }
        if let Some(indexed) = indexed {
            // Where it is not known there are more names than the upper has.
            let known = union_nlink(indexed.nlink, stat.nlink, indexed.lower_nlink);
            return Ok(known.unwrap_or(stat.nlink));
        }
        if nameless_lower && inode.ino != self.root.ino {
            // Removed while open: the lower still has its name, the union has not.
            return Ok(stat.nlink.saturating_sub(1));
        }
        Ok(stat.nlink)
    }

    /// How long the kernel may keep the attributes of a node.
    pub(crate) fn attr_ttl(&self, inode: &Arc<Inode>, node: NodeId) -> Duration {
        let open = inode.open.lock();
        // A writable mapping changes times without a request.
        let mapped = open.as_ref().is_some_and(|o| {
            let counts = o.counts.lock();
            counts.mappers > 0 || counts.maybe_mapped
        });
        // An inode of two nodes changes through either, which the kernel's cache of the other does not notice.
        let current = inode.current_node();
        if mapped || current != node || current != inode.ino && inode.ino != self.root.ino {
            return Duration::ZERO;
        }
        self.params.timeout
    }

    pub(crate) fn do_getattr(
        &self,
        node: NodeId,
        _handle: Option<HandleId>,
    ) -> Result<(Attr, Duration)> {
        let inode = self.node(node)?;
        let stat = self.stat(&inode)?;
        let attr = self.attr(&inode, &stat)?;
        Ok((attr, self.attr_ttl(&inode, node)))
    }

    pub(crate) fn do_setattr(
        &self,
        caller: &Caller,
        node: NodeId,
        set: &SetAttr,
    ) -> Result<(Attr, Duration)> {
        let inode = self.node(node)?;
        self.writable()?;
        let ids = &self.params.ids;
        let invalid = Error::Errno(libc::EINVAL);
        let uid = match set.uid {
            Some(uid) => Some(ids.uid_outside(uid).ok_or(invalid)?),
            None => None,
        };
        let gid = match set.gid {
            Some(gid) => Some(ids.gid_outside(gid).ok_or(Error::Errno(libc::EINVAL))?),
            None => None,
        };
        let nothing = set.uid.is_none()
            && set.gid.is_none()
            && set.mode.is_none()
            && set.size.is_none()
            && set.atime.is_none()
            && set.mtime.is_none();
        if nothing && caller.uid != 0 && !self.may_kill_priv(caller, &inode)? {
            return Err(Error::Errno(libc::EPERM));
        }
        let reason = match set {
            SetAttr { size: Some(_), .. } => "truncate",
            SetAttr { mode: Some(_), .. } => "chmod",
            SetAttr { uid: Some(_), .. } | SetAttr { gid: Some(_), .. } => "chown",
            SetAttr { atime: Some(_), .. } | SetAttr { mtime: Some(_), .. } => "utimes",
            _ => "loss of suid, sgid or capability",
        };
        if self.is_last_word(&inode, set)? {
            return self.do_getattr(node, set.handle);
        }
        let how = match set.size {
            Some(0) => Copy::NoData,
            Some(_) => Copy::Data,
            None => Copy::Meta,
        };
        let cause = Cause::new(reason, caller);
        self.copy_up(&inode, how, cause)?;
        let upper = self.upper()?;
        let part = inode.upper().ok_or(Error::Errno(libc::EIO))?;
        if inode.is_dir() && !self.params.static_nlink && !inode.state.read().lowers.is_empty() {
            // Part of the answer: where it cannot be known, nothing is to be changed.
            self.subdirs(&inode)?;
        }
        if uid.is_some() || gid.is_some() {
            // The filesystem below takes suid, sgid and capabilities away as it does for its own.
            change_attributes(&inode, &cause, || {
                let stat = upper.stat(&part.node)?;
                upper.chown(&part.node, uid, gid)?;
                self.chown_takes_sgid(caller, &part, &stat)
            })?;
        }
        if let Some(mode) = set.mode {
            let chmod = || Ok(upper.chmod(&part.node, mode & 0o7777)?);
            change_attributes(&inode, &cause, chmod)?;
        }
        if let Some(size) = set.size {
            self.truncate_upper(caller, &inode, size)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let time = |t: Option<SetTime>| {
                t.map(|t| match t {
                    SetTime::Now => TimeSet::Now,
                    SetTime::At(at) => TimeSet::At(at),
                })
            };
            let (atime, mtime) = (time(set.atime), time(set.mtime));
            // What is published in a directory puts back the times that it found.
            let _ops = inode.dir.as_ref().map(|dir| dir.ops.lock());
            let set_times = || Ok(upper.set_times(&part.node, atime, mtime)?);
            change_attributes(&inode, &cause, set_times)?;
        }
        if nothing && caller.uid != 0 {
            // What remains of a request that the kernel makes to take privileges away before a write. For root it stands
            // for the file's capabilities alone, which the kernel removes by itself.
            self.kill_priv(caller, &inode)?;
        }
        self.do_getattr(node, set.handle)
    }

    /// Whether the request is what the writeback cache has to say of a file that lost its last name: the time of change, with the
    /// time of modification that it had. Of a lower file there is no place left to keep it, and nobody who could ask for it
    /// but by a descriptor; it is not copied up for that.
    fn is_last_word(&self, inode: &Inode, set: &SetAttr) -> Result<bool> {
        let SetAttr {
            mode: None,
            uid: None,
            gid: None,
            size: None,
            atime: None,
            mtime: Some(SetTime::At(mtime)),
            ..
        } = set
        else {
            return Ok(false);
        };
        {
            let state = inode.state.read();
            let gone = state.dentries.is_empty() && state.upper.is_none() && !inode.is_dir();
            if !self.params.writeback || !gone {
                return Ok(false);
            }
        }
        Ok(self.stat(inode)?.mtime == *mtime)
    }

    /// Cuts or extends a file that has its data in the upper.
    pub(crate) fn truncate_upper(
        &self,
        caller: &Caller,
        inode: &Arc<Inode>,
        size: u64,
    ) -> Result<()> {
        if !inode.is_file() {
            return Err(Error::Errno(if inode.is_dir() {
                libc::EISDIR
            } else {
                libc::EINVAL
            }));
        }
        let part = inode.upper().ok_or(Error::Errno(libc::EIO))?;
        if caller.uid != 0 {
            self.kill_priv(caller, inode)?;
        }
        if let Some(partial) = inode.partial() {
            return partial.truncate(size);
        }
        Ok(self.upper()?.truncate(&part.node, size)?)
    }

    /// What the filesystem below leaves, as it is the privileged daemon that changes the owner: sgid without the group's
    /// execute bit goes unless the caller is in the group (`setattr_should_drop_sgid` in the kernel).
    fn chown_takes_sgid(&self, caller: &Caller, part: &UpperPart, before: &Stat) -> Result<()> {
        if before.is_dir() || before.mode & libc::S_IXGRP != 0 || !self.loses_sgid(caller, before) {
            return Ok(());
        }
        let upper = self.upper()?;
        let mode = upper.stat(&part.node)?.mode & 0o7777;
        Ok(upper.chmod(&part.node, mode & !libc::S_ISGID)?)
    }

    /// The permission bits that remain when suid and sgid are taken away.
    fn without_priv(&self, caller: &Caller, stat: &Stat) -> u32 {
        let mode = stat.mode & 0o7777;
        let sgid = mode & libc::S_ISGID != 0
            && (mode & libc::S_IXGRP != 0 || !self.in_group(caller, stat.gid));
        mode & !libc::S_ISUID & !if sgid { libc::S_ISGID } else { 0 }
    }

    /// Whether a process may ask for suid and sgid to be taken away. The kernel asks so for who writes, who need not own the
    /// file, and for a chown that changes nothing, which only the owner may do; the requests are alike.
    pub(crate) fn may_kill_priv(&self, caller: &Caller, inode: &Arc<Inode>) -> Result<bool> {
        let stat = self.stat(inode)?;
        Ok(inode.is_dir()
            || self.without_priv(caller, &stat) == stat.mode & 0o7777
            || self.params.ids.uid_inside(stat.uid) == caller.uid
            || self.handles.write_to(inode)
            || self.adopted_writer(inode))
    }

    /// Takes suid and sgid away, as a change by an unprivileged process does. A member of the group leaves sgid in
    /// place where it means mandatory locking (`setattr_should_drop_sgid` in the kernel).
    pub(crate) fn kill_priv(&self, caller: &Caller, inode: &Inode) -> Result<()> {
        let Some(part) = inode.upper() else {
            return Ok(());
        };
        // Even a chown that changes nothing does so to everything but directories.
        if inode.is_dir() {
            return Ok(());
        }
        let upper = self.upper()?;
        let cause = Cause::new("loss of suid, sgid or capability", caller);
        change_attributes(inode, &cause, || {
            let stat = upper.stat(&part.node)?;
            let kept = self.without_priv(caller, &stat);
            if kept != stat.mode & 0o7777 {
                upper.chmod(&part.node, kept)?;
            }
            Ok(())
        })
    }
}

/// Runs a change of attributes of what has an upper part, so that no copy of its data, which puts back those it found, undoes it.
/// Not to be nested, nor to be called with a lock held.
pub(crate) fn change_attributes<T>(
    inode: &Inode,
    cause: &Cause,
    change: impl FnOnce() -> Result<T>,
) -> Result<T> {
    // Data that has come up stays there, and then only the filling of blocks is left to be kept apart.
    let data_below = inode.state.read().metacopy;
    let _copying = if data_below {
        let lock = inode.copy_up.lock_unless(|| cause.is_void());
        Some(lock.ok_or(Error::Errno(libc::EINTR))?)
    } else {
        None
    };
    apart_from_fill(inode, change)
}

/// Runs what reads or changes attributes, so that the filling of blocks, which puts back those it found, does not undo it. Not to be
/// nested.
pub(crate) fn apart_from_fill<T>(inode: &Inode, change: impl FnOnce() -> T) -> T {
    match inode.partial() {
        Some(partial) => partial.beside_fill(change),
        None => change(),
    }
}

/// The link count of the union, from what the marks say. `None` where it is told by the lower's, which is not known.
pub(crate) fn union_nlink(base: NlinkBase, upper: u64, lower: Option<u64>) -> Option<u64> {
    let (from, diff) = match base {
        NlinkBase::Upper(diff) => (upper, diff),
        NlinkBase::Lower(diff) => (lower?, diff),
    };
    let count = i64::try_from(from).unwrap_or(i64::MAX).saturating_add(diff);
    Some(u64::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_kernels_encoding() {
        for (major, minor) in [(0, 0), (1, 3), (8, 17), (259, 70_000), (4095, 0xf_ffff)] {
            let dev = libc::makedev(major, minor);
            assert_eq!(decode_dev(encode_dev(dev)), dev, "{major}:{minor}");
        }
    }
}
