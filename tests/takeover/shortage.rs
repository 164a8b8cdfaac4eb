//! A daemon that cannot start, for want of something that there is again after a while.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use rustix::process::{Resource, getrlimit};

use crate::common::{Scratch, program, skip};
use crate::require;
use crate::rig::{wait_for_end, worker_of};

const LIMIT: Duration = Duration::from_secs(120);

/// Nobody else's, as its tasks are counted.
const USER: u32 = 54_323;

/// udev lets everyone use the device; where there is no udev, these processes alone see one that does.
const FUSE_DEVICE: &str = r#"
mount -t tmpfs -o mode=755 tmpfs /mnt
mknod -m 666 /mnt/fuse c 10 229
mount --bind /mnt/fuse /dev/fuse
exec "$@"
"#;

/// A mount whose upper is thrown away at its end, and a shell that reads a file of it when it is asked to, by itself: each task of
/// this user counts.
const SERVE: &str = r#"
cd "$1"
mkdir lower merged root
: > lower/below
./acetate mount --foreground --root root --lower lower -o supervise=on merged 2> log &
supervisor=$!
until [ -e merged/below ]; do sleep 0.01; done
echo text > merged/new
echo "$supervisor"
while read -r line; do
  read -r text < merged/new && echo "$text" || echo failed
done
echo more > merged/more && echo written || echo refused
"#;

/// Whoever it is, its processes end with it.
struct Mounted(Child);

impl Drop for Mounted {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        if let Err(e) = killpg(group, Signal::SIGKILL) {
            eprintln!("{group}: {e}");
        }
        if let Err(e) = self.0.wait() {
            eprintln!("{group}: {e}");
        }
    }
}

struct Reader {
    asks: ChildStdin,
    answers: Receiver<String>,
}

impl Reader {
    fn next(&self) -> String {
        self.answers.recv_timeout(LIMIT).unwrap()
    }
}

fn start(scratch: &Scratch) -> (Mounted, Reader) {
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc"])
        .args([FUSE_DEVICE, "sh", "setpriv"])
        .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string()])
        .args(["--clear-groups", "unshare", "--user", "--map-root-user"])
        .args(["--mount", "sh", "-c", SERVE, "sh"])
        .arg(scratch.path())
        .env("HOME", scratch.path())
        .env("XDG_RUNTIME_DIR", scratch.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let (asks, said) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (sender, answers) = channel();
    thread::spawn(move || {
        for line in BufReader::new(said).lines() {
            if sender.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    (Mounted(child), Reader { asks, answers })
}

/// How many tasks the user has, but for those of one process.
fn tasks_but(of: Pid) -> u64 {
    let mut count = 0;
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let is_user = fs::metadata(&path).is_ok_and(|meta| meta.uid() == USER);
        let number = path.file_name().unwrap().to_str().unwrap();
        if is_user && number.parse() != Ok(of.as_raw()) {
            count += fs::read_dir(path.join("task")).map_or(0, Iterator::count) as u64;
        }
    }
    count
}

/// By the user, who may do so without any privilege. `None`: as it was.
fn set_limit(of: u32, limit: Option<u64>) {
    let text = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| limit.to_string());
    let hard = getrlimit(Resource::Nproc).maximum;
    let (soft, hard) = (text(limit.or(hard)), text(hard));
    program::must(
        Command::new("setpriv")
            .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string()])
            .args(["--clear-groups", "prlimit", "--pid", &of.to_string()])
            .arg(format!("--nproc={soft}:{hard}")),
        LIMIT,
    );
}

/// How many times a daemon could not start.
fn failures(scratch: &Scratch) -> usize {
    let log = fs::read_to_string(scratch.join("log")).unwrap();
    log.matches("the daemon ended with exit code").count()
        + log.matches("the daemon is not started").count()
}

/// Where there is room for no process, for one, for one and some of its threads: nothing is unmounted, and nothing
/// thrown away.
#[test]
fn a_mount_waits_until_its_daemon_can_start() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    for name in ["unshare", "setpriv", "prlimit"] {
        require!(program::find(name));
    }
    let scratch = Scratch::new("takeover-shortage");
    let binary = std::env::var_os("ACETATE_BINARY");
    let binary = binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_acetate").into());
    fs::copy(binary, scratch.join("acetate")).unwrap();
    chown(scratch.path(), Some(USER), Some(USER)).unwrap();
    File::create(scratch.join("log")).unwrap();
    chown(scratch.join("log"), Some(USER), Some(USER)).unwrap();
    let (_mounted, mut reader) = start(&scratch);
    let supervisor: u32 = reader.next().parse().unwrap();
    let log = || fs::read_to_string(scratch.join("log")).unwrap();
    let mut starved = 0;
    for room in [0, 1, 2, 3, 4, 6, 9] {
        writeln!(reader.asks).unwrap();
        assert_eq!(reader.next(), "text", "{}", log());
        // One that answered with some of its threads may be about to end.
        let begin = Instant::now();
        let worker = loop {
            assert!(begin.elapsed() < LIMIT, "no worker: {}", log());
            if let Some(worker) = worker_of(supervisor) {
                break worker;
            }
            thread::sleep(Duration::from_millis(1));
        };
        let before = failures(&scratch);
        set_limit(supervisor, Some(tasks_but(worker) + room));
        match kill(worker, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => wait_for_end(worker),
            Err(e) => panic!("{worker}: {e}"),
        }
        writeln!(reader.asks).unwrap();
        let begin = Instant::now();
        let mut answer = None;
        // A daemon with some of its threads may answer.
        while answer.is_none() && failures(&scratch) < before + 2 {
            assert!(begin.elapsed() < LIMIT, "room for {room}: {}", log());
            answer = reader.answers.recv_timeout(Duration::from_millis(5)).ok();
        }
        starved += failures(&scratch) - before;
        set_limit(supervisor, None);
        let answer = answer.unwrap_or_else(|| reader.next());
        assert_eq!(answer, "text", "room for {room}: {}", log());
    }
    assert!(starved > 2, "{}", log());
    assert!(!log().contains("read-only"), "{}", log());
    let Reader { asks, answers } = reader;
    drop(asks);
    assert_eq!(answers.recv_timeout(LIMIT).unwrap(), "written");
}
