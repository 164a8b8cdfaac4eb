//! The process that looks after one run of a container, as conmon does for podman: it mounts the root filesystem, has
//! the runtime start the program, holds the other ends of its standard streams, writes the log, serves those that are
//! attached, takes the exit code, and cleans up.
//!
//! It is started by a command, with which it speaks by lines on its standard streams:
//!
//! ```text
//! command: start [ROWS COLUMNS]      the container is there: run it, on a terminal of this size
//! monitor: started | error CODE TEXT
//! ```
//!
//! A command that ends before the program is started gives the run up.
//!
//! It has one thread, and nothing in its loop waits for anybody: a client that does not read holds the output back for
//! a while, and is dropped then.

mod beside;
mod clients;
mod launch;
mod run;
mod streams;

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::error::ContainerError;
use super::gone::Gone;
use super::lifecycle;
use super::record::{Container, Containers, State, Status, boot_id, now};
use super::runtime::Runtime;
use super::{bundle, users, volume};
use crate::mount::{self, Background, Ending};
pub(super) use beside::Beside;
use launch::Launch;
use run::Run;

/// How long the output of a program that has ended may take to come to its end.
const DRAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether a client that is behind has to be dropped, in milliseconds.
const LOOK: u16 = 500;

/// How long a command that works on the container, or its last monitor, may keep its lock.
const PATIENCE: Duration = Duration::from_secs(3);

/// The name of the process, for people.
const NAME: &CStr = c"acetate-monitor";

/// Looks after one run of the container with this id; gives the exit code of the process. The command is its first
/// client, over `line`. To be called by a process of its own.
pub(super) fn monitor(root: &Path, id: &str, line: UnixStream) -> u8 {
    match serve(root, id, line) {
        Ok(()) => 0,
        Err(e) => {
            log::error!("{e}");
            // The command may be gone.
            if let Err(e) = tell_error(&e) {
                log::debug!("nobody waits for the error: {e}");
            }
            1
        }
    }
}

fn tell(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

fn tell_error(error: &ContainerError) -> io::Result<()> {
    let text = error.to_string().replace('\n', " ");
    tell(&format!("error {} {text}", error.run_code()))
}

/// Waits until one of these is ready. `behind`: some client is, and it has to be looked now and then whether it is to be dropped.
fn wait_for(fds: &mut [PollFd<'_>], behind: bool) -> io::Result<()> {
    let limit = if behind {
        PollTimeout::from(LOOK)
    } else {
        PollTimeout::NONE
    };
    match poll(fds, limit) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn call<T>(what: &'static str, result: io::Result<T>) -> Result<T, ContainerError> {
    result.map_err(ContainerError::io(what, "the monitor"))
}

/// What the command orders: the size of the terminal. `None`: it is no order, as where the command has ended.
fn order() -> Result<Option<Option<(u16, u16)>>, ContainerError> {
    let mut line = String::new();
    call("listen in", io::stdin().lock().read_line(&mut line))?;
    let mut words = line.split_whitespace();
    if words.next() != Some("start") {
        return Ok(None);
    }
    let mut number = || words.next()?.parse().ok();
    Ok(Some(number().zip(number())))
}

/// Makes this a process of a session of its own, with everything that the runtime leaves behind as its child.
fn stand_alone() -> Result<(), ContainerError> {
    if let Err(e) = rustix::thread::set_name(NAME) {
        log::debug!("the process keeps its name: {e}");
    }
    call("detach", rustix::process::setsid().map_err(Into::into))?;
    let this = rustix::process::getpid();
    call(
        "adopt the children of",
        rustix::process::set_child_subreaper(Some(this)).map_err(Into::into),
    )?;
    call("leave its directory for", std::env::set_current_dir("/"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(())
}

fn serve(root: &Path, id: &str, line: UnixStream) -> Result<(), ContainerError> {
    stand_alone()?;
    let Some(size) = order()? else {
        return Ok(());
    };
    let container = Container::open(root.join("containers").join(id))?;
    mount::log_to(&container.path("monitor.log"))?;
    let Some(lock) = lifecycle::lock_at_last(&container, PATIENCE)? else {
        return Err(ContainerError::State {
            name: container.record.name.clone(),
            is: "is running already, or in use by another command".into(),
            hint: "",
        });
    };
    // Until this process ends. The daemon, which is forked off it, closes what it has not opened itself.
    let lock = lock.into_file();
    let runtime = Runtime::find(container.record.settings.runtime.as_deref())?;
    let before = container.written_state()?;
    let before = lifecycle::settle_locked(&container, before)?;
    let mut state = State {
        status: Status::Starting,
        monitor: Some(std::process::id()),
        boot: boot_id(),
        ..State::default()
    };
    container.write_state(&state)?;
    let client = Client { line, size };
    let outcome = run(root, &container, &runtime, &lock, client, &mut state);
    finish(root, &container, &runtime, before, state, outcome)
}

/// The command, as the first client.
struct Client {
    line: UnixStream,
    /// Its terminal's, in rows and columns.
    size: Option<(u16, u16)>,
}

/// Runs the container.
fn run(
    root: &Path,
    container: &Container,
    runtime: &Runtime,
    lock: &File,
    client: Client,
    state: &mut State,
) -> Result<(End, clients::Clients), ContainerError> {
    // It is loaded while the root filesystem is mounted.
    let ahead = if runtime.reads_its_configuration_once() {
        Some(Launch::new(container, runtime, lock, true)?)
    } else {
        None
    };
    let user = prepare(root, container)?;
    let mut run = Run::new(container, runtime, lock, user, ahead)?;
    call("take in a client of", run.clients.take_in(client.line))?;
    run.serve(client.size, state)
}

/// Mounts, and finds out what has to be known of the root filesystem.
fn prepare(root: &Path, container: &Container) -> Result<users::User, ContainerError> {
    let mut request = lifecycle::mount_request(root, container);
    // The program must not notice when its daemon dies.
    request.options.supervise = true;
    let log = container.path("monitor.log");
    mount::mount(&request, Background::Daemon, Some(&log))?;
    volume::provide(root, container)?;
    bundle::write_host_files(container)?;
    users::find(&container.path("rootfs"), &container.record.settings.user)
}

/// How a run came to its end.
pub(super) enum End {
    /// The program ended with this code.
    Exited(u8),
    /// The daemon of the mount died, and the program was killed.
    MountDied,
    /// The command that started the monitor ended before the program was started.
    GivenUp,
}

/// Has the runtime forget what it knows of a container, which kills what is left of it.
fn forget(container: &Container, runtime: &Runtime) {
    if lifecycle::is_known_to_runtime(container)
        && let Err(e) = runtime.call(container, &["delete", "--force"])
    {
        log::warn!("{e}");
    }
}

/// Takes away what a run needs, writes what has become of it, and tells whoever waits.
fn finish(
    root: &Path,
    container: &Container,
    runtime: &Runtime,
    before: State,
    mut state: State,
    outcome: Result<(End, clients::Clients), ContainerError>,
) -> Result<(), ContainerError> {
    // With the first process of a container the others have died, too. So what the runtime still has to clear away can
    // wait until everybody knows of the end.
    let all_dead = matches!(outcome, Ok((End::Exited(_), _)));
    if !all_dead {
        forget(container, runtime);
    }
    // Nobody wants what is thrown away any more: its daemon ends in its own time.
    let ending = if all_dead && container.record.settings.remove {
        lifecycle::begin_unmount(container)
    } else {
        lifecycle::unmount(container).map(|()| None)
    };
    let (ending, unmounted) = match ending {
        Ok(ending) => (ending, Ok(())),
        Err(e) => {
            log::warn!("{e}");
            (None, Err(e))
        }
    };
    state.pid = None;
    state.monitor = None;
    let result = match outcome {
        Ok((end, clients)) => {
            state.finished = Some(now());
            match end {
                End::Exited(code) => {
                    state.status = Status::Exited;
                    state.exit_code = Some(code);
                }
                End::MountDied => {
                    state.status = Status::Dead;
                    state.exit_code = Some(137);
                    state.error = Some("the daemon of its root filesystem died".into());
                }
                End::GivenUp => state = before,
            }
            let code = state.exit_code.unwrap_or(255);
            let closed = close(root, container, &state, unmounted.is_ok());
            clients.dismiss(code);
            if let Some(Err(e)) = ending.map(Ending::wait) {
                log::warn!("{e}");
            }
            closed.map(|gone| match gone {
                Some(gone) => drop(gone),
                None => forget(container, runtime),
            })
        }
        Err(e) => {
            state = State {
                status: match before.status {
                    Status::Created => Status::Created,
                    _ => Status::Exited,
                },
                exit_code: Some(e.run_code()),
                error: Some(e.to_string()),
                ..before
            };
            close(root, container, &state, unmounted.is_ok())?;
            Err(e)
        }
    };
    result.and(unmounted)
}

/// Writes the last state; or takes the container away, where that was asked for. Its files go when what is returned is
/// dropped.
fn close(
    root: &Path,
    container: &Container,
    state: &State,
    unmounted: bool,
) -> Result<Option<Gone>, ContainerError> {
    // What is still mounted would be emptied along with the folder.
    if container.record.settings.remove && unmounted {
        return Ok(Some(Containers::new(root).set_aside(container, false)?));
    }
    container.write_state(state)?;
    Ok(None)
}

/// From here on only the loop takes signals. The runtime and the container are started without any blocked.
fn signals() -> Result<SignalFd, ContainerError> {
    let set = SigSet::from_iter([
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
    ]);
    call("block signals for", set.thread_block().map_err(Into::into))?;
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
    call("take signals for", fd.map_err(Into::into))
}
