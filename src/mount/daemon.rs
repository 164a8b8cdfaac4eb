//! The process that serves a mount, and what its starter is told.

use std::ffi::CStr;
use std::io::{self, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};

use super::completing::{self, Completing};
use super::compose::{MountRequest, Mounted, compose, prepare};
use super::control::{self, Control, Info};
use super::error::MountError;
use super::log::Log;
use super::options::{Complete, MountOptions};
use super::outside::{Outside, Scene};
use super::private::{self, PrivateUpper};
use super::state::{self, Record, Registration};
use super::{runtime, supervised};
use crate::fuse::{Connection, Session};
use crate::layer::upper::Namespace;
use crate::sys::daemon::{
    Forked, Inherited, detach_stdio, fork_daemon, how_it_ended, outlive_starter,
};
use crate::sys::memory;
use crate::sys::mount as sys_mount;
use crate::sys::panics::caught;
use crate::sys::sandbox;
use crate::sys::worker;
use crate::union::Union;

/// How long a mount has to last before what its start took of memory is given back.
const SETTLED: Duration = Duration::from_millis(500);

/// The name of the process that serves a mount, for people.
pub(super) const NAME: &CStr = c"acetate";

/// The version of this program.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

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
            if let Err(e) = rustix::thread::set_name(NAME) {
                log::debug!("the process is called as its starter: {e}");
            }
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
pub(super) struct Starter {
    to_parent: PipeWriter,
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
fn new_id(mountpoint: &Path) -> String {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_nanos() as u64);
    let place = state::place_of(mountpoint);
    format!("{place}-{:x}-{nanos:x}", std::process::id())
}

fn serve(
    request: &MountRequest,
    log: Option<&Path>,
    starter: Option<Starter>,
) -> Result<(), MountError> {
    let id = new_id(&request.mountpoint);
    let runtime = runtime::create();
    let dir = runtime.as_deref().ok();
    let log = Log::start(log, dir, &id, starter.is_some(), request.options.debug)?;
    let runtime = runtime
        .inspect_err(|e| {
            log::warn!(
                "the mount cannot be asked anything, as there is no place for its socket: {e}"
            );
        })
        .ok();
    match start(request, &id) {
        Ok((mounted, signals)) => {
            let served = Served {
                id,
                runtime,
                log,
                signals,
                complete: request.options.complete,
            };
            run(mounted, served, starter, &request.options)
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

/// How a mount is served.
pub(super) struct Served {
    /// Names it among the others.
    pub(super) id: String,
    /// Where it can be found.
    pub(super) runtime: Option<PathBuf>,
    pub(super) log: Log,
    /// Those that unmount it, blocked.
    pub(super) signals: SigSet,
    pub(super) complete: Option<Complete>,
}

fn run(
    mounted: Mounted,
    served: Served,
    starter: Option<Starter>,
    options: &MountOptions,
) -> Result<(), MountError> {
    let scene = Scene {
        id: served.id.clone(),
        mountpoint: mounted.mountpoint.clone(),
        device: OnceLock::new(),
        runtime: served.runtime.clone(),
        log: served.log.clone(),
        private: mounted.private.as_ref().map(|p| p.dir().to_owned()),
        detached: starter.is_some(),
    };
    let outside = Outside::beside(scene);
    let outside = match outside.map_err(|e| MountError::Io("the process outside of the sandbox", e))
    {
        Ok(outside) => Arc::new(outside),
        Err(e) => {
            give_up(sys_mount::unmount(&mounted.mountpoint, true));
            return Err(e);
        }
    };
    if options.supervise {
        return supervised::serve(mounted, served, options, starter, outside);
    }
    serve_mounted(mounted, served, starter, &outside)
}

/// The failed mount must not stay.
pub(super) fn give_up(unmounted: io::Result<()>) {
    if let Err(e) = unmounted {
        log::warn!("the mount is left without a daemon: {e}");
    }
}

fn serve_mounted(
    mounted: Mounted,
    served: Served,
    starter: Option<Starter>,
    outside: &Arc<Outside>,
) -> Result<(), MountError> {
    let record = record(&mounted, &served, outside);
    let registered = register(&served, &record);
    let Mounted {
        device,
        access,
        settings,
        upper_layer,
        union,
        mountpoint,
        private,
        cache,
        guard,
        held,
        sandbox,
        ..
    } = mounted;
    let code = memory::Code::find()
        .inspect_err(|e| log::debug!("the code of the start stays in memory: {e}"))
        .ok();
    drop(upper_layer);
    let session = Session::new(union.clone(), Connection::Own(device), access, settings);
    let session = match session {
        Ok(session) => session,
        Err(e) => {
            give_up(outside.unmount(true));
            return Err(MountError::Io("the kernel's first message", e));
        }
    };
    let ready = shut_in(sandbox, starter);
    let ready = ready.and_then(|to_parent| {
        let started = start_threads(
            session,
            &union,
            record,
            registered.as_ref().map(|(_, place)| place),
            &served,
            &mountpoint,
            outside,
            Hooks {
                on_notice: || {},
                on_failure: |_: &io::Error| {},
            },
        )?;
        Ok((to_parent, started))
    });
    let (to_parent, threads) = match ready {
        Ok(ready) => ready,
        Err(e) => {
            give_up(outside.unmount(true));
            return Err(e);
        }
    };
    let tending = Completing::start(&union, served.complete, private.is_some());

    // From here on the only files made are those of programs, whose own umask comes with each request. Any other would take
    // bits away that are set again by a call more.
    rustix::process::umask(rustix::fs::Mode::empty());

    let answers = |e| MountError::Path("the mount does not answer:", mountpoint.clone(), e);
    let ready = outside.touch().map_err(answers).and_then(|()| {
        let Some(mut to_parent) = to_parent else {
            return Ok(());
        };
        outlive_starter()
            .and_then(|()| to_parent.write_all(&[0]))
            .map_err(|e| MountError::Io("cannot go into the background", e))
    });
    if let Err(e) = ready {
        give_up(outside.unmount(true));
        return Err(e);
    }
    let Threads {
        serving,
        control,
        ended,
    } = threads;
    // Nobody waits for the mount any more, but whoever made it has much to do now; and where the mount is gone by then,
    // there is no memory to be saved.
    if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(SETTLED) {
        outside.sweep_logs();
        memory::give_back();
        if let Some(code) = code
            && let Err(e) = code.let_go()
        {
            log::debug!("the code of the start stays in memory: {e}");
        }
    }
    let last = Last {
        tending,
        complete: served.complete,
        outside,
        union,
        held: (cache, guard, held),
        private,
    };
    last.wait(serving, || {}, registered.map(|r| (r, control)), drop)
}

/// The end of a mount.
pub(super) struct Last<'a, H> {
    /// Ends before the layers are let go of.
    pub(super) tending: Option<Completing>,
    pub(super) complete: Option<Complete>,
    pub(super) outside: &'a Outside,
    pub(super) union: Arc<Union>,
    /// What else of the layers is open, and keeps them.
    pub(super) held: H,
    pub(super) private: Option<PrivateUpper>,
}

impl<H> Last<'_, H> {
    /// Waits until the mount is gone, and puts away what belonged to it. `at_end` is called first of all; `withdraw` is given what
    /// others find the mount by, last of all.
    pub(super) fn wait<R>(
        self,
        serving: JoinHandle<io::Result<()>>,
        at_end: impl FnOnce(),
        registered: Option<R>,
        withdraw: impl FnOnce(R),
    ) -> Result<(), MountError> {
        let ended = serving
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
        at_end();
        if ended.is_err() {
            give_up(self.outside.unmount(true));
        }
        drop(self.tending);
        if self.private.is_none() && self.complete != Some(Complete::Never) {
            completing::at_the_end(&self.union);
        }
        // The layers first: whoever waits for the mount to be gone may want to unmount what they lie on.
        drop(self.union);
        drop(self.held);
        self.outside.discard();
        drop(self.private);
        if let Some(registered) = registered {
            self.outside.finish();
            withdraw(registered);
        }
        ended.map_err(|e| MountError::Io("the connection to the kernel", e))
    }
}

pub(super) fn record(mounted: &Mounted, served: &Served, outside: &Outside) -> Record {
    let shown = |path: &Path| path.display().to_string();
    Record {
        id: served.id.clone(),
        mountpoint: mounted.mountpoint.clone(),
        source: mounted.source.clone(),
        image: mounted.image.clone(),
        layers: (mounted.parts.lowers.iter())
            .map(|place| shown(&place.path))
            .collect(),
        upper: mounted.parts.upper().map(shown),
        work: mounted.parts.work().map(shown),
        userxattr: (mounted.upper_layer.as_ref())
            .map(|upper| upper.options().namespace == Namespace::User),
        private: mounted.private.is_some(),
        pid: std::process::id(),
        outside: outside.process(),
        since: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs()),
        log: served.log.path.as_deref().map(shown),
        version: Some(VERSION.to_owned()),
        binary: binary(),
        supervised: false,
    }
}

/// Where this program lies, as far as it can be told.
pub(super) fn binary() -> Option<String> {
    let found = std::env::current_exe().ok()?;
    Some(found.display().to_string())
}

/// Lets others find the mount, where there is a place for that.
pub(super) fn register(served: &Served, record: &Record) -> Option<(Registration, control::Place)> {
    let dir = served.runtime.as_deref()?;
    Registration::new(dir, record)
        .and_then(|registration| Ok((registration, control::listen(dir, &record.id)?)))
        .inspect_err(|e| log::warn!("the mount cannot be asked anything: {e}"))
        .ok()
}

/// The last that happens with all rights and before any other thread. Returns where the starter waits for a word.
fn shut_in(
    sandbox: Option<sandbox::Ready>,
    starter: Option<Starter>,
) -> Result<Option<PipeWriter>, MountError> {
    let to_parent = starter
        .map(go_into_background)
        .transpose()
        .map_err(|e| MountError::Io("cannot go into the background", e))?;
    if let Some(sandbox) = sandbox {
        let walls = sandbox.enter();
        let walls = walls.map_err(|e| MountError::Io("the sandbox", e))?;
        log::debug!("{walls:?}");
    }
    Ok(to_parent)
}

pub(super) fn go_into_background(starter: Starter) -> io::Result<PipeWriter> {
    std::env::set_current_dir("/")?;
    detach_stdio()?;
    starter.inherited.close();
    Ok(starter.to_parent)
}

/// What runs until the mount is gone.
pub(super) struct Threads {
    pub(super) serving: JoinHandle<io::Result<()>>,
    /// Hung up when that thread is about to end.
    pub(super) ended: Receiver<()>,
    /// Answers those who ask it, where there is a place for that.
    pub(super) control: Option<Control>,
}

/// What is done when something happens.
pub(super) struct Hooks<N, F> {
    /// The supervisor has died.
    pub(super) on_notice: N,
    /// The mount may be there, and is not served any more. On the thread that served it, once it does nothing else.
    pub(super) on_failure: F,
}

#[allow(clippy::too_many_arguments)]
pub(super) fn start_threads(
    session: Session,
    union: &Arc<Union>,
    record: Record,
    place: Option<&control::Place>,
    served: &Served,
    mountpoint: &Path,
    outside: &Arc<Outside>,
    hooks: Hooks<impl Fn() + Send + 'static, impl FnOnce(&io::Error) + Send + 'static>,
) -> Result<Threads, MountError> {
    let Hooks {
        on_notice,
        on_failure,
    } = hooks;
    let failed = |e| MountError::Io("cannot start a thread", e);
    let counters = session.counters();
    let (alive, ended) = mpsc::channel();
    let serving = thread::Builder::new()
        .name("session".into())
        .spawn(move || {
            let ended = caught(|| session.run())
                .unwrap_or_else(|text| Err(io::Error::other(format!("a panic: {text}"))));
            if let Err(e) = &ended {
                on_failure(e);
            }
            drop::<Sender<()>>(alive);
            ended
        })
        .map_err(failed)?;
    let (signals, mountpoint) = (served.signals, mountpoint.to_owned());
    let to_unmount = outside.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || unmount_on(&signals, &mountpoint, &to_unmount, &on_notice))
        .map_err(failed)?;
    let info = Info {
        passthrough: union.params().passthrough,
        writeback: union.params().writeback,
        read_only: union.params().read_only,
        record,
    };
    // The last that can fail: where it does, nothing takes the socket away that another process goes on with.
    let control = place.map(|place| Control::start(place, info, union, counters, outside));
    Ok(Threads {
        serving,
        ended,
        control: control.transpose().map_err(failed)?,
    })
}

/// The first signal unmounts; where the mount is busy, the next one detaches it.
fn unmount_on(signals: &SigSet, mountpoint: &Path, outside: &Outside, on_notice: &dyn Fn()) {
    let mut lazy = false;
    loop {
        match signals.wait() {
            Ok(worker::NOTICE) => {
                if let Err(text) = caught(on_notice) {
                    log::error!("the supervisor's end was not noted, a panic: {text}");
                }
                continue;
            }
            Ok(signal) => log::info!("{signal}: unmounting {}", mountpoint.display()),
            Err(e) => {
                log::error!("signals: {e}");
                return;
            }
        }
        match caught(|| outside.unmount(lazy)).unwrap_or_else(|text| Err(io::Error::other(text))) {
            Ok(()) => return,
            Err(e) => log::error!(
                "{} is not unmounted: {e}; the next signal detaches it",
                mountpoint.display()
            ),
        }
        lazy = true;
    }
}
