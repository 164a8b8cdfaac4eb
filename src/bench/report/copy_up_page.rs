//! The copy-up bench's page.

use super::page::{details, facts, page, systems};
use super::svg::{Marker, Row, Series, Style, dots, escape, lines, styles};
use super::{bytes, micros, times};
use crate::bench::copy_up::{Case, Cell, Change, Report, Shape};

/// One self-contained page.
pub fn copy_up_page(report: &Report) -> String {
    let names: Vec<&str> = report.systems.iter().map(|s| s.name.as_str()).collect();
    let view = View {
        report,
        styles: styles(&names),
    };
    let mut body = String::from(
        "<p>An image's files are shared and read-only. Before a container changes one for the first time, most \
         union filesystems copy all of it, however little changes. These plots show what that costs on this machine: \
         how long the first change takes, how much is written to the disk for it, and how long everybody else waits.</p>",
    );
    body.push_str(&view.in_short());
    body.push_str(&facts(&report.machine));
    for (change, words) in [
        (
            Change::Block,
            "The first 4 KiB written into a file of an image. A flat line costs what changes, a rising one what the file weighs.",
        ),
        (Change::Append, "One byte at the end, as a log does."),
        (
            Change::Chmod,
            "Only the mode changes: no data needs to be copied.",
        ),
        (
            Change::Truncate,
            "The contents are thrown away: no data needs to be copied.",
        ),
    ] {
        body.push_str(&view.growth(change, words));
    }
    body.push_str(&view.amplification());
    body.push_str(&view.others());
    body.push_str(&view.stalls());
    body.push_str(&systems(&report.systems, &report.left_out));
    body.push_str(&view.tables());
    page("What copy-up costs", &body)
}

struct View<'a> {
    report: &'a Report,
    styles: Vec<Style>,
}

/// Nothing special but the size.
fn is_plain(case: &Case) -> bool {
    case.depth == 1 && case.shape == Shape::Dense && !case.cold && case.writers == 1
}

fn write_bytes(value: f64) -> String {
    bytes(value as u64)
}

impl View<'_> {
    fn cell(&self, case: usize, system: usize) -> Option<&Cell> {
        let mut cells = self.report.cells.iter();
        cells.find(|cell| cell.case == case && cell.system == system)
    }

    fn plain_cases(&self, change: Change) -> Vec<(usize, &Case)> {
        let cases = self.report.cases.iter().enumerate();
        let mut found: Vec<_> = cases
            .filter(|(_, case)| case.change == change && is_plain(case))
            .collect();
        found.sort_by_key(|(_, case)| case.size);
        found
    }

    /// The figure that people ask for first.
    fn in_short(&self) -> String {
        let cases = self.plain_cases(Change::Block);
        let Some((number, case)) = cases.last() else {
            return String::new();
        };
        let mut out = format!(
            "<p>The first 4 KiB written into a file of {}:</p><table><tr><th>system</th><th>median</th>\
             <th>slowest</th><th>written to the disk</th></tr>",
            bytes(case.size)
        );
        for (i, system) in self.report.systems.iter().enumerate() {
            let Some(cell) = self.cell(*number, i) else {
                continue;
            };
            let Some(latency) = &cell.latency else {
                continue;
            };
            out.push_str(&format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&system.name),
                micros(latency.p50_us),
                micros(latency.max_us),
                cell.written.map_or_else(|| "not counted".into(), bytes)
            ));
        }
        out.push_str("</table>");
        out
    }

    fn series(
        &self,
        change: Change,
        figure: impl Fn(&Case, &Cell) -> Option<(f64, Option<f64>)>,
    ) -> Vec<Series> {
        let cases = self.plain_cases(change);
        let all = self.report.systems.iter().zip(&self.styles).enumerate();
        all.map(|(system, (info, style))| Series {
            name: info.name.clone(),
            style: style.clone(),
            points: cases
                .iter()
                .filter_map(|(number, case)| {
                    let (value, whisker) = figure(case, self.cell(*number, system)?)?;
                    Some((case.size as f64, value, whisker))
                })
                .collect(),
        })
        .filter(|series| !series.points.is_empty())
        .collect()
    }

    fn growth(&self, change: Change, words: &str) -> String {
        let series = self.series(change, |_, cell| {
            let latency = cell.latency.as_ref()?;
            Some((latency.p50_us, Some(latency.p99_us)))
        });
        if series.is_empty() {
            return String::new();
        }
        let title = format!("Time of the first change: {}", change.name());
        let plot = lines(
            &title,
            "size of the file",
            "median; thin lines up to p99",
            write_bytes,
            micros,
            &series,
        );
        format!("<h2>{}</h2><p>{words}</p>{plot}", escape(&title))
    }

    fn amplification(&self) -> String {
        let series = self.series(Change::Block, |case, cell| {
            let written = cell.written? as f64;
            Some(((written / case.changed.max(1) as f64).max(0.01), None))
        });
        if series.is_empty() {
            return "<h2>Bytes written</h2><p>Not counted: that takes a disk of our own, and so root.</p>".into();
        }
        let title = "Bytes written to the disk for each byte changed";
        let plot = lines(
            title,
            "size of the file, of which 4 KiB change",
            "times",
            write_bytes,
            times,
            &series,
        );
        format!(
            "<h2>{title}</h2><p>Counted by the block layer after everything was written out. On ext4 the journal lies \
             on another device and is not counted.</p>{plot}"
        )
    }

    /// Everything that is not over sizes.
    fn others(&self) -> String {
        let growing = [
            Change::Block,
            Change::Append,
            Change::Chmod,
            Change::Truncate,
        ];
        let mut rows = Vec::new();
        for (number, case) in self.report.cases.iter().enumerate() {
            if is_plain(case) && growing.contains(&case.change) {
                continue;
            }
            let dots = (0..self.report.systems.len()).filter_map(|system| {
                let latency = self.cell(number, system)?.latency?;
                let name = self.report.systems.get(system)?.name.clone();
                Some((latency.p50_us, self.styles.get(system)?.clone(), name))
            });
            rows.push(Row {
                name: case.name(),
                dots: dots.collect(),
            });
        }
        if rows.is_empty() {
            return String::new();
        }
        let names = self.report.systems.iter().map(|s| s.name.clone());
        let legend: Vec<_> = names.zip(self.styles.iter().cloned()).collect();
        let title = "Other changes, and other circumstances";
        let plot = dots(
            title,
            "median time of the first change",
            micros,
            &rows,
            &legend,
            None,
        );
        format!(
            "<h2>{title}</h2><p>Further left is better. Point at a mark to read its name.</p>{plot}"
        )
    }

    fn stalls(&self) -> String {
        let Some(first) = self.report.stalls.first() else {
            return String::new();
        };
        let mark = |colour, marker| Style {
            colour,
            dash: "",
            marker,
        };
        let kinds = [
            ("p99 while nothing goes on", mark("#0072B2", Marker::Ring)),
            ("p99 meanwhile", mark("#D55E00", Marker::Circle)),
            ("slowest meanwhile", mark("#000000", Marker::Diamond)),
            ("the write itself", mark("#CC79A7", Marker::Square)),
        ];
        let rows: Vec<Row> = self
            .report
            .stalls
            .iter()
            .filter_map(|stall| {
                let name = self.report.systems.get(stall.system)?.name.clone();
                let values = [
                    stall.idle.p99_us,
                    stall.busy.p99_us,
                    stall.busy.max_us,
                    stall.change_us,
                ];
                let dots = kinds.iter().zip(values);
                Some(Row {
                    name,
                    dots: dots
                        .map(|((what, style), value)| (value, style.clone(), (*what).to_owned()))
                        .collect(),
                })
            })
            .collect();
        let legend: Vec<_> = kinds
            .iter()
            .map(|(what, style)| ((*what).to_owned(), style.clone()))
            .collect();
        let title = "How long others wait";
        let plot = dots(
            title,
            "stat and create in another directory",
            micros,
            &rows,
            &legend,
            None,
        );
        format!(
            "<h2>{title}</h2><p>While one process writes its first block into a file of {}, another one looks at and \
             makes small files elsewhere. A full mark far right of its ring is a process that was made to wait.</p>{plot}",
            bytes(first.size)
        )
    }

    fn tables(&self) -> String {
        let mut head = vec![String::new()];
        head.extend(self.report.systems.iter().map(|s| s.name.clone()));
        let table =
            |title: &str, figure: &dyn Fn(&Cell) -> Option<f64>, write: fn(f64) -> String| {
                let rows: Vec<(String, Vec<Option<f64>>)> = self
                    .report
                    .cases
                    .iter()
                    .enumerate()
                    .map(|(number, case)| {
                        let values = (0..self.report.systems.len())
                            .map(|system| self.cell(number, system).and_then(figure));
                        (case.name(), values.collect())
                    })
                    .collect();
                details(title, &head, &rows, write)
            };
        let mut out = String::from("<h2>All figures</h2>");
        out.push_str(&table(
            "First change, median",
            &|c| Some(c.latency?.p50_us),
            micros,
        ));
        out.push_str(&table(
            "First change, 99 of a hundred within",
            &|c| Some(c.latency?.p99_us),
            micros,
        ));
        out.push_str(&table(
            "First change, slowest",
            &|c| Some(c.latency?.max_us),
            micros,
        ));
        out.push_str(&table(
            "Written to the disk for each file",
            &|c| c.written.map(|b| b as f64),
            write_bytes,
        ));
        out.push_str(&table(
            "Space taken for each file",
            &|c| c.latency.map(|_| c.space as f64),
            write_bytes,
        ));
        out
    }
}
