//! Mounts in the sandbox.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::program::must;
use crate::common::{Acetate, Stand, Watchdog, connection, daemon, skip};
use crate::require;

const LIMIT: Duration = Duration::from_secs(60);

/// The fields of `/proc/PID/status`.
fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

fn record(dir: &Path) -> serde_json::Value {
    let listed = must(
        Command::new(env!("CARGO_BIN_EXE_acetate")).args(["mounts", "--json"]),
        LIMIT,
    );
    let all: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
    let dir = dir.to_str().unwrap();
    all.into_iter()
        .find(|one| one["mountpoint"] == dir)
        .unwrap()
}

fn number(record: &serde_json::Value, name: &str) -> u32 {
    u32::try_from(record[name].as_u64().unwrap()).unwrap()
}

/// Until it is neither there nor a process that has ended and only waits to be noticed.
fn wait_for_end(pid: u32) {
    let begin = Instant::now();
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(begin.elapsed() < LIMIT, "{pid} stays");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// CAP_CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, SYS_ADMIN, SYS_RESOURCE, MKNOD, LEASE, SETFCAP,
/// MAC_ADMIN: as the README lists them.
const KEPT: [u32; 12] = [0, 1, 2, 3, 4, 9, 21, 24, 27, 28, 31, 33];

/// What a process has open, but for its log and its sockets.
fn held_by(pid: u32) -> Vec<std::path::PathBuf> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .filter(|path| !path.starts_with("/dev/null"))
        .filter(|path| path.extension().is_none_or(|e| e != "log"))
        .filter(|path| !path.to_str().unwrap().starts_with("socket:"))
        .collect()
}

/// What a process shows that serves a mount.
fn check_walls(pid: u32) {
    let status_of = status(pid);
    let kept: u64 = KEPT.iter().map(|bit| 1u64 << bit).sum();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let found = u64::from_str_radix(&status_of[set], 16).unwrap();
        assert_eq!(found & !kept, 0, "{set}: {found:x}");
    }
    assert_eq!(status_of["CapInh"].trim_start_matches('0'), "");
    assert_eq!(status_of["NoNewPrivs"], "1");
    assert_eq!(status_of["Seccomp"], "2");
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let number = thread.unwrap().file_name();
        let status_of = status(number.to_str().unwrap().parse().unwrap());
        assert_eq!(status_of["Seccomp"], "2", "{}", status_of["Name"]);
    }
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(table.lines().count(), 2, "{table}");
    check_record(pid);
    let root: Vec<_> = fs::read_dir(format!("/proc/{pid}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(root, ["proc"]);
}

/// What other commands make paths of, with all rights, the process that serves may not write.
fn check_record(pid: u32) {
    let mut held = 0;
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let fd = fd.unwrap();
        let Ok(path) = fs::read_link(fd.path()) else {
            continue;
        };
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        held += 1;
        let info = format!("/proc/{pid}/fdinfo/{}", fd.file_name().to_str().unwrap());
        let info = fs::read_to_string(info).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        assert_eq!(flags & libc::O_ACCMODE, libc::O_RDONLY, "{path:?}");
    }
    assert!(held > 0, "its record is not held");
}

/// No path from what the process has open leads to what lies beside its directories, of which `lower` is one. Before Linux
/// 6.15 that is not to be had.
fn check_surroundings(pid: u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>());
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        panic!("{release}");
    };
    if (major, minor) < (6, 15) {
        return;
    }
    let mut directories = 0;
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let at = fd.unwrap().path();
        if !fs::metadata(&at).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        directories += 1;
        for up in [".", "..", "../..", "../../..", "../../../.."] {
            let beside = at.join(up).join("lower");
            assert!(!beside.exists(), "{beside:?} of {:?}", fs::read_link(&at));
        }
    }
    assert!(directories > 2, "{directories}");
}

#[test]
fn the_process_that_serves_shows_its_walls() {
    require!(skip::privileged());
    let _limit = Watchdog::new("walls", Duration::from_secs(100));
    let stand = Stand::new("walls");
    fs::write(stand.lower.join("file"), "lower").unwrap();
    let mount = stand.acetate("").daemon().mount();
    let record = record(mount.path());
    let (pid, outside) = (number(&record, "pid"), number(&record, "outside"));
    check_walls(daemon::serving(pid));
    check_surroundings(daemon::serving(pid));
    // The process outside holds nothing of it.
    // It may be sweeping old logs at the moment.
    let begin = Instant::now();
    while let held = held_by(outside)
        && !held.is_empty()
    {
        assert!(begin.elapsed() < LIMIT, "{held:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(mount.unmount().unwrap());
    wait_for_end(pid);
    wait_for_end(outside);
}

/// The process that a supervisor has serve its mount at the moment.
fn worker_of(supervisor: u32, outside: u32) -> u32 {
    let begin = Instant::now();
    loop {
        let children = format!("/proc/{supervisor}/task/{supervisor}/children");
        let children = fs::read_to_string(children).unwrap();
        let mut children = children.split_whitespace().map(|pid| pid.parse().unwrap());
        if let Some(worker) = children.find(|pid| *pid != outside) {
            return worker;
        }
        assert!(begin.elapsed() < LIMIT, "no worker");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn each_process_that_a_supervisor_starts_shows_its_walls() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    let _limit = Watchdog::new("supervised walls", Duration::from_secs(100));
    let stand = Stand::new("supervised");
    fs::write(stand.lower.join("file"), "lower").unwrap();
    let mount = stand.acetate("supervise=on").daemon().mount();
    let record = record(mount.path());
    let (pid, outside) = (number(&record, "pid"), number(&record, "outside"));
    for round in 0..3 {
        let text = format!("round {round}");
        fs::write(mount.join("file"), &text).unwrap();
        let worker = worker_of(pid, outside);
        // Whoever answers has been shut in.
        assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), text);
        check_walls(worker);
        kill(Pid::from_raw(worker as i32), Signal::SIGKILL).unwrap();
        fs::write(mount.join("new"), &text).unwrap();
        fs::rename(mount.join("new"), mount.join("moved")).unwrap();
        assert_eq!(fs::read_to_string(mount.join("moved")).unwrap(), text);
    }
    // What needs the host is done outside for each of them.
    acetate::mount::set_read_only(mount.path(), true).unwrap();
    let refused = fs::write(mount.join("other"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    acetate::mount::set_read_only(mount.path(), false).unwrap();
    drop(mount.unmount().unwrap());
}

#[test]
fn the_sandbox_can_be_left_out() {
    require!(skip::privileged());
    let _limit = Watchdog::new("no sandbox", Duration::from_secs(100));
    for by_option in [false, true] {
        let stand = Stand::new("open");
        let acetate = if by_option {
            stand.acetate("sandbox=off").daemon()
        } else {
            stand.acetate("").daemon().argument("--no-sandbox")
        };
        let mount = acetate.mount();
        let record = record(mount.path());
        let status_of = status(number(&record, "pid"));
        assert_eq!(status_of["Seccomp"], "0");
        assert_eq!(
            status_of["NoNewPrivs"],
            status(std::process::id())["NoNewPrivs"]
        );
        drop(mount.unmount().unwrap());
    }
}

/// Signals, and the flags of the filesystem: what takes rights that the process has given up.
#[test]
fn what_needs_the_host_is_done_outside() {
    require!(skip::privileged());
    let _limit = Watchdog::new("outside", Duration::from_secs(100));
    let stand = Stand::new("outside");
    fs::write(stand.lower.join("file"), "lower").unwrap();
    let mut mount = stand.acetate("").daemon().mount();
    fs::write(mount.join("new"), "x").unwrap();
    acetate::mount::set_read_only(mount.path(), true).unwrap();
    let refused = fs::write(mount.join("other"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    acetate::mount::set_read_only(mount.path(), false).unwrap();
    fs::write(mount.join("other"), "x").unwrap();
    let held = fs::File::options()
        .append(true)
        .open(mount.join("new"))
        .unwrap();
    let busy = acetate::mount::set_read_only(mount.path(), true).unwrap_err();
    assert!(busy.to_string().contains("open for writing"), "{busy}");
    drop(held);

    let record = record(mount.path());
    let (pid, outside) = (number(&record, "pid"), number(&record, "outside"));
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    wait_for_end(pid);
    wait_for_end(outside);
    assert!(connection::mounted_at(mount.path()).is_none());
    mount.kill();
}

#[test]
fn neither_process_outlives_the_other_for_nothing() {
    require!(skip::privileged());
    let _limit = Watchdog::new("deaths", Duration::from_secs(100));
    let stand = Stand::new("deaths");
    fs::write(stand.lower.join("file"), "lower").unwrap();
    // The one outside has ended: files are served on, and an unmount from elsewhere ends it well.
    let mount = stand.acetate("").daemon().mount();
    let first = record(mount.path());
    kill(
        Pid::from_raw(number(&first, "outside") as i32),
        Signal::SIGKILL,
    )
    .unwrap();
    wait_for_end(number(&first, "outside"));
    fs::write(mount.join("file"), "changed").unwrap();
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"changed");
    drop(mount.unmount().unwrap());
    wait_for_end(number(&first, "pid"));

    // The one that serves is killed: so ends the one outside.
    let mut mount = stand.acetate("").daemon().mount();
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"changed");
    let second = record(mount.path());
    daemon::kill_for_good(number(&second, "pid"));
    wait_for_end(number(&second, "outside"));
    mount.kill();
}

/// Link counts and numbers of files that were copied up are read from handles, which only the process outside may open.
#[test]
fn hard_links_are_known_again_after_a_remount() {
    require!(skip::privileged());
    let _limit = Watchdog::new("links again", Duration::from_secs(100));
    use std::os::unix::fs::MetadataExt;
    let stand = Stand::new("links-again");
    fs::write(stand.lower.join("a"), "lower").unwrap();
    fs::hard_link(stand.lower.join("a"), stand.lower.join("b")).unwrap();
    fs::write(stand.lower.join("single"), "lower").unwrap();
    let seen = |acetate: Acetate, change: bool| {
        let mount = acetate.mount();
        if change {
            fs::write(mount.join("a"), "changed").unwrap();
            fs::write(mount.join("single"), "changed").unwrap();
        }
        let found = ["a", "b", "single"].map(|name| {
            let found = fs::metadata(mount.join(name)).unwrap();
            (found.ino(), found.nlink(), found.len())
        });
        drop(mount.unmount().unwrap());
        found
    };
    let first = seen(stand.acetate("index=on"), true);
    assert_eq!(first[0], first[1]);
    assert_eq!(first[0].1, 2);
    assert_eq!(seen(stand.acetate("index=on"), false), first);
    assert_eq!(seen(stand.acetate("index=on,sandbox=off"), false), first);
}
