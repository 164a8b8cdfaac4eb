//! Scratch space, and what was mounted and attached in it: all of it goes away at the end, also after ctrl-C.
//!
//! A signal is taken by a thread of its own, which undoes everything and ends the process: the work that is measured may
//! sit in one system call for long.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::error::{BenchError, at};
use crate::sys::mount as sys_mount;

/// How long something that is unmounted may stay busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long what is killed has to end.
const AGAIN: Duration = Duration::from_millis(200);

/// What has to be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Undo {
    Mount(PathBuf),
    Loop(PathBuf),
    /// A program that works in a mount.
    Process(u32),
    /// A program with a process group of its own, and what it started.
    Group(u32),
}

#[derive(Debug)]
struct Inner {
    undo: Vec<Undo>,
    /// Whoever holds the lock undoes everything, and nobody may make anything more.
    over: bool,
}

/// Where a benchmark works.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    /// Immutable.
    dir: Arc<PathBuf>,
    inner: Arc<Mutex<Inner>>,
}

/// Undoes everything when it goes away.
#[derive(Debug)]
pub(super) struct Ending(Scene);

impl Scene {
    /// Makes scratch space below `base`, and takes ctrl-C and termination from now on. Must be called before the process
    /// has any other thread.
    pub(super) fn new(base: &Path) -> Result<(Scene, Ending), BenchError> {
        let base = fs::canonicalize(base).map_err(at("no directory to work in:", base))?;
        let signals = taken();
        signals
            .thread_block()
            .map_err(|e| at("cannot take signals in", &base)(e.into()))?;
        let dir = tempfile::Builder::new()
            .prefix("acetate-bench-")
            .tempdir_in(&base)
            .map_err(at("cannot work in", &base))?
            .keep();
        let scene = Scene {
            dir: Arc::new(dir),
            inner: Arc::new(Mutex::new(Inner {
                undo: Vec::new(),
                over: false,
            })),
        };
        let ending = Ending(scene.clone());
        // Other users' daemons have to reach their own parts.
        fs::set_permissions(&*scene.dir, fs::Permissions::from_mode(0o755))
            .map_err(at("cannot open to all", &scene.dir))?;
        let waiting = scene.clone();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                if let Ok(signal) = signals.wait() {
                    eprintln!("acetate: {signal}: cleaning up");
                    waiting.end();
                    std::process::exit(128 + signal as i32);
                }
            })
            .map_err(at("no thread for", &scene.dir))?;
        Ok((scene, ending))
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new directory in it, with its parents.
    pub(super) fn make_dir(&self, name: &str) -> Result<PathBuf, BenchError> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).map_err(at("cannot make", &path))?;
        Ok(path)
    }

    /// Does what has to be undone. Whoever waits for the end waits for this.
    fn make<T>(
        &self,
        undo: impl FnOnce(&T) -> Undo,
        make: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let mut inner = self.inner.lock();
        if inner.over {
            return Err(BenchError::Interrupted);
        }
        let made = make()?;
        inner.undo.push(undo(&made));
        Ok(made)
    }

    /// Forgets what is undone already.
    fn undone(&self, what: &Undo) {
        self.inner.lock().undo.retain(|undo| undo != what);
    }

    /// Mounts something at `dir` by a program that returns when it is done.
    pub(super) fn mount_by(&self, dir: &Path, command: &mut Command) -> Result<(), BenchError> {
        self.make(
            |()| Undo::Mount(dir.to_owned()),
            || finish(command).map(drop),
        )
    }

    /// Mounts something at `dir` by a program that goes on serving it.
    pub(super) fn serve_by(&self, dir: &Path, command: &mut Command) -> Result<Child, BenchError> {
        self.make(
            |_| Undo::Mount(dir.to_owned()),
            || {
                let before = device(dir)?;
                // A pipe that nobody reads would stop it one day.
                let said = self.dir.join("said");
                let file = File::create(&said).map_err(at("cannot make", &said))?;
                let mut child = start(command.stdout(Stdio::null()).stderr(file))?;
                wait_for_mount(dir, before, &mut child).map_err(|e| {
                    stop(&mut child);
                    let text = fs::read_to_string(&said).unwrap_or_default();
                    let last = text.trim().lines().last().unwrap_or_default();
                    BenchError::Program(name_of(command), format!("{e}: {last}"))
                })?;
                Ok(child)
            },
        )
    }

    /// Attaches a file to a loop device.
    pub(super) fn attach(&self, file: &Path) -> Result<PathBuf, BenchError> {
        self.make(
            |device: &PathBuf| Undo::Loop(device.clone()),
            || {
                // Past the page cache where the filesystem below can, so that what is dropped here is not still there.
                let direct = losetup(&["--find", "--show", "--direct-io=on"], file);
                direct.or_else(|_| losetup(&["--find", "--show"], file))
            },
        )
    }

    /// Unmounts, and waits as long as something is about to let go. What does not is cut off, which is an error.
    pub(super) fn unmount(&self, dir: &Path) -> Result<(), BenchError> {
        let begin = Instant::now();
        loop {
            match sys_mount::unmount(dir, false) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy && begin.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                    sys_mount::unmount(dir, true).map_err(at("cannot unmount", dir))?;
                    self.undone(&Undo::Mount(dir.to_owned()));
                    return Err(at("something still uses", dir)(e));
                }
                Err(e) => return Err(at("cannot unmount", dir)(e)),
            }
        }
        self.undone(&Undo::Mount(dir.to_owned()));
        Ok(())
    }

    /// Runs a program that works in a mount, to its end. It and what it starts are killed when the benchmark is
    /// interrupted.
    pub(super) fn run(&self, command: &mut Command) -> Result<ExitStatus, BenchError> {
        command.process_group(0);
        let mut child = self.make(|child: &Child| Undo::Group(child.id()), || start(command))?;
        let status = child
            .wait()
            .map_err(|e| BenchError::Program(name_of(command), e.to_string()))?;
        self.undone(&Undo::Group(child.id()));
        Ok(status)
    }

    /// Does something that may hang. After `limit` the daemon and the programs that [`Scene::run`] started are killed, so
    /// that whoever waits for them goes on with an error; the second value tells whether that was done.
    pub(super) fn limited<T>(
        &self,
        limit: Duration,
        daemon: Option<u32>,
        act: impl FnOnce() -> T,
    ) -> (T, bool) {
        let (done, end) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let watch = scope.spawn(move || {
                if end.recv_timeout(limit) != Err(RecvTimeoutError::Timeout) {
                    return false;
                }
                // Again and again: what is killed may be followed by the next program.
                loop {
                    self.kill_all(daemon);
                    if end.recv_timeout(AGAIN) != Err(RecvTimeoutError::Timeout) {
                        return true;
                    }
                }
            });
            let value = act();
            drop(done);
            (value, watch.join().unwrap_or(false))
        })
    }

    /// Kills what runs at the moment. What a dead daemon was asked fails at once.
    fn kill_all(&self, daemon: Option<u32>) {
        let inner = self.inner.lock();
        let groups = inner.undo.iter().filter_map(|undo| match undo {
            Undo::Group(pid) => Some(*pid),
            _ => None,
        });
        for pid in groups.chain(daemon) {
            if let Err(e) = kill_group(pid) {
                log::warn!("the process group {pid} goes on: {e}");
            }
        }
    }

    /// The same with this program's own input, for a program that a person may talk to. Signals reach it as they would
    /// without us.
    pub(super) fn run_attended(&self, command: &mut Command) -> Result<ExitStatus, BenchError> {
        let name = name_of(command);
        let failed = |e: io::Error| BenchError::Program(name, e.to_string());
        let mut child = self.make(
            |child: &Child| Undo::Process(child.id()),
            || {
                let signals = taken();
                // A program inherits what is held back.
                let free = signals.thread_unblock().map_err(io::Error::from);
                let child = free.and_then(|()| command.spawn());
                let held = signals.thread_block().map_err(io::Error::from);
                child
                    .and_then(|child| held.map(|()| child))
                    .map_err(|e| BenchError::Program(name_of(command), e.to_string()))
            },
        )?;
        let status = child.wait().map_err(failed)?;
        self.undone(&Undo::Process(child.id()));
        Ok(status)
    }

    /// Undoes everything and removes the directory.
    fn end(&self) {
        let mut inner = self.inner.lock();
        if std::mem::replace(&mut inner.over, true) {
            drop(inner);
            // It was done on a signal, whose thread ends the process.
            loop {
                thread::park();
            }
        }
        for undo in inner.undo.drain(..).rev() {
            let undone = match &undo {
                Undo::Mount(dir) => match sys_mount::unmount(dir, false) {
                    Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                        sys_mount::unmount(dir, true)
                    }
                    // Unmounted already by whoever was about to say so.
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
                    other => other,
                },
                Undo::Loop(device) => losetup(&["--detach"], device)
                    .map_err(|e| io::Error::other(e.to_string()))
                    .map(drop),
                Undo::Process(pid) => kill_process(*pid),
                Undo::Group(pid) => kill_group(*pid),
            };
            if let Err(e) = undone {
                eprintln!("acetate: {undo:?} is left: {e}");
            }
        }
        if let Err(e) = self.remove() {
            eprintln!("acetate: {} is left: {e}", self.dir.display());
        }
    }

    /// Removes the directory, but never what something is still mounted in: that may be somebody's layer.
    fn remove(&self) -> io::Result<()> {
        let begin = Instant::now();
        loop {
            let table = sys_mount::mount_table()?;
            if let Some(left) = table.iter().find(|m| m.mountpoint.starts_with(&*self.dir)) {
                let text = format!("{} is still mounted", left.mountpoint.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            match fs::remove_dir_all(&*self.dir) {
                // A thread that does not know yet may still be writing.
                Err(e)
                    if e.kind() == io::ErrorKind::DirectoryNotEmpty
                        && begin.elapsed() < Duration::from_secs(5) =>
                {
                    thread::sleep(Duration::from_millis(10));
                }
                other => return other,
            }
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The signals that end a benchmark.
fn taken() -> SigSet {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])
}

fn kill_process(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
}

/// A group that is gone has ended.
fn kill_group(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    match killpg(Pid::from_raw(pid), Signal::SIGKILL) {
        Err(nix::errno::Errno::ESRCH) => Ok(()),
        other => Ok(other?),
    }
}

fn name_of(command: &Command) -> String {
    let name = Path::new(command.get_program());
    name.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn start(command: &mut Command) -> Result<Child, BenchError> {
    command
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| BenchError::Program(name_of(command), e.to_string()))
}

/// Runs a program to its end, and returns what it printed.
pub(super) fn finish(command: &mut Command) -> Result<String, BenchError> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|e| BenchError::Program(name_of(command), e.to_string()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(BenchError::Program(
            name_of(command),
            format!("{}: {}", output.status, text.trim()),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn losetup(arguments: &[&str], file: &Path) -> Result<PathBuf, BenchError> {
    let mut command = Command::new("losetup");
    finish(with_sbin(&mut command).args(arguments).arg(file)).map(PathBuf::from)
}

/// Programs that make filesystems are not on everybody's search path.
pub(super) fn with_sbin(command: &mut Command) -> &mut Command {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    command.env("PATH", path)
}

fn device(dir: &Path) -> Result<u64, BenchError> {
    let stat = rustix::fs::stat(dir).map_err(|e| at("cannot look at", dir)(e.into()))?;
    Ok(stat.st_dev)
}

/// Waits until something else answers at `dir`, or the program that was to mount it has ended.
fn wait_for_mount(dir: &Path, before: u64, child: &mut Child) -> Result<(), String> {
    let begin = Instant::now();
    loop {
        if device(dir).map_err(|e| e.to_string())? != before {
            return Ok(());
        }
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return Err(status.to_string());
        }
        if begin.elapsed() > PATIENCE {
            return Err("the mount does not answer".into());
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Ends a daemon that did not do its work.
fn stop(child: &mut Child) {
    let stopped = match child.try_wait() {
        Ok(Some(_)) => Ok(()),
        _ => child.kill().and_then(|()| child.wait().map(drop)),
    };
    if let Err(e) = stopped {
        log::warn!("process {} goes on: {e}", child.id());
    }
}

/// Waits for a daemon whose mount is gone; one that does not end is killed.
pub(super) fn reap(mut child: Child) -> Result<(), BenchError> {
    let begin = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return Ok(()),
            Ok(None) if begin.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(1)),
            _ => {
                stop(&mut child);
                return Err(BenchError::Wrong(format!(
                    "the daemon {} did not end after its mount was gone",
                    child.id()
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let (scene, ending) = Scene::new(dir.path()).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & wait; sleep 600"]);
        let limit = Duration::from_millis(50);
        let (status, late) = scene.limited(limit, None, || scene.run(&mut command));
        assert!(late && !status.unwrap().success());
        let (value, late) = scene.limited(Duration::from_secs(600), None, || 7);
        assert_eq!((value, late), (7, false));
        drop(ending);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
