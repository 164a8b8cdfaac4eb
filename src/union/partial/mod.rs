//! Partial copy-up: a large lower file that is written to gets an upper file in which only the touched blocks are.
//!
//! - `file`: one such file, its map and its data;
//! - `space`: its size and its holes;
//! - `complete`: copying the rest, after which it is an ordinary file of the upper;
//! - `kept`: what the copying leaves as it is, of metacopy files too;
//! - `recover`: what counts of it after its daemon or the machine died;
//! - here: which files there are, how they come to be and how they are found again.
//!
//! The map lies in an xattr of the file, never elsewhere: an engine may remove a workdir on its own, and a file moves with
//! rename, link and unlink. So that it fits there its smallest gaps are filled when it grows beyond 2 KiB, which is some 500
//! separate places of a file; the background copies the rest long before a program has touched more, as a rule.

mod complete;
mod file;
mod kept;
mod recover;
mod space;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(crate) use complete::{Completion, Pace};
pub(crate) use file::Partial;
pub(crate) use kept::CAPABILITY;

use super::copy_up::is_no_room;
use super::error::{Error, Result};
use super::inode::{Inode, UpperPart};
use super::report::{Completed, PartialWord};
use super::stack::Resolved;
use super::{Union, stats};
use crate::layer::format::PartialRecord;
use crate::layer::upper::{Mark, NOWHERE, Staged, Upper};
use crate::layer::{EntryKind, Layer, RealFile, Stat};
use crate::sys::sync::Mutex;

/// The smallest block. The largest files have larger ones, so that block numbers stay small.
const BLOCK_SHIFT: u8 = 12;

/// The longest path of a lower that is recorded; a file at a longer one is copied up whole.
const PATH_LIMIT: usize = 1024;

/// The partial files that are known.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// By inode number in the upper. Held while a file's marks are read or removed, so that no file is known twice and none
    /// after it is whole; nothing else is taken meanwhile.
    pub(super) files: Mutex<HashMap<u64, Arc<Partial>>>,
    /// By inode number in the upper: what the metacopy files are to have whose data is being copied. Held while what such a copy
    /// left is put back.
    copying: Mutex<HashMap<u64, Arc<kept::Kept>>>,
}

/// A partial file in the making, forgotten again unless it is published.
pub(crate) struct Begun {
    upper: Arc<Upper>,
    registry: Arc<Registry>,
    pub(crate) partial: Arc<Partial>,
    armed: bool,
}

impl Begun {
    /// It has its place.
    pub(crate) fn keep(mut self) -> Arc<Partial> {
        self.armed = false;
        self.partial.ready.store(true, Ordering::Release);
        self.partial.clone()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        self.registry.files.lock().remove(&self.partial.real_ino);
        if let Err(e) = self.upper.withdraw_partial() {
            log::warn!("the workdir still tells of partial files: {e}");
        }
    }
}

impl Union {
    /// Whether a file of this size is copied up by blocks.
    pub(crate) fn wants_partial(&self, size: u64) -> bool {
        self.params.partial.is_some_and(|least| size > least)
    }

    /// Whether there were any partial files yet.
    pub(crate) fn has_met_partial(&self) -> bool {
        stats::get(&self.stats.copy_up_partial) > 0
            || self.stack.upper.as_ref().is_some_and(|u| u.partial_left())
            || !self.partials.files.lock().is_empty()
    }

    /// Makes a staged or metacopy file, as long as its data and without any, a partial one. `None` where it has to be copied as a
    /// whole: where that is cheaper, or where it could not be found again.
    pub(crate) fn begin_partial(
        &self,
        inode: &Inode,
        stat: &Stat,
        source: &RealFile,
        file: &File,
    ) -> Result<Option<Begun>> {
        if !self.wants_partial(stat.size) || stat.size > i64::MAX as u64 >> 1 {
            return Ok(None);
        }
        let Some(lower) = source.as_file() else {
            return Ok(None);
        };
        // A clone costs less, and leaves nothing to be completed.
        if rustix::fs::ioctl_ficlone(file, lower).is_ok() {
            return Ok(None);
        }
        let Some(path) = self
            .lower_path(inode)
            .filter(|path| path.len() <= PATH_LIMIT)
        else {
            return Ok(None);
        };
        let meta = lower.metadata()?;
        let found = self.stack.data_at(&path)?;
        if meta.size() != stat.size
            || found.map(|stat| (stat.dev, stat.ino)) != Some((meta.dev(), meta.ino()))
        {
            return Ok(None);
        }
        let upper = self.upper()?;
        let real = file.metadata()?;
        let record = PartialRecord {
            block_shift: if meta.size() >> 36 == 0 {
                BLOCK_SHIFT
            } else {
                BLOCK_SHIFT + 4
            },
            lower_size: meta.size(),
            lower_mtime: crate::layer::Timestamp {
                sec: meta.mtime(),
                nsec: meta.mtime_nsec() as u32,
            },
            limit: meta.size(),
            truncating: None,
            boot: upper.boot()?,
            origin: None,
            path,
            map: Default::default(),
        };
        // Of a metacopy file the size is right, and setting it would change the time of modification.
        if real.len() != meta.size() {
            file.set_len(meta.size())?;
        }
        upper.announce_partial()?;
        let partial = Arc::new(Partial::new(
            (upper.clone(), Arc::downgrade(&self.partials)),
            file.try_clone()?,
            real.ino(),
            Some(RealFile::from_file(lower.try_clone()?)),
            record,
            self.params.no_sync,
        ));
        self.partials
            .files
            .lock()
            .insert(real.ino(), partial.clone());
        Ok(Some(Begun {
            upper: upper.clone(),
            registry: self.partials.clone(),
            partial,
            armed: true,
        }))
    }

    /// Writes the marks of a partial file that nobody sees yet.
    pub(crate) fn mark_partial(&self, begun: &Begun, staged: &Staged) -> Result<()> {
        staged.set_mark(&Mark::Metacopy(true))?;
        staged.set_mark(&Mark::Redirect(Some(NOWHERE.into())))?;
        let record = begun.partial.record.encode();
        staged.set_mark(&Mark::Partial(Some(record)))?;
        begun.upper.shadow_partial(&begun.partial.file);
        Ok(())
    }

    /// Makes a metacopy file of the upper a partial one. Precondition: the inode's copy-up lock is held.
    pub(crate) fn convert_metacopy(
        &self,
        inode: &Inode,
        part: &UpperPart,
        stat: &Stat,
        source: &RealFile,
    ) -> Result<Option<Begun>> {
        if !self.wants_partial(stat.size) {
            return Ok(None);
        }
        let upper = self.upper()?;
        let file = upper.open_own(&part.node)?;
        let Some(begun) = self.begin_partial(inode, stat, source, &file)? else {
            return Ok(None);
        };
        // In this order: until nothing is found at the data's place, nothing has been written either.
        let marked = upper
            .write_partial(&file, &begun.partial.record)
            .and_then(|()| upper.hide_partial(&file));
        match marked {
            Ok(()) => Ok(Some(begun)),
            Err(e) => {
                upper.set_mark(&part.node, &Mark::Partial(None))?;
                // The program's xattrs leave no room for ours.
                if e.raw_os_error().is_some_and(is_no_room) {
                    return Ok(None);
                }
                Err(e.into())
            }
        }
    }

    /// The partial file that was found in the upper; `None` when it is whole by now.
    pub(crate) fn attach_partial(&self, resolved: &Resolved) -> Result<Option<Arc<Partial>>> {
        let (Some(found), Some(upper)) = (&resolved.upper, &self.stack.upper) else {
            return Ok(None);
        };
        let mut files = self.partials.files.lock();
        if let Some(partial) = files.get(&found.stat.ino) {
            return Ok(Some(partial.clone()));
        }
        let marks = upper.marks(&found.node, &found.stat)?;
        let Some(value) = marks.partial else {
            return Ok(None);
        };
        if !marks.metacopy {
            // Whole, and the daemon was killed before the other marks were gone as well.
            if !self.params.read_only
                && found.stat.is_file()
                && let Err(e) = upper.forget_partial_marks(&found.node)
            {
                log::warn!("a whole file keeps the marks of a partial one: {e}");
            }
            return Ok(None);
        }
        let record = PartialRecord::decode(&value);
        let file = upper.open_own(&found.node)?;
        let lower = match resolved.lowers.last() {
            Some(lower) => Some(
                self.stack
                    .lower(lower)
                    .open(&lower.node, crate::layer::Access::Read)?,
            ),
            None => None,
        };
        upper.announce_partial()?;
        let name = OsStr::new("?").to_owned();
        let (record, error) = match record {
            Ok(record) => (record, None),
            Err(e) => (nothing_known(name), Some(e.to_string())),
        };
        let lost = record.boot != upper.boot()?;
        let partial = Partial::new(
            (upper.clone(), Arc::downgrade(&self.partials)),
            file,
            found.stat.ino,
            lower,
            PartialRecord {
                boot: upper.boot()?,
                ..record
            },
            self.params.no_sync,
        );
        match error {
            Some(why) => partial.set_broken(why),
            None => {
                partial.recover(lost, marks.redirect.as_deref() != Some(OsStr::new(NOWHERE)))?
            }
        }
        partial.ready.store(true, Ordering::Release);
        let partial = Arc::new(partial);
        files.insert(found.stat.ino, partial.clone());
        Ok(Some(partial))
    }

    /// Looks for the partial files that an earlier mount left, so that they are completed.
    pub(crate) fn find_partial(&self, stop: &dyn Fn() -> bool) -> Result<()> {
        let Some(upper) = &self.stack.upper else {
            return Ok(());
        };
        if !upper.partial_left() || self.partials_found.lock().is_some() {
            return Ok(());
        }
        let mut pending = vec![self.root.clone()];
        while let Some(dir) = pending.pop() {
            if stop() {
                return Ok(());
            }
            let Some(part) = dir.upper() else { continue };
            let mut names = Vec::new();
            upper.read_dir(&part.node, part.xwhiteouts, &mut |entry| {
                if let EntryKind::Node(libc::S_IFREG | libc::S_IFDIR) = entry.kind {
                    names.push(entry.name.to_owned());
                }
                std::ops::ControlFlow::Continue(())
            })?;
            for name in names {
                match self.find_inode(&dir, &name) {
                    Ok(Some(inode)) if inode.is_dir() => pending.push(inode),
                    Ok(_) => {}
                    Err(e) => log::error!("{name:?} in the upper cannot be looked at: {e}"),
                }
            }
        }
        let mut found = self.partials_found.lock();
        if found.is_none() {
            *found = Some(());
            drop(found);
            upper.withdraw_partial()?;
        }
        Ok(())
    }

    fn known_partial(&self) -> Vec<Arc<Partial>> {
        let files = self.partials.files.lock();
        let ready = files.values().filter(|p| p.ready.load(Ordering::Acquire));
        ready.cloned().collect()
    }

    /// Completes what `which` chooses; the first error comes back after all were tried.
    fn complete_some(&self, which: &[Arc<Partial>], pace: &Pace<'_>) -> Result<Completed> {
        let mut done = Completed::default();
        let mut failed = None;
        for partial in which {
            let (missing, _) = partial.missing();
            match partial.complete(pace) {
                Ok(Completion::Done) => {
                    done.files += 1;
                    done.bytes += missing;
                    stats::add(&self.stats.partial_completed, 1);
                    stats::add(&self.stats.copy_up_bytes, missing);
                }
                Ok(Completion::Gone) => self.forget_partial(partial)?,
                Ok(Completion::Stopped) => done.left += 1,
                Err(e) => {
                    log::error!("{:?} stays partially copied up: {e}", partial.record.path);
                    partial.remember(&e);
                    // Not again at once.
                    partial.touch();
                    done.left += 1;
                    failed.get_or_insert(e);
                }
            }
        }
        failed.map_or(Ok(done), Err)
    }

    /// A partial file without a name concerns nobody but who has it open.
    fn forget_partial(&self, partial: &Partial) -> Result<()> {
        if self
            .partials
            .files
            .lock()
            .remove(&partial.real_ino)
            .is_some()
        {
            partial.upper.withdraw_partial()?;
        }
        Ok(())
    }

    /// An inode lost a name: without the last the room is free once nobody has the file open any more.
    pub(crate) fn forget_nameless(&self, inode: &Inode) {
        let Some(partial) = inode.partial() else {
            return;
        };
        let forgotten = match partial.file.metadata() {
            Ok(meta) if meta.nlink() == 0 => self.forget_partial(&partial),
            Ok(_) => Ok(()),
            Err(e) => Err(e.into()),
        };
        if let Err(e) = forgotten {
            log::warn!("the workdir still tells of a removed file: {e}");
        }
    }

    /// See [`Union::complete`].
    pub(crate) fn do_complete(&self, path: &Path, stop: &dyn Fn() -> bool) -> Result<Completed> {
        let pace = Pace {
            gently: false,
            stop,
        };
        let Some(inode) = self.walk(&super::explain::components(path)?)? else {
            return Err(Error::Errno(libc::ENOENT));
        };
        if inode.is_file() {
            let partial: Vec<_> = inode.partial().into_iter().collect();
            return self.complete_some(&partial, &pace);
        }
        self.find_partial(stop)?;
        self.complete_some(&self.known_partial(), &pace)
    }

    /// See [`Union::complete_at_end`].
    pub(crate) fn do_complete_at_end(&self) -> Result<Completed> {
        let Some(upper) = &self.stack.upper else {
            return Ok(Completed::default());
        };
        upper.forget_yield()?;
        let stop = || upper.is_asked_to_yield();
        self.find_partial(&stop)?;
        let files = self.known_partial();
        let (files, broken): (Vec<_>, Vec<_>) = files.into_iter().partition(|f| f.usable().is_ok());
        let pace = Pace {
            gently: false,
            stop: &stop,
        };
        let mut done = self.complete_some(&files, &pace)?;
        done.left += broken.len() as u64;
        Ok(done)
    }

    /// See [`Union::tend_partial`].
    pub(crate) fn do_tend_partial(&self, quiet: Duration, stop: &dyn Fn() -> bool) -> Result<()> {
        self.find_partial(stop)?;
        let files = self.known_partial();
        let mut due = Vec::new();
        for partial in files {
            if partial.file.metadata()?.nlink() == 0 {
                self.forget_partial(&partial)?;
                continue;
            }
            if partial.usable().is_err() {
                continue;
            }
            if partial.is_unsettled() && !partial.no_sync {
                // As the kernel does by itself with the data of other files.
                let named = partial.upper.settle_names().map_err(Error::from);
                if let Err(e) = named.and_then(|()| partial.settle(true)) {
                    log::error!("{:?} is not on disk: {e}", partial.record.path);
                    partial.remember(&e);
                }
            }
            let (missing, of) = partial.missing();
            if missing <= of / 4 || partial.quiet_for() >= quiet {
                due.push(partial);
            }
        }
        let pace = Pace { gently: true, stop };
        self.complete_some(&due, &pace).map(drop)
    }

    /// What is to be told of the partial files: how many, and how much of them is missing.
    pub(crate) fn partial_totals(&self) -> (u64, u64) {
        let files = self.known_partial();
        let missing = files.iter().map(|partial| partial.missing().0).sum();
        (files.len() as u64, missing)
    }

    /// How many bytes a file of the upper lacks, where it is a partial one.
    pub(crate) fn missing_of(
        &self,
        upper: &Upper,
        dir: &crate::layer::Node,
        name: &OsStr,
    ) -> Result<Option<u64>> {
        if self.partials.files.lock().is_empty() {
            return Ok(None);
        }
        let crate::layer::LayerLookup::Found(found) = upper.lookup(dir, name, false)? else {
            return Ok(None);
        };
        let files = self.partials.files.lock();
        let partial = files.get(&found.stat.ino).cloned();
        drop(files);
        Ok(partial.map(|partial| partial.missing().0))
    }

    /// What is to be told of one.
    pub(crate) fn partial_word(inode: &Inode) -> Option<PartialWord> {
        let partial = inode.partial()?;
        let (missing, of) = partial.missing();
        Some(PartialWord {
            missing,
            of,
            unusable: partial.usable().err().map(|e| e.to_string()),
        })
    }
}

/// Stands for a mark that cannot be read.
fn nothing_known(path: std::ffi::OsString) -> PartialRecord {
    PartialRecord {
        block_shift: BLOCK_SHIFT,
        lower_size: 0,
        lower_mtime: crate::layer::Timestamp::default(),
        limit: 0,
        truncating: None,
        boot: [0; 16],
        origin: None,
        path,
        map: Default::default(),
    }
}
