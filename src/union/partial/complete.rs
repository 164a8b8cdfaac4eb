//! Completing a partial file: the rest of its blocks is copied, made durable, and the marks go.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;

use super::super::error::{Error, Result};
use super::file::{For, Partial, State, is_too_long};
use crate::layer::format::BlockMap;
use crate::sys::sync::sleep;
use crate::sys::writeback;

/// How much is copied while programs that write to the file wait.
const STEP: u64 = 256 << 10;

/// The same in the background. A kernel that is not preemptible, and one that lets whoever runs finish its slice whatever its
/// priority, have others wait for the processor as long as one such step takes.
const GENTLE_STEP: u64 = 64 << 10;

/// How much is zeroed at once where no hole can be made.
const ZEROES: u64 = 1 << 20;

/// After so much the disk is asked to write, so that no large amount gathers that others then wait behind.
const FLUSH: u64 = 8 << 20;

/// The same in the background, where the disk is to have little to do at once.
const GENTLE_FLUSH: u64 = 1 << 20;

/// So many times as long as a step in the background took, nothing is done after it. On two processors and one disk, whoever
/// takes half of either shows in what the slowest hundredth of other operations take.
const REST: u32 = 3;

/// But no longer after a copy, which takes long only where it has to wait for a processor itself.
const REST_OF_COPY: Duration = Duration::from_millis(1);

/// Nor after the disk was waited for, which may have been held up by others.
const REST_OF_FLUSH: Duration = Duration::from_millis(60);

/// How a completion went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// The file is whole.
    Done,
    /// It lost its last name before.
    Gone,
    /// It was asked to stop.
    Stopped,
}

/// How a completion behaves.
pub(crate) struct Pace<'a> {
    /// Leaves most of the processor and of the disk to others.
    pub(crate) gently: bool,
    /// Asked before each step.
    pub(crate) stop: &'a dyn Fn() -> bool,
}

impl Partial {
    /// Copies the rest of the file from the lower; returns when it is whole and durable.
    pub(super) fn complete(&self, pace: &Pace<'_>) -> Result<Completion> {
        self.usable()?;
        let (step, flush) = if pace.gently {
            (GENTLE_STEP, GENTLE_FLUSH)
        } else {
            (STEP, FLUSH)
        };
        let mut buf = vec![0; step as usize];
        let mut flushed = 0;
        let mut at = 0;
        if self.file.metadata()?.nlink() > 0 {
            self.await_room(pace)?;
        }
        loop {
            if (pace.stop)() {
                return Ok(Completion::Stopped);
            }
            if self.file.metadata()?.nlink() == 0 {
                return Ok(Completion::Gone);
            }
            let begin = Instant::now();
            match self.step(at, &mut buf)? {
                Some(next) => at = next,
                None => break,
            }
            let copied = begin.elapsed();
            if at.saturating_sub(flushed) >= flush {
                self.claim_in_background()?;
                self.flush(flushed..at)?;
                flushed = at;
                if self.lacks_room(pace)? {
                    return Err(Error::Errno(libc::ENOSPC));
                }
            }
            if pace.gently {
                let waited = begin.elapsed().saturating_sub(copied);
                sleep((copied * REST).min(REST_OF_COPY) + (waited * REST).min(REST_OF_FLUSH));
            }
        }
        self.claim_in_background()?;
        if !self.no_sync {
            self.upper.settle_names()?;
            self.file.sync_data()?;
        }
        let mut state = self.state.write();
        if !state.done {
            let blocks = state.limit.div_ceil(self.block());
            let mut map = state.map.clone();
            for blocks in self.filled.lock().iter() {
                map.add(blocks.clone(), true);
            }
            if !map.has(0..blocks) {
                return Err(Error::Corrupt("a block went missing".into()));
            }
            self.finish(&mut state)?;
        }
        Ok(Completion::Done)
    }

    /// Claims what was filled, so that the next mount need not copy it again. Where the map has no room that is done without: it
    /// goes when the last block is here.
    fn claim_in_background(&self) -> Result<()> {
        let _filling = self.filling.write();
        match self.claim_filled(&mut self.state.write(), For::Background) {
            Err(Error::Io(e)) if is_too_long(&e) => {
                log::debug!("{:?} has no room for its map: {e}", self.record.path);
                Ok(())
            }
            other => other,
        }
    }

    /// Keeps what is dirty in the page cache small. Without a commit of the journal, which would have programs wait that change
    /// anything on that filesystem: what is copied becomes durable at the end.
    fn flush(&self, range: Range<u64>) -> io::Result<()> {
        if self.no_sync {
            return Ok(());
        }
        let (file, len) = (self.file.as_fd(), range.end - range.start);
        writeback::begin(file, range.start, len)?;
        writeback::finish(file, range.start, len)
    }

    /// Whether the rest does not fit on the disk, which is not filled in vain then. What the administrator alone may use is left
    /// alone unless the completion was asked for.
    fn lacks_room(&self, pace: &Pace<'_>) -> Result<bool> {
        self.lacks_room_of(self.missing().0, pace.gently)
    }

    /// The same for what a map lacks, and for a program that waits for it.
    pub(super) fn lacks_room_for(&self, state: &State, map: &BlockMap) -> Result<bool> {
        let present = map.count() << self.record.block_shift;
        self.lacks_room_of(state.limit.saturating_sub(present), false)
    }

    fn lacks_room_of(&self, missing: u64, gently: bool) -> Result<bool> {
        let below = match self.lower()?.as_file() {
            Some(lower) => lower.metadata()?.blocks().saturating_mul(512),
            None => missing,
        };
        let fs = rustix::fs::fstatvfs(&self.file).map_err(io::Error::from)?;
        let free = if gently { fs.f_bavail } else { fs.f_bfree };
        Ok(missing.min(below) > free.saturating_mul(fs.f_frsize))
    }

    /// Fails where the rest does not fit. The kernel and the filesystem give back the room of a removed file a moment later.
    fn await_room(&self, pace: &Pace<'_>) -> Result<()> {
        for _ in 0..10 {
            if !self.lacks_room(pace)? {
                return Ok(());
            }
            if pace.gently || (pace.stop)() {
                break;
            }
            sleep(Duration::from_millis(50));
        }
        Err(Error::Errno(libc::ENOSPC))
    }

    /// Copies the next absent blocks at or after `at`; returns where they ended, or `None` when there are none. They are claimed
    /// later, many at once: until then they show the same data from below.
    fn step(&self, at: u64, buf: &mut [u8]) -> Result<Option<u64>> {
        let shift = self.record.block_shift;
        let absent = {
            let state = self.state.read();
            if state.done {
                return Ok(None);
            }
            let blocks = state.limit.div_ceil(self.block());
            match state.map.next_absent(at >> shift..blocks) {
                Some(absent) => (absent.start << shift)..(absent.end << shift).min(state.limit),
                None => return Ok(None),
            }
        };
        // Read before programs have to wait: the lower does not change.
        let (data, end) = self.read_next(&absent, buf)?;
        // Who reads the file goes on meanwhile.
        let _filling = self.filling.write();
        let state = self.state.upgradable_read();
        if state.done {
            return Ok(None);
        }
        let bytes = absent.start..end.min(state.limit);
        let mut from = bytes.start >> shift;
        let last = bytes.end.div_ceil(self.block());
        self.keeping_attributes(|| {
            while let Some(blocks) = state.map.next_absent(from..last) {
                from = blocks.end;
                let part = blocks.start << shift..(blocks.end << shift).min(bytes.end);
                if part.is_empty() {
                    break;
                }
                match data {
                    Some(data) => {
                        let offset = (part.start - absent.start) as usize;
                        let len = (part.end - part.start) as usize;
                        self.file
                            .write_all_at(&data[offset..offset + len], part.start)?;
                    }
                    None => self.make_hole(part)?,
                }
                self.add_filled(blocks);
            }
            Ok(())
        })?;
        // On a block: a file that ends within one would find its last block, which is not claimed yet, absent for ever.
        Ok(Some(end.next_multiple_of(self.block())))
    }

    /// Remembers blocks to be claimed. Precondition: `state` is held so that nobody else changes the file.
    fn add_filled(&self, blocks: Range<u64>) {
        let mut filled = self.filled.lock();
        match filled.last_mut() {
            Some(last) if last.end == blocks.start => last.end = blocks.end,
            _ => filled.push(blocks),
        }
    }

    /// Claims what was filled and is not claimed yet. Before a program changes anything there: half of a failed change is not to be
    /// claimed.
    pub(super) fn claim_filled(&self, state: &mut State, whom: For) -> Result<()> {
        let mut filled = self.filled.lock();
        if filled.is_empty() || state.done {
            filled.clear();
            return Ok(());
        }
        let mut map = state.map.clone();
        let last = state.limit.div_ceil(self.block());
        for blocks in filled.iter().filter(|blocks| blocks.start < last) {
            map.add(blocks.start..blocks.end.min(last), self.no_sync);
        }
        self.store(state, map, whom)?;
        filled.clear();
        Ok(())
    }

    /// The data at the beginning of a range of the lower, as far as `buf` goes, and where it ends, on a block; `None` for a hole.
    fn read_next<'a>(
        &self,
        range: &Range<u64>,
        buf: &'a mut [u8],
    ) -> Result<(Option<&'a [u8]>, u64)> {
        let lower = self.lower()?;
        let mut end = range.end;
        if let Some(fd) = lower.as_fd() {
            match rustix::fs::seek(fd, rustix::fs::SeekFrom::Data(range.start)) {
                Ok(data) => {
                    // A block that has both is data.
                    let data = (data >> self.record.block_shift) << self.record.block_shift;
                    if data > range.start {
                        return Ok((None, data.min(end)));
                    }
                }
                Err(rustix::io::Errno::NXIO) => return Ok((None, end)),
                // A filesystem that knows no holes.
                Err(_) => {}
            }
        }
        end = end.min(range.start + buf.len() as u64);
        if let Some(fd) = lower.as_fd()
            && let Ok(hole) = rustix::fs::seek(fd, rustix::fs::SeekFrom::Hole(range.start))
            && hole > range.start
        {
            // The next hole stays one.
            end = end.min(hole.next_multiple_of(self.block()));
        }
        let data = &mut buf[..(end - range.start) as usize];
        self.read_lower(data, range.start)?;
        Ok((Some(data), end))
    }

    /// What is not there of the lower is not to be here either: a power cut may have left data at a block whose claim was lost.
    pub(super) fn make_hole(&self, part: Range<u64>) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, part.start, part.end - part.start) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let zeroes = vec![0; ZEROES.min(part.end - part.start) as usize];
                let mut at = part.start;
                while at < part.end {
                    let n = (part.end - at).min(ZEROES) as usize;
                    self.file.write_all_at(&zeroes[..n], at)?;
                    at += n as u64;
                }
                Ok(())
            }
            Err(e) => Err(io::Error::from(e).into()),
        }
    }

    /// Copies blocks that `map` lacks from the lower. Precondition: `state` is held for writing.
    pub(super) fn fill(&self, state: &State, map: &BlockMap, blocks: Range<u64>) -> Result<()> {
        let shift = self.record.block_shift;
        let mut at = blocks.start << shift;
        let end = (blocks.end << shift).min(state.limit);
        debug_assert!(map.next_absent(blocks.clone()) == Some(blocks));
        let mut buf = vec![0; STEP.min(end.saturating_sub(at)) as usize];
        while at < end {
            let (data, next) = self.read_next(&(at..end), &mut buf)?;
            match data {
                Some(data) => self.file.write_all_at(data, at)?,
                None => self.make_hole(at..next)?,
            }
            at = next;
        }
        Ok(())
    }

    /// Copies all that `map` lacks. Precondition: as of `fill`.
    pub(super) fn fill_rest(&self, state: &State, map: &mut BlockMap) -> Result<()> {
        let end = state.limit.div_ceil(self.block());
        while let Some(absent) = map.next_absent(0..end) {
            self.fill(state, map, absent.clone())?;
            map.add(absent, false);
        }
        Ok(())
    }

    /// Whether a change up to `end` is to leave something behind the lower's data in a block that is not here.
    pub(super) fn lacks_last(&self, state: &State, end: u64) -> bool {
        end > state.limit
            && !state.done
            && !state.limit.is_multiple_of(self.block())
            && !state.map.at(state.limit >> self.record.block_shift).0
            && self.upper.shows_written()
    }

    /// Has the block here in which the lower's data ends, before a change up to `end` leaves something behind that. After a power cut
    /// the filesystem would tell of the whole block as written where only what is behind was.
    pub(super) fn fill_last(&self, state: &mut State, end: u64) -> Result<()> {
        if !self.lacks_last(state, end) {
            return Ok(());
        }
        let block = state.limit >> self.record.block_shift;
        self.fill(state, &state.map, block..block + 1)?;
        self.claim(state, block..block + 1)
    }

    /// Takes the marks away. Precondition: all blocks are here and durable.
    pub(super) fn finish(&self, state: &mut State) -> Result<()> {
        // Whoever finds the file's marks before they go finds it in the registry, and afterwards neither.
        let registry = self.registry.upgrade();
        let mut files = registry.as_ref().map(|registry| registry.files.lock());
        self.upper.unmark_partial(&self.file)?;
        state.done = true;
        self.whole.store(true, Ordering::Release);
        if let Some(files) = &mut files
            && files.remove(&self.real_ino).is_some()
            && let Err(e) = self.upper.withdraw_partial()
        {
            log::warn!("the workdir still tells of partial files: {e}");
        }
        Ok(())
    }

    /// Remembers an error that nobody was told, for the next fsync.
    pub(super) fn remember(&self, e: &Error) {
        self.failed.store(e.errno(), Ordering::Relaxed);
    }
}
