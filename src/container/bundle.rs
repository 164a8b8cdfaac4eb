//! The bundle: the runtime's `config.json`, and the files of `/etc` that are the host's business.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

use super::error::ContainerError;
use super::files::create_private;
use super::record::{Container, Network, Settings};
use super::users::User;
use crate::sys::mount::in_initial_user_namespace;

/// Docker's default capabilities.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// What docker hides of `/proc` and `/sys`.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// What docker lets nobody write.
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The files that are bound over those of the image.
pub(super) const HOST_FILES: &[&str] = &["hosts", "hostname", "resolv.conf"];

/// The hostname that a container has.
pub(super) fn hostname(container: &Container) -> String {
    let settings = &container.record.settings;
    match (&settings.hostname, settings.network) {
        (Some(name), _) => name.clone(),
        (None, Network::None) => container.record.short_id().to_owned(),
        (None, Network::Host) => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    }
}

/// Writes `hosts`, `hostname` and `resolv.conf`.
pub(super) fn write_host_files(container: &Container) -> Result<(), ContainerError> {
    let of_host = |path: &str| match fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(ContainerError::io("read", path)(e)),
    };
    let name = hostname(container);
    let (hosts, resolv) = match container.record.settings.network {
        Network::Host => (of_host("/etc/hosts")?, of_host("/etc/resolv.conf")?),
        Network::None => {
            let text = format!(
                "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t{name}\n"
            );
            (text.into_bytes(), Vec::new())
        }
    };
    let name = format!("{name}\n").into_bytes();
    for (file, text) in HOST_FILES.iter().zip([hosts, name, resolv]) {
        let path = container.path(file);
        fs::write(&path, text).map_err(ContainerError::io("write", &path))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(&path, mode).map_err(ContainerError::io("write", &path))?;
    }
    Ok(())
}

/// `CAP_NAME` of what users write, such as `net_admin`.
pub(super) fn capability(name: &str) -> Option<String> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    // The types of the specification know which there are.
    serde_json::from_value::<oci_spec::runtime::Capability>(json!(full))
        .ok()
        .map(|_| full)
}

fn capabilities(settings: &Settings) -> Vec<String> {
    let drop = |name: &str| settings.cap_drop.iter().any(|d| d == name || d == "ALL");
    let mut all: Vec<String> = CAPABILITIES
        .iter()
        .filter(|name| !drop(name))
        .map(|name| (*name).to_owned())
        .collect();
    for added in &settings.cap_add {
        if !all.contains(added) {
            all.push(added.clone());
        }
    }
    all
}

/// The process of a container, or one more beside it.
pub(super) fn process(
    settings: &Settings,
    user: &User,
    size: Option<(u16, u16)>,
    hostname: &str,
) -> Result<Process, ContainerError> {
    let capabilities = capabilities(settings);
    // Without root's id nothing but the bounding set is there to be had, as on docker.
    let effective: &[String] = if user.uid == 0 { &capabilities } else { &[] };
    let mut env = settings.env.clone();
    let has = |env: &[String], name: &str| {
        env.iter().any(|e| {
            e.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        })
    };
    if !has(&env, "PATH") {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    if !has(&env, "HOME") {
        env.push(format!("HOME={}", user.home.as_deref().unwrap_or("/")));
    }
    if !has(&env, "HOSTNAME") {
        env.push(format!("HOSTNAME={hostname}"));
    }
    if settings.terminal && !has(&env, "TERM") {
        env.push("TERM=xterm".into());
    }
    let limits: Vec<Value> = settings
        .ulimits
        .iter()
        .map(|l| json!({"type": l.name, "soft": l.soft, "hard": l.hard}))
        .collect();
    let mut text = json!({
        "terminal": settings.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": settings.command,
        "env": env,
        "cwd": settings.workdir,
        "capabilities": {
            "bounding": capabilities, "effective": effective, "permitted": effective,
            "inheritable": [], "ambient": [],
        },
        "rlimits": limits,
        "noNewPrivileges": false,
    });
    if let Some((rows, columns)) = size.filter(|_| settings.terminal) {
        text["consoleSize"] = json!({"height": rows, "width": columns});
    }
    serde_json::from_value(text).map_err(unexpected)
}

/// What was put together here is not what the specification's types take: a name of a limit, for example.
fn unexpected(e: serde_json::Error) -> ContainerError {
    ContainerError::Usage(format!("the runtime cannot be told: {e}"))
}

fn mounts(container: &Container) -> Vec<Value> {
    let settings = &container.record.settings;
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ];
    // Of a network that is another's, a user namespace gets no sysfs: that of the host has the cgroups in it.
    if settings.network == Network::Host && !in_initial_user_namespace() {
        all.retain(|mount| {
            !["/sys", "/sys/fs/cgroup"]
                .map(Some)
                .contains(&mount["destination"].as_str())
        });
        let options = ["rbind", "rslave", "nosuid", "noexec", "nodev", "ro"];
        all.push(mount("/sys", "bind", "/sys", &options));
    }
    // One below another comes after it.
    let mut asked: Vec<(&str, Value)> = Vec::new();
    for volume in &settings.volumes {
        let mut options = vec!["rbind"];
        options.extend(volume.options.iter().map(String::as_str));
        if !volume.options.iter().any(|o| is_propagation(o)) {
            options.push("rprivate");
        }
        let bind = mount(&volume.target, "bind", &volume.source, &options);
        asked.push((&volume.target, bind));
    }
    for tmpfs in &settings.tmpfs {
        let options: Vec<&str> = tmpfs.options.iter().map(String::as_str).collect();
        let memory = mount(&tmpfs.target, "tmpfs", "tmpfs", &options);
        asked.push((&tmpfs.target, memory));
    }
    asked.sort_by_key(|(target, _)| target.split('/').count());
    all.extend(asked.into_iter().map(|(_, mount)| mount));
    // A volume may lie at /etc.
    for file in HOST_FILES {
        let source = container.path(file).display().to_string();
        let target = format!("/etc/{file}");
        if !settings.volumes.iter().any(|v| v.target == target) {
            all.push(mount(&target, "bind", &source, &["bind", "rprivate"]));
        }
    }
    all
}

/// Where something is mounted in the container.
pub(super) fn targets(container: &Container) -> Vec<String> {
    mounts(container)
        .iter()
        .filter_map(|mount| Some(mount.get("destination")?.as_str()?.to_owned()))
        .collect()
}

/// Whether an option of a volume says how mounts below it spread.
pub(super) fn is_propagation(option: &str) -> bool {
    matches!(
        option,
        "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave"
    )
}

/// Writes `config.json`; gives what is in it.
pub(super) fn write_config(
    container: &Container,
    user: &User,
    size: Option<(u16, u16)>,
) -> Result<Vec<u8>, ContainerError> {
    let settings = &container.record.settings;
    let mut namespaces = vec![
        json!({"type": "pid"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        json!({"type": "mount"}),
    ];
    if settings.network == Network::None {
        namespaces.push(json!({"type": "network"}));
    }
    let hostname = hostname(container);
    let process = process(settings, user, size, &hostname)?;
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": container.path("rootfs"), "readonly": settings.read_only},
        "hostname": hostname,
        "mounts": mounts(container),
        "annotations": {"org.opencontainers.image.ref.name": container.record.image},
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("/acetate-{}", container.record.id),
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    });
    if !in_initial_user_namespace() {
        // Nobody has given those to it.
        for key in ["cgroupsPath", "resources"] {
            spec["linux"].as_object_mut().map(|linux| linux.remove(key));
        }
    }
    let spec: Spec = serde_json::from_value(spec).map_err(unexpected)?;
    let bytes = serde_json::to_vec(&spec).map_err(unexpected)?;
    // By rename: what is there may lead to a pipe.
    let new = container.path("config.json.new");
    let path = container.path("config.json");
    create_private(&new)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| fs::rename(&new, &path))
        .map_err(ContainerError::io("write", &path))?;
    Ok(bytes)
}

/// Writes a document for the runtime.
pub(super) fn write<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), ContainerError> {
    let bytes = serde_json::to_vec(value).map_err(unexpected)?;
    create_private(path)
        .and_then(|mut file| file.write_all(&bytes))
        .map_err(ContainerError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_known_by_short_names() {
        assert_eq!(capability("net_admin").as_deref(), Some("CAP_NET_ADMIN"));
        assert_eq!(capability("CAP_KILL").as_deref(), Some("CAP_KILL"));
        assert_eq!(capability("frob"), None);
        let settings = Settings {
            cap_drop: vec!["ALL".into()],
            cap_add: vec!["CAP_KILL".into()],
            ..Settings::default()
        };
        assert_eq!(capabilities(&settings), ["CAP_KILL"]);
    }
}
