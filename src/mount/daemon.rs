//! The process that serves a mount, and what its starter is told.

use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};

use super::completing::{self, Completing};
use super::compose::{MountRequest, Mounted, compose, prepare};
use super::control::{Control, Info};
use super::error::MountError;
use super::log::Log;
use super::options::Complete;
use super::state::{Record, Registration};
use super::{private, runtime};
use crate::sys::daemon::{
    Forked, Inherited, detach_stdio, fork_daemon, how_it_ended, outlive_starter,
};
use crate::sys::memory;
use crate::sys::mount as sys_mount;

/// The kernel reads ahead as far as on a disk that is striped; FUSE's own limit is 128 KiB.
const READ_AHEAD_KIB: u32 = 1024;

/// Where the mount is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Background {
    /// In a process of its own; the call returns when the mount answers.
    Daemon,
    /// In this process; the call returns when the mount is gone.
    Foreground,
}

/// Makes a mount and serves it. Must be called before the process has any other thread.
pub fn mount(
    request: &MountRequest,
    background: Background,
    log: Option<&Path>,
) -> Result<(), MountError> {
    private::sweep(&request.root);
    if background == Background::Foreground {
        return serve(request, log, None);
    }
    let inherited = Inherited::at_start().map_err(|e| MountError::Io("/proc/self/fd", e))?;
    match fork_daemon().map_err(|e| MountError::Io("cannot start the daemon", e))? {
        Forked::Parent {
            mut from_daemon,
            daemon,
        } => {
            let answer =
                answer(&mut from_daemon).map_err(|e| MountError::Io("the daemon's answer", e))?;
            match answer {
                Some((0, _)) => Ok(()),
                Some((code, text)) => Err(MountError::Failed { code, text }),
                None => Err(MountError::DaemonEnded(how_it_ended(daemon))),
            }
        }
        Forked::Daemon { to_parent } => {
            let starter = Starter {
                to_parent,
                inherited,
            };
            // From here on this is another process, which must never return into its starter's code.
            std::process::exit(i32::from(run_daemon(request, log, starter)));
        }
    }
}

/// What the daemon says: 0, or an exit code and an error until the end. It holds its end open as long as it may still
/// fail. `None`: it ended without a word.
fn answer(from_daemon: &mut impl Read) -> io::Result<Option<(u8, String)>> {
    let mut code = [0];
    match from_daemon.read_exact(&mut code) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let mut text = Vec::new();
    if code != [0] {
        from_daemon.read_to_end(&mut text)?;
    }
    Ok(Some((code[0], String::from_utf8_lossy(&text).into_owned())))
}

/// The process that waits for the mount.
struct Starter {
    to_parent: io::PipeWriter,
    inherited: Inherited,
}

fn run_daemon(request: &MountRequest, log: Option<&Path>, starter: Starter) -> u8 {
    let errors = starter.to_parent.try_clone();
    match serve(request, log, Some(starter)) {
        Ok(()) => 0,
        Err(error) => {
            let code = error.exit_code();
            log::error!("{error}");
            if let Ok(mut errors) = errors {
                let mut text = vec![code];
                text.extend_from_slice(error.to_string().as_bytes());
                if let Err(e) = errors.write_all(&text) {
                    log::debug!("nobody waits for the error: {e}");
                }
            }
            code
        }
    }
}

/// Names a mount among the others of this machine, as far as they share a runtime directory.
fn new_id() -> String {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_nanos() as u64);
    format!("{:x}-{:x}", std::process::id(), nanos)
}

fn serve(
    request: &MountRequest,
    log: Option<&Path>,
    starter: Option<Starter>,
) -> Result<(), MountError> {
    let id = new_id();
    let runtime = runtime::create();
    let dir = runtime.as_deref().ok();
    let log = Log::start(log, dir, &id, starter.is_some(), request.options.debug)?;
    if let Err(e) = &runtime {
        log::warn!("the mount cannot be asked anything, as there is no place for its socket: {e}");
    }
    match start(request, &id) {
        Ok((mounted, signals)) => {
            let complete = request.options.complete;
            run(mounted, id, dir, log, (signals, complete), starter)
        }
        Err(e) => {
            // The starter is told.
            log.remove();
            Err(e)
        }
    }
}

fn start(request: &MountRequest, id: &str) -> Result<(Mounted, SigSet), MountError> {
    // Unpacking an image may take long: until it is done signals end the process.
    let prepared = prepare(request)?;
    // Blocked before there is any other thread, so that only the one that waits for them takes them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals
        .thread_block()
        .map_err(|e| MountError::Io("signals", e.into()))?;
    Ok((compose(request, prepared, id)?, signals))
}

fn run(
    mounted: Mounted,
    id: String,
    runtime: Option<&Path>,
    log: Log,
    (signals, complete): (SigSet, Option<Complete>),
    starter: Option<Starter>,
) -> Result<(), MountError> {
    let Mounted {
        session,
        union,
        mountpoint,
        source,
        image,
        layers,
        upper,
        work,
        private,
        guard,
    } = mounted;
    let record = Record {
        id,
        mountpoint: mountpoint.clone(),
        source,
        image,
        layers: layers.iter().map(|l| l.display().to_string()).collect(),
        upper: upper.map(|upper| upper.display().to_string()),
        work: work.map(|work| work.display().to_string()),
        private: private.is_some(),
        pid: std::process::id(),
        since: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs()),
        log: log.path.as_ref().map(|path| path.display().to_string()),
    };
    let counters = session.counters();
    let failed = |e| MountError::Io("cannot start a thread", e);
    let serving = thread::Builder::new()
        .name("session".into())
        .spawn(move || session.run())
        .map_err(failed)?;
    let registration = runtime.and_then(|dir| {
        let info = Info {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            passthrough: union.params().passthrough,
            writeback: union.params().writeback,
            read_only: union.params().read_only,
            record: record.clone(),
        };
        register(dir, &record)
            .and_then(|registration| {
                Ok((registration, Control::start(dir, info, &union, counters)?))
            })
            .inspect_err(|e| log::warn!("the mount cannot be asked anything: {e}"))
            .ok()
    });
    let interrupted = mountpoint.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || unmount_on(&signals, &interrupted))
        .map_err(failed)?;

    let tending = Completing::start(&union, complete, private.is_some());

    // From here on the only files made are those of programs, whose own umask comes with each request. Any other would take
    // bits away that are set again by a call more.
    rustix::process::umask(rustix::fs::Mode::empty());

    let ready = answers(&mountpoint).and_then(|()| match starter {
        Some(starter) => tell_starter(starter),
        None => Ok(()),
    });
    if let Err(e) = ready {
        if let Err(e) = sys_mount::unmount(&mountpoint, true) {
            log::warn!("{} is not unmounted: {e}", mountpoint.display());
        }
        return Err(e);
    }
    // Once nobody waits for the mount.
    if let Some(dir) = runtime {
        runtime::sweep_logs(dir);
    }
    memory::give_back();
    if let Err(e) = memory::drop_code() {
        log::debug!("the code of the start stays in memory: {e}");
    }
    let served = serving
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the session panicked")));
    if served.is_err()
        && let Err(e) = sys_mount::unmount(&mountpoint, true)
    {
        log::warn!("{} is left without a daemon: {e}", mountpoint.display());
    }
    drop(tending);
    if private.is_none() && complete != Some(Complete::Never) {
        completing::at_the_end(&union);
    }
    // The layers first: whoever waits for the mount to be gone may want to unmount what they lie on.
    drop(union);
    drop(guard);
    if let Some(private) = private {
        private.discard();
    }
    if let Some((registration, control)) = registration {
        drop(control);
        log.end();
        drop(registration);
    }
    served.map_err(|e| MountError::Io("the connection to the kernel", e))
}

fn register(dir: &Path, record: &Record) -> io::Result<Registration> {
    Registration::new(dir, record)
}

/// The mount answers: a program may be started on it.
fn answers(mountpoint: &Path) -> Result<(), MountError> {
    std::fs::metadata(mountpoint)
        .map_err(|e| MountError::Path("the mount does not answer:", mountpoint.to_owned(), e))?;
    let widened = sys_mount::device_of(mountpoint)
        .and_then(|device| sys_mount::set_read_ahead(&device, READ_AHEAD_KIB));
    if let Err(e) = widened {
        log::debug!("the readahead stays as it is: {e}");
    }
    Ok(())
}

fn tell_starter(starter: Starter) -> Result<(), MountError> {
    let Starter {
        mut to_parent,
        inherited,
    } = starter;
    let told = || -> io::Result<()> {
        std::env::set_current_dir("/")?;
        outlive_starter()?;
        detach_stdio()?;
        inherited.close();
        to_parent.write_all(&[0])
    };
    told().map_err(|e| MountError::Io("cannot go into the background", e))
}

/// The first signal unmounts; where the mount is busy, the next one detaches it.
fn unmount_on(signals: &SigSet, mountpoint: &Path) {
    let mut lazy = false;
    loop {
        match signals.wait() {
            Ok(signal) => log::info!("{signal}: unmounting {}", mountpoint.display()),
            Err(e) => {
                log::error!("signals: {e}");
                return;
            }
        }
        match sys_mount::unmount(mountpoint, lazy) {
            Ok(()) => return,
            Err(e) => log::error!(
                "{} is not unmounted: {e}; the next signal detaches it",
                mountpoint.display()
            ),
        }
        lazy = true;
    }
}
