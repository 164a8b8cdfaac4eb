//! The copy-up bench's tables.

use super::table::columns;
use super::{bytes, micros};
use crate::bench::copy_up::{Cell, Report};

/// The report as lines of text.
pub fn copy_up_table(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for (i, system) in report.systems.iter().enumerate() {
        lines.push(format!(
            "{:>2} {} ({}): {}",
            i + 1,
            system.name,
            system.filesystem.name(),
            system.about
        ));
    }
    for left in &report.left_out {
        lines.push(format!(" - {} is left out: {}", left.name, left.why));
    }
    let latency = |figure: fn(&crate::bench::Summary) -> f64| {
        move |cell: &Cell| cell.latency.as_ref().map(|summary| micros(figure(summary)))
    };
    section(
        &mut lines,
        report,
        "First change of a file, median",
        &latency(|s| s.p50_us),
    );
    section(
        &mut lines,
        report,
        "First change of a file, 99 of a hundred within",
        &latency(|s| s.p99_us),
    );
    section(
        &mut lines,
        report,
        "First change of a file, slowest",
        &latency(|s| s.max_us),
    );
    section(
        &mut lines,
        report,
        "Written to the disk for each file changed, without the journal",
        &|cell| cell.written.map(bytes),
    );
    section(
        &mut lines,
        report,
        "Space taken for each file changed",
        &|cell| cell.latency.as_ref().map(|_| bytes(cell.space)),
    );
    stalls(&mut lines, report);
    let failed = report.cells.iter().filter_map(|cell| {
        let why = cell.failed.as_ref()?;
        let case = report.cases.get(cell.case)?.name();
        Some(format!(
            "{}: {case}: {why}",
            report.systems.get(cell.system)?.name
        ))
    });
    let failed: Vec<String> = failed.collect();
    if !failed.is_empty() {
        lines.push(String::new());
        lines.push("What did not work".into());
        lines.extend(failed);
    }
    lines
}

fn section(
    lines: &mut Vec<String>,
    report: &Report,
    title: &str,
    figure: &dyn Fn(&Cell) -> Option<String>,
) {
    lines.push(String::new());
    let mut head = vec![title.to_owned()];
    head.extend((1..=report.systems.len()).map(|i| i.to_string()));
    let mut rows = vec![head];
    for (number, case) in report.cases.iter().enumerate() {
        let mut row = vec![case.name()];
        for system in 0..report.systems.len() {
            let cell = report
                .cells
                .iter()
                .find(|cell| cell.case == number && cell.system == system);
            row.push(cell.and_then(figure).unwrap_or_else(|| "-".into()));
        }
        rows.push(row);
    }
    lines.extend(columns(&rows));
}

fn stalls(lines: &mut Vec<String>, report: &Report) {
    let Some(first) = report.stalls.first() else {
        return;
    };
    lines.push(String::new());
    let head = [
        format!(
            "stat and create elsewhere while one block of {} is written",
            bytes(first.size)
        ),
        "the write".into(),
        "idle p99".into(),
        "p99 meanwhile".into(),
        "slowest".into(),
    ];
    let mut rows = vec![head.to_vec()];
    for stall in &report.stalls {
        let name = report.systems.get(stall.system).map(|s| s.name.clone());
        rows.push(vec![
            name.unwrap_or_default(),
            micros(stall.change_us),
            micros(stall.idle.p99_us),
            micros(stall.busy.p99_us),
            micros(stall.busy.max_us),
        ]);
    }
    lines.extend(columns(&rows));
}
