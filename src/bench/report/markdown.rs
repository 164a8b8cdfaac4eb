//! Everyday work as a table for a README.

use super::{bytes, micros, times};
use crate::bench::rivals::{Cell, Mean, Report};

/// The report as a Markdown table: the base's median, everyone's multiple of it, and what this program's daemon did.
pub fn rivals_markdown(report: &Report) -> String {
    let name = |system: usize| report.systems.get(system).map_or("", |s| s.name.as_str());
    let others: Vec<usize> = (0..report.systems.len())
        .filter(|system| *system != report.base)
        .collect();
    // The one whose daemon's requests are counted.
    let counted = others.iter().copied().find(|system| {
        let mut cells = report.cells.iter().filter(|cell| cell.system == *system);
        cells.any(|cell| cell.daemon.as_ref().is_some_and(|d| !d.requests.is_empty()))
    });
    let mut out = format!("| | {}: time |", name(report.base));
    for system in &others {
        out.push_str(&format!(" {} |", name(*system)));
    }
    if let Some(system) = counted {
        let name = name(system);
        out.push_str(&format!(
            " {name}: requests each | slower for each request | processor for each request | switches each | memory |"
        ));
    }
    let columns = 2 + others.len() + if counted.is_some() { 5 } else { 0 };
    out.push_str("\n|---|");
    out.push_str(&"---:|".repeat(columns - 1));
    out.push('\n');
    for (number, workload) in report.workloads.iter().enumerate() {
        let of = |system: usize| {
            let mut cells = report.cells.iter();
            cells.find(|cell| cell.workload == number && cell.system == system)
        };
        let base = of(report.base).and_then(|cell| cell.time);
        let time = base.map_or_else(|| "–".into(), |time| micros(time.p50_us));
        out.push_str(&format!("| {} | {time} |", workload.name));
        for system in &others {
            let ratio = of(*system).and_then(|cell| cell.ratio);
            out.push_str(&format!(" {} |", ratio.map_or_else(|| "–".into(), times)));
        }
        if let Some(system) = counted {
            out.push_str(&daemon(of(system), base.map(|time| time.p50_us)));
        }
        out.push('\n');
    }
    for (title, of) in [
        (
            "**geometric mean, names and attributes**",
            (|mean| mean.metadata) as fn(&Mean) -> Option<f64>,
        ),
        ("**geometric mean, contents**", |mean| mean.data),
        ("**geometric mean**", |mean| mean.all),
    ] {
        out.push_str(&format!("| {title} | |"));
        for system in &others {
            let mean = report.means.iter().find(|mean| mean.system == *system);
            let mean = mean.and_then(of);
            out.push_str(&format!(" {} |", mean.map_or_else(|| "–".into(), times)));
        }
        out.push_str(if counted.is_some() {
            " | | | | |\n"
        } else {
            "\n"
        });
    }
    out
}

/// `base`: how long the base took, in microseconds. What a row takes more than that, divided among its requests, tells
/// whether it is the requests that make it slower.
fn daemon(cell: Option<&Cell>, base: Option<f64>) -> String {
    let Some((cell, daemon)) = cell.and_then(|cell| Some((cell, cell.daemon.as_ref()?))) else {
        return " – | – | – | – | – |".into();
    };
    let each = |count: u64| count as f64 / cell.operations.max(1) as f64;
    let asked = daemon.asked();
    let shared = |total: Option<f64>| match total {
        Some(total) if asked > 0 && total > 0.0 => micros(total / asked as f64),
        _ => "–".into(),
    };
    let slower = cell.time.zip(base).map(|(time, base)| time.p50_us - base);
    let (slower, work) = (shared(slower), shared(Some(daemon.cpu * 1e6)));
    format!(
        " {:.2} | {slower} | {work} | {:.2} | {} |",
        each(asked),
        each(daemon.switches),
        bytes(daemon.memory)
    )
}
