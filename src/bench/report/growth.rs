//! What grows, as tables and as a page.

use super::page::{facts, page, systems};
use super::svg::{Series, escape, lines, styles};
use super::table::columns;
use super::{decimal, micros};
use crate::bench::growth::{Axis, Figures, Point, Report};

/// One figure over one axis.
struct Plot {
    axis: Axis,
    title: &'static str,
    words: &'static str,
    unit: &'static str,
    figure: fn(&Figures) -> Option<f64>,
    write: fn(f64) -> String,
}

const fn time(
    axis: Axis,
    title: &'static str,
    words: &'static str,
    unit: &'static str,
    figure: fn(&Figures) -> Option<f64>,
) -> Plot {
    Plot {
        axis,
        title,
        words,
        unit,
        figure,
        write: micros,
    }
}

const fn memory(
    axis: Axis,
    title: &'static str,
    words: &'static str,
    figure: fn(&Figures) -> Option<f64>,
) -> Plot {
    Plot {
        axis,
        title,
        words,
        unit: "memory of the daemon's own",
        figure,
        write: decimal,
    }
}

fn used_memory(figures: &Figures) -> Option<f64> {
    figures.memory.map(|bytes| bytes as f64)
}

fn idle_memory(figures: &Figures) -> Option<f64> {
    figures.idle_memory.map(|bytes| bytes as f64)
}

/// A mean of counts.
fn few(value: f64) -> String {
    format!("{value:.2}")
}

const MOUNT: &str = "time until the root is listed";

const PLOTS: [Plot; 20] = [
    time(
        Axis::Layers,
        "More layers: the mount",
        "From the mount's beginning until its root is listed.",
        MOUNT,
        |f| f.mount_us,
    ),
    time(
        Axis::Layers,
        "More layers: the daemon's work for the mount",
        "Its processor time until the root is listed, which other work of the machine hardly changes.",
        "processor time until the root is listed",
        |f| f.mount_cpu_us,
    ),
    time(
        Axis::Layers,
        "More layers: looking up a name",
        "The name lies in the lowest layer, and every layer has the directory. A flat line asks no layer twice.",
        "stat of a new name",
        |f| f.lookup_us,
    ),
    time(
        Axis::Layers,
        "More layers: the daemon's work for a name",
        "Its processor time for each stat of a new name.",
        "processor time, each name",
        |f| f.lookup_cpu_us,
    ),
    Plot {
        axis: Axis::Layers,
        title: "More layers: questions for a name",
        words: "How often the kernel asks the daemon for each of them.",
        unit: "requests, each name",
        figure: |f| f.lookup_requests,
        write: few,
    },
    time(
        Axis::Layers,
        "More layers: a name that is not there",
        "No layer has it.",
        "stat of a missing name",
        |f| f.missing_us,
    ),
    memory(
        Axis::Layers,
        "More layers: memory",
        "After a thousand names were looked up.",
        used_memory,
    ),
    time(
        Axis::Files,
        "More files: the mount",
        "What is not looked at should cost nothing: a flat line.",
        MOUNT,
        |f| f.mount_us,
    ),
    memory(
        Axis::Files,
        "More files: memory of a mount that nobody used",
        "When nothing but the root was listed.",
        idle_memory,
    ),
    time(
        Axis::Files,
        "More files: looking up a name",
        "A thousand names of one directory on a fresh mount.",
        "stat of a new name",
        |f| f.lookup_us,
    ),
    time(
        Axis::Files,
        "More files: the daemon's work for a name",
        "Its processor time for each stat of a new name.",
        "processor time, each name",
        |f| f.lookup_cpu_us,
    ),
    time(
        Axis::Files,
        "More files: a walk over all of them",
        "The time of each entry.",
        "each entry",
        |f| f.walk_us,
    ),
    time(
        Axis::Files,
        "More files: the daemon's work for the walk",
        "Its processor time for each entry.",
        "processor time, each entry",
        |f| f.walk_cpu_us,
    ),
    memory(
        Axis::Files,
        "More files: memory",
        "After a walk over everything, while the kernel still remembers what it has seen.",
        used_memory,
    ),
    time(
        Axis::Clients,
        "More programs at once",
        "Each walks 10,000 files of one mount; the clock's time for each entry of all of them. Falling until every \
         processor has work, and flat from there, is as good as it gets.",
        "each entry",
        |f| f.walk_us,
    ),
    time(
        Axis::Clients,
        "More programs at once: the daemon's work",
        "Its processor time for each entry of all of them. A line that does not rise loses nothing by programs being in each other's way.",
        "processor time, each entry",
        |f| f.walk_cpu_us,
    ),
    time(
        Axis::Mounts,
        "More mounts: one more",
        "Of the same layers; the last mount, until its root is listed.",
        MOUNT,
        |f| f.mount_us,
    ),
    time(
        Axis::Mounts,
        "More mounts: the daemon's work for one more",
        "Its processor time until the root is listed.",
        "processor time until the root is listed",
        |f| f.mount_cpu_us,
    ),
    time(
        Axis::Mounts,
        "More mounts: looking up a name",
        "In the last mount.",
        "stat of a new name",
        |f| f.lookup_us,
    ),
    memory(
        Axis::Mounts,
        "More mounts: memory of each",
        "The mean over all daemons.",
        used_memory,
    ),
];

fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn points(report: &Report, axis: Axis, system: usize) -> impl Iterator<Item = &Point> {
    let points = report.points.iter();
    points.filter(move |point| point.axis == axis && point.system == system)
}

fn numbers(report: &Report, axis: Axis) -> Vec<u64> {
    let points = report.points.iter().filter(|point| point.axis == axis);
    let mut numbers: Vec<u64> = points.map(|point| point.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// One self-contained page.
pub fn growth_page(report: &Report) -> String {
    let names: Vec<&str> = report.systems.iter().map(|s| s.name.as_str()).collect();
    let styles = styles(&names);
    let mut body = format!(
        "<p>More of everything: layers, files, programs at once, mounts. A line that stays flat does not grow with what \
         is not used; where a line ends early, that system went no further. Medians of {} turns, in turns, {} in all.</p>",
        report.rounds,
        micros(report.seconds * 1e6)
    );
    body.push_str(&facts(&report.machine));
    for plot in &PLOTS {
        let series: Vec<Series> = names
            .iter()
            .zip(&styles)
            .enumerate()
            .map(|(system, (name, style))| Series {
                name: (*name).to_owned(),
                style: style.clone(),
                points: points(report, plot.axis, system)
                    .filter_map(|p| Some((p.number as f64, (plot.figure)(&p.figures)?, None)))
                    .collect(),
            })
            .filter(|series| !series.points.is_empty())
            .collect();
        if series.is_empty() {
            continue;
        }
        let plotted = lines(
            plot.title,
            plot.axis.name(),
            plot.unit,
            count,
            plot.write,
            &series,
        );
        let title = escape(plot.title);
        body.push_str(&format!("<h2>{title}</h2><p>{}</p>{plotted}", plot.words));
    }
    body.push_str(&systems(&report.systems, &report.left_out));
    let failed: Vec<String> = failures(report).collect();
    if !failed.is_empty() {
        body.push_str("<h2>What did not work</h2><ul>");
        for line in failed {
            body.push_str(&format!("<li>{}</li>", escape(&line)));
        }
        body.push_str("</ul>");
    }
    page("What grows, and what does not", &body)
}

fn failures(report: &Report) -> impl Iterator<Item = String> {
    report.points.iter().filter_map(|point| {
        let why = point.failed.as_ref()?;
        let system = &report.systems.get(point.system)?.name;
        Some(format!(
            "{system}: {} {}: {why}",
            count(point.number as f64),
            point.axis.name()
        ))
    })
}

/// The report as lines of text.
pub fn growth_table(report: &Report) -> Vec<String> {
    let mut out = Vec::new();
    for (i, system) in report.systems.iter().enumerate() {
        out.push(format!("{:>2} {}: {}", i + 1, system.name, system.about));
    }
    for left in &report.left_out {
        out.push(format!(" - {} is left out: {}", left.name, left.why));
    }
    for plot in &PLOTS {
        let numbers = numbers(report, plot.axis);
        if numbers.is_empty() {
            continue;
        }
        let mut head = vec![format!("{}: {}", plot.title, plot.unit)];
        head.extend(numbers.iter().map(|number| count(*number as f64)));
        let mut rows = vec![head];
        for (system, info) in report.systems.iter().enumerate() {
            let mut row = vec![info.name.clone()];
            row.extend(numbers.iter().map(|number| {
                let mut points = points(report, plot.axis, system);
                let point = points.find(|point| point.number == *number);
                let value = point.and_then(|point| (plot.figure)(&point.figures));
                value.map_or_else(|| "-".into(), plot.write)
            }));
            if row.iter().skip(1).any(|cell| cell != "-") {
                rows.push(row);
            }
        }
        out.push(String::new());
        out.extend(columns(&rows));
    }
    let failed: Vec<String> = failures(report).collect();
    if !failed.is_empty() {
        out.extend([String::new(), "What did not work".into()]);
        out.extend(failed);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands() {
        let written = [1.0, 999.0, 1000.0, 1_234_567.0].map(count);
        assert_eq!(written, ["1", "999", "1,000", "1,234,567"]);
    }
}
