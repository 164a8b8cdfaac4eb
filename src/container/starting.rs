//! The other end of a monitor that is about to run a container: a command's.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::error::ContainerError;
use super::names;
use super::record::{Container, Containers};
use super::runtime::Runtime;

/// The name of the hidden command that is a monitor.
pub const MONITOR: &str = "container-monitor";

/// A monitor that waits for its container to be made. Dropped, it ends.
#[derive(Debug)]
pub struct Standby {
    id: String,
    monitor: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Standby {
    /// The id that its container must have.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// A container that is about to run: clients may connect.
#[derive(Debug)]
pub struct Starting {
    name: String,
    monitor: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Containers {
    /// Starts the monitor of a container that is yet to be made, so that it is loaded meanwhile.
    pub fn stand_by(&self) -> Result<Standby, ContainerError> {
        let id = names::new_id().map_err(ContainerError::io("read", "/dev/urandom"))?;
        self.monitor(id)
    }

    fn monitor(&self, id: String) -> Result<Standby, ContainerError> {
        let failed = || ContainerError::io::<io::Error>("start", "the monitor");
        let mut monitor = Command::new("/proc/self/exe")
            .arg0("acetate")
            .arg("--root")
            .arg(std::path::absolute(self.root()).map_err(failed())?)
            .arg(MONITOR)
            .arg(&id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed())?;
        let missing = || failed()(io::ErrorKind::BrokenPipe.into());
        let to = monitor.stdin.take().ok_or_else(missing)?;
        let from = BufReader::new(monitor.stdout.take().ok_or_else(missing)?);
        Ok(Standby {
            id,
            monitor,
            to,
            from,
        })
    }

    /// Prepares a run, by the monitor that stands by for it where there is one.
    pub fn prepare(
        &self,
        container: &Container,
        standby: Option<Standby>,
    ) -> Result<Starting, ContainerError> {
        // Known at once, and not only after a mount.
        Runtime::find(container.record.settings.runtime.as_deref())?;
        let Standby {
            monitor, to, from, ..
        } = match standby {
            Some(standby) => standby,
            None => self.monitor(container.record.id.clone())?,
        };
        let mut starting = Starting {
            name: container.record.name.clone(),
            monitor,
            to,
            from,
        };
        starting.say("begin\n")?;
        starting.expect("ready")?;
        Ok(starting)
    }
}

impl Starting {
    /// Starts the program; `size` is its terminal's, in rows and columns. Gives when it has been started.
    pub fn go(mut self, size: Option<(u16, u16)>) -> Result<(), ContainerError> {
        let line = match size {
            Some((rows, columns)) => format!("go {rows} {columns}\n"),
            None => "go\n".to_owned(),
        };
        self.say(&line)?;
        self.expect("started")
    }

    fn say(&mut self, line: &str) -> Result<(), ContainerError> {
        match self.to.write_all(line.as_bytes()) {
            // It has ended, and may have said why.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            said => said.map_err(ContainerError::io("speak to", "the monitor")),
        }
    }

    fn expect(&mut self, word: &str) -> Result<(), ContainerError> {
        let mut line = String::new();
        self.from
            .read_line(&mut line)
            .map_err(ContainerError::io("hear", "the monitor"))?;
        let line = line.trim_end();
        if line == word {
            return Ok(());
        }
        let error = line
            .strip_prefix("error ")
            .and_then(|rest| rest.split_once(' '));
        let answer = match error {
            Some((code, text)) => ContainerError::Monitor {
                code: code.parse().unwrap_or(125),
                text: text.to_owned(),
            },
            None => ContainerError::State {
                name: self.name.clone(),
                is: "has lost its monitor".into(),
                hint: "",
            },
        };
        // It ends, or has ended.
        if let Err(e) = self.monitor.wait() {
            log::debug!("the monitor is not waited for: {e}");
        }
        Err(answer)
    }
}
