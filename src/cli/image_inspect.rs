//! `acetate image inspect`: all that is known of an image, or what a template picks from it.
//!
//! A template is written in Jinja, with docker's names: `{{ Config.Env[0] }}`, `{% for e in Config.Env %}...`,
//! `{{ Config | tojson }}`. What docker's users write most means the same here: `{{.Config.User}}`, `{{json .Config}}`.
//! A JSON pointer such as `/Config/Env/0` works as well.

use clap::Args;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::Value;

use super::{CliError, output};
use crate::image::{Store, StoredImage};

/// Shows all that is known of images, as JSON
#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// References or ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Print only this: a template such as '{{.Config.User}}' or '{{ Config.Env | join(" ") }}', or a JSON pointer such
    /// as /Config/Env/0
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl InspectArgs {
    pub(super) fn run(self, store: &Store) -> Result<(), CliError> {
        let mut all = Vec::new();
        for name in &self.images {
            all.push(description(store, &store.image(name)?)?);
        }
        let Some(format) = &self.format else {
            let text = serde_json::to_string_pretty(&all).map_err(std::io::Error::from)?;
            return Ok(output::line(&text)?);
        };
        for (value, name) in all.iter().zip(&self.images) {
            output::line(&picked(value, format, name)?)?;
        }
        Ok(())
    }
}

/// What a template or JSON pointer picks.
fn picked(value: &Value, format: &str, name: &str) -> Result<String, CliError> {
    if format.starts_with('/') {
        return match value.pointer(format) {
            Some(Value::String(text)) => Ok(output::escape(text)),
            Some(found) => Ok(found.to_string()),
            None => Err(CliError::Usage(format!(
                "{format} leads to nothing in {name}: write a JSON pointer, such as /Config/Env/0"
            ))),
        };
    }
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // The engine's own writes some characters as HTML needs them.
    environment.add_filter("tojson", |value: minijinja::Value| {
        serde_json::to_string(&value)
            .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
    });
    environment
        .render_str(&in_jinja(format), Serde(value))
        .map_err(|e| {
            let why = e.to_string();
            let why = why.lines().next().unwrap_or_default().to_owned();
            CliError::Usage(format!(
                "the template {format:?} does not fit {name}: {why}"
            ))
        })
}

/// Turns `{{.A.B}}` and `{{json .A.B}}` of Go's templates into Jinja's; everything else stays.
fn in_jinja(format: &str) -> String {
    let mut text = String::new();
    let mut rest = format;
    while let Some(begin) = rest.find("{{") {
        let Some(length) = rest[begin..].find("}}") else {
            break;
        };
        let inner = rest[begin + 2..begin + length].trim();
        let (path, json) = match inner.strip_prefix("json ") {
            Some(path) => (path.trim(), true),
            None => (inner, false),
        };
        let is_path = path.starts_with('.')
            && path != "."
            && path
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'_');
        text.push_str(&rest[..begin]);
        let name = path.trim_start_matches('.');
        match (is_path, json) {
            (false, _) => text.push_str(&rest[begin..begin + length + 2]),
            (true, true) => text.push_str(&format!("{{{{ {name} | tojson }}}}")),
            (true, false) => text.push_str(&format!("{{{{ {name} }}}}")),
        }
        rest = &rest[begin + length + 2..];
    }
    text.push_str(rest);
    text
}

/// An image in the shape of `docker inspect`, with what the store adds.
fn description(store: &Store, image: &StoredImage) -> Result<Value, CliError> {
    let raw: Value = serde_json::from_slice(&image.config_bytes).map_err(std::io::Error::from)?;
    let of = |key: &str| raw.get(key).cloned().unwrap_or(Value::Null);
    let mut layers = Vec::new();
    let mut size = 0;
    let diff_ids = image.config.rootfs().diff_ids();
    for (diff_id, blob) in diff_ids.iter().zip(image.manifest.layers()) {
        let unpacked = store.layer_size(diff_id)?;
        size += unpacked.unwrap_or_default();
        layers.push(serde_json::json!({
            "DiffId": diff_id,
            "Digest": blob.digest().to_string(),
            "MediaType": blob.media_type().to_string(),
            "StoredSize": blob.size(),
            "Size": unpacked,
        }));
    }
    Ok(serde_json::json!({
        "Id": image.id.to_string(),
        "Digest": image.digest.to_string(),
        "RepoTags": image.references,
        "Created": of("created"),
        "Author": of("author"),
        "Architecture": of("architecture"),
        "Variant": of("variant"),
        "Os": of("os"),
        "Size": size,
        "StoredSize": image.stored_size(),
        "Config": of("config"),
        "RootFS": {"Type": "layers", "Layers": diff_ids},
        "Layers": layers,
        "History": of("history"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_pick_as_dockers_do() {
        let image = serde_json::json!({
            "Id": "sha256:1", "Config": {"User": "me", "Env": ["A=1", "B=<2>"], "Cmd": null},
        });
        let pick = |format: &str| picked(&image, format, "x");
        for (format, expected) in [
            ("{{.Id}}", "sha256:1"),
            ("id: {{ .Config.User }}!", "id: me!"),
            ("{{json .Config.Env}}", r#"["A=1","B=<2>"]"#),
            ("{{ Config.Env | join(' ') }}", "A=1 B=<2>"),
            (
                "{% for e in Config.Env %}{{ e }};{% endfor %}",
                "A=1;B=<2>;",
            ),
            ("/Config/Env/0", "A=1"),
            ("/Config/Cmd", "null"),
            ("plain {{", "plain {{"),
        ] {
            match pick(format) {
                Ok(text) => assert_eq!(text, expected, "{format}"),
                // Half a template is Jinja's to refuse.
                Err(e) => assert!(format.ends_with("{{"), "{format}: {e}"),
            }
        }
        for bad in [
            "{{.Nothing}}",
            "{{ Config.Nope.More }}",
            "{{ 1 + }}",
            "/Nope",
        ] {
            let error = pick(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && !error.contains('\n'), "{error}");
        }
    }
}
