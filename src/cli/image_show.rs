//! `acetate image ls` and `history`.

use std::collections::{HashMap, HashSet};

use clap::Args;
use serde::Serialize;

use super::{CliError, output};
use crate::image::{Filter, Reference, Store, StoredImage, time};

/// Lists images
#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Show the digests of manifests
    #[arg(long)]
    digests: bool,
    /// Only images that fit: dangling=BOOL, label=KEY[=VALUE], reference=PATTERN, until=TIME, before=IMAGE, since=IMAGE
    #[arg(short, long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Only images of this name, with any tag, or of this reference
    name: Option<String>,
}

/// A line of the listing, for programs.
#[derive(Serialize)]
struct Line {
    id: String,
    digest: String,
    reference: Option<String>,
    created: Option<String>,
    platform: String,
    /// Bytes of the layers as they are unpacked.
    size: u64,
    /// How many of those bytes other images have as well.
    shared: u64,
    layers: usize,
}

impl ListArgs {
    pub(super) fn run(self, store: &Store) -> Result<(), CliError> {
        let filter = Filter::parse(&self.filters, store)?;
        let images = store.images()?;
        let lines = self.lines(store, &images, &filter)?;
        if self.json {
            return Ok(output::json(&lines)?);
        }
        let id = |line: &Line| {
            let hex = line.id.strip_prefix("sha256:").unwrap_or(&line.id);
            if self.no_trunc {
                line.id.clone()
            } else {
                hex.get(..12).unwrap_or(hex).to_owned()
            }
        };
        if self.quiet {
            let mut seen = HashSet::new();
            let ids = lines.iter().map(id).filter(|id| seen.insert(id.clone()));
            return Ok(output::lines(ids)?);
        }
        let head = [
            "REPOSITORY",
            "TAG",
            "DIGEST",
            "IMAGE ID",
            "CREATED",
            "SIZE",
            "SHARED",
        ];
        let mut rows = vec![self.columns(head.map(String::from))];
        for line in &lines {
            let reference = line.reference.as_deref().map(Reference::parse);
            let (name, tag) = match &reference {
                Some(Ok(r)) => (r.familiar_name(), r.tag().unwrap_or("<none>").to_owned()),
                Some(Err(_)) => (line.reference.clone().unwrap_or_default(), "<none>".into()),
                None => ("<none>".into(), "<none>".into()),
            };
            rows.push(self.columns([
                output::escape(&name),
                output::escape(&tag),
                line.digest.clone(),
                id(line),
                output::escape(&ago(line.created.as_deref())),
                size(line.size),
                size(line.shared),
            ]));
        }
        Ok(output::table(&rows)?)
    }

    /// The cells of a row that are asked for.
    fn columns(&self, all: [String; 7]) -> Vec<String> {
        let wanted = |at: &usize| *at != 2 || self.digests;
        let cells = all.into_iter().enumerate();
        cells
            .filter(|(at, _)| wanted(at))
            .map(|(_, cell)| cell)
            .collect()
    }

    fn lines(
        &self,
        store: &Store,
        images: &[StoredImage],
        filter: &Filter,
    ) -> Result<Vec<Line>, CliError> {
        let mut users: HashMap<&str, usize> = HashMap::new();
        for image in images {
            let distinct: HashSet<&String> = image.config.rootfs().diff_ids().iter().collect();
            for diff_id in distinct {
                *users.entry(diff_id).or_default() += 1;
            }
        }
        let mut sizes: HashMap<&str, u64> = HashMap::new();
        for diff_id in users.keys() {
            sizes.insert(diff_id, store.layer_size(diff_id)?.unwrap_or_default());
        }
        let mut lines = Vec::new();
        for image in images.iter().filter(|image| filter.wants_image(image)) {
            let mut line = Line {
                id: image.id.to_string(),
                digest: image.digest.to_string(),
                reference: None,
                created: image.config.created().clone(),
                platform: format!("{}/{}", image.config.os(), image.config.architecture()),
                size: 0,
                shared: 0,
                layers: image.manifest.layers().len(),
            };
            for diff_id in image.config.rootfs().diff_ids() {
                let size = sizes.get(diff_id.as_str()).copied().unwrap_or_default();
                line.size += size;
                if users.get(diff_id.as_str()).is_some_and(|&n| n > 1) {
                    line.shared += size;
                }
            }
            let mut names: Vec<Option<String>> =
                image.references.iter().cloned().map(Some).collect();
            if names.is_empty() {
                names.push(None);
            }
            names.retain(|name| self.wants(name.as_deref()) && filter.wants_name(name.as_deref()));
            for reference in names {
                lines.push(Line {
                    reference,
                    ..line.clone_without_name()
                });
            }
        }
        Ok(lines)
    }

    fn wants(&self, reference: Option<&str>) -> bool {
        let Some(wanted) = &self.name else {
            return true;
        };
        let (Some(Ok(have)), Ok(wanted_ref)) =
            (reference.map(Reference::parse), Reference::parse(wanted))
        else {
            return false;
        };
        // A name without a tag means all of its tags.
        let last = wanted.rsplit('/').next().unwrap_or(wanted);
        have.name() == wanted_ref.name() && (!last.contains(':') || have.tag() == wanted_ref.tag())
    }
}

impl Line {
    fn clone_without_name(&self) -> Line {
        Line {
            id: self.id.clone(),
            digest: self.digest.clone(),
            reference: None,
            created: self.created.clone(),
            platform: self.platform.clone(),
            ..*self
        }
    }
}

/// Bytes as people read them, in powers of ten as docker has it.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

/// An RFC 3339 time as the time that has passed.
fn ago(created: Option<&str>) -> String {
    let Some(then) = created.and_then(time::parse) else {
        return created.map_or_else(|| "N/A".to_owned(), str::to_owned);
    };
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64);
    let passed = (now - then).max(0);
    let (count, unit) = match passed {
        0..60 => (passed, "second"),
        60..3600 => (passed / 60, "minute"),
        3600..86_400 => (passed / 3600, "hour"),
        86_400..1_209_600 => (passed / 86_400, "day"),
        1_209_600..5_184_000 => (passed / 604_800, "week"),
        5_184_000..63_072_000 => (passed / 2_592_000, "month"),
        _ => (passed / 31_536_000, "year"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

/// Shows how an image was made, the newest step first
#[derive(Args, Debug)]
pub(super) struct HistoryArgs {
    /// A reference or an id
    image: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Whole commands
    #[arg(long)]
    no_trunc: bool,
}

/// A step of the history, for programs.
#[derive(Serialize)]
struct Step {
    created: Option<String>,
    created_by: String,
    size: u64,
    comment: String,
    empty_layer: bool,
    diff_id: Option<String>,
}

impl HistoryArgs {
    pub(super) fn run(self, store: &Store) -> Result<(), CliError> {
        let image = store.image(&self.image)?;
        let mut steps = steps(store, &image)?;
        steps.reverse();
        if self.json {
            return Ok(output::json(&steps)?);
        }
        let mut rows = vec![["CREATED", "CREATED BY", "SIZE", "COMMENT"].map(String::from)];
        for step in steps {
            let mut command = output::escape(&step.created_by);
            if !self.no_trunc && command.chars().count() > 60 {
                command = command.chars().take(59).chain(['…']).collect();
            }
            rows.push([
                output::escape(&ago(step.created.as_deref())),
                command,
                size(step.size),
                output::escape(&step.comment),
            ]);
        }
        Ok(output::table(&rows)?)
    }
}

fn steps(store: &Store, image: &StoredImage) -> Result<Vec<Step>, CliError> {
    let mut layers = image.config.rootfs().diff_ids().iter();
    let mut steps = Vec::new();
    for entry in image.config.history().iter().flatten() {
        let empty = entry.empty_layer().unwrap_or_default();
        let diff_id = if empty { None } else { layers.next().cloned() };
        steps.push(Step {
            created: entry.created().clone(),
            created_by: entry.created_by().clone().unwrap_or_default(),
            size: match &diff_id {
                Some(diff_id) => store.layer_size(diff_id)?.unwrap_or_default(),
                None => 0,
            },
            comment: entry.comment().clone().unwrap_or_default(),
            empty_layer: empty,
            diff_id,
        });
    }
    // An image may tell less of its history than it has layers.
    for diff_id in layers {
        steps.push(Step {
            created: None,
            created_by: String::new(),
            size: store.layer_size(diff_id)?.unwrap_or_default(),
            comment: String::new(),
            empty_layer: false,
            diff_id: Some(diff_id.clone()),
        });
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_as_docker_does() {
        assert_eq!(size(0), "0B");
        assert_eq!(size(999), "999B");
        assert_eq!(size(1000), "1.00kB");
        assert_eq!(size(124_800_000), "125MB");
        assert_eq!(size(7_340_000), "7.34MB");
        assert_eq!(size(999_999), "1.00MB");
    }
}
