//! Failing system calls of a daemon, by strace.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The system calls that a change of the upper may take, but for those by which requests are read and answered.
const CALLS: &str = "openat,openat2,open_by_handle_at,name_to_handle_at,mkdirat,mknodat,symlinkat,linkat,unlinkat,\
renameat,renameat2,ftruncate,fallocate,pwrite64,pread64,copy_file_range,fsetxattr,setxattr,lsetxattr,fremovexattr,\
removexattr,lremovexattr,fgetxattr,getxattr,lgetxattr,flistxattr,listxattr,llistxattr,fchown,fchownat,fchmod,fchmodat,\
utimensat,fsync,fdatasync,newfstatat,fstat,statx,getdents64,readlinkat,lseek,fstatfs";

const PATIENCE: Duration = Duration::from_secs(60);

/// A strace that is attached to all threads of a process.
pub(crate) struct Tracer {
    strace: Option<Child>,
}

fn is_traced(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"))
            .is_some_and(|tracer| tracer.trim() != "0")
    })
}

fn is_free(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    tasks.flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status
            .lines()
            .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    })
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

impl Tracer {
    fn attach(pid: u32, log: &Path, words: &[String]) -> Tracer {
        let strace = Command::new("strace")
            .args(["-f", "-q", "-p", &pid.to_string(), "-o"])
            .arg(log)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tracer = Tracer {
            strace: Some(strace),
        };
        until("strace does not attach", || is_traced(pid));
        tracer
    }

    /// Lets go; what it wrote is complete then.
    fn end(mut self, pid: u32) {
        if let Some(mut strace) = self.strace.take() {
            kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT).unwrap();
            strace.wait().unwrap();
        }
        until("strace does not let go", || is_free(pid));
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Some(mut strace) = self.strace.take() {
            if let Err(e) = strace.kill() {
                eprintln!("kill strace: {e}");
            }
            if let Err(e) = strace.wait() {
                eprintln!("wait for strace: {e}");
            }
        }
    }
}

/// Which system calls a process makes during something, and how often a thread makes each at most.
pub(crate) fn calls(pid: u32, log: &Path, act: impl FnOnce()) -> Vec<(String, usize)> {
    let tracer = Tracer::attach(pid, log, &["-e".into(), format!("trace={CALLS}")]);
    act();
    tracer.end(pid);
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        if let Some((call, _)) = rest.trim().split_once('(')
            && CALLS.split(',').any(|known| known == call)
        {
            *counts.entry((call.into(), thread.into())).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    for ((call, _), count) in counts {
        let entry = most.entry(call).or_default();
        *entry = (*entry).max(count);
    }
    most.into_iter().collect()
}

/// Runs something while the `number`th such call of each thread of a process fails; also says whether any did.
pub(crate) fn failing<T>(
    pid: u32,
    log: &Path,
    call: &str,
    error: &str,
    number: usize,
    act: impl FnOnce() -> T,
) -> (T, bool) {
    let words = [
        "-e".into(),
        format!("trace={call}"),
        "-e".into(),
        format!("inject={call}:error={error}:when={number}"),
    ];
    let tracer = Tracer::attach(pid, log, &words);
    let result = act();
    tracer.end(pid);
    let hit = fs::read_to_string(log).unwrap().contains("(INJECTED)");
    (result, hit)
}
