//! The OCI runtime: finding it, calling it, and understanding what it says.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use super::error::ContainerError;
use super::record::Container;

/// An OCI runtime.
#[derive(Clone, Debug)]
pub(super) struct Runtime {
    program: PathBuf,
}

/// Whether cgroups are of both versions at once, which crun does not take.
fn hybrid_cgroups() -> bool {
    Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists()
}

fn on_path(name: &std::ffi::OsStr) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| {
            fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
}

impl Runtime {
    /// The one that was named, as a path or on the search path, or the first that is there.
    pub(super) fn find(named: Option<&Path>) -> Result<Runtime, ContainerError> {
        let named = named
            .map(|path| path.as_os_str().to_owned())
            .or_else(|| std::env::var_os("ACETATE_RUNTIME").filter(|v: &OsString| !v.is_empty()));
        if let Some(named) = named {
            let path = PathBuf::from(&named);
            if path.components().count() > 1 {
                let failed = ContainerError::io("use the runtime", &path);
                return match fs::canonicalize(&path) {
                    Ok(program) => Ok(Runtime { program }),
                    Err(e) => Err(failed(e)),
                };
            }
            return match on_path(&named) {
                Some(program) => Ok(Runtime { program }),
                None => Err(ContainerError::NoRuntime(format!(
                    "the runtime {} is not on PATH",
                    path.display()
                ))),
            };
        }
        let mut known = ["crun", "runc"];
        if hybrid_cgroups() {
            known.reverse();
        }
        known
            .iter()
            .find_map(|name| on_path(name.as_ref()))
            .map(|program| Runtime { program })
            .ok_or_else(|| ContainerError::NoRuntime("no container runtime is on PATH".into()))
    }

    /// What to call it in a message.
    fn name(&self) -> String {
        self.program
            .file_name()
            .unwrap_or(self.program.as_os_str())
            .to_string_lossy()
            .into_owned()
    }

    /// crun and runc read `config.json` once, from its beginning to its end, and nobody else does. Of others it is not
    /// known.
    pub(super) fn reads_its_configuration_once(&self) -> bool {
        self.program
            .file_name()
            .is_some_and(|name| name == "crun" || name == "runc")
    }

    /// runc makes sure that the file with the number of the program outlives a power cut, for which the disk takes
    /// milliseconds, and has the number in its own state as well.
    pub(super) fn needs_pid_file(&self) -> bool {
        self.program.file_name().is_none_or(|name| name != "runc")
    }

    /// The number of a container's program.
    pub(super) fn pid_of(&self, container: &Container) -> Result<i32, ContainerError> {
        let path = container.path("pid");
        let wrong = || ContainerError::Runtime {
            runtime: self.name(),
            text: format!("it does not tell the process of {}", container.record.id),
        };
        if self.needs_pid_file() {
            let text = fs::read_to_string(&path).map_err(ContainerError::io("read", &path))?;
            return text.trim().parse().map_err(|_| wrong());
        }
        let number = |bytes: &[u8], key: &str| -> Option<i32> {
            let state: serde_json::Value = serde_json::from_slice(bytes).ok()?;
            let number = state.get(key)?.as_i64()?;
            i32::try_from(number).ok().filter(|number| *number > 0)
        };
        let own = container.path("runtime").join(&container.record.id);
        let written = fs::read(own.join("state.json")).unwrap_or_default();
        if let Some(pid) = number(&written, "init_process_pid") {
            return Ok(pid);
        }
        // Another program of that name: every runtime has this command.
        let log = container.path("runtime-state.log");
        let mut command = self.command(container, &log, &["state"]);
        let said = command
            .arg(&container.record.id)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .map_err(ContainerError::io("run", &self.program))?;
        remove_if_there(&log);
        number(&said.stdout, "pid").ok_or_else(wrong)
    }

    /// A call on a container. What goes wrong is written to `log`.
    pub(super) fn command(&self, container: &Container, log: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--root")
            .arg(container.path("runtime"))
            .arg("--log")
            .arg(log)
            .args(["--log-format", "json"])
            .args(words)
            .current_dir(&container.dir);
        command
    }

    /// Calls it, and waits for its end. No other process is waited for, so that nobody's end is lost.
    pub(super) fn call(&self, container: &Container, words: &[&str]) -> Result<(), ContainerError> {
        let log = container.path(&format!("runtime-{}.log", std::process::id()));
        let mut command = self.command(container, &log, words);
        command.arg(&container.record.id);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let status = command
            .stderr(Stdio::null())
            .spawn()
            .and_then(|child| wait_for(&child))
            .map_err(ContainerError::io("run", &self.program))?;
        let said = self.said(&log);
        remove_if_there(&log);
        match status.exit_status() {
            Some(0) => Ok(()),
            _ => Err(ContainerError::Runtime {
                runtime: self.name(),
                text: said.unwrap_or_else(|| format!("{} failed", words.join(" "))),
            }),
        }
    }

    /// The last error of a log.
    pub(super) fn said(&self, log: &Path) -> Option<String> {
        let text = fs::read(log).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().rev().find_map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_error = entry.get("level")?.as_str()? == "error";
            let message = entry.get("msg")?.as_str()?;
            is_error.then(|| message.trim().to_owned())
        })
    }

    /// What it means that a program could not be started, as docker tells it.
    pub(super) fn refusal(&self, said: Option<String>) -> ContainerError {
        let text = said.unwrap_or_else(|| "it failed without a word".into());
        let full = format!("{}: {text}", self.name());
        let about_command =
            text.contains("exec") || text.contains("chdir") || text.contains("executable");
        let has = |part: &str| text.to_ascii_lowercase().contains(part);
        if about_command && (has("no such file or directory") || has("not found")) {
            return ContainerError::NotFound(full);
        }
        let cannot = [
            "permission denied",
            "is a directory",
            "not a directory",
            "exec format",
        ];
        if about_command && cannot.into_iter().any(has) {
            return ContainerError::NotExecutable(full);
        }
        ContainerError::Runtime {
            runtime: self.name(),
            text,
        }
    }
}

/// Best effort: what stays goes with the container's folder.
pub(super) fn remove_if_there(path: &Path) {
    if let Err(e) = fs::remove_file(path)
        && e.kind() != io::ErrorKind::NotFound
    {
        log::info!("{} is not removed: {e}", path.display());
    }
}

/// Waits for a child of this process.
pub(super) fn wait_for(child: &std::process::Child) -> io::Result<WaitStatus> {
    let pid = Pid::from_child(child);
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The exit code as a shell shows it.
pub(super) fn code_of(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    u8::try_from(code).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_dockers_codes() {
        let runtime = Runtime {
            program: "/usr/bin/runc".into(),
        };
        for (said, code) in [
            (
                "runc run failed: unable to start container process: exec: \"x\": executable file not found in $PATH",
                127,
            ),
            (
                "unable to start container process: exec: \"/x\": stat /x: no such file or directory",
                127,
            ),
            (
                "executable file `x` not found in $PATH: No such file or directory",
                127,
            ),
            (
                "unable to start container process: exec: \"/etc\": permission denied",
                126,
            ),
            ("open executable: Permission denied", 126),
            (
                "unable to start container process: exec: \"/bin/sh/x\": stat /bin/sh/x: not a directory",
                126,
            ),
            (
                "unable to start container process: error mounting \"/a\": no such device",
                125,
            ),
        ] {
            assert_eq!(
                runtime.refusal(Some(said.into())).run_code(),
                code,
                "{said}"
            );
        }
    }
}
