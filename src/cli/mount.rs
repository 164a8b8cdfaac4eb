//! `acetate mount`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::mount::{self, Background, MountOptions, MountRequest, OptionError, Source};
use crate::sys::mount::{MountFlags, in_initial_user_namespace};

/// Mounts an image or layers, and returns when the mount answers
#[derive(Args, Debug)]
pub(super) struct MountArgs {
    /// An image (with --lower: none) and the directory to mount it on
    #[arg(value_names = ["IMAGE", "DIR"], num_args = 1..=2, required = true)]
    paths: Vec<OsString>,
    /// A lower layer; the first is the topmost
    #[arg(long, value_name = "DIR")]
    lower: Vec<PathBuf>,
    /// Where changes go; without it they are discarded at unmount
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// An empty directory on the filesystem of --upper
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Mount options, separated by commas. Images are mounted with nosuid and nodev, unless `suid` or `dev` stand here
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Refuse every change
    #[arg(long)]
    ro: bool,
    /// Serve the mount in this process, until it is unmounted or interrupted
    #[arg(long, short)]
    foreground: bool,
    /// Keep the changes here, in `upper` and `work`
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Where the daemon writes its log
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Serve the mount with all rights that the command was given, to find a fault
    #[arg(long)]
    no_sandbox: bool,
    /// Which platform of the image, such as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// When to ask a registry for the image
    #[cfg(feature = "registry")]
    #[arg(long, value_enum, default_value_t)]
    pull: super::pull::Policy,
    #[cfg(feature = "registry")]
    #[command(flatten)]
    reach: super::registry::ReachArgs,
}

impl MountArgs {
    pub(super) fn run(self, root: Option<PathBuf>) -> Result<(), CliError> {
        let background = if self.foreground {
            Background::Foreground
        } else {
            Background::Daemon
        };
        let log = self.log.clone();
        #[cfg(feature = "registry")]
        let (policy, reach) = (self.pull, self.reach.clone());
        let mut request = self.request(root)?;
        if in_initial_user_namespace() {
            keep_rights_from_images(&mut request);
        }
        #[cfg(feature = "registry")]
        if let Source::Image(image) = &request.source {
            let store = crate::image::Store::open(&request.root)?;
            let platform = request.platform.as_deref();
            super::pull::before_mount(image, policy, platform, &reach, &store)?;
        }
        Ok(mount::mount(&request, background, log.as_deref())?)
    }

    fn request(self, root: Option<PathBuf>) -> Result<MountRequest, CliError> {
        let usage = |text: &str| Err(CliError::Usage(text.to_owned()));
        let mut options = MountOptions::parse(&self.options).map_err(mount::MountError::from)?;
        if options.remount {
            return usage("a mount is given other flags by: mount -o remount,OPTIONS DIR");
        }
        if self.platform.is_some() && !(self.lower.is_empty() && options.lowers.is_empty()) {
            return usage("--platform chooses among those of an image, and here layers are named");
        }
        if self.upper.is_some() && options.upper.is_some() {
            return usage("both --upper and upperdir= are given");
        }
        if !self.lower.is_empty() && !options.lowers.is_empty() {
            return usage("both --lower and lowerdir= are given");
        }
        options.lowers.extend(self.lower);
        if let Some(upper) = self.upper {
            options.upper = Some(upper);
        }
        if let Some(work) = self.work {
            options.work = Some(work);
        }
        match (&options.upper, &options.work) {
            (Some(_), None) => {
                let error = OptionError::Needs("--upper", "--work");
                return Err(mount::MountError::from(error).into());
            }
            (None, Some(_)) => {
                let error = OptionError::Needs("--work", "--upper");
                return Err(mount::MountError::from(error).into());
            }
            _ => {}
        }
        if self.no_sandbox {
            options.sandbox = false;
        }
        if self.ro {
            options.flags |= MountFlags::RDONLY;
        }
        if self.keep.is_some() && options.upper.is_some() {
            return usage(
                "--keep is for mounts without --upper: what goes to an upper is kept anyway",
            );
        }
        if self.keep.is_some() && options.read_only() {
            return usage("--keep is for mounts that can be changed, and this one is read-only");
        }
        let mut paths = self.paths.into_iter();
        let (source, mountpoint) = match (paths.next(), paths.next()) {
            (Some(image), Some(dir)) if options.lowers.is_empty() => (Source::Image(image), dir),
            (Some(_), Some(_)) => return usage("name either an image or layers, not both"),
            (Some(dir), None) if !options.lowers.is_empty() => (Source::Layers, dir),
            _ => return usage("name an image, or layers by --lower, and a directory to mount on"),
        };
        Ok(MountRequest {
            source,
            mountpoint: mountpoint.into(),
            options,
            root: mount::store_root(root),
            private_upper: true,
            keep: self.keep,
            platform: self.platform,
        })
    }
}

/// Whoever makes an image would make programs that run as root for every user of the machine who gets at the mountpoint: unlike
/// the roots of containers, which lie where nobody else comes, that is a place of the caller's choice. So suid programs, file
/// capabilities and device nodes of an image count where they are asked for. In a user namespace they give no rights outside.
fn keep_rights_from_images(request: &mut MountRequest) {
    if matches!(request.source, Source::Image(_)) {
        let options = &mut request.options;
        options.flags |= (MountFlags::NOSUID | MountFlags::NODEV) - options.refused_flags;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;
    use clap::Parser;

    fn request(words: &[&str]) -> Result<MountRequest, CliError> {
        let words = [&["acetate", "mount"], words].concat();
        match Cli::try_parse_from(words).unwrap().command {
            Command::Mount(arguments) => arguments.request(Some("/r".into())),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn images_and_layers() {
        let image = request(&["a.tar", "m"]).unwrap();
        assert_eq!(image.source, Source::Image("a.tar".into()));
        assert!(image.private_upper && !image.options.read_only());
        let words = [
            "--lower", "a", "--lower", "b", "--upper", "u", "--work", "w", "--ro", "m",
        ];
        let layers = request(&words).unwrap();
        assert_eq!(layers.source, Source::Layers);
        assert_eq!(layers.options.lowers, [PathBuf::from("a"), "b".into()]);
        assert_eq!(layers.options.upper, Some("u".into()));
        assert!(layers.options.read_only());
        assert_eq!(layers.mountpoint, PathBuf::from("m"));
        let options = request(&["-o", "lowerdir=a:b,volatile", "m"]).unwrap();
        assert_eq!(options.options.lowers.len(), 2);
    }

    #[test]
    fn an_image_gives_rights_where_they_are_asked_for() {
        let both = MountFlags::NOSUID | MountFlags::NODEV;
        for (words, expected) in [
            (vec!["a.tar", "m"], both),
            (
                vec!["-o", "noatime", "a.tar", "m"],
                both | MountFlags::NOATIME,
            ),
            (vec!["-o", "suid", "a.tar", "m"], MountFlags::NODEV),
            (vec!["-o", "dev", "a.tar", "m"], MountFlags::NOSUID),
            (vec!["-o", "suid,dev", "a.tar", "m"], MountFlags::empty()),
            (
                vec!["-o", "suid,nosuid,dev", "a.tar", "m"],
                MountFlags::NOSUID,
            ),
            (vec!["--lower", "a", "m"], MountFlags::empty()),
        ] {
            let mut request = request(&words).unwrap();
            keep_rights_from_images(&mut request);
            assert_eq!(request.options.flags, expected, "{words:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        for (words, part) in [
            (vec!["m"], "name an image"),
            (vec!["--lower", "a", "image", "m"], "not both"),
            (
                vec!["--lower", "a", "--upper", "u", "m"],
                "\"--upper\" needs \"--work\"",
            ),
            (
                vec!["--lower", "a", "--work", "w", "m"],
                "\"--work\" needs \"--upper\"",
            ),
            (
                vec!["--lower", "a", "-o", "lowerdir=b", "m"],
                "both --lower",
            ),
            (vec!["--lower", "a", "--keep", "k", "--ro", "m"], "--keep"),
            (vec!["--lower", "a", "-o", "frob", "m"], "frob"),
            (
                vec!["--lower", "a", "--platform", "linux/arm64", "m"],
                "--platform",
            ),
            (vec!["--lower", "a", "-o", "remount,ro", "m"], "remount"),
            (
                vec!["--lower", "a", "-o", "partial=1M,partial=2M", "m"],
                "partial",
            ),
        ] {
            let error = request(&words).unwrap_err();
            assert!(error.to_string().contains(part), "{words:?}: {error}");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
