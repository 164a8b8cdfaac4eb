//! Extended attributes. The overlay's private ones are hidden, and escaped so that an overlay can nest inside.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::Union;
use super::acl;
use super::attr::change_attributes;
use super::cause::Cause;
use super::copy_up::Copy;
use super::error::{Error, Result};
use super::inode::{Inode, UpperPart};
use super::partial::{CAPABILITY, Partial};
use super::types::{Caller, NodeId};
use crate::layer::format::Unmapped;
use crate::layer::upper::{Namespace, Upper};
use crate::layer::{Layer, format};
use crate::sys::task;

impl Union {
    fn namespace(&self) -> Namespace {
        self.stack
            .upper
            .as_ref()
            .map_or(Namespace::Trusted, |u| u.options().namespace)
    }

    /// The name on disk, or why there is none.
    fn disk_name(&self, name: &OsStr) -> Result<OsString> {
        if self.params.noacl && acl::is_acl(name) {
            return Err(Error::Errno(libc::EOPNOTSUPP));
        }
        match format::to_disk(self.namespace(), name) {
            Some(name) => Ok(name.into_owned()),
            None => Err(Error::Errno(libc::EOPNOTSUPP)),
        }
    }

    /// Whether an xattr that was found may be one of those that hide a partial file, by its name on disk.
    fn may_be_shadow(&self, disk: &OsStr) -> bool {
        self.stack
            .upper
            .as_ref()
            .is_some_and(|upper| upper.is_called_as_shadow(disk))
    }

    pub(crate) fn do_getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        let inode = self.node(node)?;
        let disk = self.disk_name(name)?;
        let (layer, at) = self.top(&inode)?;
        let data_below = inode.state.read().metacopy;
        let get = |partial: Option<Arc<Partial>>| match partial {
            // Filling blocks takes a file's capabilities away for a moment.
            Some(partial) if partial.is_own_xattr(&disk)? => Ok(None),
            Some(partial) => Ok(partial.beside_fill(|| layer.get_xattr(&at, &disk))?),
            None => Ok(layer.get_xattr(&at, &disk)?),
        };
        let mut value = get(inode.partial());
        if matches!(value, Ok(Some(_))) && self.may_be_shadow(&disk) {
            value = get_settled(&inode, get);
        }
        if matches!(value, Ok(None)) && data_below && name == CAPABILITY {
            value = self.capability_settled(&inode, || get(inode.partial()));
        }
        let value = value?.and_then(|value| self.params.ids.value_inside(name, value));
        value.ok_or(Error::Errno(libc::ENODATA))
    }

    pub(crate) fn do_listxattr(&self, caller: &Caller, node: NodeId) -> Result<Vec<OsString>> {
        let inode = self.node(node)?;
        let (layer, at) = self.top(&inode)?;
        let namespace = self.namespace();
        let list = |partial: Option<Arc<Partial>>| match partial {
            Some(partial) => partial.other_xattrs(|| layer.list_xattr(&at)),
            None => Ok(layer.list_xattr(&at)?),
        };
        let mut names = list(inode.partial())?;
        if names.iter().any(|name| self.may_be_shadow(name)) {
            names = get_settled(&inode, list)?;
        }
        Ok(names
            .into_iter()
            .filter(|name| !(self.params.noacl && acl::is_acl(name)))
            // Filesystems show these to the administrator alone.
            .filter(|name| caller.uid == 0 || !name.as_bytes().starts_with(b"trusted."))
            .filter_map(|name| format::from_disk(namespace, &name).map(|n| n.into_owned()))
            .collect())
    }

    pub(crate) fn do_setxattr(
        &self,
        caller: &Caller,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        let inode = self.node(node)?;
        self.writable()?;
        let disk = self.disk_name(name)?;
        let value = self.params.ids.value_outside(name, value);
        let value = value.map_err(|Unmapped| Error::Errno(libc::EINVAL))?;
        let cause = Cause::new("setxattr", caller);
        self.copy_up(&inode, Copy::Meta, cause)?;
        let upper = self.upper()?;
        let part = inode.upper().ok_or(Error::Errno(libc::EIO))?;
        if name == CAPABILITY
            && let Some(notify) = self.notify.get()
        {
            // What a program wrote before would take them away when the kernel passes it on.
            notify.write_back(node);
        }
        let strip_sgid = name == acl::ACCESS && self.loses_sgid(caller, &upper.stat(&part.node)?);
        if let Some(partial) = inode.partial() {
            partial.give_xattr_up(&disk)?;
        }
        change_attributes(&inode, &cause, || {
            upper.set_xattr(&part.node, &disk, &value, flags)?;
            take_sgid(upper, &part, strip_sgid)
        })?;
        self.forget_acl(&inode, name);
        Ok(())
    }

    /// Whether a process may have a file's capabilities taken away. Only root may by name, but the kernel asks so for everybody
    /// who changes the data, and before a chown that changes nothing, which it then refuses a stranger to a file with
    /// suid or sgid.
    fn may_kill_capability(&self, caller: &Caller, inode: &Arc<Inode>) -> Result<bool> {
        if caller.uid == 0 || self.may_kill_priv(caller, inode)? {
            return Ok(true);
        }
        // Who truncates a file by its name has no handle of it.
        Ok(self.stat(inode)?.mode & (libc::S_IWGRP | libc::S_IWOTH) != 0)
    }

    pub(crate) fn do_removexattr(&self, caller: &Caller, node: NodeId, name: &OsStr) -> Result<()> {
        let inode = self.node(node)?;
        self.writable()?;
        let disk = self.disk_name(name)?;
        if name == CAPABILITY && !self.may_kill_capability(caller, &inode)? {
            return Err(Error::Errno(libc::EPERM));
        }
        let (layer, at) = self.top(&inode)?;
        let own = match inode.partial() {
            Some(partial) => partial.is_own_xattr(&disk)?,
            None => false,
        };
        let cause = Cause::new("removexattr", caller);
        // Removing an ACL that is not there is no error (posix_acl_xattr_set with no value). Neither is it where capabilities have
        // gone: the kernel has seen them and takes them away before a write, and in between may have passed on what a program wrote
        // through a mapping, with which they went. The write would fail.
        let written = inode.is_file() && inode.data_in_upper();
        let may_be_gone = acl::is_acl(name) || (name == CAPABILITY && written);
        let get = || Ok(layer.get_xattr(&at, &disk)?);
        if own || change_attributes(&inode, &cause, get)?.is_none() {
            return if may_be_gone {
                Ok(())
            } else {
                Err(Error::Errno(libc::ENODATA))
            };
        }
        self.copy_up(&inode, Copy::Meta, cause)?;
        let upper = self.upper()?;
        let part = inode.upper().ok_or(Error::Errno(libc::EIO))?;
        // Unlike the setting of an ACL, this leaves sgid alone, as the filesystems do.
        let remove = || match upper.remove_xattr(&part.node, &disk) {
            Err(e) if may_be_gone && e.raw_os_error() == Some(libc::ENODATA) => Ok(()),
            other => Ok(other?),
        };
        change_attributes(&inode, &cause, remove)?;
        self.forget_acl(&inode, name);
        Ok(())
    }

    fn forget_acl(&self, inode: &Arc<Inode>, name: &OsStr) {
        if name == acl::DEFAULT
            && let Some(dir) = &inode.dir
        {
            *dir.default_acl.lock() = None;
        }
    }

    /// Setting an ACL takes sgid away from who is not in the group, as `posix_acl_update_mode` in the kernel does; the daemon, who
    /// does it on disk, is privileged.
    pub(crate) fn loses_sgid(&self, caller: &Caller, stat: &crate::layer::Stat) -> bool {
        if stat.mode & libc::S_ISGID == 0 || caller.uid == 0 {
            return false;
        }
        !self.in_group(caller, stat.gid)
    }

    /// Whether the caller is in a group, given by its id on disk.
    pub(crate) fn in_group(&self, caller: &Caller, gid: u32) -> bool {
        let group = self.params.ids.gid_inside(gid);
        caller.gid == group || task::has_group(caller.pid, group)
    }
}

/// Asks while no write makes a partial file of this one, which has its marks on disk before it is known as one.
fn get_settled<T>(inode: &Inode, get: impl FnOnce(Option<Arc<Partial>>) -> Result<T>) -> Result<T> {
    let _copying = inode.copy_up.lock();
    get(inode.partial())
}

/// Takes sgid away where the setting of an ACL does.
fn take_sgid(upper: &Upper, part: &UpperPart, it_does: bool) -> Result<()> {
    if it_does {
        let mode = upper.stat(&part.node)?.mode & 0o7777;
        upper.chmod(&part.node, mode & !libc::S_ISGID)?;
    }
    Ok(())
}
