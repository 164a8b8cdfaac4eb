//! `acetate [SOURCE] DIR -o OPTIONS`: as a mount program of container engines, and as a helper of `mount(8)`.
//!
//! Nothing is printed for ordinary options: engines take any word on standard error for a failure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::CliError;
use crate::mount::{self, Background, MountError, MountOptions, MountRequest, Source};
use crate::sys::mount::MountFlags;

/// Who uses the form, which gives `-f` its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CalledBy {
    /// A container engine, or a person: `-f` stays in the foreground.
    Program,
    /// `mount(8)`: `-f` does all but mount.
    Mount,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Words {
    options: Vec<OsString>,
    positional: Vec<OsString>,
    f: bool,
    debug: bool,
    read_only: bool,
    help: bool,
    version: bool,
}

/// Whether the words are of this form, and of no subcommand.
pub(super) fn is_meant(words: &[OsString]) -> bool {
    words.iter().any(|word| word.as_bytes().starts_with(b"-o"))
}

fn parse(words: &[OsString]) -> Result<Words, CliError> {
    let mut found = Words::default();
    let mut words = words.iter();
    let mut only_positional = false;
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        let missing = || CliError::Usage(format!("{} needs a value", word.display()));
        match bytes {
            _ if only_positional || !bytes.starts_with(b"-") || bytes == b"-" => {
                found.positional.push(word.clone());
            }
            b"--" => only_positional = true,
            b"-o" => found
                .options
                .push(words.next().ok_or_else(missing)?.clone()),
            b"-t" | b"-N" => {
                words.next().ok_or_else(missing)?;
            }
            b"--help" | b"-h" => found.help = true,
            b"--version" | b"-V" => found.version = true,
            [b'-', b'o', value @ ..] => {
                found.options.push(OsStr::from_bytes(value).to_owned());
            }
            [b'-', flags @ ..] if flags.iter().all(|flag| b"nvsfdrw".contains(flag)) => {
                found.f |= flags.contains(&b'f');
                found.debug |= flags.contains(&b'd');
                found.read_only |= flags.contains(&b'r');
            }
            _ => {
                let text = format!("unknown flag {}", word.display());
                return Err(CliError::Usage(text));
            }
        }
    }
    Ok(found)
}

pub(super) fn run(words: &[OsString], called_by: CalledBy) -> Result<(), CliError> {
    let words = parse(words)?;
    if words.help {
        super::output::line("usage: acetate [SOURCE] DIR -o OPTIONS")?;
        return Ok(());
    }
    if words.version {
        super::output::line(&format!("acetate {}", env!("CARGO_PKG_VERSION")))?;
        return Ok(());
    }
    let (foreground, fake) = match called_by {
        CalledBy::Program => (words.f || words.debug, false),
        CalledBy::Mount => (false, words.f),
    };
    if let Some((dir, options)) = remounted(&words)? {
        if fake {
            return Ok(());
        }
        return Ok(mount::remount(&dir, &options)?);
    }
    let request = request(words)?;
    if fake {
        return Ok(());
    }
    let background = if foreground {
        Background::Foreground
    } else {
        Background::Daemon
    };
    Ok(mount::mount(&request, background, None)?)
}

/// Where `remount` is among the options: the mount, and what it is to become.
fn remounted(words: &Words) -> Result<Option<(PathBuf, MountOptions)>, CliError> {
    let mut options = MountOptions::parse(&words.options).map_err(MountError::from)?;
    if !options.remount {
        return Ok(None);
    }
    if words.read_only {
        options.flags |= MountFlags::RDONLY;
    }
    match words.positional.as_slice() {
        [dir] | [_, dir] => Ok(Some((dir.into(), options))),
        _ => Err(CliError::Usage(
            "name the mount: acetate [SOURCE] DIR -o remount,OPTIONS".into(),
        )),
    }
}

fn request(words: Words) -> Result<MountRequest, CliError> {
    let mut options = MountOptions::parse(&words.options).map_err(MountError::from)?;
    options.debug |= words.debug;
    if words.read_only {
        options.flags |= MountFlags::RDONLY;
    }
    let mut positional = words.positional.into_iter();
    let (given, mountpoint) = match (positional.next(), positional.next(), positional.next()) {
        (Some(dir), None, None) => (None, dir),
        (Some(source), Some(dir), None) => (Some(source), dir),
        _ => {
            let text = "name a directory to mount on: acetate [SOURCE] DIR -o OPTIONS";
            return Err(CliError::Usage(text.into()));
        }
    };
    let source = match given {
        // With layers among the options the source is but a name.
        Some(source) if options.lowers.is_empty() => Source::Image(source),
        Some(source) => {
            options.fsname.get_or_insert(source);
            Source::Layers
        }
        None if options.lowers.is_empty() => return Err(MountError::NothingToMount.into()),
        None => Source::Layers,
    };
    Ok(MountRequest {
        // Without an upper the kernel's overlayfs is read-only; an image is not asked for like that.
        private_upper: matches!(source, Source::Image(_)),
        source,
        mountpoint: mountpoint.into(),
        options,
        root: mount::store_root(None),
        keep: None,
        platform: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    fn parsed(text: &str) -> Result<MountRequest, CliError> {
        request(parse(&words(text))?)
    }

    #[test]
    fn as_a_mount_program() {
        let request = parsed("-o lowerdir=a:b,upperdir=u,workdir=w m").unwrap();
        assert_eq!(request.source, Source::Layers);
        assert_eq!(request.mountpoint, std::path::Path::new("m"));
        assert!(!request.private_upper);
        let request = parsed("-f -olowerdir=a m").unwrap();
        assert_eq!(request.options.lowers.len(), 1);
    }

    #[test]
    fn as_a_mount_helper() {
        for text in [
            "src m -o rw,lowerdir=a",
            "src m -n -v -o rw,lowerdir=a -t acetate",
            "src m -nsv -o lowerdir=a -o rw",
            "-o lowerdir=a -- src m",
        ] {
            let request = parsed(text).unwrap();
            assert_eq!(request.options.fsname, Some("src".into()), "{text}");
            assert_eq!(request.mountpoint, std::path::Path::new("m"), "{text}");
        }
        let image = parsed("image.tar m -o ro").unwrap();
        assert_eq!(image.source, Source::Image("image.tar".into()));
        assert!(parsed("-r -o lowerdir=a m").unwrap().options.read_only());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for text in [
            "-o",
            "-x m",
            "-o lowerdir=a",
            "a b c -o lowerdir=a",
            "-t",
            "-o ro m",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
        assert!(is_meant(&words("a b -o c")));
        assert!(!is_meant(&words("a b")));
    }
}
