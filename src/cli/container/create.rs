//! `acetate create` and `acetate run`

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Place, attachment, run_attached};
use crate::cli::{CliError, output};
#[cfg(feature = "registry")]
use crate::cli::{pull, registry::ReachArgs};
use crate::container::mounts::{self, Mounted};
use crate::container::{
    Container, ContainerError, NewContainer, Settings, Standby, enter, is_valid_name, network,
    parse,
};
use crate::image::StoredImage;

/// What `create` and `run` share.
#[derive(Args, Debug)]
struct ContainerOptions {
    /// Its name; without one it is given one
    #[arg(long)]
    name: Option<String>,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Keep its standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Remove it when it has ended
    #[arg(long)]
    rm: bool,
    /// Set a variable; without a value it is this process's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set the variables of a file, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Where its program starts
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// As whom it runs, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Show it a directory of the host, or a volume, which is made where it is not there
    #[arg(short, long, value_name = "[HOST-DIR:|NAME:]DIR[:ro]")]
    volume: Vec<String>,
    /// Show it a directory of the host, a volume or memory, as docker writes it
    #[arg(long, value_name = "type=KIND,source=WHAT,target=DIR[,...]")]
    mount: Vec<String>,
    /// Show it a filesystem in memory
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Refuse changes of its root filesystem
    #[arg(long)]
    read_only: bool,
    /// Its network: none, or the host's
    #[arg(
        long,
        visible_alias = "net",
        value_name = "none|host",
        default_value = "none"
    )]
    network: String,
    /// Not made here: the error tells what is
    #[arg(short, long, value_name = "PORTS", hide = true)]
    publish: Vec<String>,
    /// The program, instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Its hostname
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Write its id to a new file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Limit a resource
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Limit what is kept of its output: max-size=SIZE, max-file=NUMBER
    #[arg(long, value_name = "NAME=VALUE")]
    log_opt: Vec<String>,
    /// Add a label
    #[arg(short, long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Add a capability
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// What asks its program to stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// The OCI runtime, by name or path [env: ACETATE_RUNTIME]
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
    /// Which platform of the image, such as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// When to pull the image
    #[cfg(feature = "registry")]
    #[arg(long, value_enum, default_value = "missing", value_name = "WHEN")]
    pull: pull::Policy,
    #[cfg(feature = "registry")]
    #[command(flatten)]
    reach: ReachArgs,
    /// The image: a reference or an id
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The command and its arguments, instead of the image's
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

/// Makes a container, without running it
#[derive(Args, Debug)]
pub(in crate::cli) struct CreateArgs {
    #[command(flatten)]
    options: ContainerOptions,
}

/// Makes a container and runs it
#[derive(Args, Debug)]
pub(in crate::cli) struct RunArgs {
    /// Leave it running, and print its id
    #[arg(short, long)]
    detach: bool,
    /// What is typed to leave it running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    #[command(flatten)]
    options: ContainerOptions,
}

impl CreateArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        enter()?;
        let container = self.options.create(place, None)?;
        Ok(output::line(&container.record.id)?)
    }
}

impl RunArgs {
    pub(super) fn run(self, place: &Place) -> Result<(), CliError> {
        let (detach, keys) = (self.detach, self.detach_keys);
        enter()?;
        let standby = place.containers.stand_by()?;
        let container = self.options.create(place, Some(standby.id().to_owned()))?;
        let result = run_made(place, &container, detach, &keys, standby);
        // Where no monitor got so far as to do it. One that is running is left to its monitor.
        if result.is_err()
            && container.record.settings.remove
            && container.dir.exists()
            && let Err(e) = place.containers.remove(&container, false, true)
        {
            log::debug!("{e}");
        }
        result
    }
}

fn run_made(
    place: &Place,
    container: &Container,
    detach: bool,
    detach_keys: &str,
    standby: Standby,
) -> Result<(), CliError> {
    if detach {
        place.containers.start(container, Some(standby), None)?;
        return Ok(output::line(&container.record.id)?);
    }
    let how = attachment(container, true, detach_keys)?;
    run_attached(place, container, &how, Some(standby))
}

impl ContainerOptions {
    /// Makes the container; `id` is that of the monitor that stands by for it.
    fn create(self, place: &Place, id: Option<String>) -> Result<Container, CliError> {
        if !self.publish.is_empty() {
            return Err(CliError::Usage(
                "ports cannot be published here: use --network host, or an engine (podman, nerdctl) on acetate's mounts"
                    .into(),
            ));
        }
        if let Some(name) = self.name.as_ref().filter(|name| !is_valid_name(name)) {
            return Err(ContainerError::InvalidName(name.clone()).into());
        }
        // What is wrong on the command line is told before an image is pulled.
        self.settings(Settings::default())?;
        let image = self.find_image(place)?;
        let prepared = place
            .store
            .prepare(image.id.digest().as_ref(), self.platform.as_deref())?;
        if self.platform.is_none() {
            parse::is_for_this_machine(&self.image, &prepared.config)?;
        }
        let from_image = parse::from_image(
            &self.image,
            &prepared.config,
            self.entrypoint.as_deref(),
            &self.command,
        )?;
        let settings = self.settings(from_image)?;
        let cidfile = self.cidfile.as_deref().map(new_file).transpose()?;
        let made = place.containers.make(NewContainer {
            id,
            name: self.name,
            image: self.image,
            image_id: image.id.to_string(),
            platform: self.platform,
            settings,
        });
        if made.is_err()
            && let Some(path) = &self.cidfile
        {
            std::fs::remove_file(path)?;
        }
        let container = made?;
        if let Some(mut file) = cidfile {
            file.write_all(container.record.id.as_bytes())?;
        }
        // From when on it has the image's layers by itself: the record keeps the image from being removed.
        if let Err(e) = place.store.keeps(&container.record.image_id) {
            drop(place.containers.remove(&container, false, true)?);
            return Err(e.into());
        }
        Ok(container)
    }

    fn find_image(&self, place: &Place) -> Result<StoredImage, CliError> {
        #[cfg(feature = "registry")]
        pull::before_mount(
            self.image.as_ref(),
            self.pull,
            self.platform.as_deref(),
            &self.reach,
            &place.store,
        )?;
        Ok(place.store.image(&self.image)?)
    }

    fn mounts(&self) -> Result<Vec<Mounted>, ContainerError> {
        let volumes = self.volume.iter();
        let volumes = volumes.map(|text| Ok(Mounted::Volume(parse::volume(text)?)));
        let mounts = self.mount.iter().map(|text| mounts::mount(text));
        let memory = self.tmpfs.iter();
        let memory = memory.map(|text| Ok(Mounted::Tmpfs(mounts::tmpfs(text)?)));
        volumes.chain(mounts).chain(memory).collect()
    }

    /// What the command line adds to the image's settings.
    fn settings(&self, image: Settings) -> Result<Settings, CliError> {
        let mut settings = image;
        for file in &self.env_file {
            parse::set_env(&mut settings.env, &parse::env_file(file)?)?;
        }
        parse::set_env(&mut settings.env, &self.env)?;
        if let Some(workdir) = &self.workdir {
            if !workdir.starts_with('/') {
                return Err(CliError::Usage(format!(
                    "the working directory {workdir:?} must be an absolute path"
                )));
            }
            settings.workdir.clone_from(workdir);
        }
        if let Some(user) = &self.user {
            settings.user.clone_from(user);
        }
        for mounted in self.mounts()? {
            if let Mounted::Volume(volume) = &mounted
                && volume.name.is_none()
                && !volume.anonymous
                && !Path::new(&volume.source).exists()
            {
                return Err(CliError::Usage(format!(
                    "volume {}: there is no such file or directory",
                    volume.source
                )));
            }
            mounts::add(&mut settings, mounted)?;
        }
        for limit in &self.ulimit {
            settings.ulimits.push(parse::ulimit(limit)?);
        }
        for option in &self.log_opt {
            parse::log_option(&mut settings, option)?;
        }
        if settings.log_limit.is_some_and(|limit| limit.size == 0) {
            return Err(CliError::Usage("max-file needs max-size as well".into()));
        }
        for label in &self.label {
            let (name, value) = label.split_once('=').unwrap_or((label, ""));
            settings.labels.insert(name.to_owned(), value.to_owned());
        }
        for name in &self.cap_add {
            settings.cap_add.push(parse::capability_name(name)?);
        }
        for name in &self.cap_drop {
            settings.cap_drop.push(parse::capability_name(name)?);
        }
        if let Some(signal) = &self.stop_signal {
            settings.stop_signal = parse::signal(signal)?;
        }
        settings.network = network(&self.network)?;
        settings.hostname.clone_from(&self.hostname);
        settings.read_only = self.read_only;
        settings.terminal = self.tty;
        settings.interactive = self.interactive;
        settings.remove = self.rm;
        settings.runtime.clone_from(&self.runtime);
        Ok(settings)
    }
}

fn new_file(path: &Path) -> Result<File, CliError> {
    File::create_new(path)
        .map_err(|e| CliError::Usage(format!("the container id file {}: {e}", path.display())))
}
