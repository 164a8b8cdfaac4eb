//! Having a mount go over to another program.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::MountError;
use super::handover::{DONE, answer_path, program_path};
use super::state::{self, Found, Record};

/// Longer than a supervisor waits for the other program, twice.
const LIMIT: Duration = Duration::from_secs(90);

/// Has a mount go over to the program at `binary`, which is absolute. When it fails the mount is served as before. Returns the
/// record of the mount, which tells what serves it now.
pub fn upgrade(dir: &Path, binary: &Path) -> Result<Record, MountError> {
    let found = state::living_at(dir)?;
    let place = found.record.mountpoint.clone();
    let refused = |why: String| MountError::NotUpgraded(place.clone(), why);
    if !found.record.supervised {
        return Err(refused(
            "it is served without a supervisor (supervise=on): unmount and mount again".into(),
        ));
    }
    let answer = ask(&found, binary).map_err(|e| refused(e.to_string()))?;
    if answer != DONE {
        return Err(refused(answer));
    }
    Ok(state::living_at(dir)?.record)
}

/// What stands for a question: taken away with it.
struct Asked {
    program: PathBuf,
    answer: PathBuf,
}

impl Drop for Asked {
    fn drop(&mut self) {
        state::remove(&self.program);
        state::remove(&self.answer);
    }
}

fn ask(found: &Found, binary: &Path) -> io::Result<String> {
    let (dir, id) = (&found.dir, &found.record.id);
    let answer = answer_path(dir, id);
    let mut file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&answer)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::other("it is already going over to another program"))?;
    file.set_len(0)?;
    let asked = Asked {
        program: program_path(dir, id),
        answer,
    };
    state::remove(&asked.program);
    std::os::unix::fs::symlink(binary, &asked.program)?;
    let supervisor = Pid::from_raw(found.record.pid.cast_signed())
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let process = pidfd_open(supervisor, PidfdFlags::empty())?;
    // Whoever has the number now is the one who had it when the record was written, if the record still says so.
    let again =
        state::living(&found.record.mountpoint).map_err(|e| io::Error::other(e.to_string()))?;
    if again.record != found.record {
        return Err(io::Error::other("its daemon has just changed: try again"));
    }
    pidfd_send_signal(&process, Signal::USR2)?;
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_string(&mut text)?;
        if let Some(whole) = text.strip_suffix('\n') {
            return Ok(whole.to_owned());
        }
        if begin.elapsed() > LIMIT {
            return Err(io::Error::other("its supervisor does not answer"));
        }
        std::thread::sleep(pause);
        pause = (pause * 5 / 4).min(Duration::from_millis(50));
    }
}

/// The program that this process runs, by a path that leads to it for others too.
pub fn own_binary() -> io::Result<PathBuf> {
    fs::canonicalize("/proc/self/exe")
}
