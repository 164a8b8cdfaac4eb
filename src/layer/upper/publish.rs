//! Giving inodes their names.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::{Node, Published, Replace, Staged, Upper};
use crate::layer::node::PathNode;
use crate::layer::tree::path_node;

impl Upper {
    /// Gives a staged inode its name.
    pub fn publish(
        &self,
        staged: Staged,
        dir: &Node,
        name: &OsStr,
        replace: Replace,
    ) -> io::Result<Published> {
        let _change = self.order.name_change();
        let dir = path_node(dir)?;
        let node = path_node(staged.node())?.clone();
        node.add_place(dir, name);
        let placed = self.place(staged.name(), staged.is_dir(), dir, name, replace);
        if let Err(e) = placed {
            node.remove_place(dir, name);
            return Err(e);
        }
        node.remove_place(&self.work.scratch, staged.name());
        Ok(staged.published())
    }

    /// Moves an entry of the scratch directory to its place.
    fn place(
        &self,
        temp: &OsStr,
        is_dir: bool,
        dir: &Arc<PathNode>,
        name: &OsStr,
        replace: Replace,
    ) -> io::Result<()> {
        let dir_fd = dir.dir_fd()?;
        let dir_fd = dir_fd.as_fd();
        let scratch = self.work.fd.as_fd();
        match replace {
            Replace::Nothing => self.place_new(temp, is_dir, dir_fd, name),
            Replace::Whiteout if is_dir => {
                match self.exchange_names((scratch, temp), (dir_fd, name)) {
                    Ok(()) => {
                        self.work.discard(temp);
                    }
                    // The whiteout is an entry beside the name.
                    Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                        self.place_new(temp, is_dir, dir_fd, name)?;
                    }
                    Err(e) => return Err(e),
                }
                self.remove_dot_whiteout(dir, name)
            }
            Replace::Whiteout => {
                rustix::fs::renameat(scratch, temp, dir_fd, name)?;
                self.remove_dot_whiteout(dir, name)
            }
            Replace::File => {
                rustix::fs::renameat(scratch, temp, dir_fd, name)?;
                self.remove_dot_whiteout(dir, name)
            }
            Replace::EmptyDir => {
                let stat = rustix::fs::statat(dir_fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let hidden =
                    self.hidden_entries(&PathNode::child(dir, name, stat.st_ino as u64))?;
                self.exchange_names((scratch, temp), (dir_fd, name))?;
                self.drop_dir(temp, &hidden);
                Ok(())
            }
        }
    }

    /// Moves an entry of the scratch directory to a name that nothing has.
    fn place_new(
        &self,
        temp: &OsStr,
        is_dir: bool,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> io::Result<()> {
        let scratch = self.work.fd.as_fd();
        if self.work.renames.no_replace {
            rustix::fs::renameat_with(scratch, temp, dir, name, RenameFlags::NOREPLACE)?;
        } else if is_dir {
            // A rename onto anything but an empty directory fails; the caller holds the directory's entries still.
            match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => rustix::fs::renameat(scratch, temp, dir, name)?,
                Ok(_) => return Err(Errno::EXIST.into()),
                Err(e) => return Err(e.into()),
            }
        } else {
            rustix::fs::linkat(scratch, temp, dir, name, AtFlags::empty())?;
            self.work.discard(temp);
        }
        Ok(())
    }

    /// Exchanges two entries in one step, or as nearly so as the filesystem lets: without `RENAME_EXCHANGE` there is a moment in
    /// which the second name is missing, but none in which anything could be lost.
    pub(super) fn exchange_names(
        &self,
        a: (BorrowedFd<'_>, &OsStr),
        b: (BorrowedFd<'_>, &OsStr),
    ) -> io::Result<()> {
        if self.work.renames.exchange {
            rustix::fs::renameat_with(a.0, a.1, b.0, b.1, RenameFlags::EXCHANGE)?;
            return Ok(());
        }
        let between = self.work.fresh_name();
        rustix::fs::renameat(b.0, b.1, &self.work.fd, &between)?;
        if let Err(e) = rustix::fs::renameat(a.0, a.1, b.0, b.1) {
            rustix::fs::renameat(&self.work.fd, &between, b.0, b.1)?;
            return Err(e.into());
        }
        rustix::fs::renameat(&self.work.fd, &between, a.0, a.1)?;
        Ok(())
    }

    /// Gives a node another name.
    pub fn link(&self, node: &Node, dir: &Node, name: &OsStr, replace: Replace) -> io::Result<()> {
        let _change = self.order.name_change();
        let (node, dir) = (path_node(node)?, path_node(dir)?);
        let fd = node.path_fd()?;
        match replace {
            Replace::Nothing => crate::sys::path_fd::link(fd, &*dir.dir_fd()?, name)?,
            Replace::Whiteout | Replace::File => {
                let temp = self.work.temp();
                crate::sys::path_fd::link(fd, &self.work.fd, &temp.name)?;
                rustix::fs::renameat(&self.work.fd, &temp.name, &*dir.dir_fd()?, name)?;
                self.remove_dot_whiteout(dir, name)?;
                if replace == Replace::Whiteout {
                    temp.keep();
                }
                // A rename onto another name of the same inode does nothing: then the guard takes the new link away.
            }
            Replace::EmptyDir => return Err(Errno::ISDIR.into()),
        }
        node.add_place(dir, name);
        Ok(())
    }
}
