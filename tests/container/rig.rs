//! A store with a small image, and containers that never outlive their test.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::program::{Finished, find, run};
use crate::common::{Scratch, Watchdog, connection, skip};

/// How long one command may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A store of its own. Dropped, its containers are removed by force.
pub struct Rig {
    pub scratch: Scratch,
    pub root: PathBuf,
    _watchdog: Watchdog,
}

/// What a machine must have.
pub fn able() -> Result<(), String> {
    skip::privileged()?;
    find("busybox")?;
    find("runc").or_else(|_| find("crun")).map(drop)
}

/// What a command printed that must have succeeded.
#[track_caller]
pub fn succeeded(finished: Finished, words: &[&str]) -> String {
    assert!(
        finished.success(),
        "{words:?}: {:?}: {}",
        finished.status,
        finished.text
    );
    finished.text
}

impl Rig {
    /// A store with the image `bb`: busybox, and a user `web`.
    pub fn new(name: &str) -> Rig {
        let scratch = Scratch::new(name);
        let rig = Rig {
            root: scratch.join("store"),
            _watchdog: Watchdog::new(name, Duration::from_secs(240)),
            scratch,
        };
        let tree = rig.scratch.dir("tree");
        for dir in ["bin", "etc", "tmp", "data"] {
            fs::create_dir(tree.join(dir)).unwrap();
        }
        fs::copy(find("busybox").unwrap(), tree.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "true", "cat", "echo", "sleep", "id", "ls", "touch", "httpd", "mkdir", "stty",
            "hostname", "yes", "rm", "dd", "tty", "env", "grep", "stat", "mount",
        ] {
            symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n";
        fs::write(tree.join("etc/passwd"), passwd).unwrap();
        fs::write(
            tree.join("etc/group"),
            "root:x:0:\nweb:x:33:\nmore:x:44:web\n",
        )
        .unwrap();
        rig.must(&[
            "image",
            "import",
            "--change",
            "CMD [\"/bin/sh\"]",
            "--change",
            "ENV FROM_IMAGE=yes",
            tree.to_str().unwrap(),
            "bb",
        ]);
        rig
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let binary = std::env::var_os("ACETATE_BINARY")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_acetate").into());
        let mut command = Command::new(binary);
        command.env("ACETATE_ROOT", &self.root).args(words);
        command
    }

    /// Runs `acetate WORDS`.
    pub fn acetate(&self, words: &[&str]) -> Finished {
        run(&mut self.command(words), LIMIT)
    }

    /// The same where it must succeed; gives what it printed.
    #[track_caller]
    pub fn must(&self, words: &[&str]) -> String {
        succeeded(self.acetate(words), words)
    }

    /// The same where it must end with this code; gives what it said.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) -> String {
        let finished = self.acetate(words);
        assert_eq!(finished.code(), Some(code), "{words:?}: {}", finished.text);
        finished.text
    }

    /// Runs it with this standard input.
    pub fn with_input(&self, words: &[&str], input: &[u8]) -> (Option<i32>, Vec<u8>) {
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), output.stdout)
    }

    /// What is told of a container.
    pub fn inspect(&self, container: &str) -> Value {
        let text = self.must(&["container", "inspect", container]);
        serde_json::from_str::<Value>(&text).unwrap()[0].clone()
    }

    pub fn status(&self, container: &str) -> String {
        self.inspect(container)["State"]["Status"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// A container's folder.
    pub fn dir(&self, container: &str) -> PathBuf {
        let id = self.inspect(container)["Id"].as_str().unwrap().to_owned();
        self.root.join("containers").join(id)
    }

    /// Waits until something holds.
    #[track_caller]
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !holds() {
            assert!(begin.elapsed() < Duration::from_secs(60), "never: {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes that were started for this store, with their names.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let root = self.root.to_str().unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let read = |file: &str| {
                let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            let variable = format!("ACETATE_ROOT={root}");
            if read("cmdline").contains(root) || read("environ").contains(&variable) {
                found.push((pid, read("comm").trim().to_owned()));
            }
        }
        found
    }

    fn mounts(&self) -> usize {
        let inside = |target: &PathBuf| target.starts_with(&self.root);
        connection::mounts()
            .iter()
            .filter(|m| inside(&m.target))
            .count()
    }

    /// Nothing of any container is left: no folder, no mount, no process.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        let entries = |dir: &str| -> Vec<String> {
            // There is none where there has never been a container.
            let Ok(found) = fs::read_dir(self.root.join(dir)) else {
                return Vec::new();
            };
            found
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|name| name != "lock")
                .collect()
        };
        self.until("all files are gone", || {
            entries("containers").is_empty() && entries("tmp").is_empty()
        });
        self.until("all processes are gone", || self.processes().is_empty());
        assert_eq!(self.mounts(), 0);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let listed = self.acetate(&["ps", "--all", "--quiet", "--no-trunc"]);
        for id in listed.text.lines() {
            let removed = self.acetate(&["rm", "--force", id]);
            if !removed.success() {
                eprintln!("rm {id}: {}", removed.text);
            }
        }
    }
}

/// Kills a process.
pub fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}
