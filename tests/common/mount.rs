//! Mounts of the built binary that never outlive their test.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::{connection, daemon};

/// How long a mount may take to answer, and an unmount to end.
pub const LIMIT: Duration = Duration::from_secs(90);

/// How long something may keep a mount busy that will let go by itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which of the binary's command lines is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `acetate mount --lower A --lower B --upper U --work W -o OPTS DIR`.
    Command,
    /// `acetate -o lowerdir=A:B,upperdir=U,workdir=W,OPTS DIR`, as podman calls its mount program.
    Program,
}

/// A mount to be made.
#[derive(Clone, Debug)]
pub struct Acetate {
    binary: PathBuf,
    dir: PathBuf,
    form: Form,
    foreground: bool,
    lowers: Vec<PathBuf>,
    upper: Option<(PathBuf, PathBuf)>,
    options: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    prefix: Vec<OsString>,
}

/// Why there is no mount: what the program said.
#[derive(Debug)]
pub struct Failure {
    /// Its exit status; `None` when it had to be killed.
    pub status: Option<ExitStatus>,
    /// Standard error and output.
    pub stderr: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}: {}", self.stderr.trim()),
            None => write!(f, "no answer within {LIMIT:?}: {}", self.stderr.trim()),
        }
    }
}

impl std::error::Error for Failure {}

impl Acetate {
    /// A mount at `dir`, which is created where it is missing, by the built binary or the one that
    /// `ACETATE_BINARY` names. The daemon stays a child of the test
    /// (`--foreground`) unless [`Acetate::daemon`] is called. `ACETATE_TEST_OPTIONS` adds options to all mounts.
    pub fn new(dir: impl Into<PathBuf>) -> Acetate {
        Acetate {
            binary: std::env::var_os("ACETATE_BINARY")
                .unwrap_or_else(|| env!("CARGO_BIN_EXE_acetate").into())
                .into(),
            dir: dir.into(),
            form: Form::Command,
            foreground: true,
            lowers: Vec::new(),
            upper: None,
            options: std::env::var_os("ACETATE_TEST_OPTIONS")
                .into_iter()
                .collect(),
            arguments: Vec::new(),
            environment: Vec::new(),
            prefix: Vec::new(),
        }
    }

    /// Adds lower layers, the first of all is the topmost.
    pub fn lowers<L: AsRef<Path>>(mut self, lowers: &[L]) -> Self {
        self.lowers
            .extend(lowers.iter().map(|l| l.as_ref().to_owned()));
        self
    }

    /// The upper directory and its workdir.
    pub fn upper(mut self, upper: &Path, work: &Path) -> Self {
        self.upper = Some((upper.to_owned(), work.to_owned()));
        self
    }

    /// Adds options for `-o`, separated by commas.
    pub fn options(mut self, options: impl AsRef<OsStr>) -> Self {
        if !options.as_ref().is_empty() {
            self.options.push(options.as_ref().to_owned());
        }
        self
    }

    /// Adds an argument of the command line.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Uses the mount-program form of the command line.
    pub fn program(mut self) -> Self {
        self.form = Form::Program;
        self.foreground = false;
        self
    }

    /// Lets the command put its daemon in the background and return when the mount answers.
    pub fn daemon(mut self) -> Self {
        self.foreground = false;
        self
    }

    /// Runs the binary by another program, such as `setpriv --reuid 1000`.
    pub fn by(mut self, words: &[&str]) -> Self {
        self.prefix = words.iter().map(Into::into).collect();
        self
    }

    /// The command line.
    pub fn command(&self) -> Command {
        let mut words = self.prefix.iter();
        let mut command = match words.next() {
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        let mut options = self.options.clone();
        match self.form {
            Form::Command => {
                command.arg("mount");
                for lower in &self.lowers {
                    command.arg("--lower").arg(lower);
                }
                if let Some((upper, work)) = &self.upper {
                    command.arg("--upper").arg(upper).arg("--work").arg(work);
                }
                if self.foreground {
                    command.arg("--foreground");
                }
            }
            Form::Program => {
                let mut layers = OsString::new();
                for lower in &self.lowers {
                    layers.push(if layers.is_empty() { "lowerdir=" } else { ":" });
                    layers.push(lower);
                }
                let mut first = vec![layers];
                if let Some((upper, work)) = &self.upper {
                    let mut option = OsString::from("upperdir=");
                    option.push(upper);
                    first.push(option);
                    let mut option = OsString::from("workdir=");
                    option.push(work);
                    first.push(option);
                }
                first.append(&mut options);
                options = first;
            }
        }
        if !options.is_empty() {
            command.arg("-o").arg(options.join(OsStr::new(",")));
        }
        command.args(&self.arguments).arg(&self.dir);
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Makes the mount. Panics when it does not come about.
    pub fn mount(&self) -> Mount {
        match self.try_mount() {
            Ok(mount) => mount,
            Err(failure) => panic!("{:?}: {failure}", self.command()),
        }
    }

    /// Makes the mount, or says why not.
    pub fn try_mount(&self) -> Result<Mount, Failure> {
        fs::create_dir_all(&self.dir).unwrap();
        let dir = fs::canonicalize(&self.dir).unwrap();
        let log = tempfile::tempfile().unwrap();
        let before = connection::mounted_at(&dir).map(|m| m.minor);
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log.try_clone().unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let begin = Instant::now();
        let fail = |status| Failure {
            status,
            stderr: read_log(&log),
        };
        let mounted = || connection::mounted_at(&dir).filter(|m| Some(m.minor) != before);
        loop {
            let exited = child.try_wait().unwrap();
            if let Some(status) = exited
                && (self.foreground || !status.success())
            {
                return Err(fail(Some(status)));
            }
            if (self.foreground || exited.is_some())
                && let Some(info) = mounted()
            {
                let fuse = info.fstype.starts_with("fuse").then_some(info.minor);
                if let Some(minor) = fuse {
                    connection::register(minor);
                }
                let child = exited.is_none().then_some(child);
                return Ok(Mount {
                    dir: Some(dir),
                    fuse,
                    child,
                    log,
                });
            }
            if exited.is_some() || begin.elapsed() > LIMIT {
                end_child(&mut child, Duration::ZERO);
                return Err(fail(exited));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn read_log(log: &File) -> String {
    use std::os::unix::fs::FileExt;
    let size = log.metadata().unwrap().len();
    let mut text = vec![0; usize::try_from(size).unwrap()];
    log.read_exact_at(&mut text, 0).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits for a child to exit by itself, then kills it.
fn end_child(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if begin.elapsed() >= patience {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    if let Err(e) = child.kill() {
        eprintln!("kill {}: {e}", child.id());
    }
    if let Err(e) = child.wait() {
        eprintln!("wait {}: {e}", child.id());
    }
    None
}

/// How long something may still be in use: a program that this process is starting holds all its files open
/// until it runs.
const BUSY: Duration = Duration::from_secs(3);

/// Unmounts, waiting while something is in use for a moment.
pub fn umount_patiently(dir: &Path, flags: MntFlags) -> nix::Result<()> {
    let begin = Instant::now();
    loop {
        match umount2(dir, flags) {
            Err(Errno::EBUSY) if begin.elapsed() < BUSY => thread::sleep(Duration::from_millis(5)),
            result => return result,
        }
    }
}

/// Runs an unmount, which waits for the daemon, on a thread of its own. `None` when it does not end in time.
fn umount_within(dir: &Path, flags: MntFlags, limit: Duration) -> Option<nix::Result<()>> {
    let (done, wait) = channel();
    let dir = dir.to_owned();
    thread::spawn(move || done.send(umount_patiently(&dir, flags)));
    wait.recv_timeout(limit).ok()
}

/// Unmounts what a test left mounted, whatever still uses it.
pub fn detach(dir: &Path) {
    match umount_within(dir, MntFlags::empty(), LIMIT) {
        Some(Ok(())) => return,
        Some(Err(e)) => eprintln!("umount {}: {e}; detaching", dir.display()),
        None => eprintln!("umount {}: no answer; detaching", dir.display()),
    }
    if let Some(Err(e)) = umount_within(dir, MntFlags::MNT_DETACH, LIMIT) {
        eprintln!("umount -l {}: {e}", dir.display());
    }
}

/// A mount; unmounted on drop, its connection aborted when the daemon does not answer.
#[derive(Debug)]
pub struct Mount {
    /// `None` once it is unmounted.
    dir: Option<PathBuf>,
    fuse: Option<u32>,
    child: Option<Child>,
    log: File,
}

impl Mount {
    /// The merged directory.
    pub fn path(&self) -> &Path {
        self.dir.as_deref().unwrap()
    }

    /// A path below it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// The number of the FUSE connection.
    pub fn connection(&self) -> Option<u32> {
        self.fuse
    }

    /// Process id of the one that serves the mount, where its daemon runs in the foreground.
    pub fn pid(&self) -> Option<u32> {
        self.started().map(daemon::serving)
    }

    /// Process id of the daemon that was started in the foreground, which may have another serve the mount.
    pub fn started(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What the program printed so far.
    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    /// Unmounts and waits for the daemon to exit. An error when something is still in use, when the daemon
    /// does not exit in time, or exits with an error.
    pub fn unmount(mut self) -> io::Result<String> {
        let dir = self.path().to_owned();
        let begin = Instant::now();
        loop {
            match umount_within(&dir, MntFlags::empty(), LIMIT) {
                Some(Ok(())) => break,
                // Between fork and exec the child of another test holds this test's descriptors too.
                Some(Err(nix::errno::Errno::EBUSY)) if begin.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(5));
                }
                Some(Err(e)) => return Err(e.into()),
                None => return Err(io::Error::other("umount does not end")),
            }
        }
        self.dir = None;
        if let Some(minor) = self.fuse.take() {
            connection::unregister(minor);
        }
        if let Some(mut child) = self.child.take() {
            match end_child(&mut child, LIMIT) {
                Some(status) if status.success() => {}
                Some(status) => {
                    return Err(io::Error::other(format!(
                        "daemon: {status}: {}",
                        self.log()
                    )));
                }
                None => {
                    let text = format!("daemon did not exit: {}", self.log());
                    return Err(io::Error::other(text));
                }
            }
        }
        Ok(self.log())
    }

    /// Kills the daemon with SIGKILL, and whoever else would go on with the mount, which stays behind until drop.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            daemon::kill_for_good(child.id());
            end_child(&mut child, Duration::ZERO);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            if !log.trim().is_empty() {
                eprintln!("--- log of the mount\n{}", log.trim());
            }
        }
        if let Some(dir) = self.dir.take() {
            match umount_within(&dir, MntFlags::empty(), Duration::from_secs(5)) {
                Some(Ok(())) => {}
                // Gone already; its connection's number may be another mount's by now.
                _ if connection::mounted_at(&dir).map(|m| m.minor) != self.fuse => {}
                other => {
                    eprintln!("umount {}: {other:?}; aborting it", dir.display());
                    if let Some(minor) = self.fuse
                        && let Err(e) = connection::abort(minor)
                    {
                        eprintln!("abort of FUSE connection {minor}: {e}");
                    }
                    detach(&dir);
                }
            }
        }
        if let Some(minor) = self.fuse.take() {
            connection::unregister(minor);
        }
        if let Some(mut child) = self.child.take() {
            end_child(&mut child, LIMIT);
        }
    }
}
