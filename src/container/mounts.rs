//! What `--mount` and `--tmpfs` say, as docker has them.

use super::bundle::is_propagation;
use super::error::ContainerError;
use super::names;
use super::parse::{add_volume, anonymous, bytes, host_path, plain_target};
use super::record::{Settings, Tmpfs, Volume};

fn usage<T>(text: String) -> Result<T, ContainerError> {
    Err(ContainerError::Usage(text))
}

/// What one of them asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// A directory of the host, or a volume.
    Volume(Volume),
    /// A filesystem in memory.
    Tmpfs(Tmpfs),
}

/// What a tmpfs has where nothing else is said.
const SAFE: [&str; 3] = ["nosuid", "nodev", "noexec"];

/// An option of a tmpfs, as `mount` takes it.
fn is_tmpfs_option(option: &str) -> bool {
    match option.split_once('=') {
        Some(("size", value)) => value
            .strip_suffix('%')
            .map_or_else(|| bytes(value).is_some(), |part| part.parse::<u8>().is_ok()),
        Some(("mode", value)) => u32::from_str_radix(value, 8).is_ok_and(|mode| mode <= 0o7777),
        Some(("uid" | "gid" | "nr_inodes", value)) => value.parse::<u32>().is_ok(),
        Some(_) => false,
        None => matches!(
            option,
            "ro" | "rw"
                | "suid"
                | "nosuid"
                | "dev"
                | "nodev"
                | "exec"
                | "noexec"
                | "noatime"
                | "relatime"
        ),
    }
}

fn with_option(options: &mut Vec<String>, option: &str) {
    let opposite = match option.strip_prefix("no") {
        Some(without) => without.to_owned(),
        None => format!("no{option}"),
    };
    options.retain(|other| *other != opposite && other != option);
    options.push(option.to_owned());
}

fn in_memory(target: &str) -> Tmpfs {
    Tmpfs {
        target: target.to_owned(),
        options: SAFE.map(str::to_owned).to_vec(),
    }
}

/// Reads `CONTAINER-DIR[:OPTIONS]`.
pub fn tmpfs(text: &str) -> Result<Tmpfs, ContainerError> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut tmpfs = in_memory(plain_target("tmpfs", text, target)?);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        if !is_tmpfs_option(option) {
            return usage(format!("tmpfs {text:?}: unknown option {option:?}"));
        }
        with_option(&mut tmpfs.options, option);
    }
    Ok(tmpfs)
}

/// The value of a switch: a mere name switches it on.
fn switch(value: Option<&str>) -> Option<bool> {
    match value {
        None | Some("true" | "1") => Some(true),
        Some("false" | "0") => Some(false),
        Some(_) => None,
    }
}

/// Reads `type=bind|volume|tmpfs,source=WHAT,target=DIR[,OPTION...]`.
pub fn mount(text: &str) -> Result<Mounted, ContainerError> {
    let wrong = |why: String| usage(format!("mount {text:?}: {why}"));
    let (mut kind, mut source, mut target) = ("volume", None, None);
    let (mut read_only, mut no_copy) = (false, false);
    let (mut propagation, mut memory) = (None, Vec::new());
    for field in text.split(',') {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field, None),
        };
        let understood = match (key, value) {
            ("type", Some(value)) => {
                kind = value;
                matches!(value, "bind" | "volume" | "tmpfs")
            }
            ("source" | "src", Some(value)) => {
                source = Some(value).filter(|value| !value.is_empty());
                true
            }
            ("target" | "destination" | "dst", Some(value)) => {
                target = Some(value);
                true
            }
            ("readonly" | "ro", value) => match switch(value) {
                Some(on) => {
                    read_only = on;
                    true
                }
                None => false,
            },
            ("volume-nocopy", value) => match switch(value) {
                Some(on) => {
                    no_copy = on;
                    true
                }
                None => false,
            },
            ("bind-propagation", Some(value)) => {
                propagation = Some(value);
                is_propagation(value)
            }
            ("tmpfs-size", Some(value)) => {
                memory.push(format!("size={value}"));
                true
            }
            ("tmpfs-mode", Some(value)) => {
                memory.push(format!("mode={value}"));
                true
            }
            _ => false,
        };
        if !understood {
            return wrong(format!("{field:?} is not understood"));
        }
    }
    for (there, what, of) in [
        (no_copy, "volume-nocopy", "volume"),
        (propagation.is_some(), "bind-propagation", "bind"),
        (!memory.is_empty(), "an option of tmpfs", "tmpfs"),
    ] {
        if there && kind != of {
            return wrong(format!("{what} is for type={of}"));
        }
    }
    let Some(target) = target else {
        return wrong("target=DIR is missing".into());
    };
    let target = plain_target("mount", text, target)?;
    if kind == "tmpfs" {
        if source.is_some() {
            return wrong("a tmpfs has no source".into());
        }
        let mut tmpfs = in_memory(target);
        if let Some(option) = memory.iter().find(|option| !is_tmpfs_option(option)) {
            return wrong(format!("{option:?} is not understood"));
        }
        memory.extend(read_only.then(|| "ro".to_owned()));
        for option in &memory {
            with_option(&mut tmpfs.options, option);
        }
        return Ok(Mounted::Tmpfs(tmpfs));
    }
    let mut volume = anonymous(target);
    volume.no_copy = no_copy;
    volume.options.extend(read_only.then(|| "ro".to_owned()));
    volume.options.extend(propagation.map(str::to_owned));
    match (kind, source) {
        ("bind", None) => return wrong("source=DIR is missing".into()),
        ("bind", Some(source)) => {
            volume.anonymous = false;
            volume.source = host_path("mount", text, source)?;
        }
        (_, None) => {}
        (_, Some(name)) if !names::is_valid(name) => {
            return Err(ContainerError::InvalidVolumeName(name.to_owned()));
        }
        (_, Some(name)) => {
            volume.anonymous = false;
            volume.name = Some(name.to_owned());
        }
    }
    Ok(Mounted::Volume(volume))
}

/// Adds what a user asks for to what the image asks for, which it takes the place of.
pub fn add(settings: &mut Settings, mounted: Mounted) -> Result<(), ContainerError> {
    let target = match &mounted {
        Mounted::Volume(volume) => &volume.target,
        Mounted::Tmpfs(tmpfs) => &tmpfs.target,
    };
    if settings.tmpfs.iter().any(|other| other.target == *target) {
        return usage(format!("two volumes at {target}"));
    }
    match mounted {
        Mounted::Volume(volume) => add_volume(&mut settings.volumes, volume),
        Mounted::Tmpfs(tmpfs) => {
            // By this what is there is found out, and what the image has there goes.
            add_volume(&mut settings.volumes, anonymous(&tmpfs.target))?;
            settings.volumes.pop();
            settings.tmpfs.push(tmpfs);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_what_docker_makes_of_them() {
        let volume = |text: &str| match mount(text).unwrap() {
            Mounted::Volume(volume) => volume,
            Mounted::Tmpfs(_) => panic!("{text} is a tmpfs"),
        };
        let bind = volume("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave");
        assert_eq!((bind.source.as_str(), bind.target.as_str()), ("/a", "/b"));
        assert_eq!(bind.options, ["ro", "rslave"]);
        assert!(bind.name.is_none() && !bind.anonymous);
        let named = volume("source=data,target=/b/,volume-nocopy=true,ro=false");
        assert_eq!(named.name.as_deref(), Some("data"));
        assert!(named.no_copy && named.target == "/b" && named.options.is_empty());
        assert!(volume("type=volume,destination=/b").anonymous);
        let Mounted::Tmpfs(memory) =
            mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap()
        else {
            panic!("no tmpfs");
        };
        assert_eq!(
            memory.options,
            ["nosuid", "nodev", "noexec", "size=1m", "mode=1770"]
        );
        for bad in [
            "",
            "type=frob,target=/a",
            "type=bind,target=/a",
            "type=bind,source=/a",
            "type=bind,source=/a,target=b",
            "type=bind,source=/a,target=/",
            "type=bind,source=/a,target=/b/../c",
            "type=bind,source=/a,target=/b,bind-propagation=frob",
            "type=bind,source=/a,target=/b,readonly=maybe",
            "type=bind,source=/a,target=/b,volume-nocopy",
            "type=volume,source=a/b,target=/b",
            "type=volume,source=a,target=/b,tmpfs-size=1m",
            "type=tmpfs,source=a,target=/b",
            "type=tmpfs,target=/b,tmpfs-size=much",
            "type=tmpfs,target=/b,frob",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tmpfs_is_safe_unless_it_is_asked_not_to_be() {
        assert_eq!(tmpfs("/t").unwrap().options, SAFE);
        let asked = tmpfs("/t:exec,size=64k,mode=1777,uid=5,ro").unwrap();
        assert_eq!(
            asked.options,
            [
                "nosuid",
                "nodev",
                "exec",
                "size=64k",
                "mode=1777",
                "uid=5",
                "ro"
            ]
        );
        for bad in ["t", "/", "/t:frob", "/t:size=x", "/t:mode=9", "/t:remount"] {
            assert!(tmpfs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_two_mounts_at_one_place_only_the_images_gives_way() {
        let mut settings = Settings::default();
        settings.volumes.push(anonymous("/v"));
        add(&mut settings, Mounted::Tmpfs(in_memory("/v"))).unwrap();
        assert!(settings.volumes.is_empty());
        let named = mount("source=data,target=/v").unwrap();
        assert!(add(&mut settings, named.clone()).is_err());
        let mut settings = Settings::default();
        add(&mut settings, named).unwrap();
        assert!(add(&mut settings, Mounted::Tmpfs(in_memory("/v"))).is_err());
    }
}
