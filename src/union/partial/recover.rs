//! What counts of a partial file that the mount before left.
//!
//! A claim that was synced counts. Another one counts where the daemon alone was killed; after a power cut the data may be
//! missing that it is about. But the common filesystems say that a file has data, rather than a hole or room for some, only once it
//! was written. There a block that is all data is as some write left it, and what a program wrote survives a `sync`, of
//! which no word reaches the daemon.

use std::ops::Range;

use super::super::error::Result;
use super::file::{For, Partial, State};
use super::space::seek;

impl Partial {
    /// Puts right what the end of the mount before may have left. `lost`: what was not durable may not be there; `found`: other
    /// readers can find the data below.
    pub(super) fn recover(&self, lost: bool, found: bool) -> Result<()> {
        if found {
            self.upper.hide_partial(&self.file)?;
        }
        self.restore_left()?;
        let mut state = self.state.write();
        if lost {
            self.keep_written(&mut state)?;
        }
        if let Some(size) = self.record.truncating {
            self.file.set_len(size)?;
            return self.cut(&mut state, size);
        }
        if self.file.metadata()?.len() < state.limit {
            self.set_broken("the upper file is shorter than its block map says".into());
        } else if self.lower.is_none() {
            self.set_broken("the lower file is gone".into());
        } else if lost {
            let map = state.map.clone();
            // The registry is held: the file cannot be finished here.
            self.store(&mut state, map, For::Background)?;
        }
        drop(state);
        // Tells now rather than at the first read where the lower was changed.
        if self.usable().is_ok() && self.lower().is_err() {
            log::debug!("{:?} cannot be used", self.record.path);
        }
        Ok(())
    }

    /// Forgets the claims whose data was lost, and any data that nothing claims: at the next power cut it would be taken for what a
    /// later claim is about.
    fn keep_written(&self, state: &mut State) -> Result<()> {
        let shift = self.record.block_shift;
        let mut kept = state.map.clone();
        kept.keep_durable();
        if !self.upper.shows_written() {
            state.map = kept;
            return Ok(());
        }
        // Shorter where a truncation was under way.
        let end = state.limit.min(self.file.metadata()?.len());
        for run in state.map.unsettled() {
            for block in run {
                let bytes = block << shift..((block + 1) << shift).min(end);
                if !bytes.is_empty() && self.is_data(&bytes)? {
                    kept.add(block..block + 1, false);
                }
            }
        }
        let mut at = 0;
        self.keeping_attributes(|| {
            while let Some(absent) = kept.next_absent(at..end.div_ceil(self.block())) {
                at = absent.end;
                let bytes = absent.start << shift..(absent.end << shift).min(end);
                if seek(&self.file, bytes.start, true)?.is_some_and(|data| data < bytes.end) {
                    self.make_hole(bytes)?;
                }
            }
            Ok(())
        })?;
        state.map = kept;
        Ok(())
    }

    /// Whether the upper file has data in all of a range.
    fn is_data(&self, bytes: &Range<u64>) -> Result<bool> {
        Ok(seek(&self.file, bytes.start, true)? == Some(bytes.start)
            && seek(&self.file, bytes.start, false)?.is_none_or(|hole| hole >= bytes.end))
    }
}
