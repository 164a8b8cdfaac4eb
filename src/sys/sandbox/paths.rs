//! Landlock: which files can be opened, made, renamed and removed, whatever path or descriptor leads to them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{CWD, Mode, OFlags};

use super::Needs;

/// The newest that is known here; of an older kernel's, what it has.
const KNOWN: ABI = ABI::V6;

/// Before this one nothing can be renamed from one directory into another.
const LEAST: i64 = 2;

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: libc::c_uint = 1;

/// The rules, which hold no directory open: what it lies on can be unmounted meanwhile.
#[derive(Debug)]
pub(super) struct Beneath {
    /// Or why there can be none.
    rules: Result<RulesetCreated, String>,
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// The kernel's version of Landlock; below 1: it has none, or it is switched off.
fn version() -> i64 {
    // SAFETY: with this flag the call reads no memory.
    unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0,
            ASK_VERSION,
        )
    }
}

impl Beneath {
    pub(super) fn open<P: AsRef<Path>>(needs: &Needs<'_, P>) -> io::Result<Beneath> {
        Ok(Beneath {
            rules: match version() {
                LEAST.. => Ok(rules(needs)?),
                found => Err(format!("version {found} of it is too old")),
            },
        })
    }

    pub(super) fn enforce(&self) -> io::Result<Result<(), String>> {
        let rules = match &self.rules {
            Ok(rules) => rules.try_clone()?,
            Err(why) => return Ok(Err(why.clone())),
        };
        match rules.restrict_self().map_err(io::Error::other)?.ruleset {
            RulesetStatus::NotEnforced => Ok(Err("it is not enforced".to_owned())),
            _ => Ok(Ok(())),
        }
    }
}

fn rules<P: AsRef<Path>>(needs: &Needs<'_, P>) -> io::Result<RulesetCreated> {
    // What is run from the mount by passthrough is opened for running with this process's rights. It can run nothing itself.
    let all: BitFlags<AccessFs> = AccessFs::from_all(KNOWN) & !AccessFs::Execute;
    let empty = || -> Result<RulesetCreated, RulesetError> {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .handle_access(AccessNet::from_all(KNOWN))?
            .scope(Scope::from_all(KNOWN))?
            .create()
    };
    let mut rules = empty().map_err(io::Error::other)?;
    // Nothing of /proc: a link there leads to what a descriptor names, which counts by its own place.
    let read = needs
        .read
        .iter()
        .map(|path| (path, AccessFs::ReadFile | AccessFs::ReadDir));
    let written = needs.written.iter().map(|path| (path, all));
    for (path, rights) in read.chain(written) {
        let dir = open(path.as_ref())?;
        rules = rules
            .add_rule(PathBeneath::new(dir, rights))
            .map_err(io::Error::other)?;
    }
    Ok(rules)
}
