//! The scratch directory: names in it, and getting rid of what lies there.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::whiteout::WhiteoutForm;
use crate::layer::node::PathNode;
use crate::layer::tree::Tree;

/// The scratch directory of one mount.
#[derive(Debug)]
pub(super) struct Workdir {
    /// Immutable: the user's workdir, locked against other mounts.
    pub(super) base: OwnedFd,
    /// Immutable: `work/` in it.
    pub(super) scratch: Arc<PathNode>,
    /// Immutable: its descriptor.
    pub(super) fd: Arc<OwnedFd>,
    /// Makes names.
    next: AtomicU64,
    /// Immutable: how whiteouts are written.
    pub(super) form: WhiteoutForm,
    /// Immutable: what rename can do here.
    pub(super) renames: Renames,
    /// Name of the whiteout that others are hard links to, once one was made. A leaf lock.
    pub(super) shared_whiteout: Mutex<Option<OsString>>,
}

/// What `renameat2` can do on a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Renames {
    pub(super) no_replace: bool,
    pub(super) exchange: bool,
    pub(super) whiteout: bool,
}

/// A name in the scratch directory, which is removed unless [`Temp::keep`] is called.
#[derive(Debug)]
pub(super) struct Temp<'a> {
    work: &'a Workdir,
    pub(super) name: OsString,
    armed: bool,
}

impl Workdir {
    pub(super) fn new(
        base: OwnedFd,
        scratch: Arc<PathNode>,
        fd: Arc<OwnedFd>,
        form: WhiteoutForm,
        renames: Renames,
    ) -> Workdir {
        Workdir {
            base,
            scratch,
            fd,
            next: AtomicU64::new(0),
            form,
            renames,
            shared_whiteout: Mutex::new(None),
        }
    }

    /// Forgets what another process made in the scratch directory, which is empty.
    pub(super) fn renew(&self) {
        *self.shared_whiteout.lock() = None;
        self.next.store(0, Ordering::Relaxed);
    }

    pub(super) fn writes_marked_whiteouts(&self) -> bool {
        self.form == WhiteoutForm::Marked
    }

    /// A name that nothing in the scratch directory has.
    pub(super) fn fresh_name(&self) -> OsString {
        format!("#{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// A fresh name whose owner is removed with the guard.
    pub(super) fn temp(&self) -> Temp<'_> {
        Temp {
            work: self,
            name: self.fresh_name(),
            armed: true,
        }
    }

    /// Best effort: what cannot be removed now is removed at the next mount.
    pub(super) fn discard(&self, name: &OsStr) {
        if let Err(e) = remove_all(&self.scratch_tree(), self.fd.as_fd(), name, &|| {
            self.fresh_name()
        }) {
            log::warn!("cannot remove {name:?} from the workdir: {e}");
        }
    }

    fn scratch_tree(&self) -> Arc<Tree> {
        self.scratch.tree().clone()
    }
}

impl Temp<'_> {
    /// Nothing is left at the name, or it is to stay.
    pub(super) fn keep(mut self) {
        self.armed = false;
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.work.discard(&self.name);
        }
    }
}

/// Finds out what `renameat2` can do in a directory.
pub(super) fn probe_renames(dir: BorrowedFd<'_>) -> io::Result<Renames> {
    let make = |name: &str| -> io::Result<()> {
        rustix::fs::openat(
            dir,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )?;
        Ok(())
    };
    let can = |flags: RenameFlags, to: &str| -> io::Result<bool> {
        match rustix::fs::renameat_with(dir, "#a", dir, to, flags) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP) => Ok(false),
            Err(e) => Err(e.into()),
        }
    };
    make("#a")?;
    make("#b")?;
    let exchange = can(RenameFlags::EXCHANGE, "#b")?;
    let whiteout = can(RenameFlags::WHITEOUT, "#b")?;
    let mut no_replace = false;
    if whiteout {
        no_replace = can(RenameFlags::NOREPLACE, "#c")?;
    } else if can(RenameFlags::NOREPLACE, "#c")? {
        no_replace = true;
    }
    for name in ["#a", "#b", "#c"] {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Renames {
        no_replace,
        exchange,
        whiteout,
    })
}

/// Removes everything in the scratch directory, but for one entry.
pub(super) fn clean(tree: &Tree, scratch: BorrowedFd<'_>, kept: Option<&OsStr>) -> io::Result<()> {
    let mut made = 0_u64;
    loop {
        let mut names = Vec::new();
        tree.for_each_entry(scratch, |name, _, _| {
            if Some(name) != kept {
                names.push(name.to_owned());
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            let count = std::cell::Cell::new(made);
            remove_all(tree, scratch, &name, &|| {
                count.set(count.get() + 1);
                format!("#old{:x}", count.get()).into()
            })?;
            made = count.get();
        }
    }
}

/// Removes an entry of the scratch directory, with all below it. Directories found below are first moved up beside
/// it, so that neither depth nor path length matters.
fn remove_all(
    tree: &Tree,
    scratch: BorrowedFd<'_>,
    name: &OsStr,
    fresh_name: &dyn Fn() -> OsString,
) -> io::Result<()> {
    let mut pending = vec![name.to_owned()];
    while let Some(name) = pending.pop() {
        match rustix::fs::unlinkat(scratch, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
        match rustix::fs::unlinkat(scratch, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
            Err(e) => return Err(e.into()),
        }
        let moved = empty_dir(tree, scratch, &name, fresh_name)?;
        rustix::fs::unlinkat(scratch, &name, AtFlags::REMOVEDIR)?;
        pending.extend(moved);
    }
    Ok(())
}

/// Unlinks what a directory of the scratch directory holds and moves its directories up; returns their names there.
fn empty_dir(
    tree: &Tree,
    scratch: BorrowedFd<'_>,
    name: &OsStr,
    fresh_name: &dyn Fn() -> OsString,
) -> io::Result<Vec<OsString>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(scratch, name, flags, Mode::empty())?;
    // Its mode may keep a plain user from emptying it.
    crate::sys::path_fd::chmod(&dir, 0o700)?;
    let mut entries = Vec::new();
    tree.for_each_entry(dir.as_fd(), |name, _, file_type| {
        entries.push((name.to_owned(), file_type));
        Ok(ControlFlow::Continue(()))
    })?;
    let mut moved = Vec::new();
    for (entry, file_type) in entries {
        if file_type != FileType::Directory {
            match rustix::fs::unlinkat(&dir, &entry, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR | Errno::PERM) if file_type == FileType::Unknown => {}
                Err(e) => return Err(e.into()),
            }
        }
        // To move a directory, its own `..` is written.
        let inner = rustix::fs::openat(&dir, &entry, flags, Mode::empty())?;
        crate::sys::path_fd::chmod(&inner, 0o700)?;
        let to = fresh_name();
        rustix::fs::renameat(&dir, &entry, scratch, &to)?;
        moved.push(to);
    }
    Ok(moved)
}
