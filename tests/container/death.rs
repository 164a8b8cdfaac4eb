//! Sudden death of every process that takes part.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::common::{LoopImage, daemon as processes, skip};
use crate::require;
use crate::rig::{Rig, able, kill};

const TICK: &str = "echo x >> /data/f; echo up; while true; do sleep 0.05; done";

/// The daemon of a container's root filesystem.
fn daemon(rig: &Rig, name: &str) -> i32 {
    let rootfs = rig.dir(name).join("rootfs");
    let mounts: serde_json::Value = serde_json::from_str(&rig.must(&["mounts", "--json"])).unwrap();
    let mounts = mounts.as_array().unwrap();
    let is_its = |m: &&serde_json::Value| m["mountpoint"].as_str() == rootfs.to_str();
    let pid = mounts.iter().find(is_its).unwrap()["pid"].as_i64().unwrap();
    i32::try_from(pid).unwrap()
}

/// The program of a container.
fn program(rig: &Rig, name: &str) -> i32 {
    i32::try_from(rig.inspect(name)["State"]["Pid"].as_i64().unwrap()).unwrap()
}

fn monitor(rig: &Rig, name: &str) -> i32 {
    let state = fs::read(rig.dir(name).join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    i32::try_from(state["monitor"].as_i64().unwrap()).unwrap()
}

#[test]
fn a_container_whose_monitor_was_killed_is_dead_and_starts_again() {
    require!(able());
    let rig = Rig::new("monitor");
    rig.must(&["run", "-d", "--name", "mm", "bb", "sh", "-c", TICK]);
    kill(monitor(&rig, "mm"));
    rig.until("it is dead", || rig.status("mm") == "dead");
    assert!(
        rig.must(&["ps", "-a"])
            .contains("Dead: its monitor was killed")
    );
    assert!(
        rig.fails(1, &["exec", "mm", "true"])
            .contains("not running")
    );
    let program = rig.inspect("mm")["State"]["Pid"].as_i64().unwrap();
    rig.must(&["start", "mm"]);
    // Whoever adopted it may not have taken note of its end yet.
    let status = fs::read_to_string(format!("/proc/{program}/status")).unwrap_or_default();
    let runs = status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains('Z'));
    assert!(!runs, "the first run goes on: {status}");
    assert_eq!(rig.must(&["exec", "mm", "cat", "/data/f"]), "x\nx\n");
    kill(monitor(&rig, "mm"));
    rig.until("it is dead", || rig.status("mm") == "dead");
    // Its program runs on, and can be stopped.
    rig.must(&["stop", "mm"]);
    rig.until("no process is left", || rig.processes().is_empty());
    assert_eq!(rig.status("mm"), "dead");
    rig.must(&["rm", "mm"]);
    rig.nothing_is_left();
}

#[test]
fn how_a_program_ended_that_filled_the_disk_is_known() {
    require!(able());
    let rig = Rig::new("full");
    let small = LoopImage::new(&rig.scratch, "ext4", 16 << 20);
    require!(small.as_ref().map(drop).map_err(Clone::clone));
    let small = small.unwrap();
    let tree = rig.scratch.join("tree");
    let store = small.path().join("store");
    let store = store.to_str().unwrap();
    let at = |words: &[&str]| rig.acetate(&[words, &["--root", store]].concat());
    assert!(at(&["image", "import", tree.to_str().unwrap(), "bb"]).success());
    let script = "dd if=/dev/zero of=/big bs=64k; yes >/more; exit 3";
    let run = ["run", "--root", store, "--name", "full", "bb", "sh", "-c"];
    let run = rig.acetate(&[&run[..], &[script]].concat());
    assert_eq!(run.code(), Some(3), "{}", run.text);
    assert!(run.text.contains("No space left"), "{}", run.text);
    let state = at(&["container", "inspect", "full"]).text;
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state[0]["State"]["Status"], "exited", "{state}");
    assert_eq!(state[0]["State"]["ExitCode"], 3);
    let removed = at(&["rm", "full"]);
    assert!(removed.success(), "{}", removed.text);
    let left = || fs::read_dir(small.path().join("store/containers")).unwrap();
    rig.until("its files are gone", || left().count() == 1);
    // Whoever is left keeps it busy.
    rig.until("it can be unmounted", || {
        nix::mount::umount(small.path()).is_ok()
    });
    std::mem::forget(small);
}

#[test]
fn a_container_whose_daemon_was_killed_is_dead_and_starts_again() {
    require!(able());
    let rig = Rig::new("daemon");
    rig.must(&["run", "-d", "--name", "dd", "bb", "sh", "-c", TICK]);
    rig.until("it is up", || rig.must(&["logs", "dd"]) == "up\n");
    processes::kill_for_good(daemon(&rig, "dd").cast_unsigned());
    rig.until("it is dead", || rig.status("dd") == "dead");
    assert!(
        rig.must(&["ps", "-a"])
            .contains("the daemon of its root filesystem died")
    );
    rig.must(&["start", "dd"]);
    // The first run may have told that its programs were gone.
    rig.until("it is up again", || {
        rig.must(&["logs", "dd"]).matches("up\n").count() == 2
    });
    assert_eq!(rig.must(&["exec", "dd", "cat", "/data/f"]), "x\nx\n");
    rig.must(&["rm", "-f", "dd"]);
    rig.nothing_is_left();
}

/// The process that a container's supervisor has serve its root filesystem.
fn worker(rig: &Rig, supervisor: i32) -> i32 {
    let mut found = None;
    rig.until("it is served", || {
        found = processes::worker_of(supervisor.cast_unsigned());
        found.is_some()
    });
    found.unwrap().cast_signed()
}

#[test]
fn a_container_outlives_the_daemon_of_its_root_filesystem() {
    require!(able());
    require!(skip::kernel_resends());
    // It stays where something fails, and does no more.
    const WORK: &str = "echo up; while echo x >> /data/f && cat /bin/busybox > /dev/null; do sleep 0.01; done; while true; do sleep 1; done";
    let rig = Rig::new("outlives");
    rig.must(&["run", "-d", "--name", "oo", "bb", "sh", "-c", WORK]);
    rig.until("it is up", || rig.must(&["logs", "oo"]) == "up\n");
    let lines = || rig.must(&["exec", "oo", "cat", "/data/f"]).lines().count();
    let supervisor = daemon(&rig, "oo");
    for round in 0..5 {
        kill(worker(&rig, supervisor));
        let before = lines();
        rig.until("it goes on", || lines() > before);
        let text = format!("echo {round} > /tmp/r && cat /tmp/r && rm /tmp/r");
        let said = rig.must(&["exec", "oo", "sh", "-c", &text]);
        assert_eq!(said, format!("{round}\n"));
    }
    assert_eq!(daemon(&rig, "oo"), supervisor);
    // Without its supervisor it goes on as well, until the last one dies.
    let last = worker(&rig, supervisor);
    kill(supervisor);
    rig.until("the other is named", || daemon(&rig, "oo") == last);
    let before = lines();
    rig.until("it goes on", || lines() > before);
    assert_eq!(rig.must(&["logs", "oo"]), "up\n");
    assert_eq!(rig.status("oo"), "running");
    kill(last);
    rig.until("it is dead", || rig.status("oo") == "dead");
    rig.must(&["start", "oo"]);
    // The first run may have told that its programs were gone.
    rig.until("it is up again", || {
        rig.must(&["logs", "oo"]).matches("up\n").count() == 2
    });
    kill(worker(&rig, daemon(&rig, "oo")));
    rig.must(&["stop", "-t", "1", "oo"]);
    assert_eq!(rig.status("oo"), "exited");
    rig.must(&["rm", "oo"]);
    rig.until("no process is left", || rig.processes().is_empty());
    rig.nothing_is_left();
}

#[test]
fn a_command_that_is_killed_leaves_nothing_that_prune_does_not_take() {
    require!(able());
    let rig = Rig::new("command");
    for round in 0..12u64 {
        let mut child = rig
            .command(&["run", "--name", &format!("r{round}"), "bb", "sleep", "0.3"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From before the container is made until after it has ended.
        thread::sleep(Duration::from_millis(round * 30));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    rig.until("all have ended", || rig.processes().is_empty());
    rig.must(&["container", "prune"]);
    rig.nothing_is_left();
    assert_eq!(rig.must(&["run", "--rm", "bb", "echo", "fine"]), "fine\n");
}

#[test]
fn monitors_that_are_killed_at_any_moment_leave_nothing_that_rm_does_not_take() {
    require!(able());
    let rig = Rig::new("moments");
    for round in 0..10u64 {
        let mut child = rig
            .command(&[
                "run",
                "--name",
                "kk",
                "bb",
                "sh",
                "-c",
                "echo x > /data/f; sleep 0.1",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(round * 25));
        for (pid, name) in rig.processes() {
            if name == "acetate-monitor" {
                // It may have ended by itself.
                let pid = nix::unistd::Pid::from_raw(pid);
                if let Err(e) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
                    assert_eq!(e, nix::errno::Errno::ESRCH);
                }
            }
        }
        child.wait().unwrap();
        rig.acetate(&["rm", "--force", "kk"]);
        rig.nothing_is_left();
    }
}

#[test]
fn clients_that_vanish_or_talk_nonsense_harm_nobody() {
    require!(able());
    let rig = Rig::new("clients");
    let flood = "yes 0123456789012345678901234567890123456789 | dd bs=1024 count=3000 iflag=fullblock 2>/dev/null; sleep 0.2; echo end";
    rig.must(&[
        "run",
        "-d",
        "--name",
        "vv",
        "bb",
        "sh",
        "-c",
        &format!("sleep 1; {flood}; sleep 1000"),
    ]);
    let socket = rig.dir("vv").join("attach.sock");
    let connect = || {
        let dir = fs::File::open(socket.parent().unwrap()).unwrap();
        use std::os::fd::AsRawFd;
        UnixStream::connect(format!("/proc/self/fd/{}/attach.sock", dir.as_raw_fd())).unwrap()
    };
    for nonsense in [
        &b"x"[..],
        b"i\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        b"a\0\0\0\0",
    ] {
        connect().write_all(nonsense).unwrap();
    }
    // It says that it reads, and does not: it is dropped after a while.
    let mut sleeper = connect();
    sleeper.write_all(b"a\0\0\0\0").unwrap();
    let mut child = rig
        .command(&["attach", "vv"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(1500));
    child.kill().unwrap();
    child.wait().unwrap();
    let begin = std::time::Instant::now();
    while !rig.must(&["logs", "-n", "1", "vv"]).ends_with("end\n") {
        assert!(
            begin.elapsed() < Duration::from_secs(40),
            "the container stands still"
        );
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(rig.status("vv"), "running");
    drop(sleeper);
    rig.must(&["rm", "-f", "vv"]);
    rig.nothing_is_left();
}

#[test]
fn a_program_that_was_killed_from_outside_has_ended() {
    require!(able());
    let rig = Rig::new("outside");
    rig.must(&["run", "-d", "--name", "pp", "bb", "sh", "-c", TICK]);
    kill(program(&rig, "pp"));
    assert_eq!(rig.must(&["wait", "pp"]), "137\n");
    assert_eq!(rig.status("pp"), "exited");
    rig.must(&["start", "pp"]);
    rig.must(&["rm", "--force", "pp"]);
    rig.nothing_is_left();
}

#[test]
fn after_a_reboot_containers_are_dead_and_start_again_with_their_layers() {
    require!(able());
    let rig = Rig::new("reboot");
    for name in ["r1", "r2"] {
        rig.must(&["run", "-d", "--name", name, "bb", "sh", "-c", TICK]);
        rig.until("it is up", || rig.must(&["logs", name]) == "up\n");
    }
    for name in ["r1", "r2"] {
        let all = [monitor(&rig, name), daemon(&rig, name), program(&rig, name)];
        let (dir, rootfs) = (rig.dir(name), rig.dir(name).join("rootfs"));
        kill(all[0]);
        processes::kill_for_good(all[1].cast_unsigned());
        kill(all[2]);
        rig.until("all are gone", || {
            all.iter().all(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status"));
                status.map_or(true, |text| text.contains("State:\tZ"))
            })
        });
        // A reboot takes the mounts, and gives the machine's run another name.
        nix::mount::umount2(&rootfs, nix::mount::MntFlags::MNT_DETACH).unwrap();
        let path = dir.join("state.json");
        let mut state: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        state["boot"] = "another".into();
        fs::write(&path, state.to_string()).unwrap();
    }
    let listed = rig.must(&["ps", "-a"]);
    assert_eq!(
        listed.matches("the machine was restarted").count(),
        2,
        "{listed}"
    );
    assert_eq!(rig.must(&["ps", "-q"]), "");
    rig.must(&["start", "r1"]);
    rig.until("it is up again", || {
        rig.must(&["logs", "r1"]).matches("up\n").count() == 2
    });
    assert_eq!(rig.must(&["exec", "r1", "cat", "/data/f"]), "x\nx\n");
    // The other is removed as it is.
    rig.must(&["rm", "r2"]);
    rig.must(&["rm", "--force", "r1"]);
    rig.nothing_is_left();
}
