//! What people see: tables, and one page.

mod copy_up_page;
mod copy_up_text;
mod growth;
mod markdown;
mod page;
mod rivals_page;
mod rivals_text;
mod svg;
pub mod table;
mod trace_page;
mod trace_text;

pub use copy_up_page::copy_up_page;
pub use copy_up_text::copy_up_table;
pub use growth::{growth_page, growth_table};
pub use markdown::rivals_markdown;
pub use rivals_page::rivals_page;
pub use rivals_text::rivals_table;
pub use trace_page::trace_page;
pub use trace_text::trace_table;

/// `4 KiB`, `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 10.0 && value.fract() >= 0.05);
    format!("{value:.digits$} {}", UNITS.get(unit).unwrap_or(&"B"))
}

/// `10 kB`, `1.5 MB`: for axes that go by tens.
fn decimal(bytes: f64) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(value < 9.95 && value.fract() >= 0.05);
    format!("{value:.digits$} {}", UNITS.get(unit).unwrap_or(&"B"))
}

/// `12 µs`, `3.4 ms`, `5.6 s`.
pub fn micros(us: f64) -> String {
    let (value, unit) = if us < 1e3 {
        (us, "µs")
    } else if us < 1e6 {
        (us / 1e3, "ms")
    } else {
        (us / 1e6, "s")
    };
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$} {unit}")
}

/// Seconds of a processor, which are counted in ticks of a hundredth.
fn processor_time(seconds: f64) -> String {
    if seconds < 0.01 {
        "<10 ms".into()
    } else {
        micros(seconds * 1e6)
    }
}

/// `0.001×`, `0.01×`, `3.4×`, `1000×`.
fn times(value: f64) -> String {
    let digits = if value < 0.000_95 {
        4
    } else if value < 0.0095 {
        3
    } else if value < 0.095 {
        2
    } else {
        usize::from(value < 9.95)
    };
    format!("{value:.digits$}×")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (value, text) in [
            (0, "0 B"),
            (4096, "4 KiB"),
            (1536, "1.5 KiB"),
            (1 << 30, "1 GiB"),
            (10 << 30, "10 GiB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        for (value, text) in [(1e3, "1 kB"), (1.5e6, "1.5 MB"), (100.0, "100 B")] {
            assert_eq!(decimal(value), text);
        }
        for (value, text) in [
            (1.26, "1.3 µs"),
            (999.0, "999 µs"),
            (1500.0, "1.5 ms"),
            (2e7, "20 s"),
        ] {
            assert_eq!(micros(value), text);
        }
        assert_eq!([0.0, 0.02].map(processor_time), ["<10 ms", "20 ms"]);
        let multiples = [0.0001, 0.001, 0.012, 1.0, 1000.0].map(times);
        assert_eq!(multiples, ["0.0001×", "0.001×", "0.01×", "1.0×", "1000×"]);
        assert_eq!(
            [951_782_399, 951_782_400].map(crate::image::time::date),
            ["2000-02-28", "2000-02-29"]
        );
    }
}
