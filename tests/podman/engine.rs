//! One podman with a storage of its own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};

use crate::common::{connection, program};

const LIMIT: Duration = Duration::from_secs(60);
const NAME: &str = "acetate-test";

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
}

impl Engine<'_> {
    pub(crate) fn new<'a>(home: &Path, user: &'a User, mount_program: Option<&str>) -> Engine<'a> {
        for dir in ["home", "run"] {
            fs::create_dir(home.join(dir)).unwrap();
            chown(home.join(dir), Some(user.id()), Some(user.id())).unwrap();
        }
        chown(home, Some(user.id()), Some(user.id())).unwrap();
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
        }
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Runs `podman COMMAND WORDS` with what a container on a test machine needs, and returns what it printed.
    #[track_caller]
    pub(crate) fn podman(&self, command: &[&str], words: &[&str]) -> String {
        let mut podman = match self.user {
            User::Root => Command::new("podman"),
            User::Plain { id, .. } => {
                let mut podman = Command::new("setpriv");
                podman.args(["--reuid", &id.to_string(), "--regid", &id.to_string()]);
                podman.args(["--clear-groups", "podman"]);
                podman
            }
        };
        podman.env_clear();
        podman.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        podman.env("HOME", self.home.join("home"));
        podman.env("XDG_RUNTIME_DIR", self.home.join("run"));
        podman.current_dir(&self.home);
        for (option, dir) in [
            ("--root", "storage"),
            ("--runroot", "runroot"),
            ("--tmpdir", "tmp"),
        ] {
            podman.arg(option).arg(self.home.join(dir));
        }
        podman.args([
            "--storage-driver",
            "overlay",
            "--cgroup-manager",
            "cgroupfs",
        ]);
        podman.args([
            "--events-backend",
            "file",
            "--runtime",
            "runc",
            "--log-level",
            "error",
        ]);
        if let Some(program) = &self.mount_program {
            podman.arg("--storage-opt");
            podman.arg(format!("overlay.mount_program={program}"));
        }
        podman.args(command);
        if matches!(command.first(), Some(&("run" | "build"))) {
            // podman asks for more than a container's own root may have.
            let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            podman.args(["--network", "none", "--ulimit", "nproc=1000:1000"]);
            podman.arg(format!("--ulimit=nofile={files}:{files}"));
        }
        program::must(podman.args(words), LIMIT)
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
        // A rootless podman leaves a process behind that keeps its namespaces.
        for name in ["tmp/pause.pid", "run/libpod/tmp/pause.pid"] {
            if let Ok(text) = fs::read_to_string(self.home.join(name))
                && let Ok(pid) = text.trim().parse()
                && let Err(e) = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                )
            {
                eprintln!("kill {pid}: {e}");
            }
        }
    }
}
