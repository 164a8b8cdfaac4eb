//! What a program has to know that goes on with a mount of another program: told by the supervisor of the one to that of the
//! other, which is started for it and inherits what is open.
//!
//! Neither side trusts what a worker may have touched. A worker shares the table of open files and may put another file in the
//! place of any of them, so what is told lies in the supervisor's own memory until the other program is started; what comes
//! by a descriptor is either of no more use than the worker made of it before, or known by its inode.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::checks::{Place, Role};
use super::compose::Parts;
use super::error::MountError;
use super::options::{Complete, MountOptions};
use super::state::{Record, path_text};
use super::supervised::Going;
use crate::sys::shared_log::SharedLog;
use crate::sys::worker;
use crate::union::{FORM, Journal};

/// The form of [`State`]. A program of another form must not read it.
const STATE_FORM: u32 = 1;

/// The subcommand that goes on with a mount. It is no part of what people use.
pub const COMMAND: &str = "take-over";

/// The first line of what is told: what the other program must agree with.
fn forms() -> String {
    format!("acetate hands a mount over: state {STATE_FORM}, journal {FORM}")
}

/// A directory, and which it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Directory {
    #[serde(with = "path_text")]
    path: PathBuf,
    /// Device and inode number.
    id: (u64, u64),
}

impl Directory {
    fn of(place: &Place) -> Directory {
        Directory {
            path: place.path.clone(),
            id: place.id,
        }
    }

    fn find(&self, role: Role) -> Result<Place, MountError> {
        let place = Place::find(role, &self.path)?;
        if place.id != self.id {
            return Err(MountError::Replaced(role.name(), self.path.clone()));
        }
        Ok(place)
    }
}

/// What of a mount is open, by numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Given {
    pub(super) device: RawFd,
    pub(super) journal: RawFd,
    /// Where the mount is asked, and what keeps its record alive.
    pub(super) registered: Option<(RawFd, RawFd)>,
    /// Holds the upper that is thrown away.
    pub(super) private: Option<RawFd>,
    /// Holds the upper, the workdir, and layers of the store.
    pub(super) locks: Vec<RawFd>,
}

impl Given {
    pub(super) fn all(&self) -> Vec<RawFd> {
        let mut all = vec![self.device, self.journal];
        all.extend(self.registered.iter().flat_map(|(a, b)| [*a, *b]));
        all.extend(self.private);
        all.extend(&self.locks);
        all
    }
}

/// All that is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) record: Record,
    pub(super) options: MountOptions,
    /// The session uses passthrough.
    pub(super) passthrough: bool,
    pub(super) complete: Option<Complete>,
    lowers: Vec<Directory>,
    merged: usize,
    unpacked: Range<usize>,
    uppers: Vec<Directory>,
    /// Where the upper lies that is thrown away.
    #[serde(with = "maybe_path")]
    pub(super) private: Option<PathBuf>,
    #[serde(with = "maybe_path")]
    pub(super) runtime: Option<PathBuf>,
    #[serde(with = "maybe_path")]
    pub(super) log: Option<PathBuf>,
    /// Nobody chose where the log lies.
    pub(super) log_default: bool,
    /// Standard input, output and error are somebody else's.
    pub(super) detached: bool,
    /// The kernel's first message.
    pub(super) init: Vec<u8>,
    pub(super) given: Given,
}

mod maybe_path {
    use super::{PathBuf, path_text};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct One(#[serde(with = "path_text")] PathBuf);

    pub(super) fn serialize<S: Serializer>(
        path: &Option<PathBuf>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        path.clone().map(One).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<One>::deserialize(from)?.map(|one| one.0))
    }
}

/// What is told of a mount that is put together.
pub(super) fn describe(
    going: &Going,
    options: &MountOptions,
    (init, detached): (&[u8], bool),
    log: &SharedLog,
) -> State {
    let Going {
        mounted,
        served,
        record,
        registered,
        ..
    } = going;
    let number = |fd: std::os::fd::BorrowedFd<'_>| fd.as_raw_fd();
    let mut locks: Vec<RawFd> = mounted.held.iter().map(AsRawFd::as_raw_fd).collect();
    if let Some(upper) = &mounted.upper_layer {
        locks.extend(upper.locks().map(number));
    }
    locks.extend(
        mounted
            .guard
            .iter()
            .flat_map(|g| g.descriptors())
            .map(number),
    );
    State {
        record: record.clone(),
        options: options.clone(),
        passthrough: mounted.settings.passthrough,
        complete: served.complete,
        lowers: mounted.parts.lowers.iter().map(Directory::of).collect(),
        merged: mounted.parts.merged,
        unpacked: mounted.parts.unpacked.clone(),
        uppers: mounted.parts.uppers.iter().map(Directory::of).collect(),
        private: mounted.private.as_ref().map(|p| p.dir().to_owned()),
        runtime: served.runtime.clone(),
        log: served.log.path.clone(),
        log_default: served.log.is_default(),
        detached,
        init: init.to_owned(),
        given: Given {
            device: mounted.device.as_raw_fd(),
            journal: log.as_fd().as_raw_fd(),
            registered: registered
                .as_ref()
                .map(|(record, place)| (number(record.lock()), number(place.listener()))),
            private: mounted.private.as_ref().map(|p| number(p.lock())),
            locks,
        },
    }
}

impl State {
    /// The directories, which must be those that they were.
    pub(super) fn parts(&self) -> Result<Parts, MountError> {
        let find = |role, directories: &[Directory]| -> Result<Vec<Place>, MountError> {
            directories.iter().map(|one| one.find(role)).collect()
        };
        let mut uppers = Vec::new();
        for (role, one) in [Role::Upper, Role::Work].into_iter().zip(&self.uppers) {
            uppers.push(one.find(role)?);
        }
        Ok(Parts {
            lowers: find(Role::Lower, &self.lowers)?,
            merged: self.merged,
            unpacked: self.unpacked.clone(),
            uppers,
        })
    }

    fn to_text(&self) -> io::Result<Vec<u8>> {
        let mut text = forms().into_bytes();
        text.push(b'\n');
        serde_json::to_writer(&mut text, self)?;
        Ok(text)
    }

    fn from_text(text: &[u8]) -> Result<State, MountError> {
        let (first, rest) = match text.iter().position(|byte| *byte == b'\n') {
            Some(at) => (&text[..at], &text[at + 1..]),
            None => (text, &[][..]),
        };
        if first != forms().as_bytes() {
            return Err(MountError::OtherForm {
                theirs: String::from_utf8_lossy(first).into_owned(),
                ours: forms(),
            });
        }
        serde_json::from_slice(rest)
            .map_err(|e| MountError::Io("what is told of the mount", e.into()))
    }

    /// Reads what another program told.
    pub(super) fn read(from: RawFd) -> Result<State, MountError> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::from(worker::take(from)?);
            file.seek(SeekFrom::Start(0))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read().map_err(|e| MountError::Io("what is told of the mount", e))?;
        State::from_text(&text)
    }
}

/// A program by which this one was preceded, to be gone back to.
#[derive(Debug)]
pub(super) struct Former {
    number: RawFd,
    /// Device and inode number.
    id: (u64, u64),
}

impl Former {
    /// `number`: its file, which this process was started with.
    pub(super) fn given(number: RawFd) -> io::Result<Former> {
        worker::keep_to_itself(&[number])?;
        Ok(Former {
            number,
            id: identity(number)?,
        })
    }
}

fn identity(number: RawFd) -> io::Result<(u64, u64)> {
    let found = std::fs::metadata(format!("/proc/self/fd/{number}"))?;
    Ok((found.dev(), found.ino()))
}

/// Says to a program what it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// To find out whether it can go on with the mount, and change nothing.
    Rehearse,
    /// To go on, and to tell its parent once it does.
    GoOn,
    /// To go on in the place of one that failed.
    GoBack,
}

/// What is answered when it was done.
pub(super) const DONE: &str = "ok";

/// What a supervisor keeps to hand the mount over. It is put together before there is a worker.
#[derive(Debug)]
pub(super) struct Handover {
    text: Vec<u8>,
    given: Vec<RawFd>,
    journal: RawFd,
    /// The program that is to go on, put there by whoever asks for it.
    program: CString,
    /// Where that one waits for an answer.
    answer: PathBuf,
}

/// Where the program is put that is to go on with a mount: a symlink to it.
pub(super) fn program_path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.program"))
}

/// Where the answer is written; it must be there already.
pub(super) fn answer_path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.answer"))
}

impl Handover {
    /// `None`: nobody could ask for it.
    pub(super) fn new(state: &State) -> io::Result<Option<Handover>> {
        let Some(dir) = &state.runtime else {
            return Ok(None);
        };
        let program = program_path(dir, &state.record.id).into_os_string();
        Ok(Some(Handover {
            text: state.to_text()?,
            given: state.given.all(),
            journal: state.given.journal,
            program: CString::new(program.into_vec())?,
            answer: answer_path(dir, &state.record.id),
        }))
    }

    /// Says what came of it, unless that was said. Best effort: whoever waits sees for itself that nothing happens.
    pub(super) fn answer(&self, text: &str) {
        answer(&self.answer, text);
    }

    /// Becomes the other program. Returns only when that fails. In this process no other thread may be.
    pub(super) fn become_successor(&self, part: Part) -> io::Error {
        let become_it = || -> io::Result<io::Error> {
            let own = File::options().read(true).open("/proc/self/exe")?;
            self.become_program(&self.program, part, Some(own.as_raw_fd()))
        };
        become_it().unwrap_or_else(|e| e)
    }

    /// Becomes the program again that came before. As above.
    pub(super) fn go_back(&self, former: &Former) -> io::Error {
        let become_it = || -> io::Result<io::Error> {
            if identity(former.number)? != former.id {
                return Err(io::Error::other("its file is gone"));
            }
            let path = CString::new(format!("/proc/self/fd/{}", former.number))?;
            self.become_program(&path, Part::GoBack, None)
        };
        become_it().unwrap_or_else(|e| e)
    }

    fn become_program(
        &self,
        path: &CString,
        part: Part,
        former: Option<RawFd>,
    ) -> io::Result<io::Error> {
        let state: OwnedFd = rustix::fs::memfd_create("acetate-state", MemfdFlags::CLOEXEC)?;
        let mut state = File::from(state);
        state.write_all(&self.text)?;
        let mut answer = OsString::from("--answer=");
        answer.push(&self.answer);
        let mut words: Vec<OsString> = vec!["acetate".into(), COMMAND.into(), answer];
        words.push(format!("--state={}", state.as_raw_fd()).into());
        let mut kept = self.given.clone();
        kept.push(state.as_raw_fd());
        if let Some(former) = former {
            words.push(format!("--former={former}").into());
            kept.push(former);
        }
        match part {
            Part::Rehearse => words.push("--rehearse".into()),
            Part::GoOn => words.push(format!("--parent={}", worker::parent()).into()),
            Part::GoBack => {}
        }
        if part != Part::Rehearse {
            kept.extend(left_open(self.journal)?);
        }
        let words = words.into_iter().map(|word| CString::new(word.into_vec()));
        let words: Result<Vec<CString>, _> = words.collect();
        Ok(worker::become_program(path, &words?, &kept))
    }
}

/// The descriptors of files without a name that the workers left open, as far as they are what the journal says.
pub(super) fn left_open(journal: RawFd) -> io::Result<Vec<RawFd>> {
    let memory = worker::duplicate(journal)?;
    let log = SharedLog::of(memory)?;
    let left = Journal::left_in(&log);
    Ok(left
        .into_iter()
        .filter(|(fd, ino)| worker::inode_of(*fd).is_ok_and(|found| found == *ino))
        .map(|(fd, _)| fd)
        .collect())
}

/// Writes an answer where one is waited for, and none is there yet.
pub(super) fn answer(path: &Path, text: &str) {
    let written = || -> io::Result<()> {
        let mut file = File::options().read(true).append(true).open(path)?;
        if file.metadata()?.len() == 0 {
            file.write_all(format!("{}\n", text.replace('\n', " ")).as_bytes())?;
        }
        Ok(())
    };
    if let Err(e) = written() {
        log::debug!("nobody waits for an answer: {e}");
    }
}
