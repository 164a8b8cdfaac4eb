//! Making entries of a directory.

use std::ffi::OsStr;
use std::sync::Arc;

use super::Union;
use super::acl;
use super::attr::decode_dev;
use super::copy_up::Copy;
use super::error::{Error, Result};
use super::idmap::OVERFLOW_ID;
use super::inode::{Inode, State, UpperPart};
use super::listing::{Known, Listing};
use super::namei::FoundInode;
use super::types::{BackingOpener, Caller, Entry, NodeId, Opened};
use crate::layer::upper::{Mark, NewAttributes, Published, Replace, Stage, Upper};
use crate::layer::{Layer, LayerLookup, RealFile, Stat};

/// What is to be made.
struct New<'a> {
    stage: Stage<'a>,
    /// Permission bits as asked for; `None` for a symlink.
    mode: Option<u32>,
    umask: u32,
}

/// How it is to be made.
struct Plan {
    /// The directory that it is made in.
    dir: Stat,
    attributes: NewAttributes,
    /// False for a symlink, whose permission bits cannot be set.
    has_mode: bool,
    /// The directory has no default ACL, which the filesystem below would apply by itself.
    in_place: bool,
    acls: Vec<(&'static str, Vec<u8>)>,
    opaque: bool,
}

/// What stands at a name, seen by someone who is about to change it.
pub(crate) struct At {
    /// The upper has an entry.
    pub upper: bool,
    /// The upper has a whiteout there.
    pub whiteout: bool,
    /// A layer below shows the name, were it not for the upper.
    pub lower: bool,
}

impl Union {
    /// What stands at a name. Precondition: the directory's `ops` lock is held.
    pub(crate) fn at_locked(&self, parent: &Inode, name: &OsStr) -> Result<At> {
        let parts = Self::parts(parent);
        let known = Self::dir_part(parent)?
            .listing
            .lock()
            .as_ref()
            .map(|l| l.get(name));
        let mut at = At {
            upper: false,
            whiteout: false,
            lower: false,
        };
        let ask_upper = match &known {
            Some(Known::Absent { whiteout }) => {
                at.whiteout = *whiteout;
                at.lower = *whiteout;
                return Ok(at);
            }
            Some(Known::Item(item)) => {
                // Nobody else changes the upper: the listing need not be checked.
                at.lower = item.lower.is_some();
                at.upper = item.upper;
                false
            }
            None => true,
        };
        if let (true, Some(part), Some(upper)) = (ask_upper, &parts.upper, &self.stack.upper) {
            match upper.lookup(&part.node, name, part.xwhiteouts)? {
                LayerLookup::Missing => {}
                LayerLookup::Whiteout => at.whiteout = true,
                LayerLookup::Found(_) => at.upper = true,
            }
        }
        if known.is_none() || (at.upper && !at.lower) {
            // A listing forgets what an upper entry replaced.
            at.lower = self.stack.lowers_have(&parts, name)?;
        }
        Ok(at)
    }

    /// Whether what the lower layers have under a name was removed. Precondition: the directory's `ops` lock is held.
    pub(crate) fn is_removed_locked(&self, parent: &Inode, name: &OsStr) -> Result<bool> {
        if let Some(listing) = Self::dir_part(parent)?.listing.lock().as_ref() {
            return Ok(matches!(listing.get(name), Known::Absent { .. }));
        }
        let (Some(part), Some(upper)) = (parent.upper(), &self.stack.upper) else {
            return Ok(false);
        };
        let found = upper.lookup(&part.node, name, part.xwhiteouts)?;
        Ok(matches!(found, LayerLookup::Whiteout))
    }

    /// Owner, mode and ACLs of a new inode, as the directory and the caller say.
    fn plan_new(
        &self,
        upper: &Upper,
        caller: &Caller,
        parent: &Inode,
        part: &UpperPart,
        new: &New<'_>,
    ) -> Result<Plan> {
        let ids = &self.params.ids;
        // An engine makes entries as the host's root before the container starts, and gives them away afterwards.
        let uid = ids.uid_outside(caller.uid).unwrap_or(OVERFLOW_ID);
        let dir = upper.stat(&part.node)?;
        let is_dir = matches!(new.stage, Stage::Dir);
        let (gid, inherit_sgid) = if dir.mode & libc::S_ISGID != 0 {
            (dir.gid, is_dir)
        } else {
            (ids.gid_outside(caller.gid).unwrap_or(OVERFLOW_ID), false)
        };
        let default = match new.mode {
            Some(_) if !self.params.noacl => self.default_acl(upper, parent, part)?,
            _ => None,
        };
        let mut acls = Vec::new();
        let mut mode = new.mode.unwrap_or(0o777);
        match &default {
            Some(default) => {
                let inherited = acl::inherit(default, mode)
                    .ok_or_else(|| Error::Corrupt("default ACL of an unknown form".into()))?;
                mode = inherited.mode;
                if let Some(access) = inherited.access {
                    acls.push((acl::ACCESS, access));
                }
                if is_dir {
                    acls.push((acl::DEFAULT, default.to_vec()));
                }
            }
            None => mode &= !new.umask,
        }
        if inherit_sgid {
            mode |= libc::S_ISGID;
        }
        Ok(Plan {
            dir,
            has_mode: new.mode.is_some(),
            attributes: NewAttributes {
                uid,
                gid,
                mode: mode & 0o7777,
            },
            // With `noacl` it is not known.
            in_place: default.is_none() && !self.params.noacl,
            acls,
            // What a lower has or may get under this name does not belong to a new directory.
            opaque: is_dir && !parent.state.read().lowers.is_empty(),
        })
    }

    /// Puts a new inode into the upper. Precondition: the directory's `ops` lock is held.
    fn place_new_locked(
        &self,
        upper: &Arc<Upper>,
        part: &UpperPart,
        name: &OsStr,
        (stage, plan): (Stage<'_>, &Plan),
        replace: Replace,
    ) -> Result<Published> {
        if replace == Replace::Nothing && plan.in_place {
            let made = upper.create(&part.node, &plan.dir, name, stage, plan.attributes)?;
            if let Some(made) = made {
                // No layer has the name, so that nothing shows before the mark is set.
                if plan.opaque
                    && let Err(e) = upper.set_mark(&made.node, &Mark::Opaque)
                {
                    upper.remove(&part.node, name, Some(&made.node), true, false)?;
                    return Err(e.into());
                }
                return Ok(made);
            }
        }
        let staged = upper.stage(stage)?;
        staged.chown(Some(plan.attributes.uid), Some(plan.attributes.gid))?;
        for (name, value) in &plan.acls {
            staged.set_xattr(OsStr::new(name), value, 0)?;
        }
        if plan.has_mode {
            staged.chmod(plan.attributes.mode)?;
        }
        if plan.opaque {
            staged.set_mark(&Mark::Opaque)?;
        }
        Ok(upper.publish(staged, &part.node, name, replace)?)
    }

    fn default_acl(
        &self,
        upper: &Upper,
        parent: &Inode,
        part: &UpperPart,
    ) -> Result<Option<Arc<[u8]>>> {
        let dir = Self::dir_part(parent)?;
        if let Some(known) = dir.default_acl.lock().clone() {
            return Ok(known);
        }
        let value = match upper.get_xattr(&part.node, OsStr::new(acl::DEFAULT)) {
            Ok(value) => value.map(Arc::from),
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => None,
            Err(e) => return Err(e.into()),
        };
        *dir.default_acl.lock() = Some(value.clone());
        Ok(value)
    }

    /// Makes a new entry; returns its inode and, for a file, the real one.
    fn make(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        new: New<'_>,
    ) -> Result<(FoundInode, Option<RealFile>)> {
        let parent = self.node(parent)?;
        let dir = Self::dir_part(&parent)?;
        Self::check_new_name(name)?;
        self.writable()?;
        self.copy_up(&parent, Copy::Meta, "new entry in it")?;
        let upper = self.upper()?;
        let part = parent.upper().ok_or(Error::Errno(libc::EIO))?;
        let plan = self.plan_new(upper, caller, &parent, &part, &new)?;
        let _ops = dir.ops.lock();
        if parent.state.read().dead {
            return Err(Error::Errno(libc::ENOENT));
        }
        let at = self.at_locked(&parent, name)?;
        if at.upper || (at.lower && !at.whiteout) {
            return Err(Error::Errno(libc::EEXIST));
        }
        let replace = if at.whiteout {
            Replace::Whiteout
        } else {
            Replace::Nothing
        };
        let published = self.place_new_locked(upper, &part, name, (new.stage, &plan), replace)?;
        let node = published.node;
        let stat = match published.stat {
            Some(stat) => stat,
            None => upper.stat(&node)?,
        };
        let ino = self
            .stack
            .ino(stat.dev, stat.ino, || self.table.dynamic_ino());
        self.strays.forget(stat.ino);
        let mut state = State {
            upper: Some(Box::new(UpperPart {
                node,
                real_ino: stat.ino,
                xwhiteouts: false,
            })),
            ..State::default()
        };
        state.add_name(&parent, parent.shared_name(name));
        let mut state = Some(state);
        let mut number = ino;
        if self.took_over() && self.table.has_seed(number) {
            // As below, and nobody asked for that file here yet.
            number = self.table.dynamic_ino();
        }
        let inode = loop {
            let (inode, new) = self.table.find_or_insert(number, |node| {
                Inode::new(
                    node,
                    number,
                    stat.file_type(),
                    state.take().unwrap_or_default(),
                )
            });
            if new {
                break inode;
            }
            // The number belongs to the removed file that had this real inode before, and is still known.
            number = self.table.dynamic_ino();
        };
        if number != ino && inode.dir.is_none() {
            self.strays.put(stat.ino, &inode);
        }
        if let Some(listing) = dir.listing.lock().as_mut() {
            listing.insert_upper(name, stat.file_type(), inode.ino);
        }
        if let Some(made) = &inode.dir {
            // A new directory is known to be empty: nothing in it has to be asked for.
            *made.listing.lock() = Some(Listing::new());
        }
        let file = published.file.map(RealFile::from_file);
        Ok((FoundInode { inode, stat }, file))
    }

    pub(crate) fn do_mknod(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Result<Entry> {
        let rdev = decode_dev(rdev);
        let stage = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => Stage::File,
            // It would be a whiteout; the kernel's overlayfs answers so.
            libc::S_IFCHR if rdev == 0 => return Err(Error::Errno(libc::EPERM)),
            kind => Stage::Special(kind, rdev),
        };
        let new = New {
            stage,
            mode: Some(mode & 0o7777),
            umask,
        };
        let (found, _) = self.make(caller, parent, name, new)?;
        self.entry(&found)
    }

    pub(crate) fn do_mkdir(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        let new = New {
            stage: Stage::Dir,
            mode: Some(mode & 0o7777),
            umask,
        };
        let (found, _) = self.make(caller, parent, name, new)?;
        self.entry(&found)
    }

    pub(crate) fn do_symlink(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Entry> {
        let new = New {
            stage: Stage::Symlink(target),
            mode: None,
            umask: 0,
        };
        let (found, _) = self.make(caller, parent, name, new)?;
        self.entry(&found)
    }

    #[allow(clippy::too_many_arguments)]
    pub(crate) fn do_create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        opener: &dyn BackingOpener,
    ) -> Result<(Entry, Opened)> {
        let new = New {
            stage: Stage::File,
            mode: Some(mode & 0o7777),
            umask,
        };
        let (found, file) = self.make(caller, parent, name, new)?;
        let node = found.inode.current_node();
        let file = file.map(|file| (file, found.stat.mode));
        let opened = self.open_inode(&found.inode, node, flags, file, opener)?;
        Ok((self.entry(&found)?, opened))
    }
}
