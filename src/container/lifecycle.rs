//! What is done with containers from outside of their monitors.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::client::{Attachment, Connection, Ended, terminal_size};
use super::error::ContainerError;
use super::gone::Gone;
use super::record::{
    Container, ContainerLock, Containers, Network, Record, Settings, State, Status, boot_id, now,
};
use super::runtime::Runtime;
use super::starting::start_beside;
use super::{bundle, names, parse, users, volume};
use crate::mount::{
    self, Background, Complete, Ending, MountError, MountOptions, MountRequest, Source,
};
use crate::sys::daemon::{Forked, detach_stdio, fork_daemon, outlive_starter};
use crate::sys::mount::in_initial_user_namespace;
use crate::union::{Change, ChangeKind};

/// How long a mount may stay busy after the last process of its container.
const BUSY: Duration = Duration::from_secs(2);
/// How long a monitor may take to clean up.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the processes of a container may take to die of SIGKILL.
const KILL: Duration = Duration::from_secs(20);
/// How long a command that is about to end may keep a container's lock.
const BRIEF: Duration = Duration::from_millis(100);
/// How often a signal that may have come too early is sent again.
const AGAIN: Duration = Duration::from_millis(200);

/// A socket's path is at most 107 bytes long, so it is reached by its directory's descriptor.
pub(super) fn by_descriptor<T>(
    path: &Path,
    reach: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(parent)?;
    reach(&PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
}

/// How the root filesystem of a container is mounted: its image below, and its own upper, which stays.
pub(super) fn mount_request(root: &Path, container: &Container) -> MountRequest {
    let id = &container.record.image_id;
    let hex = id.split_once(':').map_or(id.as_str(), |(_, hex)| hex);
    let mut options = MountOptions::default();
    // Thrown away at the end, also after a crash.
    if container.record.settings.remove {
        options.volatile = true;
        options.complete = Some(Complete::Never);
    }
    MountRequest {
        source: Source::Image(OsString::from(hex)),
        mountpoint: container.path("rootfs"),
        options,
        root: root.to_owned(),
        private_upper: true,
        keep: Some(container.dir.clone()),
        platform: container.record.platform.clone(),
    }
}

/// Unmounts the root filesystem, whether its daemon lives or not, and waits for the daemon's end. What is not mounted is
/// no error.
pub(super) fn unmount(container: &Container) -> Result<(), ContainerError> {
    match begin_unmount(container)? {
        Some(ending) => Ok(ending.wait()?),
        None => Ok(()),
    }
}

/// The same without the wait. `None`: there is nothing to wait for.
pub(super) fn begin_unmount(container: &Container) -> Result<Option<Ending>, ContainerError> {
    let rootfs = container.path("rootfs");
    let begin = Instant::now();
    loop {
        match mount::begin_unmount(&rootfs, false) {
            Ok(ending) => return Ok(Some(ending)),
            Err(MountError::NotMounted(_)) => return Ok(None),
            Err(MountError::Busy(_)) if begin.elapsed() < BUSY => {
                // The mount namespace of processes that have died takes a moment to go.
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(MountError::Busy(_)) => {
                mount::unmount(&rootfs, true)?;
                return Ok(None);
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Takes the lock of a container within `patience`; `None` where somebody else keeps it. Where the program has ended, its
/// monitor is waited for, which is about to end as well.
pub(super) fn lock_at_last(
    container: &Container,
    patience: Duration,
) -> Result<Option<ContainerLock>, ContainerError> {
    let begin = Instant::now();
    loop {
        if let Some(lock) = container.lock(patience)? {
            return Ok(Some(lock));
        }
        if begin.elapsed() > KILL || container.written_state()?.finished.is_none() {
            return Ok(None);
        }
    }
}

/// Whether the runtime has something of the container: both crun and runc keep it by its id.
pub(super) fn is_known_to_runtime(container: &Container) -> bool {
    container
        .path("runtime")
        .join(&container.record.id)
        .exists()
}

/// Clears away what a run left whose monitor was killed. The caller holds the lock.
pub(super) fn settle_locked(
    container: &Container,
    mut state: State,
) -> Result<State, ContainerError> {
    let unfinished = matches!(state.status, Status::Starting | Status::Running);
    if is_known_to_runtime(container) {
        let runtime = Runtime::find(container.record.settings.runtime.as_deref())?;
        runtime.call(container, &["delete", "--force"])?;
    }
    unmount(container)?;
    if unfinished {
        state.error = Some(died_of(&state).into());
        state.status = Status::Dead;
        state.exit_code.get_or_insert(255);
        state.pid = None;
        state.monitor = None;
        container.write_state(&state)?;
    }
    Ok(state)
}

/// Why a run has no monitor any more.
pub(super) fn died_of(state: &State) -> &'static str {
    if state.boot == boot_id() {
        "its monitor was killed"
    } else {
        "the machine was restarted"
    }
}

/// What a new container is to be.
#[derive(Clone, Debug)]
pub struct NewContainer {
    /// That of the monitor that stands by for it; `None`: a new one.
    pub id: Option<String>,
    /// `None`: one is invented.
    pub name: Option<String>,
    /// The image, as it was named.
    pub image: String,
    /// Its id.
    pub image_id: String,
    /// Which platform of it, where one was asked for.
    pub platform: Option<String>,
    /// How it is run.
    pub settings: Settings,
}

impl Containers {
    /// Makes a container.
    pub fn make(&self, new: NewContainer) -> Result<Container, ContainerError> {
        drop(self.leftovers()?);
        let random = |e| ContainerError::io("read", "/dev/urandom")(e);
        let id = match new.id {
            Some(id) => id,
            None => names::new_id().map_err(random)?,
        };
        let mut settings = new.settings;
        for volume in &mut settings.volumes {
            if volume.anonymous {
                volume.name = Some(names::new_id().map_err(random)?);
            }
            if let Some(name) = &volume.name {
                let data = volume::data_of(self.root(), name);
                volume.source = data.display().to_string();
            }
        }
        let container = self.create(id, new.name.as_deref(), |id, name| Record {
            id,
            name,
            created: now(),
            image: new.image,
            image_id: new.image_id,
            platform: new.platform,
            settings,
        })?;
        for volume in &container.record.settings.volumes {
            if let Some(name) = &volume.name
                && let Err(e) = self.ensure_volume(name, volume.anonymous, BTreeMap::new())
            {
                drop(self.remove(&container, false, true)?);
                return Err(e);
            }
        }
        Ok(container)
    }

    /// Removes a container that does not run; `force`: one that does is killed first; `volumes`: with those of its
    /// volumes that nobody gave a name. Its files go when what is returned is dropped.
    pub fn remove(
        &self,
        container: &Container,
        force: bool,
        volumes: bool,
    ) -> Result<Option<Gone>, ContainerError> {
        let Some(lock) = self.lock_for_removal(container, force)? else {
            return Ok(None);
        };
        settle_locked(container, container.written_state()?)?;
        let gone = self.set_aside(container, volumes)?;
        drop(lock);
        Ok(Some(gone))
    }

    /// `None`: it has removed itself meanwhile.
    fn lock_for_removal(
        &self,
        container: &Container,
        force: bool,
    ) -> Result<Option<ContainerLock>, ContainerError> {
        let begin = Instant::now();
        loop {
            match lock_at_last(container, BRIEF) {
                Ok(Some(lock)) => return Ok(Some(lock)),
                Ok(None) if !force => {
                    return Err(ContainerError::State {
                        name: container.record.name.clone(),
                        is: "is running".into(),
                        hint: "stop it before removing it, or use --force",
                    });
                }
                Ok(None) if begin.elapsed() > KILL => {
                    return Err(ContainerError::State {
                        name: container.record.name.clone(),
                        is: "does not end".into(),
                        hint: "",
                    });
                }
                Ok(None) => {}
                Err(ContainerError::NoSuchContainer(_)) if force => return Ok(None),
                Err(e) => return Err(e),
            }
            // Where it is just about to run, the signal comes too early.
            if force
                && let Ok(mut connection) = Connection::open(container, false)
                && let Err(e) = connection
                    .signal(libc::SIGKILL)
                    .and_then(|()| connection.wait(AGAIN))
            {
                log::debug!("{e}");
            }
        }
    }

    /// Runs `work` on the root filesystem of a container, which is mounted for that where it is not.
    pub fn with_rootfs<T, E: From<ContainerError>>(
        &self,
        container: &Container,
        work: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<T, E> {
        let rootfs = container.path("rootfs");
        let Some(_lock) = lock_at_last(container, BRIEF)? else {
            return work(&rootfs);
        };
        settle_locked(container, container.written_state()?)?;
        mount::mount(
            &mount_request(self.root(), container),
            Background::Daemon,
            None,
        )
        .map_err(ContainerError::from)?;
        let done = work(&rootfs);
        unmount(container)?;
        done
    }

    /// What a container changes against its image, without the places that the runtime made to mount on.
    pub fn changes(&self, container: &Container) -> Result<Vec<Change>, ContainerError> {
        let mut changes = self.with_rootfs(container, |rootfs| {
            Ok::<_, ContainerError>(mount::diff(rootfs)?)
        })?;
        let targets = bundle::targets(container);
        changes.retain(|change| change.kind != ChangeKind::A || !targets.contains(&change.path));
        Ok(changes)
    }
}

/// Ends what still runs of a container whose monitor was killed.
fn stop_orphan(container: &Container) -> Result<(), ContainerError> {
    if !is_known_to_runtime(container) {
        return Ok(());
    }
    // Whoever has the lock does it, too.
    if let Some(_lock) = container.lock(BRIEF)? {
        settle_locked(container, container.written_state()?)?;
    }
    Ok(())
}

/// Asks a container to stop, and kills it after `patience`. One that does not run is stopped already.
pub fn stop(container: &Container, patience: Duration) -> Result<(), ContainerError> {
    if !container.is_held()? {
        return stop_orphan(container);
    }
    let mut connection = match Connection::open(container, false) {
        Ok(connection) => connection,
        // It has ended meanwhile.
        Err(_) if !container.is_held()? => return Ok(()),
        Err(e) => return Err(e),
    };
    let stop_signal = container.record.settings.stop_signal;
    connection.signal(stop_signal)?;
    if connection.wait(patience)?.is_none() {
        connection.signal(libc::SIGKILL)?;
        if connection.wait(KILL)?.is_none() {
            return Err(ContainerError::State {
                name: container.record.name.clone(),
                is: "does not end, though it was killed".into(),
                hint: "",
            });
        }
    }
    released(container)
}

/// Waits until the monitor of a container whose program has ended is gone.
fn released(container: &Container) -> Result<(), ContainerError> {
    match container.lock(PATIENCE) {
        Ok(_) | Err(ContainerError::NoSuchContainer(_)) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Sends the program of a container a signal.
pub fn kill(container: &Container, signal: i32) -> Result<(), ContainerError> {
    if container.state()?.status != Status::Running {
        return Err(not_running(container));
    }
    let mut connection = Connection::open(container, false)?;
    connection.signal(signal)?;
    if signal == libc::SIGKILL {
        connection.wait(KILL)?;
        released(container)?;
    }
    Ok(())
}

pub(super) fn not_running(container: &Container) -> ContainerError {
    ContainerError::State {
        name: container.record.name.clone(),
        is: "is not running".into(),
        hint: "",
    }
}

/// Waits until a container does not run any more; gives its exit code.
pub fn wait(container: &Container) -> Result<u8, ContainerError> {
    loop {
        if let Ok(mut connection) = Connection::open(container, false)
            && let Some(code) = connection.wait(Duration::MAX)?
        {
            released(container)?;
            return Ok(code);
        }
        if !container.is_held()? {
            return Ok(container.state()?.exit_code.unwrap_or(0));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lets the files of containers go in a process of its own.
pub fn discard_in_background(gone: Vec<Gone>) {
    if gone.is_empty() {
        return;
    }
    match fork_daemon() {
        Ok(Forked::Parent {
            mut from_daemon, ..
        }) => {
            // Until it would outlive this process.
            let mut byte = [0];
            if let Err(e) = io::Read::read_exact(&mut from_daemon, &mut byte) {
                log::debug!("what is left is removed by the next command: {e}");
            }
            // The other process has them.
            std::mem::forget(gone);
        }
        Ok(Forked::Daemon { mut to_parent }) => {
            let told = outlive_starter()
                .and_then(|()| detach_stdio())
                .and_then(|()| to_parent.write_all(&[0]));
            if let Err(e) = told {
                log::debug!("the command is gone: {e}");
            }
            drop(to_parent);
            drop(gone);
            std::process::exit(0);
        }
        Err(e) => {
            log::debug!("files are removed in this process: {e}");
            drop(gone);
        }
    }
}

/// What is run beside a container's program.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// `NAME=VALUE`, beside the container's.
    pub env: Vec<String>,
    /// Instead of the container's.
    pub workdir: Option<String>,
    /// Instead of the container's.
    pub user: Option<String>,
}

/// Runs a program in a running container, on this process's standard streams, as `how` says.
pub fn exec(container: &Container, exec: &Exec, how: &Attachment) -> Result<Ended, ContainerError> {
    if container.state()?.status != Status::Running {
        return Err(not_running(container));
    }
    // As docker tells it: the container is there, and what was asked for cannot be run in it.
    exec_in(container, exec, how).map_err(|e| match e {
        e @ (ContainerError::Runtime { .. } | ContainerError::Usage(_)) => {
            ContainerError::NotExecutable(e.to_string())
        }
        e => e,
    })
}

fn exec_in(container: &Container, exec: &Exec, how: &Attachment) -> Result<Ended, ContainerError> {
    let mut settings = container.record.settings.clone();
    settings.command.clone_from(&exec.command);
    parse::set_env(&mut settings.env, &exec.env)?;
    settings.terminal = how.terminal;
    if let Some(workdir) = &exec.workdir {
        settings.workdir.clone_from(workdir);
    }
    let wanted = exec.user.as_ref().unwrap_or(&settings.user);
    let user = users::find(&container.path("rootfs"), wanted)?;
    let size = terminal_size().filter(|_| how.terminal);
    let process = bundle::process(&settings, &user, size, &bundle::hostname(container))?;
    let this = std::process::id();
    let file = container.path(&format!("exec-{this}.json"));
    let log = container.path(&format!("exec-{this}.log"));
    bundle::write(&file, &process)?;
    let runtime = Runtime::find(settings.runtime.as_deref())?;
    if how.terminal {
        let started = start_beside(container, &runtime, &file);
        super::runtime::remove_if_there(&file);
        return started?.serve(how);
    }
    let mut command = runtime.command(container, &log, &["exec", "--process"]);
    command.arg(&file).arg(&container.record.id);
    if !how.input {
        command.stdin(Stdio::null());
    }
    let status =
        super::client::run_forwarding(command).map_err(ContainerError::io("run", "the runtime"));
    let said = runtime.said(&log);
    super::runtime::remove_if_there(&file);
    super::runtime::remove_if_there(&log);
    let code = super::runtime::code_of(status?);
    match said {
        Some(said) if code != 0 => Err(runtime.refusal(Some(said))),
        _ => Ok(Ended::Exited(code)),
    }
}

/// Does `work` while no process of a running container runs; where there are no cgroups to stop them by, as in a user
/// namespace, while they go on.
pub fn paused<T, E: From<ContainerError>>(
    container: &Container,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    if !in_initial_user_namespace() {
        return work();
    }
    let runtime = Runtime::find(container.record.settings.runtime.as_deref())?;
    runtime.call(container, &["pause"])?;
    let done = work();
    match runtime.call(container, &["resume"]) {
        // It has been killed meanwhile.
        Err(e) if container.is_held()? => Err(e.into()),
        _ => done,
    }
}

/// Whether a network was asked for that only engines make.
pub fn network(name: &str) -> Result<Network, ContainerError> {
    match name {
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        _ => Err(ContainerError::Usage(format!(
            "network {name:?} is not made here: only none and host; bridges and port mapping are the engines' (podman, nerdctl)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upper_that_is_thrown_away_is_neither_flushed_nor_completed() {
        let container = |remove| Container {
            dir: "/store/containers/aa".into(),
            record: Record {
                id: "aa".into(),
                name: "aa".into(),
                created: 0,
                image: "bb".into(),
                image_id: "sha256:00".into(),
                platform: None,
                settings: Settings {
                    remove,
                    ..Settings::default()
                },
            },
        };
        let options = |remove| mount_request(Path::new("/store"), &container(remove)).options;
        assert!(options(true).volatile);
        assert_eq!(options(true).complete, Some(Complete::Never));
        assert!(!options(false).volatile);
        assert_eq!(options(false).complete, None);
    }
}
