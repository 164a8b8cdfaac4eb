//! Containers of a plain user. They live in a user namespace, in which the user is root and has the ids that
//! `/etc/subuid` and `/etc/subgid` give, and in a mount namespace of that. A process that does nothing else holds both, so
//! that all commands of the user meet there; it outlives the containers, and ends by any signal.

use std::ffi::{CStr, OsString};
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::unistd::{Gid, Pid, Uid};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::error::ContainerError;
use crate::mount;
use crate::sys::daemon::{Beside, close_all_but, detach_stdio, fork_beside};

/// The name of the process that holds the namespaces, for people.
const NAME: &CStr = c"acetate-userns";

/// The file that tells that process, which has it locked.
const FILE: &str = "namespaces";

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ContainerError {
    ContainerError::io("enter the namespaces of", path)
}

/// Enters the namespaces of this user's containers, which are made where they are not there. Does nothing for root, that of
/// a user namespace too. Fails where this process has several threads.
pub fn enter() -> Result<(), ContainerError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let dir = mount::runtime_dir().map_err(ContainerError::io("make", "the runtime directory"))?;
    let path = dir.join(FILE);
    // Two commands at once make one.
    let lock = File::create(path.with_extension("lock")).map_err(failed(&path))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(&path)(e.into()))?;
    let holder = match living(&path).map_err(failed(&path))? {
        Some(holder) => holder,
        None => make(&path)?,
    };
    join(holder).map_err(failed(&path))
}

/// The process that holds them.
fn living(path: &Path) -> io::Result<Option<Pid>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => return Ok(None),
        Err(Errno::WOULDBLOCK) => {}
        Err(e) => return Err(e.into()),
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let number = text.trim().parse();
    Ok(Some(Pid::from_raw(
        number.map_err(|_| io::ErrorKind::InvalidData)?,
    )))
}

/// Goes there. Paths mean there what they meant here.
fn join(holder: Pid) -> io::Result<()> {
    let open = |name: &str| File::open(format!("/proc/{holder}/ns/{name}"));
    let (user, mounts) = (open("user")?, open("mnt")?);
    let at = std::env::current_dir();
    nix::sched::setns(user, CloneFlags::CLONE_NEWUSER)?;
    nix::sched::setns(mounts, CloneFlags::CLONE_NEWNS)?;
    match at {
        Ok(at) => std::env::set_current_dir(at),
        // It has none that could be meant.
        Err(_) => Ok(()),
    }
}

/// Makes them; gives the process that holds them.
fn make(path: &Path) -> Result<Pid, ContainerError> {
    // What is missing is told before anything is made.
    let users = Map::of_users()?;
    let groups = Map::of_groups()?;
    let mut file = File::create(path).map_err(failed(path))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| failed(path)(e.into()))?;
    let (mut from_holder, to_maker) = io::pipe().map_err(failed(path))?;
    let (from_maker, mut to_holder) = io::pipe().map_err(failed(path))?;
    match fork_beside().map_err(failed(path))? {
        Beside::New => {
            drop(to_holder);
            let code = match hold(&file, from_maker, to_maker) {
                Ok(()) => 0,
                Err(_) => 1,
            };
            // Never back into what the command goes on with.
            std::process::exit(code)
        }
        Beside::Old(holder) => {
            drop((to_maker, from_maker));
            let mut word = [0];
            let mut made = || -> Result<(), ContainerError> {
                from_holder.read_exact(&mut word).map_err(|_| {
                    ContainerError::Usage(
                        "containers without root need user namespaces, which this system denies"
                            .into(),
                    )
                })?;
                users.write("newuidmap", holder)?;
                groups.write("newgidmap", holder)?;
                to_holder.write_all(&[0]).map_err(failed(path))?;
                from_holder.read_exact(&mut word).map_err(failed(path))?;
                file.write_all(holder.to_string().as_bytes())
                    .map_err(failed(path))
            };
            let made = made();
            if made.is_err() {
                // It ends when it is told nothing more.
                drop(to_holder);
                if let Err(e) = nix::sys::wait::waitpid(holder, None) {
                    log::debug!("{e}");
                }
            }
            made.map(|()| holder)
        }
    }
}

/// The life of the process that holds the namespaces, and the lock of `file`.
fn hold(file: &File, mut from_maker: PipeReader, mut to_maker: PipeWriter) -> io::Result<()> {
    rustix::thread::set_name(NAME)?;
    rustix::process::setsid()?;
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    to_maker.write_all(&[0])?;
    let mut word = [0];
    from_maker.read_exact(&mut word)?;
    // What is mounted outside shows here, and not the other way round.
    let none: Option<&str> = None;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    std::env::set_current_dir("/")?;
    detach_stdio()?;
    to_maker.write_all(&[0])?;
    close_all_but(&[file.as_raw_fd()])?;
    // What owned the pipes must not close them again.
    std::mem::forget((from_maker, to_maker));
    loop {
        nix::unistd::pause();
    }
}

/// Which ids of the namespace are which outside.
struct Map {
    /// The user's own, or that of its group: root within.
    own: u32,
    /// Those from 1 on: first and number.
    ranges: Vec<(u32, u32)>,
}

impl Map {
    fn of_users() -> Result<Map, ContainerError> {
        Map::read(Path::new("/etc/subuid"), Uid::current().as_raw())
    }

    fn of_groups() -> Result<Map, ContainerError> {
        Map::read(Path::new("/etc/subgid"), Gid::current().as_raw())
    }

    fn read(path: &Path, own: u32) -> Result<Map, ContainerError> {
        let user = Uid::current();
        let name = match nix::unistd::User::from_uid(user) {
            Ok(Some(user)) => user.name,
            Ok(None) | Err(_) => user.to_string(),
        };
        let text = match fs::read_to_string(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.map_err(ContainerError::io("read", path))?,
        };
        let ranges = ranges(&text, &name, user.as_raw());
        if ranges.is_empty() {
            return Err(ContainerError::Usage(format!(
                "containers without root need a range of ids for {name} in {}: usermod --add-subuids 100000-165535 \
                 --add-subgids 100000-165535 {name}, as root",
                path.display()
            )));
        }
        Ok(Map { own, ranges })
    }

    /// Has a program that may do it map the ids of a process.
    fn write(&self, program: &str, process: Pid) -> Result<(), ContainerError> {
        let mut words: Vec<OsString> = vec![process.to_string().into()];
        let mut from = 0;
        for (first, number) in [(self.own, 1)].iter().chain(&self.ranges) {
            words.extend([from, *first, *number].map(|n: u32| n.to_string().into()));
            from = from.saturating_add(*number);
        }
        let missing = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => ContainerError::Usage(format!(
                "containers without root need {program}: install uidmap, or shadow-utils"
            )),
            _ => ContainerError::io("run", program)(e),
        };
        let done = Command::new(program)
            .args(words)
            .output()
            .map_err(missing)?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr)
            .trim()
            .replace('\n', " ");
        Err(ContainerError::Usage(format!("{program} refuses: {said}")))
    }
}

/// The ranges of a user, by name or number, in the text of `/etc/subuid` or `/etc/subgid`.
fn ranges(text: &str, name: &str, id: u32) -> Vec<(u32, u32)> {
    let id = id.to_string();
    let lines = text.lines().map(|line| line.trim().split(':'));
    lines
        .filter_map(|mut fields| {
            let owner = fields.next()?;
            if owner != name && owner != id {
                return None;
            }
            let first = fields.next()?.parse().ok()?;
            let number = fields.next()?.parse().ok()?;
            (number > 0).then_some((first, number))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let text = "a:100000:65536\n# a:1:2\n1000:7:8\nab:1:2\na:300000:0\na:x:1\n";
        assert_eq!(ranges(text, "a", 1000), [(100_000, 65536), (7, 8)]);
        assert_eq!(ranges(text, "c", 5), []);
    }
}
