//! `acetate ps`, `inspect` and `logs`

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::Place;
use crate::cli::{CliError, output};
use crate::container::{Container, LogReader, Network, State, Status, Stream, parse_log};

/// Lists containers
#[derive(Args, Debug)]
pub(in crate::cli) struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten anything
    #[arg(long)]
    no_trunc: bool,
    /// Only those that fit: status=, name=, id=, ancestor=, label=, exited=
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A line of the list, for programs.
#[derive(Serialize)]
struct ListedJson<'a> {
    id: &'a str,
    name: &'a str,
    image: &'a str,
    image_id: &'a str,
    command: &'a [String],
    created: u64,
    status: &'static str,
    pid: Option<i32>,
    exit_code: Option<u8>,
    error: Option<&'a str>,
    labels: &'a std::collections::BTreeMap<String, String>,
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}

/// How long ago, roughly, as docker says it.
fn ago(nanoseconds: u64) -> String {
    let seconds = now().saturating_sub(nanoseconds / 1_000_000_000);
    let several = |count: u64, unit: &str| match count {
        1 => format!("1 {unit}"),
        _ => format!("{count} {unit}s"),
    };
    match seconds {
        0 => "less than a second".into(),
        1..60 => several(seconds, "second"),
        60..3600 => several(seconds / 60, "minute"),
        3600..172_800 => several(seconds / 3600, "hour"),
        _ => several(seconds / 86_400, "day"),
    }
}

fn status(state: &State) -> String {
    let since = |time: Option<u64>| time.map_or(String::new(), ago);
    match state.status {
        Status::Created | Status::Starting => "Created".into(),
        Status::Running => format!("Up {}", since(state.started)),
        Status::Exited => format!(
            "Exited ({}) {} ago",
            state.exit_code.unwrap_or(0),
            since(state.finished)
        ),
        Status::Dead => format!(
            "Dead: {}",
            state.error.as_deref().unwrap_or("not known why")
        ),
    }
}

/// What a filter asks for.
fn fits(container: &Container, state: &State, filter: &str) -> Result<bool, CliError> {
    let (name, value) = filter.split_once('=').unwrap_or((filter, ""));
    let record = &container.record;
    Ok(match name {
        "status" => {
            const KNOWN: [&str; 4] = ["created", "running", "exited", "dead"];
            if !KNOWN.contains(&value) {
                return Err(CliError::Usage(format!(
                    "invalid filter {filter:?}: status is one of {}",
                    KNOWN.join(", ")
                )));
            }
            state.status.word() == value
        }
        "name" => record.name.contains(value),
        "id" => record.id.starts_with(value),
        "ancestor" => {
            record.image == value
                || record
                    .image
                    .rsplit_once(':')
                    .is_some_and(|(name, _)| name == value)
                || record.image_id == value
                || record
                    .image_id
                    .strip_prefix("sha256:")
                    .is_some_and(|id| value.len() >= 12 && id.starts_with(value))
        }
        "label" => match value.split_once('=') {
            Some((label, value)) => record
                .settings
                .labels
                .get(label)
                .is_some_and(|v| v == value),
            None => record.settings.labels.contains_key(value),
        },
        "exited" => {
            state.status == Status::Exited
                && state.exit_code.map(|code| code.to_string()).as_deref() == Some(value)
        }
        _ => {
            return Err(CliError::Usage(format!(
                "unknown filter {name:?}: status, name, id, ancestor, label and exited are known"
            )));
        }
    })
}

impl PsArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let asks = |name: &str| self.filter.iter().any(|f| f.starts_with(name));
        let all = self.all || asks("status") || asks("exited");
        let mut found = Vec::new();
        'next: for container in place.containers.list()? {
            // Removed meanwhile.
            let Ok(state) = container.state() else {
                continue;
            };
            for filter in &self.filter {
                if !fits(&container, &state, filter)? {
                    continue 'next;
                }
            }
            if all || state.status == Status::Running {
                found.push((container, state));
            }
        }
        if self.quiet {
            let ids = found.iter().map(|(c, _)| match self.no_trunc {
                true => c.record.id.as_str(),
                false => c.record.short_id(),
            });
            return Ok(output::lines(ids)?);
        }
        if self.json {
            let list: Vec<ListedJson<'_>> = found.iter().map(|(c, s)| listed(c, s)).collect();
            return Ok(output::json(&list)?);
        }
        let mut rows = vec![
            [
                "CONTAINER ID",
                "IMAGE",
                "COMMAND",
                "CREATED",
                "STATUS",
                "NAMES",
            ]
            .map(String::from),
        ];
        for (container, state) in &found {
            rows.push(self.row(container, state));
        }
        Ok(output::table(&rows)?)
    }

    fn row(&self, container: &Container, state: &State) -> [String; 6] {
        const COMMAND: usize = 20;
        let record = &container.record;
        let mut command = output::escape(&record.settings.command.join(" "));
        let mut id = record.id.clone();
        if !self.no_trunc {
            id = record.short_id().to_owned();
            if command.chars().count() > COMMAND {
                command = command.chars().take(COMMAND - 1).chain(['…']).collect();
            }
        }
        [
            id,
            output::escape(&record.image),
            format!("\"{command}\""),
            format!("{} ago", ago(record.created)),
            output::escape(&status(state)),
            record.name.clone(),
        ]
    }
}

fn listed<'a>(container: &'a Container, state: &'a State) -> ListedJson<'a> {
    let record = &container.record;
    ListedJson {
        id: &record.id,
        name: &record.name,
        image: &record.image,
        image_id: &record.image_id,
        command: &record.settings.command,
        created: record.created / 1_000_000_000,
        status: state.status.word(),
        pid: state.pid,
        exit_code: state.exit_code,
        error: state.error.as_deref(),
        labels: &record.settings.labels,
    }
}

pub(super) fn time(nanoseconds: u64) -> String {
    let seconds = crate::image::time::format(nanoseconds / 1_000_000_000);
    let seconds = seconds.strip_suffix('Z').unwrap_or(&seconds);
    format!("{seconds}.{:09}Z", nanoseconds % 1_000_000_000)
}

/// Tells all of containers, as JSON
#[derive(Args, Debug)]
pub(in crate::cli) struct InspectArgs {
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl InspectArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let mut all = Vec::new();
        for name in &self.containers {
            let container = place.containers.find(name)?;
            let state = container.state()?;
            all.push(inspected(&container, &state));
        }
        let text = serde_json::to_string_pretty(&all).map_err(io::Error::from)?;
        Ok(output::line(&text)?)
    }
}

/// The fields that docker's users look for, by docker's names.
fn inspected(container: &Container, state: &State) -> serde_json::Value {
    let record = &container.record;
    let settings = &record.settings;
    let is_running = state.status == Status::Running;
    let (program, arguments) = match settings.command.split_first() {
        Some((program, arguments)) => (program.as_str(), arguments),
        None => ("", &[][..]),
    };
    let mounts: Vec<serde_json::Value> = settings
        .volumes
        .iter()
        .map(|v| {
            json!({
                "Type": if v.name.is_some() { "volume" } else { "bind" },
                "Name": v.name.as_deref().unwrap_or(""),
                "Source": v.source,
                "Destination": v.target,
                "RW": !v.options.iter().any(|o| o == "ro"),
            })
        })
        .chain(settings.tmpfs.iter().map(|memory| {
            json!({
                "Type": "tmpfs",
                "Name": "",
                "Source": "",
                "Destination": memory.target,
                "RW": !memory.options.iter().any(|o| o == "ro"),
            })
        }))
        .collect();
    json!({
        "Id": record.id,
        "Name": record.name,
        "Created": time(record.created),
        "Path": program,
        "Args": arguments,
        "State": {
            "Status": state.status.word(),
            "Running": is_running,
            "Dead": state.status == Status::Dead,
            "Pid": state.pid.unwrap_or(0),
            "ExitCode": state.exit_code.unwrap_or(0),
            "Error": state.error.as_deref().unwrap_or(""),
            "StartedAt": state.started.map(time),
            "FinishedAt": state.finished.map(time),
        },
        "Image": record.image_id,
        "ImageName": record.image,
        "LogPath": container.dir.join("log"),
        "MonitorLogPath": container.dir.join("monitor.log"),
        "Mounts": mounts,
        "GraphDriver": {
            "Name": "acetate",
            "Data": {
                "UpperDir": container.dir.join("upper"),
                "WorkDir": container.dir.join("work"),
                "MergedDir": container.dir.join("rootfs"),
            },
        },
        "HostConfig": {
            "AutoRemove": settings.remove,
            "NetworkMode": match settings.network { Network::None => "none", Network::Host => "host" },
            "ReadonlyRootfs": settings.read_only,
            "CapAdd": settings.cap_add,
            "CapDrop": settings.cap_drop,
            "Runtime": settings.runtime,
        },
        "Config": {
            "Hostname": settings.hostname,
            "User": settings.user,
            "Tty": settings.terminal,
            "OpenStdin": settings.interactive,
            "Env": settings.env,
            "WorkingDir": settings.workdir,
            "Labels": settings.labels,
            "StopSignal": settings.stop_signal,
        },
    })
}

/// Prints what a container has written
#[derive(Args, Debug)]
pub(in crate::cli) struct LogsArgs {
    /// Go on as long as it runs
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end
    #[arg(short = 'n', long, value_name = "NUMBER")]
    tail: Option<usize>,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// A name or id
    container: String,
}

impl LogsArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let container = place.containers.find(&self.container)?;
        let mut log = LogReader::open(&container)?;
        let mut lines: std::collections::VecDeque<Vec<u8>> = Default::default();
        let mut whole = Vec::new();
        loop {
            // In this order: what is written before the end is read after it was seen.
            let goes_on = self.follow && container.is_held()?;
            loop {
                log.read_line(&mut whole)?;
                if !whole.ends_with(b"\n") {
                    break;
                }
                lines.push_back(std::mem::take(&mut whole));
                if self.tail.is_some_and(|tail| lines.len() > tail) {
                    lines.pop_front();
                }
                if self.tail.is_none() && lines.len() > 1000 {
                    self.print(&mut lines)?;
                }
            }
            self.print(&mut lines)?;
            if !goes_on {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn print(&self, lines: &mut std::collections::VecDeque<Vec<u8>>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let mut error = io::stderr().lock();
        for line in lines.drain(..) {
            let Some(entry) = parse_log(line.strip_suffix(b"\n").unwrap_or(&line)) else {
                continue;
            };
            let to: &mut dyn Write = match entry.stream {
                Stream::Output => &mut out,
                Stream::Error => &mut error,
            };
            if self.timestamps {
                write!(to, "{} ", time(entry.time))?;
            }
            to.write_all(&entry.text)?;
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(1_000_000_001), "1970-01-01T00:00:01.000000001Z");
        let seconds = |s: u64| ago((now() - s) * 1_000_000_000);
        assert_eq!(seconds(60), "1 minute");
        assert_eq!(seconds(7300), "2 hours");
        assert_eq!(seconds(10 * 86_400), "10 days");
    }
}
