//! Going on with a mount of another program: what the new supervisor does before it waits, as `daemon` and `compose` do for a
//! mount that is made.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};

use super::compose::{self, Mounted};
use super::daemon::{NAME, Served, VERSION, binary};
use super::error::MountError;
use super::handover::{self, Former, Handover, State};
use super::log::Log;
use super::outside::{self, Outside, Scene};
use super::private::PrivateUpper;
use super::state::{Record, Registration, take_back};
use super::supervise::{self, Setup, Succession};
use super::supervised::Going;
use super::{checks, control};
use crate::fuse;
use crate::sys::shared_log::{SharedLog, Word};
use crate::sys::worker;

/// How a program was started to go on with a mount.
#[derive(Clone, Debug)]
pub struct TakeOver {
    /// The number of the descriptor by which it is told what there is.
    pub state: RawFd,
    /// Where somebody waits for an answer.
    pub answer: PathBuf,
    /// The number of the descriptor of the program that had the mount.
    pub former: Option<RawFd>,
    /// It is only to find out whether it could, and to change nothing.
    pub rehearse: bool,
    /// Who waits for it to serve the mount.
    pub parent: Option<u32>,
}

/// Goes on with a mount of another program: returns when the mount is gone. What fails is answered, and the other program goes on.
pub fn take_over(how: &TakeOver) -> Result<(), MountError> {
    let done = State::read(how.state).and_then(|state| {
        worker::keep_to_itself(&state.given.all())
            .map_err(|e| MountError::Io("what was open", e))?;
        if how.rehearse {
            rehearse(&state)
        } else {
            go_on(state, how)
        }
    });
    if let Err(e) = &done {
        handover::answer(&how.answer, &e.to_string());
    }
    done
}

/// Puts all together but what the other program is still changing.
fn rehearse(state: &State) -> Result<(), MountError> {
    checks::raise_file_limit();
    let parts = state.parts()?;
    let how = (state.passthrough, state.private.is_some());
    let resumed = compose::resume(&state.options, &parts, how, true)?;
    let answer = fuse::answer_to(&state.init, resumed.union, resumed.access, resumed.settings);
    let failed = |e| MountError::Io("the kernel's first message", e);
    let log = worker::duplicate(state.given.journal).and_then(SharedLog::of);
    if answer.map_err(failed)? != log.map_err(failed)?.note() {
        return Err(MountError::OtherAgreement);
    }
    Ok(())
}

fn given(number: RawFd) -> Result<OwnedFd, MountError> {
    worker::take(number).map_err(|e| MountError::Io("what was open", e))
}

fn go_on(state: State, how: &TakeOver) -> Result<(), MountError> {
    if let Err(e) = rustix::thread::set_name(NAME) {
        log::debug!("the process is called as its file: {e}");
    }
    checks::raise_file_limit();
    let log = Log::go_on(state.log.clone(), state.log_default, state.options.debug);
    let mut signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals
        .thread_block()
        .map_err(|e| MountError::Io("signals", e.into()))?;
    signals.add(worker::NOTICE);
    let mounted = put_together(&state)?;
    let served = Served {
        id: state.record.id.clone(),
        runtime: state.runtime.clone(),
        log,
        signals,
        complete: state.complete,
    };
    let outside = Outside::beside(Scene {
        id: served.id.clone(),
        mountpoint: mounted.mountpoint.clone(),
        device: outside::device_in_table(&mounted.mountpoint),
        runtime: served.runtime.clone(),
        log: served.log.clone(),
        private: state.private.clone(),
        detached: state.detached,
    })
    .map_err(|e| MountError::Io("the process outside of the sandbox", e))?;
    let record = Record {
        pid: std::process::id(),
        outside: outside.process(),
        version: Some(VERSION.to_owned()),
        binary: binary(),
        ..state.record.clone()
    };
    let mut going = Going {
        mounted,
        served,
        record,
        outside: Arc::new(outside),
        registered: None,
    };
    going.registered = found_by(&state, &mut going)?;
    serve(going, &state, how)
}

/// What others find the mount by, once it is served: until then they find the other program.
fn found_by(
    state: &State,
    going: &mut Going,
) -> Result<Option<(Registration, control::Place)>, MountError> {
    let (Some(dir), Some((lock, listener))) = (&state.runtime, state.given.registered) else {
        return Ok(None);
    };
    // Who waits for the mount to be gone may be waiting for that one.
    going.mounted.held.push(given(lock)?);
    let listener = given(listener)?;
    take_back(dir, &state.record.id);
    let registration = Registration::prepare(dir, &going.record)
        .map_err(|e| MountError::Path("the record", dir.clone(), e))?;
    let place = control::Place::held(dir, &state.record.id, listener);
    Ok(Some((registration, place)))
}

fn put_together(state: &State) -> Result<Mounted, MountError> {
    let parts = state.parts()?;
    let how = (state.passthrough, state.private.is_some());
    let resumed = compose::resume(&state.options, &parts, how, false)?;
    let mut held = Vec::new();
    for lock in &state.given.locks {
        held.push(given(*lock)?);
    }
    let private = match (&state.private, state.given.private) {
        (Some(dir), Some(lock)) => Some(PrivateUpper::held(dir.clone(), File::from(given(lock)?))),
        _ => None,
    };
    Ok(Mounted {
        device: given(state.given.device)?,
        access: resumed.access,
        settings: resumed.settings,
        union: resumed.union,
        upper_layer: resumed.upper_layer,
        cache: resumed.cache,
        mountpoint: state.record.mountpoint.clone(),
        source: state.record.source.clone(),
        image: state.record.image.clone(),
        parts,
        private,
        guard: None,
        held,
        sandbox: resumed.sandbox,
    })
}

fn serve(going: Going, state: &State, how: &TakeOver) -> Result<(), MountError> {
    let failed = |e| MountError::Io("cannot start a process", e);
    let log = SharedLog::of(given(state.given.journal)?).map_err(failed)?;
    let log = Arc::new(log);
    going.mounted.cache.clear();
    let next = handover::describe(&going, &state.options, (&state.init, state.detached), &log);
    let former = how.former.map(Former::given).transpose().map_err(failed)?;
    let setup = Setup {
        log: log.clone(),
        handover: Handover::new(&next).map_err(failed)?,
        awaited: false,
        succession: Some(Succession { former }),
    };
    let told = Cell::new(false);
    let role = supervise::start(setup, || {
        if !told.replace(true) {
            say_that_it_serves(&going, how, &log);
        }
        Ok(())
    })
    .map_err(failed)?;
    going.serve(role, state.init.clone(), None)
}

/// To whoever looks for the mount, to the one who asked for this, and to the supervisor before.
fn say_that_it_serves(going: &Going, how: &TakeOver, log: &SharedLog) {
    if let Some((registration, _)) = &going.registered
        && let Err(e) = registration.publish()
    {
        log::error!("the record of the mount still tells of the program before: {e}");
    }
    handover::answer(&how.answer, handover::DONE);
    log.set(Word::Supervisor, u64::from(std::process::id()));
    if let Some(parent) = how.parent.filter(|parent| *parent == worker::parent())
        && let Err(e) = worker::say_ready()
    {
        log::error!("process {parent} waits in vain: {e}");
    }
}
