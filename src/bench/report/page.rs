//! What all pages share: one file without anything that would have to be fetched.

use super::bytes;
use super::svg::escape;
use crate::bench::{Left, Machine, SystemInfo};

const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;color:#1b1b1b;background:#fff;max-width:1100px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.7rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin:2.4rem 0 .2rem}p{max-width:46rem}\
svg{max-width:100%;height:auto;font:13px system-ui,sans-serif}\
.grid{stroke:#e3e3e3}.tick{stroke:#888}.num{fill:#444;font-variant-numeric:tabular-nums}.axis{fill:#444;font-style:italic}\
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}\
td,th{padding:2px 8px;text-align:right;border-bottom:1px solid #e3e3e3;vertical-align:top}\
td:first-child,th:first-child,.text td,.text th,.words{text-align:left!important}\
.best{font-weight:700}.facts{color:#444;font-size:14px}.scroll{overflow-x:auto}";

/// A whole page.
pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>{0}</title>\
         <meta name='viewport' content='width=device-width,initial-scale=1'><link rel='icon' href='data:,'>\
         <style>{STYLE}</style></head><body><h1>{0}</h1>{body}</body></html>\n",
        escape(title)
    )
}

/// What was measured on.
pub(super) fn facts(machine: &Machine) -> String {
    let who = if machine.root { "root" } else { "a plain user" };
    let processor = if machine.processor.is_empty() {
        "processor unknown"
    } else {
        &machine.processor
    };
    format!(
        "<p class='facts'>acetate {}, Linux {}, {} × {}, {} of memory, scratch space on {}, as {who}; \
         load {} when it began, {}.</p>",
        escape(&machine.acetate),
        escape(&machine.kernel),
        machine.processors,
        escape(processor),
        bytes(machine.memory),
        escape(&machine.scratch_filesystem),
        machine.load,
        crate::image::time::date(machine.time),
    )
}

/// Who was measured and who was not.
pub(super) fn systems(systems: &[SystemInfo], left: &[Left]) -> String {
    let mut out = String::from("<h2>The systems</h2><table class='text'>");
    for system in systems {
        out.push_str(&format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&system.name),
            system.filesystem.name(),
            escape(&system.about)
        ));
    }
    for left in left {
        out.push_str(&format!(
            "<tr><td>{}</td><td>–</td><td>left out: {}</td></tr>",
            escape(&left.name),
            escape(&left.why)
        ));
    }
    out.push_str("</table>");
    out
}

/// A table below a line that opens it. The first row is the head; the least of each row's `values` is shown bold.
pub(super) fn details(
    title: &str,
    head: &[String],
    rows: &[(String, Vec<Option<f64>>)],
    write: fn(f64) -> String,
) -> String {
    let mut out = format!(
        "<details><summary>{}</summary><div class='scroll'><table><tr>",
        escape(title)
    );
    for cell in head {
        out.push_str(&format!("<th>{}</th>", escape(cell)));
    }
    out.push_str("</tr>");
    for (name, values) in rows {
        let best = values.iter().flatten().copied().fold(f64::MAX, f64::min);
        out.push_str(&format!("<tr><td>{}</td>", escape(name)));
        for value in values {
            match value {
                Some(value) if *value <= best => {
                    out.push_str(&format!("<td class='best'>{}</td>", write(*value)))
                }
                Some(value) => out.push_str(&format!("<td>{}</td>", write(*value))),
                None => out.push_str("<td>–</td>"),
            }
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div></details>");
    out
}
