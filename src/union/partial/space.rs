//! The size of a partial file, its holes and its data.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::FallocateFlags;

use super::super::error::{Error, Result};
use super::file::{For, Partial, State};

impl Partial {
    /// Cuts or extends the file.
    pub(crate) fn truncate(&self, size: u64) -> Result<()> {
        self.usable()?;
        self.touch();
        let mut state = self.state.write();
        self.claim_filled(&mut state, For::Program)?;
        if state.done || size >= state.limit {
            self.fill_last(&mut state, size)?;
            return Ok(self.file.set_len(size)?);
        }
        // Between the two the next mount would not know whether the size is an old or a new one.
        let record = self.encoded(state.map.clone(), state.limit, Some(size));
        self.upper.write_partial(&self.file, &record)?;
        if let Err(e) = self.file.set_len(size) {
            // The next mount would do what the program was told that it failed.
            let record = self.encoded(state.map.clone(), state.limit, None);
            self.upper.write_partial(&self.file, &record).map_err(|e| {
                self.set_broken(format!("a truncation that failed cannot be forgotten: {e}"));
                e
            })?;
            return Err(e.into());
        }
        self.cut(&mut state, size)?;
        if size == 0
            && let Err(e) = self.finish(&mut state)
        {
            // Nothing of the lower counts any more; only the marks are still there.
            log::warn!("the marks of an emptied file stay: {e}");
        }
        Ok(())
    }

    /// The lower's data counts below `size` only from now on. Precondition: the upper file is that long.
    pub(super) fn cut(&self, state: &mut State, size: u64) -> Result<()> {
        state.limit = size;
        state.map.cut(size.div_ceil(self.block()));
        let record = self.encoded(state.map.clone(), size, None);
        self.upper.write_partial(&self.file, &record).map_err(|e| {
            self.set_broken(format!("a truncation could not be recorded: {e}"));
            Error::from(e)
        })
    }

    /// As `fallocate(2)`, for the modes that FUSE passes on.
    pub(crate) fn fallocate(&self, offset: u64, length: u64, mode: u32) -> Result<()> {
        self.usable()?;
        self.touch();
        let flags = FallocateFlags::from_bits_retain(mode);
        let zeroes = FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let known = zeroes | FallocateFlags::KEEP_SIZE;
        if !known.contains(flags) {
            return Err(Error::Errno(libc::EOPNOTSUPP));
        }
        let end = offset
            .checked_add(length)
            .ok_or(Error::Errno(libc::EFBIG))?;
        let mut state = self.state.write();
        self.claim_filled(&mut state, For::Program)?;
        self.fill_last(&mut state, end)?;
        let blocks = self.blocks(offset..end, state.limit);
        let zeroes = !state.done && flags.intersects(zeroes) && !blocks.is_empty();
        if zeroes && !state.map.has(blocks.clone()) {
            self.copy_edges(&state, offset..end)?;
        }
        // Space for an absent block may be there before its data is.
        rustix::fs::fallocate(&self.file, flags, offset, length).map_err(io::Error::from)?;
        if zeroes {
            self.write_zeros(&state, &blocks, &(offset..end))?;
            self.claim_zeros(&mut state, blocks, offset..end)?;
        }
        Ok(())
    }

    /// `SEEK_DATA` (`data`) or `SEEK_HOLE`.
    pub(crate) fn seek(&self, offset: u64, data: bool) -> Result<u64> {
        self.usable()?;
        let state = self.state.read();
        let size = self.file.metadata()?.size();
        if offset >= size {
            return Err(Error::Errno(libc::ENXIO));
        }
        let mut at = offset;
        while !state.done && at < state.limit {
            let (present, next) = state.map.at(at >> self.record.block_shift);
            let end = next.saturating_mul(self.block()).min(state.limit);
            let found = if present {
                seek(&self.file, at, data)?
            } else {
                match self.lower()?.as_fd() {
                    Some(fd) => seek(fd, at, data)?,
                    None => data.then_some(at).or(Some(end)),
                }
            };
            match found {
                Some(found) if found < end => return Ok(found),
                _ => at = end,
            }
        }
        match seek(&self.file, at, data) {
            Ok(Some(found)) => Ok(found),
            Ok(None) if data => Err(Error::Errno(libc::ENXIO)),
            Ok(None) => Ok(size),
            Err(e) => Err(e.into()),
        }
    }
}

pub(super) fn seek(fd: impl AsFd, at: u64, data: bool) -> io::Result<Option<u64>> {
    use rustix::fs::SeekFrom;
    let from = if data {
        SeekFrom::Data(at)
    } else {
        SeekFrom::Hole(at)
    };
    match rustix::fs::seek(fd, from) {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
