//! The starting of containers, seen from the command that waits for it.
//!
//! The monitor is forked off the command, which costs a tenth of what loading the program once more does. It is started
//! before its container is made, where that takes long: pulling an image needs threads, after which nothing can be forked.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::unistd::Pid;

use super::client::Connection;
use super::error::ContainerError;
use super::monitor;
use super::names;
use super::record::{Container, Containers};
use super::rootless::enter;
use super::runtime::Runtime;
use crate::sys::daemon::{Beside, close_all_but, fork_beside, take_stdio};

/// A monitor that waits for its container to be made. Dropped, it ends.
#[derive(Debug)]
pub struct Standby {
    id: String,
    monitor: Pid,
    to: PipeWriter,
    from: BufReader<PipeReader>,
    /// Its first client is this process.
    line: UnixStream,
}

impl Standby {
    /// The id that its container must have.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Containers {
    /// Starts the monitor of a container that is yet to be made. Fails where this process has several threads.
    pub fn stand_by(&self) -> Result<Standby, ContainerError> {
        let id = names::new_id().map_err(ContainerError::io("read", "/dev/urandom"))?;
        self.monitor(id)
    }

    fn monitor(&self, id: String) -> Result<Standby, ContainerError> {
        let failed = || ContainerError::io::<io::Error>("start", "the monitor");
        let root = std::path::absolute(self.root()).map_err(failed())?;
        let its_id = id.clone();
        Standby::fork(id, move |line| monitor::monitor(&root, &its_id, line))
    }

    /// Starts the program of a container, by the monitor that stands by for it where there is one; `size` is its
    /// terminal's, in rows and columns. Gives, when it has been started, a connection to which nothing of its output is
    /// lost.
    pub fn start(
        &self,
        container: &Container,
        standby: Option<Standby>,
        size: Option<(u16, u16)>,
    ) -> Result<Connection, ContainerError> {
        enter()?;
        // Known at once, and not only after a mount.
        Runtime::find(container.record.settings.runtime.as_deref())?;
        let mut standby = match standby {
            Some(standby) => standby,
            None => self.monitor(container.record.id.clone())?,
        };
        let order = match size {
            Some((rows, columns)) => format!("start {rows} {columns}\n"),
            None => "start\n".to_owned(),
        };
        match standby.to.write_all(order.as_bytes()) {
            // It has ended, and may have said why.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            said => said.map_err(ContainerError::io("speak to", "the monitor"))?,
        }
        standby.hear(&container.record.name)?;
        Ok(Connection::over(standby.line))
    }
}

/// Starts one program more in a running container, on a terminal; `process` is the file that the runtime is to read it
/// from.
pub(super) fn start_beside(
    container: &Container,
    runtime: &Runtime,
    process: &Path,
) -> Result<Connection, ContainerError> {
    let mut started = Standby::fork(container.record.id.clone(), |line| {
        monitor::Beside {
            container,
            runtime,
            process,
        }
        .run(line)
    })?;
    started.hear(&container.record.name)?;
    Ok(Connection::over(started.line))
}

impl Standby {
    /// Goes on in a process of its own, which ends with `life`.
    fn fork(id: String, life: impl FnOnce(UnixStream) -> u8) -> Result<Standby, ContainerError> {
        let failed = || ContainerError::io::<io::Error>("start", "the monitor");
        let (commands, to) = io::pipe().map_err(failed())?;
        let (from, answers) = io::pipe().map_err(failed())?;
        let (line, its_line) = UnixStream::pair().map_err(failed())?;
        match fork_beside().map_err(failed())? {
            Beside::Old(monitor) => Ok(Standby {
                id,
                monitor,
                to,
                from: BufReader::new(from),
                line,
            }),
            Beside::New => {
                let ready = take_stdio(&commands, &answers)
                    .and_then(|()| close_all_but(&[its_line.as_raw_fd()]));
                let code = match ready {
                    Ok(()) => life(its_line),
                    Err(_) => 1,
                };
                // Never back into what the command goes on with.
                std::process::exit(i32::from(code))
            }
        }
    }

    /// Waits for the word that the program was started in the container of this name.
    fn hear(&mut self, name: &str) -> Result<(), ContainerError> {
        let mut line = String::new();
        self.from
            .read_line(&mut line)
            .map_err(ContainerError::io("hear", "the monitor"))?;
        let line = line.trim_end();
        if line == "started" {
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
                name: name.to_owned(),
                is: "has lost its monitor".into(),
                hint: "",
            },
        };
        // It ends, or has ended.
        if let Err(e) = nix::sys::wait::waitpid(self.monitor, None) {
            log::debug!("the monitor is not waited for: {e}");
        }
        Err(answer)
    }
}
