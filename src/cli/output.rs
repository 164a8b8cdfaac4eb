//! What is printed on standard output.

use std::io::{self, Write};

use serde::Serialize;

pub(super) fn lines<S: AsRef<str>>(lines: impl IntoIterator<Item = S>) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in lines {
        writeln!(out, "{}", line.as_ref())?;
    }
    out.flush()
}

pub(super) fn line(text: &str) -> io::Result<()> {
    lines([text])
}

/// One line of JSON.
pub(super) fn json<T: Serialize>(value: &T) -> io::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Columns as wide as their widest cell.
pub(super) fn table<R: AsRef<[String]>>(rows: &[R]) -> io::Result<()> {
    lines(layout(rows))
}

fn layout<R: AsRef<[String]>>(rows: &[R]) -> Vec<String> {
    let mut widths = vec![0; rows.first().map_or(0, |row| row.as_ref().len())];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row.as_ref()) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.iter()
        .map(|row| {
            let mut text = String::new();
            for (width, cell) in widths.iter().zip(row.as_ref()) {
                text.push_str(cell);
                text.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
            }
            text.trim_end().to_owned()
        })
        .collect()
}

/// A name as one line shows it: control characters, which could also steer a terminal, are written as escapes.
pub(super) fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// Prints warnings as lines on standard error from now on: what of an image could not be laid down, for one.
pub(super) fn print_warnings() {
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(log::LevelFilter::Warn)
        .parse_default_env()
        .format(|out, record| {
            let level = match record.level() {
                log::Level::Warn => "warning",
                log::Level::Error => "error",
                _ => "note",
            };
            writeln!(out, "acetate: {level}: {}", record.args())
        });
    if builder.try_init().is_err() {
        log::debug!("the log goes where it went before");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_forge_lines() {
        assert_eq!(escape("a\nA /b\u{1b}[1m"), "a\\nA /b\\u{1b}[1m");
        assert_eq!(escape("ä \"b\\"), "ä \"b\\");
    }

    #[test]
    fn columns() {
        let rows = [["A", "BB"], ["ccc", ""]].map(|row| row.map(String::from));
        assert_eq!(layout(&rows), ["A    BB", "ccc"]);
    }
}
