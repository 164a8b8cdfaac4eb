//! Taking names away and changing them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::whiteout::WhiteoutForm;
use super::workdir::Temp;
use super::{Mark, Node, Replace, Stage, TimeSet, Upper};
use crate::layer::node::PathNode;
use crate::layer::tree::path_node;

/// A directory that was taken out of the way of a rename, until that has succeeded.
struct Cleared<'a> {
    /// It is here, in the scratch directory.
    temp: Temp<'a>,
    hidden: Vec<OsString>,
}

impl Upper {
    /// Takes a name away. `node` is `None` where the upper has nothing of that name and only a whiteout is made.
    /// A directory must hold nothing but whiteouts.
    pub fn remove(
        &self,
        dir: &Node,
        name: &OsStr,
        node: Option<&Node>,
        is_dir: bool,
        whiteout: bool,
    ) -> io::Result<()> {
        let _change = self.order.name_change();
        let dir = path_node(dir)?;
        let Some(node) = node else {
            return if whiteout {
                self.add_whiteout(dir, name)
            } else {
                Ok(())
            };
        };
        let node = path_node(node)?;
        if is_dir && !whiteout {
            // Most directories are really empty: then nothing has to be listed.
            match rustix::fs::unlinkat(&*dir.dir_fd()?, name, AtFlags::REMOVEDIR) {
                Ok(()) => {
                    node.remove_place(dir, name);
                    return Ok(());
                }
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let hidden = if is_dir {
            // By its name here: a node that is held open does not know whether it still has it.
            Some(self.hidden_entries(&PathNode::child(dir, name, node.ino()))?)
        } else {
            None
        };
        let last = self.sidecar.last_name(node)?;
        if whiteout {
            self.cover(dir, name, hidden.as_deref())?;
        } else {
            self.take_out(dir, name, hidden.as_deref())?;
        }
        node.remove_place(dir, name);
        self.sidecar.forget(last);
        Ok(())
    }

    /// Moves a node. `whiteout`: leave one at the old name, in the same step. `replaced`: the upper node that
    /// stands at the new name, if any.
    pub fn rename(
        &self,
        from: (&Node, &OsStr),
        node: &Node,
        to: (&Node, &OsStr),
        replaced: Option<&Node>,
        replace: Replace,
        whiteout: bool,
    ) -> io::Result<()> {
        let _change = self.order.name_change();
        let node = path_node(node)?;
        let from = (path_node(from.0)?, from.1);
        let to = (path_node(to.0)?, to.1);
        let replaced = replaced.map(path_node).transpose()?;
        let last = match replaced {
            Some(replaced) if replace == Replace::File => self.sidecar.last_name(replaced)?,
            _ => None,
        };
        let cleared = match replace {
            Replace::EmptyDir => self.clear_dir(to.0, to.1)?,
            _ => None,
        };
        node.add_place(to.0, to.1);
        let moved = self.rename_names(from, to, replace, whiteout);
        if let Err(e) = moved {
            node.remove_place(to.0, to.1);
            if let Some(cleared) = cleared {
                self.put_back(to, cleared)?;
            }
            return Err(e);
        }
        if let Some(cleared) = cleared {
            self.drop_dir(&cleared.temp.name, &cleared.hidden);
            cleared.temp.keep();
        }
        node.remove_place(from.0, from.1);
        if let Some(replaced) = replaced {
            replaced.remove_place(to.0, to.1);
        }
        self.sidecar.forget(last);
        Ok(())
    }

    fn rename_names(
        &self,
        from: (&Arc<PathNode>, &OsStr),
        to: (&Arc<PathNode>, &OsStr),
        replace: Replace,
        whiteout: bool,
    ) -> io::Result<()> {
        let (from_fd, to_fd) = (from.0.dir_fd()?, to.0.dir_fd()?);
        let old = (from_fd.as_fd(), from.1);
        let new = (to_fd.as_fd(), to.1);
        let dot = whiteout && self.work.form == WhiteoutForm::Dot;
        if dot {
            self.add_dot_whiteout(from.0, from.1)?;
        }
        let moved = if whiteout && !dot {
            self.rename_leaving_whiteout(from, (old, new), replace)
        } else {
            self.rename_plainly(old, new, replace)
        };
        if let Err(e) = moved {
            if dot {
                self.remove_dot_whiteout(from.0, from.1)?;
            }
            return Err(e);
        }
        if replace == Replace::Nothing {
            return Ok(());
        }
        self.remove_dot_whiteout(to.0, to.1)
    }

    fn rename_plainly(
        &self,
        old: (BorrowedFd<'_>, &OsStr),
        new: (BorrowedFd<'_>, &OsStr),
        replace: Replace,
    ) -> io::Result<()> {
        let flags = if replace == Replace::Nothing && self.work.renames.no_replace {
            RenameFlags::NOREPLACE
        } else {
            RenameFlags::empty()
        };
        match rustix::fs::renameat_with(old.0, old.1, new.0, new.1, flags) {
            Ok(()) => Ok(()),
            // A directory over a whiteout, which then stands at the old name, where nothing below shows.
            Err(Errno::NOTDIR) if replace == Replace::Whiteout => {
                self.exchange_names(old, new)?;
                Ok(rustix::fs::unlinkat(old.0, old.1, AtFlags::empty())?)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn rename_leaving_whiteout(
        &self,
        from: (&Arc<PathNode>, &OsStr),
        (old, new): ((BorrowedFd<'_>, &OsStr), (BorrowedFd<'_>, &OsStr)),
        replace: Replace,
    ) -> io::Result<()> {
        if !self.prepare_for_whiteout(from.0)? {
            return self.rename_plainly(old, new, replace);
        }
        if replace == Replace::Whiteout {
            // The whiteout that stands at the new name serves for the old one.
            match self.exchange_names(old, new) {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                other => return other,
            }
        }
        if self.work.renames.whiteout && self.work.form == WhiteoutForm::Device {
            let mut flags = RenameFlags::WHITEOUT;
            if replace == Replace::Nothing && self.work.renames.no_replace {
                flags |= RenameFlags::NOREPLACE;
            }
            return Ok(rustix::fs::renameat_with(
                old.0, old.1, new.0, new.1, flags,
            )?);
        }
        let temp = self.work.temp();
        let scratch = (self.work.fd.as_fd(), temp.name.as_os_str());
        self.work
            .link_whiteout(self.options.namespace, scratch.0, scratch.1)?;
        match replace {
            Replace::Nothing | Replace::Whiteout => {
                // A crash between the two steps leaves a whiteout at the new name, and nothing lost.
                let flags = if self.work.renames.no_replace {
                    RenameFlags::NOREPLACE
                } else {
                    RenameFlags::empty()
                };
                rustix::fs::renameat_with(scratch.0, scratch.1, new.0, new.1, flags)?;
                temp.keep();
                if let Err(e) = self.exchange_names(old, new) {
                    rustix::fs::unlinkat(new.0, new.1, AtFlags::empty())?;
                    return Err(e);
                }
                Ok(())
            }
            Replace::File | Replace::EmptyDir => {
                self.exchange_names(old, new)?;
                // What was replaced stands at the old name; a crash now leaves the two exchanged, and nothing lost.
                self.exchange_names(scratch, old)
            }
        }
    }

    /// Makes a directory that shows nothing really empty, so that a rename can replace it: an opaque one takes its place.
    fn clear_dir(&self, dir: &Arc<PathNode>, name: &OsStr) -> io::Result<Option<Cleared<'_>>> {
        let dir_fd = dir.dir_fd()?;
        let raw = rustix::fs::statat(&*dir_fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let old = PathNode::child(dir, name, raw.st_ino as u64);
        let hidden = self.hidden_entries(&old)?;
        if hidden.is_empty() {
            return Ok(None);
        }
        let stat = self.tree.stat(&old)?;
        let temp = self.work.temp();
        let scratch = self.work.fd.as_fd();
        let (fd, _) = self.make_staged(Stage::Dir, &temp.name)?;
        self.set_mark_fd(fd.as_fd(), &Mark::Opaque)?;
        self.chown_fd(fd.as_fd(), Some(stat.uid), Some(stat.gid))?;
        self.chmod_fd(fd.as_fd(), stat.mode)?;
        self.set_times_fd(
            fd.as_fd(),
            Some(TimeSet::At(stat.atime)),
            Some(TimeSet::At(stat.mtime)),
        )?;
        self.exchange_names((scratch, &temp.name), (dir_fd.as_fd(), name))?;
        Ok(Some(Cleared { temp, hidden }))
    }

    fn put_back(&self, to: (&Arc<PathNode>, &OsStr), cleared: Cleared<'_>) -> io::Result<()> {
        let dir_fd = to.0.dir_fd()?;
        let result = self.exchange_names(
            (self.work.fd.as_fd(), &cleared.temp.name),
            (dir_fd.as_fd(), to.1),
        );
        if result.is_err() {
            // It is empty to look at either way; the guard removes the old one.
            log::warn!("{:?} was replaced by an empty directory", to.1);
        }
        result
    }

    /// Exchanges two nodes atomically; each is given as directory, name, node.
    pub fn exchange(&self, a: (&Node, &OsStr, &Node), b: (&Node, &OsStr, &Node)) -> io::Result<()> {
        if !self.work.renames.exchange {
            return Err(Errno::INVAL.into());
        }
        let _change = self.order.name_change();
        let (a_dir, a_node) = (path_node(a.0)?, path_node(a.2)?);
        let (b_dir, b_node) = (path_node(b.0)?, path_node(b.2)?);
        a_node.add_place(b_dir, b.1);
        b_node.add_place(a_dir, a.1);
        let result = a_dir.dir_fd().and_then(|a_fd| {
            let b_fd = b_dir.dir_fd()?;
            Ok(rustix::fs::renameat_with(
                &*a_fd,
                a.1,
                &*b_fd,
                b.1,
                RenameFlags::EXCHANGE,
            )?)
        });
        if result.is_ok() {
            a_node.remove_place(a_dir, a.1);
            b_node.remove_place(b_dir, b.1);
        } else {
            a_node.remove_place(b_dir, b.1);
            b_node.remove_place(a_dir, a.1);
        }
        result
    }
}
