//! Which changes are measured.

use serde::{Deserialize, Serialize};

use super::Request;
use super::changes::Change;
use super::files::{Files, Shape};

/// One thing to measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// What is done.
    pub change: Change,
    /// The size of the file in bytes; of a directory the number of files in it.
    pub size: u64,
    /// How many lower layers there are; the file is in the lowest.
    pub depth: usize,
    /// How the file lies in its layer.
    pub shape: Shape,
    /// Its data is not in the page cache.
    pub cold: bool,
    /// How many write at once, each to a file of its own.
    pub writers: usize,
    /// How many bytes of a file are changed.
    pub changed: u64,
}

impl Case {
    fn plain(change: Change, size: u64) -> Case {
        Case {
            change,
            size,
            depth: 1,
            shape: Shape::Dense,
            cold: false,
            writers: 1,
            changed: change.bytes(size),
        }
    }

    /// In a few words.
    pub fn name(&self) -> String {
        let mut text = self.change.name().to_owned();
        if self.change == Change::RenameDir {
            text.push_str(&format!(" of {} files", self.size));
        } else {
            text.push_str(&format!(", {}", super::super::report::bytes(self.size)));
        }
        if self.depth > 1 {
            text.push_str(&format!(", {} layers", self.depth));
        }
        match self.shape {
            Shape::Dense => {}
            Shape::Sparse => text.push_str(", sparse"),
            Shape::Linked => text.push_str(", hard-linked"),
        }
        if self.cold {
            text.push_str(", cold");
        }
        if self.writers > 1 {
            text.push_str(&format!(", {} writers", self.writers));
        }
        text
    }
}

/// Beyond this only the first block is written: each file costs the systems that copy it seconds.
const LARGE: u64 = 256 << 20;
/// The largest stack.
const DEEP: usize = 64;
const TREE: usize = 1000;
const WRITERS: usize = 8;
const SMALLEST: u64 = 4096;

/// 4 KiB and sixteen times as much again and again, and the largest itself; what comes close to that is left out.
fn sizes(max: u64) -> Vec<u64> {
    let mut sizes: Vec<u64> = std::iter::successors(Some(SMALLEST), |size| size.checked_mul(16))
        .take_while(|size| *size <= max / 4)
        .collect();
    sizes.push(max.max(SMALLEST));
    sizes
}

/// What to measure, and the files for it.
pub(super) fn plan(request: &Request) -> (Vec<Case>, Files) {
    let sizes = sizes(request.max_size);
    let fitting = sizes.iter().filter(|size| **size <= 4 << 20);
    let middle = fitting.max().copied().unwrap_or(SMALLEST);
    let mut cases = Vec::new();
    let growing: &[Change] = if request.quick {
        &[Change::Block, Change::Chmod]
    } else {
        &[
            Change::Block,
            Change::Append,
            Change::Truncate,
            Change::Chmod,
        ]
    };
    for change in growing {
        // What changes no data shows the same at a size that takes no minutes to copy.
        let most = match change {
            Change::Block => u64::MAX,
            _ => LARGE.max(SMALLEST),
        };
        let fitting = sizes.iter().filter(|size| **size <= most);
        cases.extend(fitting.map(|size| Case::plain(*change, *size)));
    }
    if !request.quick {
        let rest = Change::ALL
            .iter()
            .filter(|change| !growing.contains(change) && **change != Change::RenameDir);
        cases.extend(rest.map(|change| Case::plain(*change, middle)));
        cases.push(Case::plain(Change::RenameDir, TREE as u64));
        let block = Case::plain(Change::Block, middle);
        let vary = |change: fn(&mut Case)| {
            let mut case = block.clone();
            change(&mut case);
            case
        };
        cases.extend([
            vary(|case| case.depth = 8),
            vary(|case| case.depth = DEEP),
            vary(|case| case.shape = Shape::Sparse),
            vary(|case| case.shape = Shape::Linked),
            vary(|case| case.cold = true),
            vary(|case| case.writers = WRITERS),
        ]);
    }
    if !request.change.is_empty() {
        let wanted = |case: &Case| {
            let name = case.name();
            request
                .change
                .iter()
                .any(|part| name.contains(part.as_str()))
        };
        cases.retain(wanted);
    }
    let files = Files {
        sizes,
        middle,
        tree: if request.quick { 0 } else { TREE },
        small: 2000,
        depth: if request.quick { 1 } else { DEEP },
    };
    (cases, files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(max_size: u64) -> Request {
        Request {
            dir: "/".into(),
            max_size,
            rounds: 1,
            rivals: Vec::new(),
            only: Vec::new(),
            change: Vec::new(),
            quick: false,
        }
    }

    #[test]
    fn every_change_and_every_circumstance_is_there() {
        let (cases, files) = plan(&request(10 << 30));
        for change in Change::ALL {
            assert!(cases.iter().any(|case| case.change == change), "{change:?}");
        }
        assert!(cases.iter().any(|case| case.size == 10 << 30));
        assert!(cases.iter().any(|case| case.size == 4096));
        assert!(cases.iter().any(|case| case.depth == DEEP));
        assert!(cases.iter().any(|case| case.cold));
        assert!(cases.iter().any(|case| case.writers > 1));
        for case in cases.iter().filter(|c| c.change != Change::RenameDir) {
            let there = match case.shape {
                Shape::Dense => files.sizes.contains(&case.size),
                _ => case.size == files.middle,
            };
            assert!(there, "{case:?}");
        }
        let names: std::collections::HashSet<_> = cases.iter().map(Case::name).collect();
        assert_eq!(names.len(), cases.len(), "two cases have one name");
    }

    #[test]
    fn sizes_end_where_they_were_told() {
        assert_eq!(sizes(4096), [4096]);
        assert_eq!(sizes(100_000), [4096, 100_000]);
        assert_eq!(sizes(64 << 20), [4096, 65536, 1 << 20, 16 << 20, 64 << 20]);
        assert_eq!(sizes(1 << 20).last(), Some(&(1 << 20)));
    }
}
