//! One podman with a storage of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{connection, program};

const LIMIT: Duration = Duration::from_secs(60);
/// The plain user of these tests.
pub(crate) const NAME: &str = "acetate-test";

/// Who runs it.
pub(crate) enum User {
    Root,
    /// A plain user with subordinate ids, removed again on drop; and the mode that `/dev/fuse` had.
    Plain {
        id: u32,
        mode: u32,
    },
}

impl User {
    pub(crate) fn plain() -> User {
        if !program::run(Command::new("id").arg(NAME), LIMIT).success() {
            let useradd = program::find("useradd").unwrap();
            program::must(
                Command::new(useradd).args(["--no-create-home", "--shell", "/bin/sh", NAME]),
                LIMIT,
            );
        }
        let id = program::must(Command::new("id").args(["-u", NAME]), LIMIT);
        let id = id.trim().parse().unwrap();
        for file in ["/etc/subuid", "/etc/subgid"] {
            let text = fs::read_to_string(file).unwrap_or_default();
            assert!(
                text.contains(NAME),
                "useradd gave no range in {file}: {text}"
            );
        }
        // udev gives everyone the device; a machine without udev does not.
        let mode = fs::metadata("/dev/fuse").unwrap().mode();
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        User::Plain { id, mode }
    }

    fn id(&self) -> u32 {
        match self {
            User::Root => 0,
            User::Plain { id, .. } => *id,
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let User::Plain { mode, .. } = self {
            let mode = fs::Permissions::from_mode(*mode & 0o7777);
            if let Err(e) = fs::set_permissions("/dev/fuse", mode) {
                eprintln!("mode of /dev/fuse: {e}");
            }
            let gone = program::find("userdel")
                .map(|userdel| program::run(Command::new(userdel).arg(NAME), LIMIT));
            if !gone.as_ref().is_ok_and(program::Finished::success) {
                eprintln!("userdel {NAME}: {gone:?}");
            }
        }
    }
}

/// podman with everything it keeps below one directory.
pub(crate) struct Engine<'a> {
    home: PathBuf,
    user: &'a User,
    mount_program: Option<String>,
    storage_options: Vec<String>,
    storage_conf: Option<PathBuf>,
}

impl Engine<'_> {
    pub(crate) fn new<'a>(home: &Path, user: &'a User, mount_program: Option<&str>) -> Engine<'a> {
        for dir in ["home", "run"] {
            fs::create_dir(home.join(dir)).unwrap();
            chown(home.join(dir), Some(user.id()), Some(user.id())).unwrap();
        }
        chown(home, Some(user.id()), Some(user.id())).unwrap();
        // By default every podman of the machine shares its locks, in memory.
        fs::write(
            home.join("containers.conf"),
            "[engine]\nlock_type = \"file\"\n",
        )
        .unwrap();
        // The test's build directory may lie where a plain user may not look.
        let mount_program = mount_program.map(|program| {
            let copy = home.join("mount-program");
            fs::copy(program, &copy).unwrap();
            copy.to_str().unwrap().to_owned()
        });
        Engine {
            home: home.to_owned(),
            user,
            mount_program,
            storage_options: Vec::new(),
            storage_conf: None,
        }
    }

    /// Whether its user may open a device.
    pub(crate) fn may_use(&self, device: &Path) -> bool {
        let mode = fs::metadata(device).map(|found| found.mode());
        mode.is_ok_and(|mode| self.user.id() == 0 || mode & 0o6 == 0o6)
    }

    /// Options of the storage driver, from now on.
    pub(crate) fn storage_options(&mut self, options: &[&str]) {
        self.storage_options = options.iter().map(|option| (*option).to_owned()).collect();
    }

    /// A `storage.conf` for what no option says.
    pub(crate) fn storage_conf(&mut self, path: &Path) {
        self.storage_conf = Some(path.to_owned());
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Runs `podman COMMAND WORDS` with what a container on a test machine needs, and returns what it printed.
    #[track_caller]
    pub(crate) fn podman(&self, command: &[&str], words: &[&str]) -> String {
        program::must(&mut self.command(command, words), LIMIT)
    }

    /// The same for a command that may fail.
    pub(crate) fn try_podman(&self, command: &[&str], words: &[&str]) -> program::Finished {
        program::run(&mut self.command(command, words), LIMIT)
    }

    /// `podman exec`. Where control groups are mounted twice, podman now and then fails to remove the group of a program
    /// that ended well; the program is then run again.
    #[track_caller]
    pub(crate) fn exec(&self, words: &[&str]) -> String {
        for _ in 0..10 {
            let finished = self.try_podman(&["exec"], words);
            if finished.success() {
                return finished.text;
            }
            assert!(
                finished.text.contains("device or resource busy"),
                "exec {words:?}: {}",
                finished.tail(20)
            );
        }
        panic!("exec {words:?} fails again and again");
    }

    /// Kills and removes containers. podman's own clean-up of one that has just ended may have a mount of it still; the
    /// removal is then asked for again.
    #[track_caller]
    pub(crate) fn remove(&self, names: &[&str]) {
        let begin = Instant::now();
        loop {
            let finished = self.try_podman(&["rm", "-f", "-t", "0"], names);
            if finished.success() {
                return;
            }
            assert!(
                finished.text.contains("device or resource busy") && begin.elapsed() < LIMIT,
                "rm {names:?}: {}",
                finished.tail(20)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `program` with the engine's storage, as its user.
    fn program(&self, program: &str) -> Command {
        let mut command = match self.user {
            User::Root => Command::new(program),
            User::Plain { id, .. } => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &id.to_string(), "--regid", &id.to_string()]);
                command.args(["--clear-groups", program]);
                command
            }
        };
        command.env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.home.join("home"));
        command.env("XDG_RUNTIME_DIR", self.home.join("run"));
        command.env("CONTAINERS_CONF", self.home.join("containers.conf"));
        command.current_dir(&self.home);
        for (option, dir) in [("--root", "storage"), ("--runroot", "runroot")] {
            command.arg(option).arg(self.home.join(dir));
        }
        command.args(["--storage-driver", "overlay", "--log-level", "error"]);
        if let Some(program) = &self.mount_program {
            command.arg("--storage-opt");
            command.arg(format!("overlay.mount_program={program}"));
        }
        for option in &self.storage_options {
            command.arg("--storage-opt").arg(option);
        }
        if let Some(path) = &self.storage_conf {
            command.env("CONTAINERS_STORAGE_CONF", path);
        }
        command
    }

    /// Runs `buildah WORDS` and returns what it printed.
    #[track_caller]
    pub(crate) fn buildah(&self, words: &[&str]) -> String {
        program::must(self.program("buildah").args(words), LIMIT)
    }

    fn command(&self, command: &[&str], words: &[&str]) -> Command {
        let mut podman = self.program("podman");
        podman.arg("--tmpdir").arg(self.home.join("tmp"));
        podman.args(["--cgroup-manager", "cgroupfs"]);
        podman.args(["--events-backend", "file", "--runtime", "runc"]);
        podman.args(command);
        if matches!(command.first(), Some(&("run" | "build"))) {
            // podman asks for more than a container's own root may have.
            let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            if !command.contains(&"--network") {
                podman.args(["--network", "none"]);
            }
            podman.args(["--ulimit", "nproc=1000:1000"]);
            podman.arg(format!("--ulimit=nofile={files}:{files}"));
        }
        podman.args(words);
        podman
    }

    /// What a reboot does: every process of the engine is gone, with them the mounts and what lay on a tmpfs.
    pub(crate) fn reboot(&self) {
        let running = self.podman(&["ps", "-q", "--no-trunc"], &[]);
        let running: Vec<(&str, i32)> = running
            .lines()
            .map(|id| {
                let pid = self.podman(&["inspect", "--format", "{{.State.Pid}}"], &[id]);
                (id, pid.trim().parse().unwrap())
            })
            .collect();
        self.end_pause();
        let containers = running.iter().map(|(_, pid)| Pid::from_raw(*pid));
        for pid in containers.chain(self.processes()) {
            if let Err(e) = kill(pid, Signal::SIGKILL) {
                eprintln!("kill {pid}: {e}");
            }
        }
        let begin = Instant::now();
        while !self.processes().is_empty() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut mounts = connection::mounts();
        mounts.retain(|mount| mount.target.starts_with(&self.home));
        for mount in mounts.iter().rev() {
            umount2(&mount.target, MntFlags::MNT_DETACH).unwrap();
        }
        for (id, _) in running {
            let state = Path::new("/run/runc").join(id);
            if state.exists() {
                fs::remove_dir_all(state).unwrap();
            }
        }
        for dir in ["runroot", "tmp", "run"] {
            let dir = self.home.join(dir);
            fs::remove_dir_all(&dir).unwrap();
            fs::create_dir(&dir).unwrap();
            chown(&dir, Some(self.user.id()), Some(self.user.id())).unwrap();
        }
    }

    /// A rootless podman leaves a process behind that keeps its namespaces.
    fn end_pause(&self) {
        for name in ["tmp/pause.pid", "run/libpod/tmp/pause.pid"] {
            if let Ok(text) = fs::read_to_string(self.home.join(name))
                && let Ok(pid) = text.trim().parse()
                && let Err(e) = kill(Pid::from_raw(pid), Signal::SIGKILL)
            {
                eprintln!("kill {pid}: {e}");
            }
        }
    }

    /// The engine's own processes: monitors and daemons. Their command lines speak of its home.
    fn processes(&self) -> Vec<Pid> {
        let home = self.home.as_os_str().as_encoded_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let dir = entry.unwrap().path();
            let Some(Ok(pid)) = dir.file_name().and_then(|n| n.to_str()).map(str::parse) else {
                continue;
            };
            let line = fs::read(dir.join("cmdline")).unwrap_or_default();
            if line.windows(home.len()).any(|part| part == home) {
                found.push(Pid::from_raw(pid));
            }
        }
        found
    }

    /// After the last container is gone there is neither a mount nor a daemon.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        let daemons = || -> Vec<String> {
            fs::read_dir("/proc")
                .unwrap()
                .filter_map(|entry| {
                    let dir = entry.unwrap().path();
                    let exe = fs::read_link(dir.join("exe")).ok()?;
                    (exe == self.home.join("mount-program")).then(|| dir.display().to_string())
                })
                .collect()
        };
        let begin = Instant::now();
        while !daemons().is_empty() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(daemons().is_empty(), "still running: {:?}", daemons());
        let container: Vec<_> = connection::mounts()
            .into_iter()
            .filter(|m| m.target.starts_with(&self.home) && m.target.ends_with("merged"))
            .collect();
        assert!(container.is_empty(), "still mounted: {container:?}");
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let removed = self.try_podman(&["rm"], &["-f", "-a", "-t", "0"]);
            eprintln!("podman rm -f -a: {}", removed.text);
        }
        self.end_pause();
    }
}
