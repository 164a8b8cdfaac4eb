//! Serving a mount that outlives its daemon: what the supervisor does before it waits, and each worker after that.
//!
//! What a worker has from its supervisor is open in the table of files that the two share, and that the next worker shares
//! with them: a worker that fails ends as one that is killed does, and puts nothing away. Only where the mount is gone, or was never there,
//! is anything dropped.

use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::Arc;

use super::completing::Completing;
use super::compose::Mounted;
use super::control::{self, Control};
use super::daemon::{
    Hooks, Last, Served, Starter, Threads, give_up, go_into_background, record, register,
    start_threads,
};
use super::error::MountError;
use super::handover::{self, Handover};
use super::options::MountOptions;
use super::outside::Outside;
use super::state::{Record, Registration};
use super::supervise::{self, Role, Setup, Worker};
use crate::fuse::{Connection, Session, TakeOver, can_resend};
use crate::sys::daemon::outlive_starter;
use crate::sys::memory;
use crate::sys::panics::caught;
use crate::sys::shared_log::SharedLog;
use crate::sys::worker;

/// Serves the mount in a process that another takes over from when it dies, while this one waits.
pub(super) fn serve(
    mounted: Mounted,
    mut served: Served,
    options: &MountOptions,
    starter: Option<Starter>,
    outside: Arc<Outside>,
) -> Result<(), MountError> {
    served.signals.add(worker::NOTICE);
    let begun = match Begun::new(&mounted) {
        Ok(begun) => begun,
        Err(e) => {
            give_up(outside.unmount(true));
            return Err(e);
        }
    };
    let record = Record {
        supervised: begun.log.is_some(),
        ..record(&mounted, &served, &outside)
    };
    let registered = register(&served, &record);
    let going = Going {
        mounted,
        served,
        record,
        outside,
        registered,
    };
    match with_supervisor(&going, begun, options, starter) {
        Ok((role, init, starter)) => going.serve(role, init, starter),
        Err(e) => {
            give_up(going.outside.unmount(true));
            Err(e)
        }
    }
}

/// A mount that is to be served, and can be found.
pub(super) struct Going {
    pub(super) mounted: Mounted,
    pub(super) served: Served,
    pub(super) record: Record,
    pub(super) outside: Arc<Outside>,
    pub(super) registered: Option<(Registration, control::Place)>,
}

impl Going {
    /// As a worker, or as one whom nobody supervises.
    pub(super) fn serve(
        self,
        role: Role,
        init: Vec<u8>,
        starter: Option<Starter>,
    ) -> Result<(), MountError> {
        let mut serving = ManuallyDrop::new(Serving {
            mounted: self.mounted,
            served: self.served,
            record: self.record,
            outside: self.outside,
            registered: self.registered,
            role,
        });
        let started = caught(|| serving.start(init, starter)).unwrap_or_else(|text| {
            let panic = io::Error::other(format!("a panic: {text}"));
            Err(MountError::Io("the daemon does not start", panic))
        });
        if let Err(e) = &started
            && !is_first(&serving.role)
            && serving.role.next()()
        {
            leave_to_next(e);
        }
        let serving = ManuallyDrop::into_inner(serving);
        match started {
            Ok(started) => serving.wait(started),
            Err(e) => {
                if is_first(&serving.role) {
                    serving.role.say_ending();
                    give_up(serving.outside.unmount(true));
                }
                Err(e)
            }
        }
    }
}

/// Ends this process, as another takes over.
fn leave_to_next(error: &MountError) -> ! {
    log::error!("{error}");
    worker::leave(i32::from(error.exit_code()))
}

/// What is known of the connection before it is served.
struct Begun {
    init: Vec<u8>,
    /// What one worker tells the next; `None` where there is to be but one.
    log: Option<Arc<SharedLog>>,
}

impl Begun {
    fn new(mounted: &Mounted) -> Result<Begun, MountError> {
        let init = Connection::first_message(&mounted.device)
            .map_err(|e| MountError::Io("the kernel's first message", e))?;
        let failed = |e| MountError::Io("cannot start a process", e);
        let log = if !can_resend(&init) {
            log::warn!(
                "no supervisor: the kernel sends no request twice, as Linux does from 6.9 on"
            );
            None
        } else if !worker::is_single_threaded().map_err(failed)? {
            log::warn!("no supervisor: the process has several threads");
            None
        } else {
            Some(Arc::new(SharedLog::new().map_err(failed)?))
        };
        Ok(Begun { init, log })
    }
}

/// Has the rest done by another process, while this one waits. Returns in the other, or where there can be none, with the
/// kernel's first message.
fn with_supervisor(
    going: &Going,
    begun: Begun,
    options: &MountOptions,
    mut starter: Option<Starter>,
) -> Result<(Role, Vec<u8>, Option<Starter>), MountError> {
    let Begun { init, log } = begun;
    let Some(log) = log else {
        return Ok((Role::Alone, init, starter));
    };
    // Nothing that a worker may close is known to the processes that come after it.
    going.mounted.cache.clear();
    let detached = starter.is_some();
    let state = handover::describe(going, options, (&init, detached), &log);
    let failed = |e| MountError::Io("cannot start a process", e);
    let setup = Setup {
        log,
        handover: Handover::new(&state).map_err(failed)?,
        awaited: !detached,
        succession: None,
    };
    let role = supervise::start(setup, || match starter.take() {
        Some(starter) => tell(starter),
        None => Ok(()),
    })
    .map_err(failed)?;
    // The supervisor's, by the same numbers.
    std::mem::forget(starter.take());
    Ok((role, init, None))
}

/// The mount answers: who waits for it is told.
fn tell(starter: Starter) -> io::Result<()> {
    let mut to_parent = go_into_background(starter)?;
    outlive_starter()?;
    to_parent.write_all(&[0])
}

/// A mount that is made, and how it is to be served.
struct Serving {
    mounted: Mounted,
    served: Served,
    record: Record,
    outside: Arc<Outside>,
    registered: Option<(Registration, control::Place)>,
    role: Role,
}

/// What runs since the mount answers.
struct Started {
    threads: Threads,
    tending: Option<Completing>,
}

impl Serving {
    /// Makes the session of this process.
    fn connect(&mut self, init: Vec<u8>) -> Result<Session, MountError> {
        let device = self
            .mounted
            .device
            .try_clone()
            .map_err(|e| MountError::Io("/dev/fuse", e))?;
        let connection = match &self.role {
            Role::Worker(worker) => {
                if !worker.first {
                    renew(&mut self.mounted, worker)?;
                }
                Connection::Shared(TakeOver {
                    device: Arc::new(device),
                    init,
                    first: worker.first,
                    journal: worker.journal.clone(),
                })
            }
            Role::Alone => Connection::Begun(device, init),
        };
        let (access, settings) = (self.mounted.access, self.mounted.settings);
        Session::new(self.mounted.union.clone(), connection, access, settings)
            .map_err(|e| MountError::Io("the kernel's first message", e))
    }

    /// Until the mount is gone.
    fn wait(self, started: Started) -> Result<(), MountError> {
        let Started { threads, tending } = started;
        let Threads {
            serving, control, ..
        } = threads;
        let (mounted, role) = (self.mounted, self.role);
        let last = Last {
            tending,
            complete: self.served.complete,
            outside: &self.outside,
            union: mounted.union,
            held: (
                mounted.upper_layer,
                mounted.cache,
                mounted.guard,
                mounted.held,
                mounted.device,
            ),
            private: mounted.private,
        };
        let registered = self
            .registered
            .map(|(registration, place)| (registration, (place, control)));
        let withdraw = |(registration, _): (Registration, (control::Place, Option<Control>))| {
            registration.withdraw();
        };
        last.wait(serving, || role.say_ending(), registered, withdraw)
    }

    /// Until the mount answers.
    fn start(&mut self, init: Vec<u8>, starter: Option<Starter>) -> Result<Started, MountError> {
        let session = self.connect(init)?;
        // Only the first has it from whoever started the mount.
        std::env::set_current_dir("/").map_err(|e| MountError::Io("/", e))?;
        if let Some(sandbox) = &self.mounted.sandbox {
            let walls = sandbox.enter();
            let walls = walls.map_err(|e| MountError::Io("the sandbox", e))?;
            log::debug!("{walls:?}");
        }
        let (outside, mountpoint) = (self.outside.clone(), self.mounted.mountpoint.clone());
        let first = is_first(&self.role);
        if let (Role::Worker(worker), true) = (&self.role, first) {
            // Programs may use the mount from here on, before its starter is told of it.
            worker.say_ready();
        }
        let left_to = self.role.next();
        let threads = start_threads(
            session,
            &self.mounted.union,
            self.record.clone(),
            self.registered.as_ref().map(|(_, place)| place),
            &self.served,
            &self.mounted.mountpoint,
            &self.outside,
            Hooks {
                on_notice: move || go_on_alone(&outside, &mountpoint),
                on_failure: move |e: &io::Error| {
                    if left_to() {
                        let same = io::Error::new(e.kind(), e.to_string());
                        leave_to_next(&MountError::Io("the connection to the kernel", same));
                    }
                },
            },
        )?;
        // From here on the only files made are those of programs, whose own umask comes with each request. Any other
        // would take bits away that are set again by a call more.
        rustix::process::umask(rustix::fs::Mode::empty());
        if first {
            let mountpoint = self.mounted.mountpoint.clone();
            self.outside
                .touch()
                .map_err(|e| MountError::Path("the mount does not answer:", mountpoint, e))?;
        }
        let told = match (&self.role, starter) {
            // The one before may have died before it said so.
            (Role::Worker(_), _) => self.outside.say_ready().or_else(|e| {
                if first {
                    return Err(e);
                }
                log::warn!("the supervisor is not told that the mount is served: {e}");
                Ok(())
            }),
            (Role::Alone, Some(starter)) => tell(starter),
            (Role::Alone, None) => Ok(()),
        };
        told.map_err(|e| MountError::Io("cannot go into the background", e))?;
        if first {
            self.outside.sweep_logs();
        }
        let private = self.mounted.private.is_some();
        let tending = Completing::start(&self.mounted.union, self.served.complete, private);
        memory::give_back();
        Ok(Started { threads, tending })
    }
}

/// Looks anew at what the process before may have changed.
fn renew(mounted: &mut Mounted, worker: &Worker) -> Result<(), MountError> {
    if let Some(upper) = &mounted.upper_layer {
        upper.renew()?;
    }
    mounted.union.renew()?;
    if let Some(why) = &worker.read_only {
        log::error!(
            "{} is read-only from now on: {why}",
            mounted.mountpoint.display()
        );
        if let Some(union) = Arc::get_mut(&mut mounted.union) {
            union.refuse_changes();
        }
    }
    Ok(())
}

/// Whether no process served the mount before.
fn is_first(role: &Role) -> bool {
    !matches!(role, Role::Worker(Worker { first: false, .. }))
}

/// The supervisor has died: nobody takes over from this process, which others now have to look for.
fn go_on_alone(outside: &Outside, mountpoint: &Path) {
    log::error!(
        "the supervisor has died: the mount at {} goes on, and ends with this process",
        mountpoint.display()
    );
    outside.serve_alone();
}
