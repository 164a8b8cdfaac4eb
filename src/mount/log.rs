//! The daemon's log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::error::MountError;

/// The number of the descriptor of the file that this process logs to, once there is one: it is never closed.
static DESCRIPTOR: OnceLock<RawFd> = OnceLock::new();

/// Where the daemon writes what goes wrong.
#[derive(Clone, Debug)]
pub(super) struct Log {
    /// Immutable.
    pub(super) path: Option<PathBuf>,
    /// Immutable: nobody chose it, so it is not kept when nothing is in it.
    default: bool,
}

/// Has all that this process logs from now on written to a file, and what its daemons log too.
pub fn log_to(path: &Path) -> Result<(), MountError> {
    Log::start(Some(path), None, "", true, false).map(drop)
}

impl Log {
    /// Opens it, for all that is logged from now on.
    pub(super) fn start(
        given: Option<&Path>,
        runtime: Option<&Path>,
        id: &str,
        in_background: bool,
        debug: bool,
    ) -> Result<Log, MountError> {
        let path = match (given, runtime) {
            (Some(path), _) => Some(std::path::absolute(path).unwrap_or_else(|_| path.to_owned())),
            (None, Some(dir)) if in_background => Some(dir.join(format!("{id}.log"))),
            (None, _) => None,
        };
        let level = if debug {
            ::log::LevelFilter::Debug
        } else {
            ::log::LevelFilter::Warn
        };
        let mut builder = env_logger::Builder::new();
        builder
            .filter_level(level)
            .parse_default_env()
            .format(write);
        let mut descriptor = None;
        if let Some(path) = &path {
            let file =
                open_log(path).map_err(|e| MountError::Path("the log file", path.clone(), e))?;
            descriptor = Some(file.as_raw_fd());
            builder.target(env_logger::Target::Pipe(Box::new(file)));
        }
        if builder.try_init().is_err() {
            ::log::debug!("the log goes where it went before");
        } else if let Some(descriptor) = descriptor {
            DESCRIPTOR.get_or_init(|| descriptor);
        }
        std::panic::set_hook(Box::new(|info| ::log::error!("{info}")));
        Ok(Log {
            path,
            default: given.is_none(),
        })
    }

    /// Nobody chose where it lies.
    pub(super) fn is_default(&self) -> bool {
        self.default
    }

    /// Goes on with the log of another program. Where it cannot be opened, what is logged goes where the program's errors go.
    pub(super) fn go_on(path: Option<PathBuf>, default: bool, debug: bool) -> Log {
        let started = Log::start(path.as_deref(), None, "", true, debug);
        if let Err(e) = started {
            ::log::warn!("{e}");
        }
        Log { path, default }
    }

    /// What must stay open for the log to be written to.
    pub(super) fn descriptor() -> Option<RawFd> {
        DESCRIPTOR.get().copied()
    }

    /// Nothing more is written: an empty log is of no use.
    pub(super) fn end(&self) {
        let written = self
            .path
            .as_deref()
            .and_then(|path| std::fs::metadata(path).ok())
            .is_some_and(|found| found.len() != 0);
        if !written {
            self.remove();
        }
    }

    pub(super) fn remove(&self) {
        if let Some(path) = self.path.as_deref().filter(|_| self.default)
            && let Err(e) = std::fs::remove_file(path)
        {
            ::log::info!("{} is not removed: {e}", path.display());
        }
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn write(out: &mut env_logger::fmt::Formatter, record: &::log::Record<'_>) -> io::Result<()> {
    let text = record.args().to_string();
    if is_lost_reply(record.target(), &text) {
        return Ok(());
    }
    writeln!(
        out,
        "[{} {} {}] {text}",
        out.timestamp_millis(),
        record.level(),
        record.target()
    )
}

/// A program that was killed, or an unmount, takes requests back that are under way: the kernel then does not know what
/// is answered. fuser 0.18 reports that as an error.
fn is_lost_reply(target: &str, text: &str) -> bool {
    target == "fuser::reply"
        && text.starts_with("Failed to send FUSE reply")
        && (text.ends_with("(os error 2)") || text.ends_with("(os error 19)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_replies_that_nobody_waits_for_are_dropped() {
        let lost = "Failed to send FUSE reply: No such file or directory (os error 2)";
        let real = "Failed to send FUSE reply: Invalid argument (os error 22)";
        assert!(is_lost_reply("fuser::reply", lost));
        assert!(!is_lost_reply("fuser::reply", real));
        assert!(!is_lost_reply("acetate::mount", lost));
    }
}
