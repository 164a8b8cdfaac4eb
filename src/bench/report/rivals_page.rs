//! The page of everyday work.

use super::page::{details, facts, page, systems};
use super::rivals_text::group_name;
use super::svg::{Row, dots, escape, styles};
use super::{bytes, micros, processor_time, times};
use crate::bench::rivals::{Cell, Group, Report};

/// One self-contained page.
pub fn rivals_page(report: &Report) -> String {
    let base = report
        .systems
        .get(report.base)
        .map_or("", |s| s.name.as_str());
    let mut body = format!(
        "<p>The same work on each system in turns, rounds: {}, over {} with {} entries. All times are multiples of \
         what {} takes: a mark at 2× took twice as long.</p>",
        report.rounds,
        escape(&report.layers),
        report.entries,
        escape(base)
    );
    body.push_str(&means(report));
    body.push_str(&facts(&report.machine));
    for group in [Group::Metadata, Group::Data] {
        body.push_str(&ratios(report, group));
    }
    body.push_str(&requests(report));
    body.push_str(&systems(&report.systems, &report.left_out));
    if !report.skipped.is_empty() {
        body.push_str("<h2>What was not done</h2><table class='text'>");
        for left in &report.skipped {
            let (name, why) = (escape(&left.name), escape(&left.why));
            body.push_str(&format!("<tr><td>{name}</td><td>{why}</td></tr>"));
        }
        body.push_str("</table>");
    }
    body.push_str(&tables(report));
    page("Everyday work on acetate and its rivals", &body)
}

fn cell(report: &Report, workload: usize, system: usize) -> Option<&Cell> {
    let mut cells = report.cells.iter();
    cells.find(|cell| cell.workload == workload && cell.system == system)
}

fn means(report: &Report) -> String {
    let mut out = String::from(
        "<table><tr><th>geometric mean</th><th>all</th><th>names and attributes</th><th>contents</th></tr>",
    );
    for mean in &report.means {
        let Some(system) = report.systems.get(mean.system) else {
            continue;
        };
        let write = |value: Option<f64>| value.map_or_else(|| "–".into(), times);
        out.push_str(&format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&system.name),
            write(mean.all),
            write(mean.metadata),
            write(mean.data)
        ));
    }
    out.push_str("</table>");
    out
}

fn ratios(report: &Report, group: Group) -> String {
    let names: Vec<&str> = report.systems.iter().map(|s| s.name.as_str()).collect();
    let styles = styles(&names);
    let rows: Vec<Row> = report
        .workloads
        .iter()
        .enumerate()
        .filter(|(_, workload)| workload.group == group)
        .map(|(number, workload)| {
            let dots = names.iter().zip(&styles).enumerate();
            let dots = dots.filter(|(system, _)| *system != report.base);
            let dots = dots.filter_map(|(system, (name, style))| {
                let ratio = cell(report, number, system)?.ratio?;
                Some((ratio, style.clone(), (*name).to_owned()))
            });
            Row {
                name: workload.name.clone(),
                dots: dots.collect(),
            }
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let legend = names.iter().zip(&styles).enumerate();
    let legend: Vec<_> = legend
        .filter(|(system, _)| *system != report.base)
        .map(|(_, (name, style))| ((*name).to_owned(), style.clone()))
        .collect();
    let base = names.get(report.base).copied().unwrap_or_default();
    let title = group_name(group);
    let axis = format!("median time as a multiple of {base}; further left is better");
    let plot = dots(title, &axis, times, &rows, &legend, Some(1.0));
    format!("<h2>{title}</h2>{plot}")
}

/// Where the daemon's time goes: how often the kernel has to ask it.
fn requests(report: &Report) -> String {
    let mut out = String::new();
    for (system, info) in report.systems.iter().enumerate() {
        let mut rows = String::new();
        for (number, workload) in report.workloads.iter().enumerate() {
            let found = cell(report, number, system);
            let Some((cell, daemon)) = found.and_then(|cell| Some((cell, cell.daemon.as_ref()?)))
            else {
                continue;
            };
            if daemon.requests.is_empty() {
                continue;
            }
            let each = |count: u64| format!("{:.2}", count as f64 / cell.operations.max(1) as f64);
            let mut asked: Vec<(&String, &u64)> = daemon.requests.iter().collect();
            asked.sort_by(|a, b| b.1.cmp(a.1));
            let most: Vec<String> = asked
                .iter()
                .take(6)
                .map(|(name, count)| format!("{name} {}", each(**count)))
                .collect();
            rows.push_str(&format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class='words'>{}</td></tr>",
                escape(&workload.name),
                cell.operations,
                each(daemon.asked()),
                escape(&processor_time(daemon.cpu)),
                each(daemon.switches),
                bytes(daemon.memory),
                escape(&most.join(", "))
            ));
        }
        if !rows.is_empty() {
            out.push_str(&format!(
                "<h3>{}</h3><div class='scroll'><table><tr><th></th><th>operations</th><th>requests each</th>\
                 <th>processor time</th><th>switches each</th><th>memory</th><th class='words'>most asked, each</th></tr>{rows}</table></div>",
                escape(&info.name)
            ));
        }
    }
    if out.is_empty() {
        return out;
    }
    format!(
        "<h2>What the daemon is asked</h2><p>Every request is a way to another process and back. An operation is one file \
         looked at, made, read, and so on.</p>{out}"
    )
}

fn tables(report: &Report) -> String {
    let mut head = vec![String::new()];
    head.extend(report.systems.iter().map(|s| s.name.clone()));
    let table = |title: &str, figure: &dyn Fn(&Cell) -> Option<f64>, write: fn(f64) -> String| {
        let rows: Vec<(String, Vec<Option<f64>>)> = report
            .workloads
            .iter()
            .enumerate()
            .map(|(number, workload)| {
                let systems = 0..report.systems.len();
                let values = systems.map(|system| cell(report, number, system).and_then(figure));
                (workload.name.clone(), values.collect())
            })
            .collect();
        details(title, &head, &rows, write)
    };
    let mut out = String::from("<h2>All figures</h2>");
    out.push_str(&table("Median", &|c| Some(c.time?.p50_us), micros));
    out.push_str(&table("Fastest", &|c| Some(c.time?.min_us), micros));
    out.push_str(&table("Slowest", &|c| Some(c.time?.max_us), micros));
    let memory: fn(f64) -> String = |value| bytes(value as u64);
    out.push_str(&table(
        "Memory of the daemon",
        &|c| Some(c.daemon.as_ref()?.memory as f64),
        memory,
    ));
    out.push_str(&table(
        "Processor time of the daemon",
        &|c| Some(c.daemon.as_ref()?.cpu * 1e6),
        micros,
    ));
    out
}
