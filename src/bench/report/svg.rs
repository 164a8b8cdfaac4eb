//! Plots as SVG text: lines on logarithmic axes with their names at their ends, and rows of dots.
//!
//! Colours are those of Okabe and Ito and one of Tol's, which the colour-blind tell apart; markers and dashes tell the rest. Names stand
//! beside what they name, in the text's own colour, and are moved apart where they would overlap.

use std::fmt::Write;

/// How one system is drawn everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) colour: &'static str,
    pub(super) dash: &'static str,
    pub(super) marker: Marker,
}

/// The form of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Ring,
}

/// The first that a name begins with counts. No family may have more members than there are markers.
const FAMILIES: [(&str, &str); 9] = [
    ("acetate on", "#882255"),
    ("acetate", "#D55E00"),
    ("kernel", "#0072B2"),
    ("fuse-overlayfs", "#009E73"),
    ("unionfs", "#CC79A7"),
    ("reflink", "#56B4E9"),
    ("btrfs snapshot", "#E69F00"),
    ("copy", "#000000"),
    ("plain", "#000000"),
];
const SPARE: [&str; 2] = ["#F0E442", "#000000"];
const DASHES: [&str; 5] = ["", "6 3", "2 3", "9 3 2 3", "1 2"];
const MARKERS: [Marker; 5] = [
    Marker::Circle,
    Marker::Square,
    Marker::Triangle,
    Marker::Diamond,
    Marker::Ring,
];

/// One style for each name: a colour for each family, dashes and markers for its members.
pub(super) fn styles(names: &[&str]) -> Vec<Style> {
    let mut members = [0usize; FAMILIES.len() + 1];
    let of = |name: &str| {
        FAMILIES
            .iter()
            .position(|(family, _)| name.starts_with(family))
    };
    names
        .iter()
        .map(|name| {
            let family = of(name);
            let slot = members.get_mut(family.unwrap_or(FAMILIES.len()));
            let member = slot.map_or(0, |slot| {
                *slot += 1;
                *slot - 1
            });
            let colour = match family.and_then(|at| FAMILIES.get(at)) {
                Some((_, colour)) => colour,
                None => SPARE.get(member % SPARE.len()).unwrap_or(&"#000000"),
            };
            Style {
                colour,
                dash: DASHES.get(member % DASHES.len()).unwrap_or(&""),
                marker: *MARKERS
                    .get(member % MARKERS.len())
                    .unwrap_or(&Marker::Circle),
            }
        })
        .collect()
}

/// Text that means nothing to HTML.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() && c != '\n' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A logarithmic axis.
#[derive(Clone, Copy, Debug)]
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// From pixel `from` to pixel `to`, for whole decades around all values above zero.
    fn decades(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Axis {
        let (low, high) = range(values);
        let (low, mut high) = (low.log10().floor(), high.log10().ceil());
        if high <= low {
            high = low + 1.0;
        }
        Axis {
            low,
            high,
            from,
            to,
        }
    }

    /// Just around the values.
    fn tight(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Axis {
        let (low, high) = range(values);
        let (low, mut high) = (low.log10(), high.log10());
        if high <= low {
            high = low + 1.0;
        }
        Axis {
            low,
            high,
            from,
            to,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.max(1e-12).log10() - self.low) / (self.high - self.low);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        let (low, high) = (self.low.ceil() as i32, self.high.floor() as i32);
        (low..=high).map(|exponent| 10f64.powi(exponent))
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let values = values.filter(|v| *v > 0.0 && v.is_finite());
    let (low, high) = values.fold((f64::MAX, 0.0f64), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    if high > 0.0 { (low, high) } else { (1.0, 10.0) }
}

/// One line.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) style: Style,
    /// Where, how much, and how far up the whisker goes.
    pub(super) points: Vec<(f64, f64, Option<f64>)>,
}

/// How figures of an axis are written.
pub(super) type Write1 = fn(f64) -> String;

const WIDTH: f64 = 1080.0;
const LEFT: f64 = 84.0;
const LABELS: f64 = 240.0;
const LINE: f64 = 16.0;

/// Lines over sizes, both axes logarithmic.
pub(super) fn lines(
    title: &str,
    x_title: &str,
    y_title: &str,
    x_write: Write1,
    y_write: Write1,
    series: &[Series],
) -> String {
    let height = (series.len() as f64 * LINE + 120.0).max(430.0);
    let (top, bottom, right) = (20.0, height - 56.0, WIDTH - LABELS);
    let xs = series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
    let ys = series
        .iter()
        .flat_map(|s| s.points.iter().flat_map(|p| [Some(p.1), p.2]))
        .flatten();
    let x = Axis::tight(xs.clone(), LEFT + 14.0, right - 14.0);
    let y = Axis::decades(ys, bottom, top);
    let mut out = open(title, height);
    grid_y(&mut out, &y, right, y_write);
    let mut places: Vec<f64> = xs.collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let mut last = f64::MIN;
    for place in places {
        let at = x.at(place);
        put(
            &mut out,
            format_args!(
                "<line class='tick' x1='{at:.1}' x2='{at:.1}' y1='{bottom:.1}' y2='{:.1}'/>",
                bottom + 5.0
            ),
        );
        if at - last > 58.0 {
            put(
                &mut out,
                format_args!(
                    "<text class='num' text-anchor='middle' x='{at:.1}' y='{:.1}'>{}</text>",
                    bottom + 20.0,
                    escape(&x_write(place))
                ),
            );
            last = at;
        }
    }
    axis_titles(&mut out, x_title, y_title, (LEFT + right) / 2.0, height);
    for one in series {
        let colour = one.style.colour;
        let path: Vec<String> = one
            .points
            .iter()
            .map(|(px, py, _)| format!("{:.1},{:.1}", x.at(*px), y.at(*py)))
            .collect();
        put(
            &mut out,
            format_args!(
                "<g><title>{}</title><polyline fill='none' stroke='{colour}' stroke-width='2' stroke-dasharray='{}' points='{}'/>",
                escape(&one.name),
                one.style.dash,
                path.join(" ")
            ),
        );
        for (px, py, whisker) in &one.points {
            let (cx, cy) = (x.at(*px), y.at(*py));
            if let Some(up) = whisker {
                put(
                    &mut out,
                    format_args!(
                        "<line stroke='{colour}' stroke-width='1' opacity='.5' x1='{cx:.1}' x2='{cx:.1}' y1='{cy:.1}' y2='{:.1}'/>",
                        y.at(*up)
                    ),
                );
            }
            marker(&mut out, &one.style, cx, cy);
        }
        out.push_str("</g>");
    }
    let ends: Vec<(f64, f64)> = series
        .iter()
        .map(|one| {
            one.points
                .last()
                .map_or((right, bottom), |p| (x.at(p.0), y.at(p.1)))
        })
        .collect();
    let wanted: Vec<f64> = ends.iter().map(|(_, at)| *at).collect();
    for ((one, (from, end)), at) in series
        .iter()
        .zip(ends)
        .zip(apart(&wanted, top, bottom + 30.0))
    {
        let colour = one.style.colour;
        put(
            &mut out,
            format_args!(
                "<polyline fill='none' stroke='{colour}' stroke-width='1' opacity='.6' points='{:.1},{end:.1} {:.1},{at:.1} {:.1},{at:.1}'/>",
                from + 6.0,
                right + 12.0,
                right + 20.0
            ),
        );
        marker(&mut out, &one.style, right + 27.0, at);
        put(
            &mut out,
            format_args!(
                "<text x='{:.1}' y='{:.1}'>{}</text>",
                right + 37.0,
                at + 4.0,
                escape(&one.name)
            ),
        );
    }
    out.push_str("</svg>");
    out
}

/// Places near the wanted ones, a line's height apart, between two bounds.
fn apart(wanted: &[f64], low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    let of = |i: &usize| wanted.get(*i).copied().unwrap_or(low);
    order.sort_by(|a, b| of(a).total_cmp(&of(b)));
    let mut places: Vec<f64> = Vec::new();
    for i in &order {
        let after = places.last().map_or(low, |last| last + LINE);
        places.push(of(i).max(after));
    }
    let mut limit = high;
    for place in places.iter_mut().rev() {
        *place = place.min(limit);
        limit = *place - LINE;
    }
    let mut out = vec![low; wanted.len()];
    for (i, place) in order.into_iter().zip(places) {
        if let Some(slot) = out.get_mut(i) {
            *slot = place;
        }
    }
    out
}

/// A row of dots.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    /// How much, and as what.
    pub(super) dots: Vec<(f64, Style, String)>,
}

/// Rows of dots over one logarithmic axis. `marked` gets a line of its own.
pub(super) fn dots(
    title: &str,
    x_title: &str,
    x_write: Write1,
    rows: &[Row],
    legend: &[(String, Style)],
    marked: Option<f64>,
) -> String {
    const NAMES: f64 = 300.0;
    let across = 4;
    let legend_height = legend.len().div_ceil(across) as f64 * 20.0 + 14.0;
    let top = 10.0 + legend_height;
    let (left, right) = (NAMES, WIDTH - 30.0);
    let all = rows
        .iter()
        .flat_map(|row| row.dots.iter().map(|d| d.0))
        .chain(marked);
    let x = Axis::decades(all, left, right);
    let placed: Vec<(Vec<usize>, f64)> = rows
        .iter()
        .map(|row| {
            let at: Vec<f64> = row.dots.iter().map(|dot| x.at(dot.0)).collect();
            let lanes = lanes(&at);
            let count = lanes.iter().max().map_or(1, |most| most + 1);
            (lanes, (count as f64 * LANE + 8.0).max(24.0))
        })
        .collect();
    let bottom = top + placed.iter().map(|(_, height)| height).sum::<f64>();
    let height = bottom + 56.0;
    let mut out = open(title, height);
    for (i, (name, style)) in legend.iter().enumerate() {
        let at = 24.0 + (i % across) as f64 * 262.0;
        let y = 16.0 + (i / across) as f64 * 20.0;
        marker(&mut out, style, at, y);
        put(
            &mut out,
            format_args!(
                "<text x='{:.1}' y='{:.1}'>{}</text>",
                at + 11.0,
                y + 4.0,
                escape(name)
            ),
        );
    }
    for tick in x.ticks() {
        let at = x.at(tick);
        put(
            &mut out,
            format_args!(
                "<line class='grid' x1='{at:.1}' x2='{at:.1}' y1='{top:.1}' y2='{bottom:.1}'/><text class='num' text-anchor='middle' x='{at:.1}' y='{:.1}'>{}</text>",
                bottom + 18.0,
                escape(&x_write(tick))
            ),
        );
    }
    if let Some(value) = marked {
        let at = x.at(value);
        put(
            &mut out,
            format_args!(
                "<line stroke='#444' stroke-width='1.5' x1='{at:.1}' x2='{at:.1}' y1='{top:.1}' y2='{bottom:.1}'/>"
            ),
        );
    }
    let mut from = top;
    for (row, (lanes, height)) in rows.iter().zip(&placed) {
        let y = from + height / 2.0;
        from += height;
        put(
            &mut out,
            format_args!(
                "<line class='grid' x1='{left:.1}' x2='{right:.1}' y1='{y:.1}' y2='{y:.1}'/><text text-anchor='end' x='{:.1}' y='{:.1}'>{}</text>",
                left - 12.0,
                y + 4.0,
                escape(&row.name)
            ),
        );
        let count = lanes.iter().max().map_or(1, |most| most + 1);
        for ((value, style, what), lane) in row.dots.iter().zip(lanes) {
            let y = y + (*lane as f64 - (count - 1) as f64 / 2.0) * LANE;
            put(
                &mut out,
                format_args!(
                    "<g><title>{}: {}</title>",
                    escape(what),
                    escape(&x_write(*value))
                ),
            );
            marker(&mut out, style, x.at(*value), y);
            out.push_str("</g>");
        }
    }
    axis_titles(&mut out, x_title, "", (left + right) / 2.0, height);
    out.push_str("</svg>");
    out
}

/// How far two marks beside each other are apart at least.
const LANE: f64 = 12.0;

/// On which line each mark lies, so that none covers another.
fn lanes(at: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..at.len()).collect();
    let of = |i: usize| at.get(i).copied().unwrap_or_default();
    order.sort_by(|a, b| of(*a).total_cmp(&of(*b)));
    let mut ends: Vec<f64> = Vec::new();
    let mut out = vec![0; at.len()];
    for i in order {
        let free = ends.iter().position(|end| end + LANE <= of(i));
        let lane = free.unwrap_or(ends.len());
        match ends.get_mut(lane) {
            Some(end) => *end = of(i),
            None => ends.push(of(i)),
        }
        if let Some(slot) = out.get_mut(i) {
            *slot = lane;
        }
    }
    out
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg role='img' aria-label='{}' viewBox='0 0 {WIDTH:.0} {height:.0}' width='{WIDTH:.0}' height='{height:.0}'>",
        escape(title).replace('\'', "&#39;")
    )
}

fn grid_y(out: &mut String, y: &Axis, right: f64, write: Write1) {
    for tick in y.ticks() {
        let at = y.at(tick);
        put(
            out,
            format_args!(
                "<line class='grid' x1='{LEFT:.1}' x2='{right:.1}' y1='{at:.1}' y2='{at:.1}'/><text class='num' text-anchor='end' x='{:.1}' y='{:.1}'>{}</text>",
                LEFT - 8.0,
                at + 4.0,
                escape(&write(tick))
            ),
        );
    }
}

fn axis_titles(out: &mut String, x_title: &str, y_title: &str, middle: f64, height: f64) {
    put(
        out,
        format_args!(
            "<text class='axis' text-anchor='middle' x='{middle:.1}' y='{:.1}'>{}</text>",
            height - 10.0,
            escape(x_title)
        ),
    );
    if !y_title.is_empty() {
        let at = height / 2.0 - 18.0;
        put(
            out,
            format_args!(
                "<text class='axis' text-anchor='middle' transform='translate(16 {at:.1}) rotate(-90)'>{}</text>",
                escape(y_title)
            ),
        );
    }
}

fn marker(out: &mut String, style: &Style, x: f64, y: f64) {
    let colour = style.colour;
    match style.marker {
        Marker::Circle => put(
            out,
            format_args!("<circle cx='{x:.1}' cy='{y:.1}' r='5' fill='{colour}' stroke='#fff'/>"),
        ),
        Marker::Ring => put(
            out,
            format_args!(
                "<circle cx='{x:.1}' cy='{y:.1}' r='4.5' fill='#fff' stroke='{colour}' stroke-width='2'/>"
            ),
        ),
        Marker::Square => put(
            out,
            format_args!(
                "<rect x='{:.1}' y='{:.1}' width='9' height='9' fill='{colour}' stroke='#fff'/>",
                x - 4.5,
                y - 4.5
            ),
        ),
        Marker::Triangle => put(
            out,
            format_args!(
                "<polygon points='{x:.1},{:.1} {:.1},{:.1} {:.1},{:.1}' fill='{colour}' stroke='#fff'/>",
                y - 6.0,
                x + 5.5,
                y + 4.5,
                x - 5.5,
                y + 4.5
            ),
        ),
        Marker::Diamond => put(
            out,
            format_args!(
                "<polygon points='{x:.1},{:.1} {:.1},{y:.1} {x:.1},{:.1} {:.1},{y:.1}' fill='{colour}' stroke='#fff'/>",
                y - 6.0,
                x + 6.0,
                y + 6.0,
                x - 6.0
            ),
        ),
    }
}

/// Text can be written to text without an error.
fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    if out.write_fmt(text).is_err() {
        log::debug!("a piece of a plot could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_moved_apart_and_stay_inside() {
        let places = apart(&[100.0, 101.0, 99.0, 300.0, 300.0], 0.0, 300.0);
        let mut sorted = places.clone();
        sorted.sort_by(f64::total_cmp);
        for pair in sorted.windows(2) {
            assert!(pair[1] - pair[0] >= LINE - 1e-9, "{places:?}");
        }
        assert!(sorted[0] >= 0.0 && sorted[4] <= 300.0, "{places:?}");
        assert!(places[2] < places[0] && places[0] < places[1]);
    }

    #[test]
    fn no_mark_covers_another() {
        assert_eq!(lanes(&[10.0, 100.0, 12.0, 22.0]), [0, 0, 1, 0]);
        assert_eq!(lanes(&[]), [0usize; 0]);
    }

    #[test]
    fn members_of_a_family_differ() {
        let names = ["acetate", "acetate partial=off", "kernel", "something else"];
        let styles = styles(&names);
        assert_eq!(styles[0].colour, styles[1].colour);
        assert_ne!(styles[0].marker, styles[1].marker);
        assert_ne!(styles[0].colour, styles[2].colour);
        // As many as a run of all modes has.
        let names = [
            "acetate",
            "acetate complete=off",
            "acetate partial=off",
            "acetate metacopy=off",
            "acetate volatile",
            "acetate on xfs",
            "acetate on btrfs",
        ];
        let looks: std::collections::HashSet<_> = super::styles(&names)
            .iter()
            .map(|style| (style.colour, format!("{:?}", style.marker)))
            .collect();
        assert_eq!(looks.len(), names.len());
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(escape("<b>&\"\u{1}"), "&lt;b&gt;&amp;&quot;\u{fffd}");
    }

    #[test]
    fn a_plot_of_nothing_is_a_plot() {
        let plot = lines("t", "x", "y", |v| v.to_string(), |v| v.to_string(), &[]);
        assert!(plot.starts_with("<svg") && plot.ends_with("</svg>"));
        assert!(!plot.contains("NaN") && !plot.contains("inf"), "{plot}");
    }
}
