//! Summaries of what was measured.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Of several times of the same thing, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many there are.
    pub samples: usize,
    /// The shortest.
    pub min_us: f64,
    /// The median.
    pub p50_us: f64,
    /// 99 of a hundred are not longer; with fewer samples that is the longest.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Summary {
    /// Of nothing there is none.
    pub(super) fn of(times: &[Duration]) -> Option<Summary> {
        let mut us: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e6).collect();
        us.sort_by(f64::total_cmp);
        // The nearest rank.
        let at = |percent: usize| {
            let rank = (us.len() * percent).div_ceil(100).max(1);
            us.get(rank - 1).copied()
        };
        Some(Summary {
            samples: us.len(),
            min_us: *us.first()?,
            p50_us: at(50)?,
            p99_us: at(99)?,
            max_us: *us.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        assert_eq!(Summary::of(&[]), None);
        let times: Vec<_> = (1..=200).rev().map(Duration::from_micros).collect();
        let summary = Summary::of(&times).unwrap();
        assert_eq!(summary.samples, 200);
        let figures = [
            summary.min_us,
            summary.p50_us,
            summary.p99_us,
            summary.max_us,
        ];
        for (figure, expected) in figures.iter().zip([1.0, 100.0, 198.0, 200.0]) {
            assert!((figure - expected).abs() < 1e-6, "{figures:?}");
        }
        let one = Summary::of(&times[..1]).unwrap();
        assert!((one.p99_us - 200.0).abs() < 1e-6);
    }
}
