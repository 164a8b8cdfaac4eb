//! What a traced command copied, as a page.

use super::page::page;
use super::svg::{Marker, Row, Style, dots, escape};
use super::{bytes, decimal, micros};
use crate::bench::trace::Report;

/// How many files are drawn; the table has all.
const DRAWN: usize = 40;

/// One self-contained page.
pub fn trace_page(report: &Report) -> String {
    let mut body = format!(
        "<p>The command ran {:.1} s in the image {} ({}). It made the mount copy {} files and {} directories up from the \
         image's layers, and {} more that are gone by now: {} of data in all.</p>",
        report.seconds,
        escape(&report.image),
        escape(&report.status),
        report.files.len(),
        report.directories,
        report.gone,
        bytes(report.bytes)
    );
    if !report.advice.is_empty() {
        body.push_str("<h2>What to change, the dearest first</h2><ol>");
        for line in &report.advice {
            body.push_str(&format!("<li>{}</li>", escape(line)));
        }
        body.push_str("</ol>");
    }
    let mark = |colour, marker| Style {
        colour,
        dash: "",
        marker,
    };
    let (size, copied) = (
        mark("#0072B2", Marker::Ring),
        mark("#D55E00", Marker::Circle),
    );
    let rows: Vec<Row> = report
        .files
        .iter()
        .filter(|file| file.bytes > 0)
        .take(DRAWN)
        .map(|file| Row {
            name: shortened(&file.path),
            dots: vec![
                (file.size as f64, size.clone(), "size".to_owned()),
                (file.bytes as f64, copied.clone(), "copied".to_owned()),
            ],
        })
        .collect();
    if !rows.is_empty() {
        let legend = [
            ("size of the file".to_owned(), size),
            ("copied".to_owned(), copied),
        ];
        let title = "How much of each file was copied";
        let plot = dots(title, "bytes", decimal, &rows, &legend, None);
        body.push_str(&format!(
            "<h2>{title}</h2><p>A full mark far left of its ring is a file of which only the changed blocks were \
             copied.</p>{plot}"
        ));
    }
    if !report.files.is_empty() {
        body.push_str(
            "<h2>All files</h2><div class='scroll'><table><tr><th>file</th><th>copied</th><th>size</th><th>time</th>\
             <th class='words'>because of</th><th class='words'>advice</th></tr>",
        );
        for file in &report.files {
            body.push_str(&format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class='words'>{}</td><td class='words'>{}</td></tr>",
                escape(&file.path),
                bytes(file.bytes),
                bytes(file.size),
                micros(file.us as f64),
                escape(&file.reason),
                escape(&file.advice)
            ));
        }
        body.push_str("</table></div>");
    }
    page("What a command copied up", &body)
}

/// The end of a long path: the beginnings are alike.
fn shortened(path: &str) -> String {
    const MOST: usize = 40;
    let letters = path.chars().count();
    if letters <= MOST {
        return path.to_owned();
    }
    let end: String = path.chars().skip(letters - MOST + 1).collect();
    format!("…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_keep_their_end() {
        assert_eq!(shortened("/etc/motd"), "/etc/motd");
        let short = shortened(&format!("/usr/{}/ü.so", "x".repeat(80)));
        assert!(
            short.starts_with('…') && short.ends_with("/ü.so"),
            "{short}"
        );
        assert_eq!(short.chars().count(), 40);
    }
}
