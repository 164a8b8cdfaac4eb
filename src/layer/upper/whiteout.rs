//! Writing whiteouts.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::workdir::Workdir;
use super::{Mark, Namespace, Upper};
use crate::layer::format::{NameKind, dot_whiteout_name, name_kind, whiteout_name};
use crate::layer::node::{DotWhiteouts, PathNode};
use crate::layer::{EntryKind, Opaque};
use crate::sys::xattr::{self, Target};

/// How whiteouts are written: the first of these that the filesystem stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhiteoutForm {
    /// A character device 0:0, at the name.
    Device,
    /// An empty file with an xattr, at the name, in a directory that is marked to hold such.
    Marked,
    /// An empty file beside the name.
    Dot,
}

/// Makes a whiteout of a form that stands at its name.
pub(super) fn make(
    form: WhiteoutForm,
    namespace: Namespace,
    dir: BorrowedFd<'_>,
    name: &OsStr,
) -> io::Result<()> {
    match form {
        WhiteoutForm::Device => Ok(rustix::fs::mknodat(
            dir,
            name,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )?),
        WhiteoutForm::Marked | WhiteoutForm::Dot => {
            let fd = rustix::fs::openat(
                dir,
                name,
                OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o644),
            )?;
            if form == WhiteoutForm::Marked {
                let xattr = whiteout_name(namespace);
                if let Err(e) = xattr::set(Target::Fd(fd.as_fd()), &xattr, b"y", 0) {
                    rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
                    return Err(e);
                }
            }
            Ok(())
        }
    }
}

impl Workdir {
    /// Puts a whiteout that stands at its name into a directory: a hard link to one that is kept for that, so that a
    /// removal needs no inode.
    pub(super) fn link_whiteout(
        &self,
        namespace: Namespace,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> io::Result<()> {
        let mut fresh = false;
        loop {
            let known = self.shared_whiteout.lock().clone();
            let shared = match known {
                Some(shared) => shared,
                None => {
                    let shared = self.fresh_name();
                    make(self.form, namespace, self.fd.as_fd(), &shared)?;
                    fresh = true;
                    *self.shared_whiteout.lock() = Some(shared.clone());
                    shared
                }
            };
            match rustix::fs::linkat(&self.fd, &shared, dir, name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                // It has as many links as an inode can have, or is gone.
                Err(Errno::MLINK | Errno::NOENT) if !fresh => {
                    let mut known = self.shared_whiteout.lock();
                    if known.as_ref() == Some(&shared) {
                        *known = None;
                    }
                }
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::MLINK) => {
                    return make(self.form, namespace, dir, name);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Upper {
    /// Makes a directory ready to hold whiteouts of the form that is written here. False: nothing below it shows, so
    /// that it needs none.
    pub(super) fn prepare_for_whiteout(&self, dir: &Arc<PathNode>) -> io::Result<bool> {
        match self.work.form {
            WhiteoutForm::Device => {}
            WhiteoutForm::Dot => dir.set_dot_whiteouts(DotWhiteouts::Some),
            WhiteoutForm::Marked => match self.tree.marks(dir, true)?.opaque {
                Opaque::Yes => return Ok(false),
                Opaque::XWhiteouts => {}
                Opaque::No => self.set_mark_at(dir, &Mark::XWhiteouts)?,
            },
        }
        Ok(true)
    }

    /// Puts a whiteout where the upper has nothing.
    pub(super) fn add_whiteout(&self, dir: &Arc<PathNode>, name: &OsStr) -> io::Result<()> {
        if !self.prepare_for_whiteout(dir)? {
            return Ok(());
        }
        let dir_fd = dir.dir_fd()?;
        if self.work.form == WhiteoutForm::Dot {
            return self.add_dot_whiteout(dir, name);
        }
        self.work
            .link_whiteout(self.options.namespace, dir_fd.as_fd(), name)
    }

    /// Puts a `.wh.` entry beside a name; no error when there is one.
    pub(super) fn add_dot_whiteout(&self, dir: &Arc<PathNode>, name: &OsStr) -> io::Result<()> {
        dir.set_dot_whiteouts(DotWhiteouts::Some);
        let entry = dot_whiteout_name(name).ok_or(Errno::NAMETOOLONG)?;
        let namespace = self.options.namespace;
        match self
            .work
            .link_whiteout(namespace, dir.dir_fd()?.as_fd(), &entry)
        {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Takes a `.wh.` entry away, if there is one.
    pub(super) fn remove_dot_whiteout(&self, dir: &Arc<PathNode>, name: &OsStr) -> io::Result<()> {
        if dir.dot_whiteouts() == DotWhiteouts::None {
            return Ok(());
        }
        let Some(entry) = dot_whiteout_name(name) else {
            return Ok(());
        };
        match rustix::fs::unlinkat(&*dir.dir_fd()?, &entry, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Replaces an entry by a whiteout in one step. `is_dir`: it is a directory that [`Upper::hidden_entries`] was asked about.
    pub(super) fn cover(
        &self,
        dir: &Arc<PathNode>,
        name: &OsStr,
        hidden: Option<&[OsString]>,
    ) -> io::Result<()> {
        if !self.prepare_for_whiteout(dir)? {
            return self.take_out(dir, name, hidden);
        }
        if self.work.form == WhiteoutForm::Dot {
            self.add_dot_whiteout(dir, name)?;
            return self.take_out(dir, name, hidden);
        }
        let dir_fd = dir.dir_fd()?;
        let temp = self.work.temp();
        let scratch = self.work.fd.as_fd();
        self.work
            .link_whiteout(self.options.namespace, scratch, &temp.name)?;
        let Some(hidden) = hidden else {
            rustix::fs::renameat(scratch, &temp.name, &*dir_fd, name)?;
            temp.keep();
            return Ok(());
        };
        if self.work.renames.exchange {
            rustix::fs::renameat_with(scratch, &temp.name, &*dir_fd, name, RenameFlags::EXCHANGE)?;
            self.drop_dir(&temp.name, hidden);
            temp.keep();
            return Ok(());
        }
        let old = self.work.fresh_name();
        rustix::fs::renameat(&*dir_fd, name, scratch, &old)?;
        rustix::fs::renameat(scratch, &temp.name, &*dir_fd, name)?;
        self.drop_dir(&old, hidden);
        temp.keep();
        Ok(())
    }

    /// As [`Upper::cover`], leaving no whiteout.
    pub(super) fn take_out(
        &self,
        dir: &Arc<PathNode>,
        name: &OsStr,
        hidden: Option<&[OsString]>,
    ) -> io::Result<()> {
        let dir_fd = dir.dir_fd()?;
        match hidden {
            None => Ok(rustix::fs::unlinkat(&*dir_fd, name, AtFlags::empty())?),
            Some([]) => Ok(rustix::fs::unlinkat(&*dir_fd, name, AtFlags::REMOVEDIR)?),
            Some(hidden) => {
                // Without its whiteouts it would for a moment show what they hide.
                let old = self.work.fresh_name();
                rustix::fs::renameat(&*dir_fd, name, &self.work.fd, &old)?;
                self.drop_dir(&old, hidden);
                Ok(())
            }
        }
    }

    /// The names in a directory that shows nothing: whiteouts and opaque markers. `ENOTEMPTY` when it shows something.
    pub(super) fn hidden_entries(&self, dir: &Arc<PathNode>) -> io::Result<Vec<OsString>> {
        let dir_fd = dir.dir_fd()?;
        let dir_fd = dir_fd.as_fd();
        let mut entries = Vec::new();
        self.tree.for_each_entry(dir_fd, |name, ino, file_type| {
            entries.push((name.to_owned(), ino, file_type));
            Ok(ControlFlow::Continue(()))
        })?;
        let mut marked = self.work.writes_marked_whiteouts().then_some(true);
        for (name, ino, file_type) in &entries {
            if name_kind(name) != NameKind::Plain {
                continue;
            }
            let xwhiteouts = match (marked, file_type) {
                (Some(marked), _) => marked,
                (None, FileType::RegularFile | FileType::Unknown) => {
                    let x = self.tree.marks(dir, true)?.opaque == Opaque::XWhiteouts;
                    *marked.insert(x)
                }
                (None, _) => false,
            };
            let kind = self
                .tree
                .entry_kind(dir_fd, name, (*ino, *file_type), xwhiteouts)?;
            if let Some((EntryKind::Node(_), _)) = kind {
                return Err(Errno::NOTEMPTY.into());
            }
        }
        Ok(entries.into_iter().map(|(name, _, _)| name).collect())
    }

    /// Best effort: removes a directory of the scratch directory that holds these entries.
    pub(super) fn drop_dir(&self, name: &OsStr, hidden: &[OsString]) {
        let removed = (|| -> rustix::io::Result<()> {
            if !hidden.is_empty() {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = rustix::fs::openat(&self.work.fd, name, flags, Mode::empty())?;
                for entry in hidden {
                    rustix::fs::unlinkat(&dir, entry, AtFlags::empty())?;
                }
            }
            rustix::fs::unlinkat(&self.work.fd, name, AtFlags::REMOVEDIR)
        })();
        if removed.is_err() {
            // Its mode forbids it, or there are AUFS's private directories in it.
            self.work.discard(name);
        }
    }
}
