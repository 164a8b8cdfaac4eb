//! Which blocks of a partially copied-up file are in the upper.
//!
//! Runs of blocks rather than a bitmap: a file of any size that was changed in few places has a map of few bytes, which
//! fits into an xattr of the file itself. A map that does not is made to fit by filling gaps (see the union's
//! `partial` module), so that it never has to lie anywhere else.

use std::ops::Range;

/// Blocks that are in the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u64,
    end: u64,
    /// Their data is on disk. Otherwise it is only if the machine was not restarted since.
    durable: bool,
}

/// The blocks of a file that are in the upper, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockMap {
    /// In order, not empty, apart; neighbours that touch differ in `durable`.
    runs: Vec<Run>,
}

impl BlockMap {
    /// Whether all blocks of the range are present.
    pub fn has(&self, range: Range<u64>) -> bool {
        self.next_absent(range).is_none()
    }

    /// The run that a block lies in: whether it is present, and where the next one of another kind begins (`u64::MAX` for never).
    pub fn at(&self, block: u64) -> (bool, u64) {
        let next = self.runs.partition_point(|run| run.end <= block);
        let mut runs = self.runs[next..].iter();
        match runs.next() {
            None => (false, u64::MAX),
            Some(run) if block < run.start => (false, run.start),
            Some(run) => {
                let mut end = run.end;
                for run in runs {
                    if run.start != end {
                        break;
                    }
                    end = run.end;
                }
                (true, end)
            }
        }
    }

    /// The first absent blocks in the range.
    pub fn next_absent(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut at = range.start;
        while at < range.end {
            let (present, end) = self.at(at);
            if !present {
                return Some(at..end.min(range.end));
            }
            at = end;
        }
        None
    }

    /// Makes absent blocks of the range present; those that are stay as durable as they are.
    pub fn add(&mut self, range: Range<u64>, durable: bool) {
        let mut at = range.start;
        let mut new = Vec::new();
        while let Some(absent) = self.next_absent(at..range.end) {
            at = absent.end;
            new.push(Run {
                start: absent.start,
                end: absent.end,
                durable,
            });
        }
        self.runs.extend(new);
        self.normalise();
    }

    /// Forgets the blocks from `end` on.
    pub fn cut(&mut self, end: u64) {
        for run in &mut self.runs {
            run.end = run.end.min(end);
        }
        self.runs.retain(|run| run.start < run.end);
    }

    /// Forgets what is not durable.
    pub fn keep_durable(&mut self) {
        self.runs.retain(|run| run.durable);
    }

    /// The runs of present blocks that are not durable.
    pub fn unsettled(&self) -> Vec<Range<u64>> {
        self.runs
            .iter()
            .filter(|run| !run.durable)
            .map(|run| run.start..run.end)
            .collect()
    }

    /// What is present in both is durable from now on.
    pub fn settle(&mut self, synced: &BlockMap) {
        let mut runs = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let mut at = run.start;
            while at < run.end {
                let (was, end) = synced.at(at);
                let end = end.min(run.end);
                runs.push(Run {
                    start: at,
                    end,
                    durable: run.durable || was,
                });
                at = end;
            }
        }
        self.runs = runs;
        self.normalise();
    }

    /// Whether all that is present is durable.
    pub fn is_durable(&self) -> bool {
        self.runs.iter().all(|run| run.durable)
    }

    /// How many blocks are present.
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// The gaps between present blocks, smallest first.
    pub fn gaps(&self) -> Vec<Range<u64>> {
        let mut gaps: Vec<Range<u64>> = self
            .runs
            .windows(2)
            .map(|pair| pair[0].end..pair[1].start)
            .filter(|gap| !gap.is_empty())
            .collect();
        gaps.sort_by_key(|gap| gap.end - gap.start);
        gaps
    }

    fn normalise(&mut self) {
        self.runs.sort_by_key(|run| run.start);
        self.runs.dedup_by(|next, run| {
            let joins = run.end == next.start && run.durable == next.durable;
            if joins {
                run.end = next.end;
            }
            joins
        });
    }

    /// Appends the map: for each run the distance from the end of the one before and its length, the lowest bit of which says
    /// whether it is durable; each as a number of seven bits a byte, lowest first.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut before = 0;
        for run in &self.runs {
            put_number(out, run.start - before);
            put_number(out, (run.end - run.start) << 1 | u64::from(run.durable));
            before = run.end;
        }
    }

    /// The reverse of `encode`; `None` when that did not write it.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<BlockMap> {
        let mut runs: Vec<Run> = Vec::new();
        let mut before = 0_u64;
        while !bytes.is_empty() {
            let start = before.checked_add(take_number(&mut bytes)?)?;
            let word = take_number(&mut bytes)?;
            let end = start.checked_add(word >> 1)?;
            let run = Run {
                start,
                end,
                durable: word & 1 != 0,
            };
            let joins = runs
                .last()
                .is_some_and(|last| last.end == start && last.durable == run.durable);
            if start == end || joins {
                return None;
            }
            before = end;
            runs.push(run);
        }
        Some(BlockMap { runs })
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            // The shortest form is the only one.
            return (*byte != 0 || shift == 0).then_some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_is_where_it_was_put() {
        let mut map = BlockMap::default();
        assert_eq!(map.at(7), (false, u64::MAX));
        map.add(4..6, false);
        map.add(8..9, false);
        assert_eq!(map.at(0), (false, 4));
        assert_eq!(map.at(5), (true, 6));
        assert_eq!(map.at(6), (false, 8));
        assert_eq!(map.next_absent(4..20), Some(6..8));
        assert!(map.has(4..6) && !map.has(4..7) && map.has(3..3));
        assert_eq!(map.gaps(), vec![6..8]);
        map.add(6..8, true);
        assert_eq!(map.at(4), (true, 9));
        assert_eq!(map.count(), 5);
        map.keep_durable();
        assert_eq!(map.at(0), (false, 6));
        map.cut(7);
        assert_eq!(map.count(), 1);
    }

    #[test]
    fn only_what_was_synced_is_settled() {
        let mut map = BlockMap::default();
        map.add(0..4, false);
        let synced = map.clone();
        map.add(8..9, false);
        map.cut(3);
        map.add(5..6, false);
        map.settle(&synced);
        assert!(!map.is_durable());
        assert_eq!(map.unsettled(), vec![5..6]);
        map.keep_durable();
        assert_eq!(map.count(), 3);
    }

    #[test]
    fn what_nobody_wrote_is_no_map() {
        for bytes in [
            &[0_u8][..],
            &[0, 0],
            &[0, 1],
            &[0x80],
            &[0x80, 0, 2],
            &[0, 2, 0, 2],
            &[0xff; 24],
        ] {
            assert_eq!(BlockMap::decode(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn a_map_agrees_with_a_list_of_its_blocks(
            steps in prop::collection::vec((0_u64..200, 1_u64..40, any::<bool>(), 0_u8..8), 0..40)
        ) {
            // 0 absent, 1 present, 2 durable.
            let mut model = vec![0_u8; 256];
            let mut map = BlockMap::default();
            for (start, len, durable, kind) in steps {
                match kind {
                    0 => {
                        map.cut(start);
                        model[start as usize..].fill(0);
                    }
                    1 => {
                        let mut synced = BlockMap::default();
                        synced.add(start..start + len, false);
                        map.settle(&synced);
                        for block in &mut model[start as usize..(start + len) as usize] {
                            if *block == 1 {
                                *block = 2;
                            }
                        }
                    }
                    2 => {
                        map.keep_durable();
                        for block in &mut model {
                            if *block == 1 {
                                *block = 0;
                            }
                        }
                    }
                    _ => {
                        map.add(start..start + len, durable);
                        for block in &mut model[start as usize..(start + len) as usize] {
                            if *block == 0 {
                                *block = 1 + u8::from(durable);
                            }
                        }
                    }
                }
                for (block, kind) in model.iter().enumerate() {
                    prop_assert_eq!(map.at(block as u64).0, *kind != 0);
                }
                prop_assert_eq!(map.is_durable(), !model.contains(&1));
                prop_assert_eq!(map.count(), model.iter().filter(|b| **b != 0).count() as u64);
                let mut bytes = Vec::new();
                map.encode(&mut bytes);
                prop_assert_eq!(BlockMap::decode(&bytes), Some(map.clone()));
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(map) = BlockMap::decode(&bytes) {
                let mut again = Vec::new();
                map.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
