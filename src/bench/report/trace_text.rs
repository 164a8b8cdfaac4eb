//! What a traced command copied, as text.

use super::table::columns;
use super::{bytes, micros};
use crate::bench::trace::Report;

/// The report as lines of text.
pub fn trace_table(report: &Report) -> Vec<String> {
    let mut lines = vec![
        format!(
            "{}: {}, {:.1} s",
            report.image, report.status, report.seconds
        ),
        format!(
            "copied up: {} files and {} directories that are still there, {} more that are gone; {} of data",
            report.files.len(),
            report.directories,
            report.gone,
            bytes(report.bytes)
        ),
    ];
    if !report.files.is_empty() {
        let mut rows = vec![["", "copied", "size", "time"].map(String::from).to_vec()];
        for file in &report.files {
            let path = file.path.escape_debug();
            rows.push(vec![
                format!("{path} ({}): {}", file.reason, file.advice),
                bytes(file.bytes),
                bytes(file.size),
                micros(file.us as f64),
            ]);
        }
        lines.push(String::new());
        lines.extend(columns(&rows));
    }
    if !report.advice.is_empty() {
        lines.push(String::new());
        lines.push("What to change, the dearest first".into());
        lines.extend(report.advice.iter().map(|line| format!("- {line}")));
    }
    lines
}
