//! Which images a listing or a removal is about.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use super::catalog::StoredImage;
use super::change;
use super::error::ImageError;
use super::reference::Reference;
use super::store::Store;
use super::time;

/// Conditions that all have to be met: `dangling=BOOL`, `label=KEY[=VALUE]`, `label!=KEY[=VALUE]`, `reference=PATTERN`,
/// `until=TIME`, `before=IMAGE`, `since=IMAGE`. Several patterns are alternatives.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    dangling: Option<bool>,
    /// Key, value, and whether the image is to have it.
    labels: Vec<(String, Option<String>, bool)>,
    patterns: Vec<String>,
    /// Seconds since the epoch: the image is older than this.
    before: Option<i64>,
    since: Option<i64>,
}

impl Filter {
    /// Understands conditions; images that they name are those of `store`.
    pub fn parse(conditions: &[String], store: &Store) -> Result<Filter, ImageError> {
        let mut filter = Filter::default();
        for condition in conditions {
            let refuse = |why: &str| ImageError::InvalidFilter {
                filter: condition.clone(),
                why: why.to_owned(),
            };
            let (key, value) = condition
                .split_once('=')
                .ok_or_else(|| refuse("write it as KEY=VALUE"))?;
            match key {
                "dangling" => {
                    filter.dangling = Some(match value {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => return Err(refuse("dangling is true or false")),
                    });
                }
                "label" | "label!" => {
                    let (name, wanted) = match value.split_once('=') {
                        Some((name, wanted)) => (name, Some(wanted.to_owned())),
                        None => (value, None),
                    };
                    filter
                        .labels
                        .push((name.to_owned(), wanted, key == "label"));
                }
                "reference" => filter.patterns.push(value.to_owned()),
                "until" => {
                    let limit = moment(value).ok_or_else(|| {
                        refuse("write a time as 2026-01-31T12:00:00Z, or how long ago as 24h")
                    })?;
                    filter.before = Some(filter.before.map_or(limit, |b| b.min(limit)));
                }
                "before" | "since" => {
                    let image = store.image(value)?;
                    let created = created(&image)
                        .ok_or_else(|| refuse("nobody knows when that image was made"))?;
                    if key == "before" {
                        filter.before = Some(filter.before.map_or(created, |b| b.min(created)));
                    } else {
                        filter.since = Some(filter.since.map_or(created, |s| s.max(created)));
                    }
                }
                _ => {
                    return Err(refuse(
                        "the filters are dangling, label, label!, reference, until, before, since",
                    ));
                }
            }
        }
        Ok(filter)
    }

    /// Whether an image meets what does not concern its names.
    pub fn wants_image(&self, image: &StoredImage) -> bool {
        if self
            .dangling
            .is_some_and(|dangling| dangling != image.references.is_empty())
        {
            return false;
        }
        let none = HashMap::new();
        let config = image.config.config().as_ref();
        let labels = config.and_then(|c| c.labels().as_ref()).unwrap_or(&none);
        let labelled = self.labels.iter().all(|(key, value, there)| {
            let fits = labels
                .get(key)
                .is_some_and(|have| value.as_ref().is_none_or(|wanted| wanted == have));
            fits == *there
        });
        // An image whose age is not known is neither older nor younger.
        let made = created(image);
        let older = self
            .before
            .is_none_or(|limit| made.is_some_and(|m| m < limit));
        let younger = self
            .since
            .is_none_or(|limit| made.is_some_and(|m| m > limit));
        labelled && older && younger
    }

    /// Whether one of its names is meant; an image without names has `None`.
    pub fn wants_name(&self, name: Option<&str>) -> bool {
        if self.patterns.is_empty() {
            return true;
        }
        let Some(Ok(reference)) = name.map(Reference::parse) else {
            return false;
        };
        let tag = reference.tag().unwrap_or_default();
        [reference.name(), reference.familiar_name()]
            .iter()
            .flat_map(|name| [name.clone(), format!("{name}:{tag}")])
            .any(|name| {
                self.patterns
                    .iter()
                    .any(|p| fits(p.as_bytes(), name.as_bytes()))
            })
    }
}

fn created(image: &StoredImage) -> Option<i64> {
    time::parse(image.config.created().as_deref()?)
}

/// A time, seconds since the epoch, or a duration back from now.
fn moment(text: &str) -> Option<i64> {
    if let Some(time) = time::parse(text) {
        return Some(time);
    }
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let ago = change::nanoseconds(text).ok()? / 1_000_000_000;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    i64::try_from(now.saturating_sub(ago)).ok()
}

/// `*` stands for anything but a slash, `?` for one such character.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            fits(rest, text)
                || matches!(text.split_first(), Some((c, left)) if *c != b'/' && fits(pattern, left))
        }
        (Some((b'?', rest)), Some((c, left))) => *c != b'/' && fits(rest, left),
        (Some((p, rest)), Some((c, left))) => p == c && fits(rest, left),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stop_at_slashes() {
        assert!(fits(b"deb*:1?", b"debian:12"));
        assert!(fits(b"*/debian", b"docker.io/debian"));
        assert!(!fits(b"*", b"a/b"));
        assert!(!fits(b"debian", b"debian:12"));
    }

    #[test]
    fn moments() {
        assert_eq!(moment("1970-01-01T00:01:00Z"), Some(60));
        assert_eq!(moment("90"), Some(90));
        assert!(moment("24h").is_some_and(|t| t > 1_000_000_000));
        assert_eq!(moment("yesterday"), None);
    }
}
