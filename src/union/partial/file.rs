//! One partially copied-up file: its blocks lie in the upper or, where the map does not have them, in the lower.
//!
//! The upper file is as long as the file and sparse; nothing that lies in it at an absent block is ever read. A block
//! becomes present in this order: its data is written, the map that claims it is written to the file's mark, the
//! program is answered. So a daemon that is killed has lost nothing that it acknowledged, and a block whose claim was
//! not written shows the lower's data still. A power cut may keep the claim and lose the data, which the filesystem
//! writes later: so a claim counts after a restart of the machine only where it says that the data is durable,
//! which is written after the data was synced, or where the file has the data: the filesystem writes it before it says so.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use super::super::error::{Error, Result};
use super::super::file::{Written, write_fully};
use super::Registry;
use crate::layer::RealFile;
use crate::layer::format::{BlockMap, PartialRecord};
use crate::layer::upper::Upper;
use crate::sys::sync::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Mutex, RwLock};

/// How large a mark may grow before gaps are filled: ext4 keeps all xattrs of a file in one block of 4 KiB, and programs want to set
/// some as well.
const MARK_LIMIT: usize = 2048;

/// For whom a map is written, where it does not fit unless blocks are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// A program that changes the file, and with it the times and capabilities.
    Program,
    /// What makes durable that which programs wrote. `filling` is held for writing, as attributes are put back.
    Settling,
    /// The same where the rest is copied by somebody else, or not to be copied now: a file all of which would have to be copied is
    /// left as it is.
    Background,
}

/// A partial file. Operations take `state`, shared where they leave the map alone, and nothing else while they hold it; it is held
/// across the copying of the blocks that one operation needs. What changes data or attributes and leaves the map alone takes
/// `filling` before, shared, and so waits for the background, which readers of the data do not.
#[derive(Debug)]
pub(crate) struct Partial {
    /// Immutable.
    pub(super) upper: Arc<Upper>,
    /// Immutable: where it is known by its number until it is complete.
    pub(super) registry: Weak<Registry>,
    /// Immutable: the upper file, open for both.
    pub(super) file: File,
    /// Immutable: inode number of the upper file.
    pub(super) real_ino: u64,
    /// Immutable: the lower file, unless it is not there any more.
    pub(super) lower: Option<RealFile>,
    /// What the mark said at first; of that all but `limit`, `truncating` and `map` stays.
    pub(super) record: PartialRecord,
    /// `volatile` or `fsync=0`. Immutable.
    pub(super) no_sync: bool,
    /// See above. Held for writing while blocks are filled and the attributes that this changes are put back.
    pub(super) filling: RwLock<()>,
    /// See above.
    pub(super) state: RwLock<State>,
    /// Blocks that were filled and are not claimed yet. Changed while `state` is held, upgradable or for writing.
    pub(super) filled: Mutex<Vec<Range<u64>>>,
    /// Why nothing can be read any more; set once.
    broken: OnceLock<String>,
    /// How large the mark may be. Atomic, changed under `state`.
    mark_limit: AtomicUsize,
    /// It has its attributes and its place: until then nobody may fill blocks, which puts back the attributes that it finds.
    /// Atomic.
    pub(super) ready: AtomicBool,
    /// The same as `done` in `state`, for who must not wait. Atomic.
    pub(super) whole: AtomicBool,
    /// An error of the completion in the background, for the next fsync. Atomic.
    pub(super) failed: AtomicI32,
    /// Bytes of the lower that a change of a part of a block needed, since they were last taken. Atomic.
    copied: AtomicU64,
    /// Immutable: what `changed` counts from.
    begin: Instant,
    /// Milliseconds until the last change by a program. Atomic.
    changed: AtomicU64,
}

/// The changing part of a partial file.
#[derive(Debug)]
pub(super) struct State {
    /// The blocks that are in the upper.
    pub(super) map: BlockMap,
    /// The lower's data counts below this offset.
    pub(super) limit: u64,
    /// Everything is in the upper, and the marks are gone.
    pub(super) done: bool,
}

impl Partial {
    pub(super) fn new(
        (upper, registry): (Arc<Upper>, Weak<Registry>),
        file: File,
        real_ino: u64,
        lower: Option<RealFile>,
        record: PartialRecord,
        no_sync: bool,
    ) -> Partial {
        let state = State {
            map: record.map.clone(),
            limit: record.limit,
            done: false,
        };
        Partial {
            upper,
            registry,
            file,
            real_ino,
            lower,
            record,
            no_sync,
            filling: RwLock::new(()),
            state: RwLock::new(state),
            filled: Mutex::new(Vec::new()),
            broken: OnceLock::new(),
            mark_limit: AtomicUsize::new(MARK_LIMIT),
            ready: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            failed: AtomicI32::new(0),
            copied: AtomicU64::new(0),
            begin: Instant::now(),
            changed: AtomicU64::new(0),
        }
    }

    /// Nothing can be read or written from now on.
    pub(super) fn set_broken(&self, why: String) {
        if self.broken.set(why.clone()).is_ok() {
            log::error!(
                "the partially copied-up file {:?} (inode {}) answers EIO: {why}",
                self.record.path,
                self.real_ino
            );
        }
    }

    /// An error where the file cannot be used.
    pub(crate) fn usable(&self) -> Result<()> {
        match self.broken.get() {
            Some(why) => Err(Error::Corrupt(format!("{:?}: {why}", self.record.path))),
            None => Ok(()),
        }
    }

    /// Everything is in the upper. Told without waiting for who copies.
    pub(crate) fn is_done(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// Seconds since the last change by a program.
    pub(super) fn quiet_for(&self) -> std::time::Duration {
        let changed = std::time::Duration::from_millis(self.changed.load(Ordering::Relaxed));
        self.begin.elapsed().saturating_sub(changed)
    }

    pub(super) fn touch(&self) {
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.changed.store(now, Ordering::Relaxed);
    }

    /// Bytes of the lower that are not here yet, and of those that count at all.
    pub(crate) fn missing(&self) -> (u64, u64) {
        let state = self.state.read();
        if state.done {
            return (0, 0);
        }
        let present = state.map.count() << self.record.block_shift;
        (state.limit.saturating_sub(present), state.limit)
    }

    /// Runs what reads or changes attributes that filling blocks has to keep, apart from that. Not to be nested.
    pub(crate) fn beside_fill<T>(&self, change: impl FnOnce() -> T) -> T {
        let _filling = self.filling.read();
        change()
    }

    /// Whether an xattr, by its name on disk, is one of ours that programs are not to see, although such names are theirs.
    pub(crate) fn is_own_xattr(&self, name: &OsStr) -> Result<bool> {
        let _state = self.state.read();
        Ok(self.upper.is_shadow(&self.file, name)?)
    }

    /// The names of the xattrs that `list` finds, without ours. At one time: between two, the completion may take ours away, and what
    /// was listed would be told apart no longer.
    pub(crate) fn other_xattrs(
        &self,
        list: impl FnOnce() -> io::Result<Vec<OsString>>,
    ) -> Result<Vec<OsString>> {
        let _filling = self.filling.read();
        let _state = self.state.read();
        let mut names = list()?;
        let mut failed = Ok(());
        names.retain(|name| match self.upper.is_shadow(&self.file, name) {
            Ok(own) => !own,
            Err(e) => {
                failed = Err(e);
                false
            }
        });
        failed?;
        Ok(names)
    }

    /// Makes way for a program that sets such an xattr itself.
    pub(crate) fn give_xattr_up(&self, name: &OsStr) -> Result<()> {
        let _state = self.state.write();
        if self.upper.is_shadow(&self.file, name)? {
            self.upper.unshadow_partial(&self.file)?;
        }
        Ok(())
    }

    pub(super) fn block(&self) -> u64 {
        1 << self.record.block_shift
    }

    /// The blocks that a range of bytes touches, as far as the lower's data counts.
    pub(super) fn blocks(&self, bytes: Range<u64>, limit: u64) -> Range<u64> {
        let end = bytes.end.min(limit);
        if bytes.start >= end {
            return 0..0;
        }
        bytes.start >> self.record.block_shift..end.div_ceil(self.block())
    }

    /// The lower, as it was when it was copied up.
    pub(super) fn lower(&self) -> Result<&RealFile> {
        self.usable()?;
        let Some(lower) = &self.lower else {
            return Err(Error::Errno(libc::EIO));
        };
        if let Some(file) = lower.as_file() {
            let now = file.metadata()?;
            let mtime = (now.mtime(), now.mtime_nsec());
            let then = self.record.lower_mtime;
            if now.size() != self.record.lower_size || mtime != (then.sec, i64::from(then.nsec)) {
                self.set_broken("the lower file was changed".into());
                self.usable()?;
            }
        }
        Ok(lower)
    }

    /// Reads all of a range of the lower.
    pub(super) fn read_lower(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let n = self.lower()?.read_at(buf, offset)?;
        if n < buf.len() {
            self.set_broken("the lower file is shorter than it was".into());
            return Err(Error::Errno(libc::EIO));
        }
        Ok(())
    }

    /// Reads; fewer bytes than asked only at the end of the file.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.usable()?;
        let state = self.state.read();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let rest = &mut buf[done..];
            if state.done || at >= state.limit {
                return Ok(done + read_fully(&self.file, rest, at)?);
            }
            let (present, next) = state.map.at(at >> self.record.block_shift);
            let end = next
                .saturating_mul(self.block())
                .min(state.limit)
                .min(at + rest.len() as u64);
            let part = &mut rest[..(end - at) as usize];
            if present {
                let n = read_fully(&self.file, part, at)?;
                if n < part.len() {
                    return Ok(done + n);
                }
            } else {
                self.read_lower(part, at)?;
            }
            done += (end - at) as usize;
        }
        Ok(done)
    }

    /// Writes as much as goes.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<Written> {
        self.usable()?;
        self.touch();
        let end = offset + data.len() as u64;
        let _filling = self.filling.read();
        {
            let state = self.state.read();
            let there = state.done || state.map.has(self.blocks(offset..end, state.limit));
            if there && !self.lacks_last(&state, end) {
                return Ok(write_fully(&self.file, data, offset));
            }
        }
        let mut state = self.state.write();
        self.claim_filled(&mut state, For::Program)?;
        self.fill_last(&mut state, end)?;
        let blocks = self.blocks(offset..end, state.limit);
        if state.done || state.map.has(blocks.clone()) {
            return Ok(write_fully(&self.file, data, offset));
        }
        self.copy_edges(&state, offset..end)?;
        let written = write_fully(&self.file, data, offset);
        let reached = offset + written.bytes as u64;
        let claimed = if reached >= end.min(state.limit) {
            blocks
        } else {
            // The rest of the last block is not there.
            blocks.start..(reached >> self.record.block_shift).max(blocks.start)
        };
        let taken = if written.error.is_none() {
            written.bytes
        } else {
            let boundary = claimed.end << self.record.block_shift;
            (boundary.clamp(offset, reached) - offset) as usize
        };
        if taken > 0 {
            self.claim(&mut state, claimed)?;
        }
        Ok(Written {
            bytes: taken,
            error: written.error,
        })
    }

    /// How many bytes of the lower were copied for changes since this was last asked.
    pub(crate) fn take_copied(&self) -> u64 {
        self.copied.swap(0, Ordering::Relaxed)
    }

    /// Copies the first and the last block that a change of this range touches, where it leaves something of them. All of such a
    /// block: the filesystem may write it back before the change is made, and after a power cut it must not be half a block.
    pub(super) fn copy_edges(&self, state: &State, bytes: Range<u64>) -> Result<()> {
        let blocks = self.blocks(bytes.clone(), state.limit);
        let shift = self.record.block_shift;
        let copy = |block: u64| -> Result<()> {
            if state.map.at(block).0 {
                return Ok(());
            }
            let part = block << shift..((block + 1) << shift).min(state.limit);
            let mut buf = vec![0; (part.end - part.start) as usize];
            self.read_lower(&mut buf, part.start)?;
            let changed = part.start.max(bytes.start)..part.end.min(bytes.end);
            let copied = (part.end - part.start) - (changed.end - changed.start);
            self.copied.fetch_add(copied, Ordering::Relaxed);
            Ok(self.file.write_all_at(&buf, part.start)?)
        };
        if blocks.is_empty() {
            return Ok(());
        }
        let last = blocks.end - 1;
        if bytes.start > blocks.start << shift {
            copy(blocks.start)?;
        }
        let end = (blocks.end << shift).min(state.limit);
        if bytes.end < end && (last > blocks.start || bytes.start == blocks.start << shift) {
            copy(last)?;
        }
        Ok(())
    }

    /// Records that blocks are here. Their data was written before.
    pub(super) fn claim(&self, state: &mut State, blocks: Range<u64>) -> Result<()> {
        let mut map = state.map.clone();
        map.add(blocks, self.no_sync);
        self.store(state, map, For::Program)
    }

    /// Fills what was made a hole of the first and the last block, where the filesystem's blocks are smaller: a block with a hole in
    /// it is taken for one that was never written.
    pub(super) fn write_zeros(
        &self,
        state: &State,
        blocks: &Range<u64>,
        zeros: &Range<u64>,
    ) -> Result<()> {
        let shift = self.record.block_shift;
        for block in [blocks.start, blocks.end - 1] {
            let all = block << shift..((block + 1) << shift).min(state.limit);
            let part = all.start.max(zeros.start)..all.end.min(zeros.end);
            if part != all && !part.is_empty() {
                let data = vec![0; (part.end - part.start) as usize];
                self.file.write_all_at(&data, part.start)?;
            }
        }
        Ok(())
    }

    /// Records that blocks are here, of which those wholly within `zeros` were made holes. That is a change of metadata: it survives
    /// whatever its record survives.
    pub(super) fn claim_zeros(
        &self,
        state: &mut State,
        blocks: Range<u64>,
        zeros: Range<u64>,
    ) -> Result<()> {
        let mut map = state.map.clone();
        let end = if zeros.end >= state.limit {
            blocks.end
        } else {
            zeros.end >> self.record.block_shift
        };
        let inner = zeros.start.div_ceil(self.block())..end.min(blocks.end);
        if self.upper.shows_written() && !inner.is_empty() {
            let mut durable = BlockMap::default();
            durable.add(inner.clone(), true);
            map.add(inner, true);
            // What was written there before, and may not be on disk, is no longer asked for.
            map.settle(&durable);
        }
        map.add(blocks, self.no_sync);
        self.store(state, map, For::Program)
    }

    pub(super) fn encoded(
        &self,
        map: BlockMap,
        limit: u64,
        truncating: Option<u64>,
    ) -> PartialRecord {
        PartialRecord {
            map,
            limit,
            truncating,
            ..self.record.clone()
        }
    }

    /// Writes a map to the mark, and takes it for true from then on. Where it does not fit its smallest gaps are filled; where not
    /// even the smallest map does, all of the file, which is whole then.
    pub(super) fn store(&self, state: &mut State, mut map: BlockMap, whom: For) -> Result<()> {
        loop {
            let gaps = map.gaps();
            let smallest = gaps.is_empty() && map.is_durable();
            let record = self.encoded(map.clone(), state.limit, None);
            let limit = self.mark_limit.load(Ordering::Relaxed);
            let size = record.encode().len();
            let refused = if size > limit && !smallest {
                None
            } else {
                match self.upper.write_partial(&self.file, &record) {
                    Ok(()) => {
                        state.map = map;
                        return Ok(());
                    }
                    // No room beside the file's other xattrs, or none on the disk.
                    Err(e) if is_too_long(&e) => Some(e),
                    Err(e) => return Err(e.into()),
                }
            };
            if let Some(e) = refused {
                if smallest && (whom == For::Background || self.lacks_room_for(state, &map)?) {
                    return Err(e.into());
                }
                self.mark_limit.store(size * 3 / 4, Ordering::Relaxed);
            }
            let mut fill = || -> Result<()> {
                // What was written before and is not claimed yet must not be copied over. Few at once, though that is oftener: a
                // program waits for it, and the smallest eighth of many gaps is but a twentieth of what is in the smaller half.
                for gap in gaps.iter().take(gaps.len().div_ceil(8)) {
                    self.fill(state, &map, gap.clone())?;
                    map.add(gap.clone(), false);
                }
                if smallest {
                    self.fill_rest(state, &mut map)?;
                }
                Ok(())
            };
            match whom {
                For::Program => fill()?,
                For::Settling | For::Background => self.keeping_attributes(fill)?,
            }
            if !self.no_sync {
                self.upper.settle_names()?;
                self.file.sync_data()?;
            }
            if smallest {
                return self.finish(state);
            }
            map.settle(&map.clone());
        }
    }

    /// Makes what was written durable, and then the map that claims it.
    pub(crate) fn sync(&self, data_only: bool) -> Result<()> {
        self.usable()?;
        let failed = self.failed.swap(0, Ordering::Relaxed);
        self.settle(data_only)?;
        if failed == 0 {
            Ok(())
        } else {
            Err(Error::Errno(failed))
        }
    }

    /// The same without a word of what went wrong before.
    pub(super) fn settle(&self, data_only: bool) -> Result<()> {
        let (map, done) = {
            let state = self.state.read();
            (state.map.clone(), state.done)
        };
        if done || map.is_durable() {
            // The mark is not part of the data.
            if data_only && done {
                self.file.sync_data()?;
            } else {
                self.file.sync_all()?;
            }
        } else {
            self.file.sync_data()?;
            {
                let _filling = self.filling.write();
                let mut state = self.state.write();
                if !state.done {
                    let mut settled = state.map.clone();
                    settled.settle(&map);
                    self.store(&mut state, settled, For::Settling)?;
                }
            }
            self.file.sync_all()?;
        }
        Ok(())
    }

    /// Whether there are claims that a power cut may undo.
    pub(super) fn is_unsettled(&self) -> bool {
        let state = self.state.read();
        !state.done && !state.map.is_durable()
    }
}

/// The errors of filesystems for an xattr that does not fit.
pub(super) fn is_too_long(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::ENOSPC | libc::E2BIG | libc::ERANGE | libc::EDQUOT)
    )
}

/// Reads; fewer bytes than asked only at the end of the file, which the kernel takes them for.
fn read_fully(file: &File, buf: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}
