//! Changes of an image's configuration, written as the instructions of a Dockerfile: `CMD`, `ENTRYPOINT`, `ENV`,
//! `EXPOSE`, `HEALTHCHECK`, `LABEL`, `ONBUILD`, `STOPSIGNAL`, `USER`, `VOLUME` and `WORKDIR`.
//!
//! They change the JSON itself: a configuration may hold more than the OCI specification knows, such as docker's
//! `Healthcheck` and `OnBuild`, and all of that is kept.

use serde_json::{Map, Value, json};

use super::error::ImageError;

/// Applies instructions, one after the other, to the `config` object of an image's configuration.
pub(crate) fn apply(config: &mut Map<String, Value>, changes: &[String]) -> Result<(), ImageError> {
    let mut command_given = false;
    for change in changes {
        let refuse = |why: String| ImageError::InvalidChange {
            change: change.clone(),
            why,
        };
        let text = change.trim();
        let (word, rest) = text
            .split_once(|c: char| c.is_ascii_whitespace() || c == '=')
            .unwrap_or((text, ""));
        // `CMD=...` is as common as `CMD ...` here.
        let rest = rest.trim();
        let word = word.to_ascii_uppercase();
        if rest.is_empty() {
            return Err(refuse(format!("{word} needs a value")));
        }
        match word.as_str() {
            "CMD" => {
                config.insert("Cmd".into(), command(rest));
                command_given = true;
            }
            "ENTRYPOINT" => {
                config.insert("Entrypoint".into(), command(rest));
                // The arguments were those of another program.
                if !command_given {
                    config.remove("Cmd");
                }
            }
            "ENV" => environment(config, rest).map_err(refuse)?,
            "LABEL" => {
                for (key, value) in pairs(rest).map_err(refuse)? {
                    add(config, "Labels", key, value.into());
                }
            }
            "EXPOSE" => {
                for word in rest.split_ascii_whitespace() {
                    for port in ports(word).map_err(refuse)? {
                        add(config, "ExposedPorts", port, json!({}));
                    }
                }
            }
            "VOLUME" => {
                let paths = match list(rest) {
                    Some(paths) => paths,
                    None => words(rest).map_err(refuse)?,
                };
                for path in paths {
                    if path.is_empty() {
                        return Err(refuse("a volume needs a path".to_owned()));
                    }
                    add(config, "Volumes", path, json!({}));
                }
            }
            "USER" => {
                config.insert("User".into(), rest.into());
            }
            "WORKDIR" => {
                let before = config.get("WorkingDir").and_then(Value::as_str);
                let dir = absolute(before.unwrap_or_default(), &unquoted(rest));
                config.insert("WorkingDir".into(), dir.into());
            }
            "STOPSIGNAL" => {
                config.insert("StopSignal".into(), rest.into());
            }
            "ONBUILD" => {
                let first = rest.split_ascii_whitespace().next().unwrap_or_default();
                if ["ONBUILD", "FROM", "MAINTAINER"]
                    .iter()
                    .any(|no| first.eq_ignore_ascii_case(no))
                {
                    return Err(refuse(format!("{first} is not allowed as an ONBUILD")));
                }
                let triggers = config.entry("OnBuild").or_insert_with(|| json!([]));
                if !triggers.is_array() {
                    *triggers = json!([]);
                }
                if let Some(triggers) = triggers.as_array_mut() {
                    triggers.push(rest.into());
                }
            }
            "HEALTHCHECK" => {
                config.insert("Healthcheck".into(), healthcheck(rest).map_err(refuse)?);
            }
            _ => {
                return Err(refuse(format!(
                    "{word} is no instruction that can be given here; those are CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR"
                )));
            }
        }
    }
    Ok(())
}

/// Adds to a member that is an object; what is something else, such as null, makes room.
fn add(config: &mut Map<String, Value>, key: &str, name: String, value: Value) {
    let mut members = match config.remove(key) {
        Some(Value::Object(members)) => members,
        _ => Map::new(),
    };
    members.insert(name, value);
    config.insert(key.to_owned(), Value::Object(members));
}

/// A JSON list of strings, where the text is one.
fn list(text: &str) -> Option<Vec<String>> {
    if !text.starts_with('[') {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// The words of a JSON list; anything else is a line for a shell.
fn command(text: &str) -> Value {
    match list(text) {
        Some(words) => words.into(),
        None => json!(["/bin/sh", "-c", text]),
    }
}

fn environment(config: &mut Map<String, Value>, text: &str) -> Result<(), String> {
    let mut all: Vec<String> = config
        .get("Env")
        .and_then(Value::as_array)
        .map(|list| {
            list.iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        })
        .unwrap_or_default();
    for (key, value) in pairs(text)? {
        let entry = format!("{key}={value}");
        let same = |have: &String| have.split('=').next() == Some(key.as_str());
        match all.iter_mut().find(|have| same(have)) {
            Some(have) => *have = entry,
            None => all.push(entry),
        }
    }
    config.insert("Env".into(), all.into());
    Ok(())
}

/// `KEY=VALUE` pairs with quotes and backslashes as a shell has them; or, in the older form, `KEY` and the rest.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split_ascii_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (key, value) = text
            .split_once(|c: char| c.is_ascii_whitespace())
            .ok_or_else(|| format!("{text} has no value: write {text}=VALUE"))?;
        return Ok(vec![(key.to_owned(), unquoted(value.trim()))]);
    }
    words(text)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some(("", _)) => Err("a name is empty".to_owned()),
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(format!("{word} has no value: write {word}=VALUE")),
        })
        .collect()
}

/// Words as a shell splits them, without anything else that a shell does.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => match chars.next() {
                Some(next) => {
                    let word = word.get_or_insert_default();
                    // Between double quotes a backslash protects but few.
                    if quote.is_some() && !matches!(next, '"' | '\\' | '$') {
                        word.push('\\');
                    }
                    word.push(next);
                }
                None => return Err("a backslash protects nothing".to_owned()),
            },
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_ascii_whitespace() => all.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    all.extend(word);
    Ok(all)
}

fn unquoted(text: &str) -> String {
    for quote in ['"', '\''] {
        let inner = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote));
        if let Some(inner) = inner {
            return inner.to_owned();
        }
    }
    text.to_owned()
}

/// `PORT[-PORT][/PROTOCOL]` as the keys of `ExposedPorts`.
fn ports(text: &str) -> Result<Vec<String>, String> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let bad = || format!("{text} is no port: write PORT, PORT-PORT or PORT/PROTOCOL");
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(bad());
    }
    let port = |digits: &str| match digits.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(bad()),
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(bad());
    }
    Ok((first..=last).map(|p| format!("{p}/{protocol}")).collect())
}

/// A path taken from another one, without `.` and `..`.
fn absolute(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{base}/{path}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `NONE`, or `[--interval=..] [--timeout=..] [--start-period=..] [--retries=N] CMD ...`.
fn healthcheck(text: &str) -> Result<Value, String> {
    let mut check = Map::new();
    let mut rest = text;
    loop {
        let (word, after) = rest
            .split_once(|c: char| c.is_ascii_whitespace())
            .unwrap_or((rest, ""));
        let after = after.trim_start();
        if let Some(option) = word.strip_prefix("--") {
            let (name, value) = option
                .split_once('=')
                .ok_or_else(|| format!("{word} has no value"))?;
            let (key, value) = match name {
                "interval" => ("Interval", json!(nanoseconds(value)?)),
                "timeout" => ("Timeout", json!(nanoseconds(value)?)),
                "start-period" => ("StartPeriod", json!(nanoseconds(value)?)),
                "start-interval" => ("StartInterval", json!(nanoseconds(value)?)),
                "retries" => {
                    let count: u32 = value
                        .parse()
                        .map_err(|_| format!("{value} is no number of retries"))?;
                    ("Retries", json!(count))
                }
                _ => return Err(format!("{word} is no option of HEALTHCHECK")),
            };
            check.insert(key.to_owned(), value);
            rest = after;
            continue;
        }
        let test = if word.eq_ignore_ascii_case("NONE") && after.is_empty() {
            json!(["NONE"])
        } else if word.eq_ignore_ascii_case("CMD") && !after.is_empty() {
            match list(after) {
                Some(mut words) => {
                    words.insert(0, "CMD".to_owned());
                    json!(words)
                }
                None => json!(["CMD-SHELL", after]),
            }
        } else {
            return Err("write HEALTHCHECK NONE, or HEALTHCHECK [OPTIONS] CMD COMMAND".to_owned());
        };
        check.insert("Test".to_owned(), test);
        return Ok(Value::Object(check));
    }
}

/// A duration such as `1m30s`, in nanoseconds.
pub(super) fn nanoseconds(text: &str) -> Result<u64, String> {
    let bad = || format!("{text} is no duration: write it as 30s or 1m30s");
    let mut total = 0f64;
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let value: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return Err(bad()),
        };
        total += value * unit;
        rest = &rest[letters..];
    }
    Ok(total as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(before: Value, changes: &[&str]) -> Result<Value, String> {
        let mut config = before.as_object().unwrap().clone();
        let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
        apply(&mut config, &changes).map_err(|e| e.to_string())?;
        Ok(Value::Object(config))
    }

    #[test]
    fn instructions_do_what_they_do_in_a_dockerfile() {
        let before = json!({
            "Cmd": ["old"], "Env": ["PATH=/bin", "A=1"], "WorkingDir": "/srv", "Labels": null,
            "Healthcheck": {"Test": ["CMD", "x"]}, "Unknown": {"kept": true},
        });
        let after = changed(
            before,
            &[
                "CMD [\"httpd\", \"-f\"]",
                "ENTRYPOINT exec \"$@\"",
                "ENV A=2 B=\"two words\" C=a\\ b",
                "env D old form",
                "LABEL k=v 'x y'=z",
                "EXPOSE 80 443/UDP 8000-8001",
                "VOLUME [\"/data\"]",
                "VOLUME /a \"/b c\"",
                "USER 1000:1000",
                "WORKDIR sub/../dir",
                "STOPSIGNAL SIGQUIT",
                "ONBUILD RUN make",
                "HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f http://localhost/",
            ],
        );
        assert_eq!(
            after.unwrap(),
            json!({
                "Cmd": ["httpd", "-f"], "Entrypoint": ["/bin/sh", "-c", "exec \"$@\""],
                "Env": ["PATH=/bin", "A=2", "B=two words", "C=a b", "D=old form"],
                "Labels": {"k": "v", "x y": "z"},
                "ExposedPorts": {"80/tcp": {}, "443/udp": {}, "8000/tcp": {}, "8001/tcp": {}},
                "Volumes": {"/data": {}, "/a": {}, "/b c": {}},
                "User": "1000:1000", "WorkingDir": "/srv/dir", "StopSignal": "SIGQUIT",
                "OnBuild": ["RUN make"],
                "Healthcheck": {
                    "Interval": 90_000_000_000u64, "Retries": 3,
                    "Test": ["CMD-SHELL", "curl -f http://localhost/"],
                },
                "Unknown": {"kept": true},
            })
        );
    }

    #[test]
    fn an_entrypoint_forgets_the_arguments_of_another_program() {
        let after = changed(json!({"Cmd": ["old"]}), &["ENTRYPOINT [\"new\"]"]).unwrap();
        assert_eq!(after, json!({"Entrypoint": ["new"]}));
    }

    #[test]
    fn nonsense_is_refused() {
        for change in [
            "RUN make",
            "",
            "CMD",
            "ENV A",
            "ENV =b",
            "ENV A='open",
            "LABEL a=b c",
            "EXPOSE 0",
            "EXPOSE 70000",
            "EXPOSE 9-8",
            "EXPOSE 80/icmp",
            "VOLUME [\"\"]",
            "ONBUILD FROM x",
            "HEALTHCHECK curl",
            "HEALTHCHECK --interval=soon CMD x",
            "HEALTHCHECK --what=1 CMD x",
        ] {
            let error = changed(json!({}), &[change]).unwrap_err();
            assert!(error.contains("invalid change"), "{change}: {error}");
        }
    }
}
