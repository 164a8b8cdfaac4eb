//! A process in the sandbox that a mount is served in.
#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::path::PathBuf;

use acetate::sys::sandbox::{Needs, Walls, prepare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork, setgroups, setresgid, setresuid};

use crate::common::Scratch;

/// What a mount has, and a secret beside it.
pub struct Ground {
    _scratch: Scratch,
    pub lower: PathBuf,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Holds the file `secret`.
    pub outside: PathBuf,
}

impl Ground {
    pub fn new(name: &str) -> Ground {
        let scratch = Scratch::new(name);
        let ground = Ground {
            lower: scratch.dir("lower"),
            upper: scratch.dir("upper"),
            work: scratch.dir("work"),
            outside: scratch.dir("outside"),
            _scratch: scratch,
        };
        std::fs::write(ground.lower.join("file"), "lower").unwrap();
        std::fs::write(ground.outside.join("secret"), "secret").unwrap();
        ground
    }
}

/// Runs `act` in the sandbox of a mount of that ground, in a process of its own that started as this one, or as a plain user.
/// Returns the lines that it said.
pub fn inside(
    ground: &Ground,
    plain: bool,
    prepared: impl FnOnce() -> Box<dyn FnOnce(Walls) -> Vec<String>>,
) -> Vec<String> {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: the new process allocates, which the C library sees to after a fork, and takes no lock that another thread of
    // this one may hold.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(reader);
            if plain {
                setgroups(&[]).unwrap();
                setresgid(
                    Gid::from_raw(65534),
                    Gid::from_raw(65534),
                    Gid::from_raw(65534),
                )
                .unwrap();
                setresuid(
                    Uid::from_raw(65534),
                    Uid::from_raw(65534),
                    Uid::from_raw(65534),
                )
                .unwrap();
            }
            let act = prepared();
            let written = [&ground.upper, &ground.work];
            let ready = prepare(&Needs {
                read: &[&ground.lower],
                written: &written,
            })
            .unwrap();
            let said = match ready.enter() {
                Ok(walls) => act(walls),
                Err(e) => vec![format!("not entered: {e}")],
            };
            writer.write_all(said.join("\n").as_bytes()).unwrap();
            drop(writer);
            // SAFETY: ends this process without a word to the test harness, of which it is a copy.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut said = String::new();
            reader.read_to_string(&mut said).unwrap();
            assert_eq!(
                waitpid(child, None).unwrap(),
                WaitStatus::Exited(child, 0),
                "{said}"
            );
            said.lines().map(str::to_owned).collect()
        }
    }
}
