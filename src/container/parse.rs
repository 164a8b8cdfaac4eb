//! What users write of a container's settings, and what an image's configuration says of them. Nothing is touched here.

use std::path::{Component, Path};

use nix::sys::signal::Signal;
use oci_spec::image::{Arch, ImageConfiguration, Os};

use super::bundle::{capability, is_propagation};
use super::error::ContainerError;
use super::names;
use super::record::{LogLimit, Settings, Ulimit, Volume};

fn usage<T>(text: String) -> Result<T, ContainerError> {
    Err(ContainerError::Usage(text))
}

/// What must hold of a path in a container.
fn is_plain_absolute(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains('\0')
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// A volume without a name at this place of the container.
pub(super) fn anonymous(target: &str) -> Volume {
    Volume {
        name: None,
        anonymous: true,
        source: String::new(),
        target: target.to_owned(),
        options: Vec::new(),
        no_copy: false,
    }
}

/// The place in the container that `text`, which is a `what`, names.
pub(super) fn plain_target<'a>(
    what: &str,
    text: &str,
    target: &'a str,
) -> Result<&'a str, ContainerError> {
    match target.trim_end_matches('/') {
        plain if is_plain_absolute(plain) => Ok(plain),
        _ => usage(format!(
            "{what} {text:?}: the directory in the container must be an absolute path without .., and not /"
        )),
    }
}

/// The absolute path of what `text`, which is a `what`, names of the host.
pub(super) fn host_path(what: &str, text: &str, source: &str) -> Result<String, ContainerError> {
    let absolute = std::path::absolute(source).map_err(ContainerError::io("find", source))?;
    match absolute.to_str() {
        Some(source) => Ok(source.to_owned()),
        None => usage(format!(
            "{what} {text:?}: the path is no UTF-8, which the runtime's configuration must be"
        )),
    }
}

/// Reads `[HOST-DIR:|NAME:]CONTAINER-DIR[:OPTIONS]`.
pub fn volume(text: &str) -> Result<Volume, ContainerError> {
    let wrong = |why: &str| usage(format!("volume {text:?}: {why}"));
    let mut fields = text.splitn(3, ':');
    let (source, target) = match (fields.next(), fields.next()) {
        (Some(source), Some(target)) => (Some(source), target),
        (target, _) => (None, target.unwrap_or_default()),
    };
    let target = plain_target("volume", text, target)?;
    let mut volume = anonymous(target);
    for option in fields.next().unwrap_or_default().split(',') {
        match option {
            "" => {}
            "nocopy" => volume.no_copy = true,
            // Containers run without a label here, so that there is nothing to relabel for.
            "z" | "Z" => {}
            "ro" | "rw" => volume.options.push(option.to_owned()),
            option if is_propagation(option) => volume.options.push(option.to_owned()),
            _ => {
                return wrong(&format!(
                    "unknown option {option:?}: ro, rw, nocopy, z, Z and the kinds of propagation are known"
                ));
            }
        }
    }
    let Some(source) = source else {
        return Ok(volume);
    };
    volume.anonymous = false;
    if !source.starts_with('/') && !source.starts_with('.') {
        if !names::is_valid(source) {
            return Err(ContainerError::InvalidVolumeName(source.to_owned()));
        }
        volume.name = Some(source.to_owned());
        return Ok(volume);
    }
    volume.source = host_path("volume", text, source)?;
    Ok(volume)
}

/// Adds what a user asks for to what the image asks for, which it takes the place of.
pub fn add_volume(volumes: &mut Vec<Volume>, volume: Volume) -> Result<(), ContainerError> {
    volumes.retain(|other| !(other.anonymous && other.target == volume.target));
    if volumes.iter().any(|other| other.target == volume.target) {
        return usage(format!("two volumes at {}", volume.target));
    }
    volumes.push(volume);
    Ok(())
}

/// Reads `NAME=SOFT[:HARD]`.
pub fn ulimit(text: &str) -> Result<Ulimit, ContainerError> {
    const NAMES: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let number = |text: &str| match text {
        "unlimited" | "-1" => Some(u64::MAX),
        _ => text.parse().ok(),
    };
    let read = || {
        let (name, limits) = text.split_once('=')?;
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard) = (number(soft)?, number(hard)?);
        (NAMES.contains(&name) && soft <= hard).then(|| Ulimit {
            name: format!("RLIMIT_{}", name.to_ascii_uppercase()),
            soft,
            hard,
        })
    };
    match read() {
        Some(limit) => Ok(limit),
        None => usage(format!(
            "ulimit {text:?}: write it as NAME=SOFT[:HARD], such as nofile=1024:2048"
        )),
    }
}

/// Reads `NAME=VALUE` of a log: `max-size`, such as `10m`, and `max-file`.
pub fn log_option(settings: &mut Settings, text: &str) -> Result<(), ContainerError> {
    let limit = settings.log_limit.unwrap_or(LogLimit { size: 0, files: 1 });
    let read = match text.split_once('=') {
        Some(("max-size", value)) => bytes(value).map(|size| LogLimit { size, ..limit }),
        Some(("max-file", value)) => {
            let files = value.parse().ok().filter(|files| (1..=100).contains(files));
            files.map(|files| LogLimit { files, ..limit })
        }
        _ => None,
    };
    match read {
        Some(limit) => settings.log_limit = Some(limit),
        None => {
            return usage(format!(
                "log option {text:?}: max-size=SIZE, such as 10m, and max-file=1 to 100 are known"
            ));
        }
    }
    Ok(())
}

/// A number of bytes, at least one, with `k`, `m` or `g` behind it for powers of 1024.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix(['k', 'K']) {
        Some(number) => (number, 1 << 10),
        None => match text.strip_suffix(['m', 'M']) {
            Some(number) => (number, 1 << 20),
            None => match text.strip_suffix(['g', 'G']) {
                Some(number) => (number, 1 << 30),
                None => (text, 1),
            },
        },
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(unit).filter(|bytes| *bytes > 0)
}

/// Reads the name or number of a signal.
pub fn signal(text: &str) -> Result<i32, ContainerError> {
    if let Ok(number @ 1..=64) = text.parse::<i32>() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    match name.parse::<Signal>() {
        Ok(signal) => Ok(signal as i32),
        Err(_) => usage(format!("invalid signal: {text}")),
    }
}

/// Reads the name of a capability, or `ALL`.
pub fn capability_name(text: &str) -> Result<String, ContainerError> {
    if text.eq_ignore_ascii_case("all") {
        return Ok("ALL".into());
    }
    match capability(text) {
        Some(name) => Ok(name),
        None => usage(format!("unknown capability: {text}")),
    }
}

/// Sets variables, the later of two with a name in the place of the earlier. A name without a value is this process's
/// variable, if there is one.
pub fn set_env(env: &mut Vec<String>, assignments: &[String]) -> Result<(), ContainerError> {
    for assignment in assignments {
        let (name, value) = match assignment.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (assignment.as_str(), std::env::var(assignment).ok()),
        };
        if name.is_empty() || assignment.contains('\0') {
            return usage(format!("invalid environment variable: {assignment:?}"));
        }
        env.retain(|e| e.split('=').next() != Some(name));
        if let Some(value) = value {
            env.push(format!("{name}={value}"));
        }
    }
    Ok(())
}

/// The variables of a file: one a line, `#` begins a comment.
pub fn env_file(path: &Path) -> Result<Vec<String>, ContainerError> {
    let text = std::fs::read_to_string(path).map_err(ContainerError::io("read", path))?;
    Ok(text
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

/// An error where this machine cannot run the image's programs.
pub fn is_for_this_machine(image: &str, config: &ImageConfiguration) -> Result<(), ContainerError> {
    let (here, there) = (Arch::default(), config.architecture());
    let runs = here == *there
        || matches!(
            (&here, there),
            (Arch::Amd64, Arch::i386) | (Arch::ARM64, Arch::ARM)
        );
    if runs && *config.os() == Os::Linux {
        return Ok(());
    }
    let platform = format!("{}/{there}", config.os());
    Err(ContainerError::ImageConfig {
        image: image.to_owned(),
        why: format!(
            "it is for {platform}, and this machine is linux/{here}: --platform {platform} runs it where an emulator is set up"
        ),
    })
}

/// The settings that an image asks for. `entrypoint` and `arguments` take the place of its own.
pub fn from_image(
    image: &str,
    config: &ImageConfiguration,
    entrypoint: Option<&str>,
    arguments: &[String],
) -> Result<Settings, ContainerError> {
    let wrong = |why: String| ContainerError::ImageConfig {
        image: image.to_owned(),
        why,
    };
    let empty = oci_spec::image::Config::default();
    let config = config.config().as_ref().unwrap_or(&empty);
    let given = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let mut command = match entrypoint {
        Some("") => Vec::new(),
        Some(program) => vec![program.to_owned()],
        None => given(config.entrypoint()),
    };
    if !arguments.is_empty() {
        command.extend_from_slice(arguments);
    } else if entrypoint.is_none() {
        command.extend(given(config.cmd()));
    }
    if command.is_empty() {
        return usage(format!(
            "no command: name one, as image {image} has neither an entrypoint nor a command"
        ));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(wrong("its command has a zero byte".into()));
    }
    let workdir = config
        .working_dir()
        .clone()
        .filter(|dir| !dir.is_empty())
        .unwrap_or_else(|| "/".into());
    if !is_plain_absolute(&workdir) {
        return Err(wrong(format!("{workdir:?} is no working directory")));
    }
    let mut volumes = Vec::new();
    for path in config.volumes().iter().flatten() {
        let target = path.trim_end_matches('/');
        if !is_plain_absolute(target) {
            return Err(wrong(format!(
                "{path:?} is no place for a volume: it must be an absolute path without .., and not /"
            )));
        }
        if !volumes.iter().any(|v: &Volume| v.target == target) {
            volumes.push(anonymous(target));
        }
    }
    // A name alone would be looked up in this process's environment, whose secrets are none of the image's business.
    let mut assignments = given(config.env());
    assignments.retain(|assignment| assignment.contains('='));
    let mut env = Vec::new();
    set_env(&mut env, &assignments).map_err(|e| wrong(e.to_string()))?;
    let stop_signal = match config.stop_signal() {
        Some(name) => signal(name).map_err(|e| wrong(e.to_string()))?,
        None => Signal::SIGTERM as i32,
    };
    Ok(Settings {
        command,
        env,
        workdir,
        user: config.user().clone().unwrap_or_default(),
        stop_signal,
        volumes,
        labels: config
            .labels()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        ..Settings::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let plain = volume("/a:/b").unwrap();
        assert_eq!((plain.source.as_str(), plain.target.as_str()), ("/a", "/b"));
        assert_eq!(volume("/a:/b:ro,rslave").unwrap().options, ["ro", "rslave"]);
        assert!(volume("./a:/b").unwrap().source.ends_with("/a"));
        let named = volume("data:/b/:ro").unwrap();
        assert_eq!(
            (named.name.as_deref(), named.target.as_str()),
            (Some("data"), "/b")
        );
        assert!(volume("data:/b:nocopy").unwrap().no_copy);
        assert!(volume("/a:/b:z").unwrap().options.is_empty());
        let without = volume("/b").unwrap();
        assert!(without.anonymous && without.name.is_none() && without.target == "/b");
        let mut all = vec![without];
        add_volume(&mut all, named.clone()).unwrap();
        assert_eq!(all.len(), 1);
        assert!(add_volume(&mut all, plain).is_err());
        for bad in [
            "",
            "/",
            "a",
            "a b:/b",
            "-a:/b",
            "/a:b",
            "/a:/",
            "/a:/../b",
            "/a:/b/../../c",
            "/a:/b:frob",
        ] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_signals_and_variables() {
        let limit = ulimit("nofile=10:20").unwrap();
        assert_eq!(
            (limit.name.as_str(), limit.soft, limit.hard),
            ("RLIMIT_NOFILE", 10, 20)
        );
        assert_eq!(ulimit("core=unlimited").unwrap().hard, u64::MAX);
        for bad in ["nofile", "nofile=x", "frob=1", "nofile=20:10"] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
        let mut settings = Settings::default();
        log_option(&mut settings, "max-file=3").unwrap();
        log_option(&mut settings, "max-size=2k").unwrap();
        let limit = settings.log_limit.unwrap();
        assert_eq!((limit.size, limit.files), (2048, 3));
        for bad in [
            "max-size",
            "max-size=0",
            "max-size=1x",
            "max-file=0",
            "frob=1",
        ] {
            assert!(log_option(&mut settings, bad).is_err(), "{bad}");
        }
        for (text, number) in [("TERM", 15), ("sigkill", 9), ("10", 10)] {
            assert_eq!(signal(text).unwrap(), number);
        }
        assert!(signal("0").is_err() && signal("FROB").is_err());
        let mut env = vec!["A=1".to_owned(), "B=2".to_owned()];
        set_env(&mut env, &["A=3=4".to_owned(), "SURELY_NOT_SET".to_owned()]).unwrap();
        assert_eq!(env, ["B=2", "A=3=4"]);
        assert!(set_env(&mut env, &["=x".to_owned()]).is_err());
    }

    fn config(json: &str) -> ImageConfiguration {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"config":{json}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn an_image_gets_no_variable_of_this_process() {
        // Both are set wherever cargo runs tests.
        for name in ["PATH", "CARGO_MANIFEST_DIR"] {
            std::env::var(name).unwrap();
        }
        let image = config(r#"{"Cmd":["c"],"Env":["PATH","A=1","CARGO_MANIFEST_DIR",""]}"#);
        let settings = from_image("i", &image, None, &[]).unwrap();
        assert_eq!(settings.env, ["A=1"]);
    }

    #[test]
    fn an_image_and_what_overrides_it() {
        let both =
            config(r#"{"Entrypoint":["/e","x"],"Cmd":["c"],"Env":["A=1"],"StopSignal":"SIGQUIT"}"#);
        let words = |entrypoint, arguments: &[&str]| {
            let arguments: Vec<String> = arguments.iter().map(|w| (*w).to_owned()).collect();
            from_image("i", &both, entrypoint, &arguments).map(|s| s.command)
        };
        assert_eq!(words(None, &[]).unwrap(), ["/e", "x", "c"]);
        assert_eq!(words(None, &["d"]).unwrap(), ["/e", "x", "d"]);
        assert_eq!(words(Some("/f"), &["d"]).unwrap(), ["/f", "d"]);
        assert_eq!(words(Some("/f"), &[]).unwrap(), ["/f"]);
        assert!(words(Some(""), &[]).is_err());
        let settings = from_image("i", &both, None, &[]).unwrap();
        assert_eq!((settings.stop_signal, settings.workdir.as_str()), (3, "/"));
        for hostile in [
            r#"{"Cmd":["c"],"Volumes":{"/../../etc":{}}}"#,
            r#"{"Cmd":["c"],"Volumes":{"data":{}}}"#,
            r#"{"Cmd":["c"],"WorkingDir":"/a/../../b"}"#,
            r#"{"Cmd":["c"],"Env":["=x"]}"#,
            r#"{"Cmd":["c"],"StopSignal":"FROB"}"#,
        ] {
            let error = from_image("i", &config(hostile), None, &[]).unwrap_err();
            assert!(
                matches!(error, ContainerError::ImageConfig { .. }),
                "{hostile}: {error}"
            );
        }
    }
}
