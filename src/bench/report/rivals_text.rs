//! The tables of everyday work.

use super::table::columns;
use super::{bytes, micros, processor_time, times};
use crate::bench::rivals::{Cell, Group, Report};

/// The report as lines of text.
pub fn rivals_table(report: &Report) -> Vec<String> {
    let mut lines = vec![format!("{}, {} entries", report.layers, report.entries)];
    for (i, system) in report.systems.iter().enumerate() {
        lines.push(format!("{:>2} {}: {}", i + 1, system.name, system.about));
    }
    for left in report.left_out.iter().chain(&report.skipped) {
        lines.push(format!(" - {} is left out: {}", left.name, left.why));
    }
    ratios(&mut lines, report);
    for (system, info) in report.systems.iter().enumerate() {
        daemons(&mut lines, report, system, &info.name);
    }
    let failed = report.cells.iter().filter_map(|cell| {
        let why = cell.failed.as_ref()?;
        let workload = &report.workloads.get(cell.workload)?.name;
        let system = &report.systems.get(cell.system)?.name;
        Some(format!("{system}: {workload}: {why}"))
    });
    let failed: Vec<String> = failed.collect();
    if !failed.is_empty() {
        lines.push(String::new());
        lines.push("What did not work".into());
        lines.extend(failed);
    }
    lines
}

fn cell(report: &Report, workload: usize, system: usize) -> Option<&Cell> {
    let mut cells = report.cells.iter();
    cells.find(|cell| cell.workload == workload && cell.system == system)
}

fn ratios(lines: &mut Vec<String>, report: &Report) {
    let mut head = vec![
        "median, as a multiple of the first figure".to_owned(),
        String::new(),
    ];
    head.extend((1..=report.systems.len()).map(|i| i.to_string()));
    let mut rows = vec![head];
    for (number, workload) in report.workloads.iter().enumerate() {
        let base = cell(report, number, report.base).and_then(|cell| cell.time);
        let mut row = vec![
            workload.name.clone(),
            base.map_or_else(|| "-".into(), |time| micros(time.p50_us)),
        ];
        for system in 0..report.systems.len() {
            let cell = cell(report, number, system);
            let text = cell.and_then(|cell| {
                let time = cell.time?;
                // Half of the distance between the fastest and the slowest, of the median.
                let spread = (time.max_us - time.min_us) / time.p50_us * 50.0;
                let first = cell.ratio.map_or_else(|| micros(time.p50_us), times);
                Some(format!("{first} ±{spread:.0}%"))
            });
            row.push(text.unwrap_or_else(|| "-".into()));
        }
        rows.push(row);
    }
    let mean = |name: &str, of: fn(&crate::bench::rivals::Mean) -> Option<f64>| {
        let mut row = vec![name.to_owned(), String::new()];
        let figures = report
            .means
            .iter()
            .map(|mean| of(mean).map_or_else(|| "-".into(), times));
        row.extend(figures);
        row
    };
    rows.push(mean("geometric mean, names and attributes", |mean| {
        mean.metadata
    }));
    rows.push(mean("geometric mean, contents", |mean| mean.data));
    rows.push(mean("geometric mean", |mean| mean.all));
    lines.push(String::new());
    lines.extend(columns(&rows));
}

fn daemons(lines: &mut Vec<String>, report: &Report, system: usize, name: &str) {
    let mut rows = vec![
        [
            &format!("what the daemon of {name} does"),
            "operations",
            "requests each",
            "processor",
            "switches each",
            "memory",
            "most asked",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (number, workload) in report.workloads.iter().enumerate() {
        let Some((cell, daemon)) =
            cell(report, number, system).and_then(|cell| Some((cell, cell.daemon.as_ref()?)))
        else {
            continue;
        };
        let each = |count: u64| format!("{:.2}", count as f64 / cell.operations.max(1) as f64);
        let mut asked: Vec<(&String, &u64)> = daemon.requests.iter().collect();
        asked.sort_by(|a, b| b.1.cmp(a.1));
        let most: Vec<String> = asked
            .iter()
            .take(5)
            .map(|(name, count)| format!("{name} {}", each(**count)))
            .collect();
        let counted = !daemon.requests.is_empty();
        rows.push(vec![
            workload.name.clone(),
            cell.operations.to_string(),
            if counted {
                each(daemon.asked())
            } else {
                "-".into()
            },
            processor_time(daemon.cpu),
            each(daemon.switches),
            bytes(daemon.memory),
            most.join(", "),
        ]);
    }
    if rows.len() > 1 {
        lines.push(String::new());
        lines.extend(columns(&rows));
    }
}

/// As the page calls it.
pub(super) fn group_name(group: Group) -> &'static str {
    match group {
        Group::Metadata => "Names and attributes",
        Group::Data => "Contents",
    }
}
