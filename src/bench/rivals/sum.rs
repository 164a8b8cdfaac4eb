//! From turns to figures.

use std::time::Duration;

use super::daemon::Daemon;
use super::work::{Group, Task};
use super::{Cell as Figures, Mean};
use crate::bench::measure::Summary;

/// What one workload gave on one system so far.
#[derive(Debug, Default)]
pub(super) struct Sum {
    pub(super) times: Vec<Duration>,
    pub(super) operations: u64,
    pub(super) daemons: Vec<Daemon>,
    pub(super) failed: Option<String>,
}

pub(super) fn cells(sums: Vec<Vec<Sum>>, base: usize) -> Vec<Figures> {
    let mut cells = Vec::new();
    for (workload, row) in sums.into_iter().enumerate() {
        let times: Vec<Option<Summary>> = row
            .iter()
            .map(|sum| Summary::of(&sum.times).filter(|_| sum.failed.is_none()))
            .collect();
        let of_base = times.get(base).copied().flatten();
        for (system, (sum, time)) in row.into_iter().zip(times).enumerate() {
            let ratio = time
                .zip(of_base)
                .map(|(time, base)| time.p50_us / base.p50_us);
            cells.push(Figures {
                workload,
                system,
                time,
                ratio,
                operations: sum.operations,
                daemon: Daemon::median(sum.daemons),
                failed: sum.failed,
            });
        }
    }
    cells
}

pub(super) fn means(cells: &[Figures], tasks: &[Task], systems: usize) -> Vec<Mean> {
    let mean = |system: usize, group: Option<Group>| {
        let ratios = cells.iter().filter_map(|cell| {
            let task = tasks.get(cell.workload)?;
            let counts = cell.system == system && group.is_none_or(|group| task.group == group);
            counts.then_some(cell.ratio?)
        });
        geometric_mean(ratios)
    };
    (0..systems)
        .map(|system| Mean {
            system,
            all: mean(system, None),
            metadata: mean(system, Some(Group::Metadata)),
            data: mean(system, Some(Group::Data)),
        })
        .collect()
}

fn geometric_mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), v| (sum + v.ln(), count + 1));
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

#[cfg(test)]
mod tests {
    use super::super::work::TASKS;
    use super::*;

    #[test]
    fn multiples_and_their_mean() {
        let sum = |ms: &[u64]| Sum {
            times: ms.iter().map(|ms| Duration::from_millis(*ms)).collect(),
            ..Sum::default()
        };
        let broken = Sum {
            failed: Some("no".into()),
            ..sum(&[1])
        };
        let rows = vec![
            vec![sum(&[10, 30, 20]), sum(&[80])],
            vec![sum(&[10]), sum(&[10])],
            vec![sum(&[10]), broken],
        ];
        let cells = cells(rows, 0);
        let ratios: Vec<Option<f64>> = cells.iter().map(|cell| cell.ratio).collect();
        assert_eq!(
            ratios,
            [Some(1.0), Some(4.0), Some(1.0), Some(1.0), Some(1.0), None]
        );
        let means = means(&cells, TASKS.get(..3).unwrap(), 2);
        assert!((means[1].all.unwrap() - 2.0).abs() < 1e-9, "{means:?}");
        assert_eq!(means[1].data, None);
    }
}
