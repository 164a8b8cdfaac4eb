//! What programs see of a daemon's death, and what of its supervisor's.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::common::skip;
use crate::require;
use crate::rig::{Rig, outside_of, wait_for_end, worker_of};

const LIMIT: Duration = Duration::from_secs(180);

fn append(file: &mut File, text: &str) {
    file.write_all(text.as_bytes()).unwrap();
}

fn whole(file: &mut File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn open_files_go_on_in_the_next_process() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    let rig = Rig::new("takeover-open", LIMIT, |lower| {
        fs::write(lower.join("read"), "lower").unwrap();
        fs::write(lower.join("changed"), "before").unwrap();
        fs::write(lower.join("run"), "#!/bin/sh\necho ran\n").unwrap();
        fs::set_permissions(lower.join("run"), PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(lower.join("gone"), "lower and gone").unwrap();
        fs::create_dir(lower.join("dir")).unwrap();
        fs::write(lower.join("dir/inside"), "x").unwrap();
    });
    let at = |name: &str| rig.mount.join(name);
    let mut read = File::open(at("read")).unwrap();
    let mut run = File::open(at("run")).unwrap();
    let mut changed = File::open(at("changed")).unwrap();
    let mut gone = File::open(at("gone")).unwrap();
    fs::remove_file(at("gone")).unwrap();
    let writer = || {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).clone()
    };
    let mut appended = writer().open(at("appended")).unwrap();
    let mut nameless = writer().open(at("nameless")).unwrap();
    append(&mut nameless, "a");
    fs::remove_file(at("nameless")).unwrap();
    let mut linked = writer().open(at("one")).unwrap();
    fs::hard_link(at("one"), at("other")).unwrap();
    fs::remove_file(at("one")).unwrap();
    fs::create_dir(at("left")).unwrap();
    let left = File::open(at("left")).unwrap();
    fs::remove_dir(at("left")).unwrap();
    let numbers = |files: &[&File]| -> Vec<u64> {
        let number = |file: &&File| file.metadata().unwrap().ino();
        files.iter().map(number).collect()
    };
    let before = numbers(&[&read, &run, &changed, &gone, &appended, &nameless, &linked]);
    for round in 0..3 {
        rig.end(Signal::SIGKILL);
        assert_eq!(whole(&mut read), "lower");
        assert_eq!(whole(&mut run), "#!/bin/sh\necho ran\n");
        assert_eq!(whole(&mut gone), "lower and gone");
        append(&mut appended, "x");
        append(&mut nameless, "b");
        append(&mut linked, "y");
        assert_eq!(whole(&mut appended), "x".repeat(round + 1));
        assert_eq!(whole(&mut nameless), format!("a{}", "b".repeat(round + 1)));
        assert_eq!(
            fs::read(at("other")).unwrap(),
            "y".repeat(round + 1).as_bytes()
        );
        assert_eq!(fs::read(at("appended")).unwrap().len(), round + 1);
        assert_eq!(nameless.metadata().unwrap().nlink(), 0);
        assert_eq!(left.metadata().unwrap().nlink(), 0);
        let now = numbers(&[&read, &run, &changed, &gone, &appended, &nameless, &linked]);
        assert_eq!(now, before, "round {round}");
        let ran = Command::new(at("run")).output().unwrap();
        assert_eq!(ran.stdout, b"ran\n");
        // A reader from before sees what is written after.
        let text = format!("after {round}");
        fs::write(at("changed"), &text).unwrap();
        assert_eq!(whole(&mut changed), text);
        fs::rename(at("dir"), at("moved")).unwrap();
        assert_eq!(fs::read(at("moved/inside")).unwrap(), b"x");
        fs::rename(at("moved"), at("dir")).unwrap();
    }
    nameless.write_at(b"c", 0).unwrap();
    drop((read, run, changed, gone, appended, nameless, linked, left));
    assert_eq!(
        fs::read_to_string(rig.upper.join("appended")).unwrap(),
        "xxx"
    );
    assert!(!rig.upper.join("nameless").exists());
    rig.mount.unmount().unwrap();
}

#[test]
fn a_reading_of_a_directory_goes_on_in_the_next_process() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    const ENTRIES: usize = 4000;
    let rig = Rig::new("takeover-listing", LIMIT, |lower| {
        for n in 0..ENTRIES / 2 {
            File::create(lower.join(format!("a-name-of-some-length-{n}"))).unwrap();
        }
    });
    for n in ENTRIES / 2..ENTRIES {
        File::create(rig.mount.join(format!("a-name-of-some-length-{n}"))).unwrap();
    }
    let mut seen: HashSet<OsString> = HashSet::new();
    for (n, entry) in fs::read_dir(rig.mount.path()).unwrap().enumerate() {
        if n % 700 == 350 {
            rig.end(Signal::SIGKILL);
        }
        let name = entry.unwrap().file_name();
        // As rm -r does.
        fs::remove_file(rig.mount.join(&name)).unwrap();
        assert!(seen.insert(name), "listed twice");
    }
    assert_eq!(seen.len(), ENTRIES);
    assert_eq!(fs::read_dir(rig.mount.path()).unwrap().count(), 0);
    rig.mount.unmount().unwrap();
}

/// Another reading has been in the same directory before it grew.
#[test]
fn a_directory_that_has_grown_is_listed_once_across_a_death() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    const BEFORE: usize = 1000;
    const ENTRIES: usize = 4000;
    let rig = Rig::new("takeover-grown", LIMIT, |lower| {
        for n in 0..BEFORE {
            File::create(lower.join(format!("a-name-of-some-length-{n}"))).unwrap();
        }
    });
    let mut other = fs::read_dir(rig.mount.path()).unwrap();
    assert_eq!(other.by_ref().take(300).count(), 300);
    for n in BEFORE..ENTRIES {
        File::create(rig.mount.join(format!("a-name-of-some-length-{n}"))).unwrap();
    }
    for deaths_each in [1800, 700] {
        let mut seen: HashSet<OsString> = HashSet::new();
        for (n, entry) in fs::read_dir(rig.mount.path()).unwrap().enumerate() {
            if n % deaths_each == deaths_each - 1 {
                rig.end(Signal::SIGKILL);
            }
            assert!(seen.insert(entry.unwrap().file_name()), "listed twice");
        }
        assert_eq!(seen.len(), ENTRIES);
    }
    drop(other);
    rig.mount.unmount().unwrap();
}

#[test]
fn without_its_supervisor_a_daemon_goes_on() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    let rig = Rig::new("takeover-alone", LIMIT, |lower| {
        fs::write(lower.join("file"), "text").unwrap();
    });
    let worker = rig.worker();
    let mut open = File::open(rig.mount.join("file")).unwrap();
    let supervisor = Pid::from_raw(rig.supervisor().cast_signed());
    nix::sys::signal::kill(supervisor, Signal::SIGKILL).unwrap();
    crate::common::daemon::wait_for_end(rig.supervisor());
    assert_eq!(whole(&mut open), "text");
    fs::write(rig.mount.join("new"), "new").unwrap();
    drop(open);
    let output = Command::new(env!("CARGO_BIN_EXE_acetate"))
        .arg("umount")
        .arg(rig.mount.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    wait_for_end(worker);
    assert_eq!(fs::read(rig.upper.join("new")).unwrap(), b"new");
}

#[test]
fn crashes_in_a_loop_end_in_a_read_only_mount() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    let rig = Rig::new("takeover-loop", LIMIT, |lower| {
        fs::write(lower.join("file"), "text").unwrap();
    });
    fs::write(rig.mount.join("new"), "new").unwrap();
    let mut open = File::options()
        .append(true)
        .open(rig.mount.join("file"))
        .unwrap();
    let mut last: Option<Pid> = None;
    for _ in 0..5 {
        let worker = rig.worker();
        assert_ne!(Some(worker), last);
        nix::sys::signal::kill(worker, Signal::SIGABRT).unwrap();
        wait_for_end(worker);
        last = Some(worker);
    }
    let refused = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    };
    refused(fs::create_dir(rig.mount.join("dir")));
    refused(fs::write(rig.mount.join("new"), "other"));
    refused(fs::remove_file(rig.mount.join("file")));
    refused(fs::rename(rig.mount.join("new"), rig.mount.join("old")));
    assert_eq!(fs::read(rig.mount.join("file")).unwrap(), b"text");
    assert_eq!(fs::read(rig.mount.join("new")).unwrap(), b"new");
    assert!(!rig.upper.join("dir").exists());
    let log = rig.mount.log();
    assert!(log.contains("read-only from now on"), "{log}");
    assert!(log.contains("SIGABRT"), "{log}");
    // Whether a descriptor from before is served by the kernel itself depends on the machine; it must not hang.
    append_if_it_may(&mut open);
    drop(open);
    let supervisor = rig.supervisor();
    assert!(worker_of(supervisor).is_some());
    rig.mount.unmount().unwrap();
}

/// The mount is there before its starter hears of it.
#[test]
fn a_death_while_the_mount_is_being_started_is_taken_over() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    for _ in 0..10 {
        let rig = Rig::new("takeover-start", LIMIT, |lower| {
            fs::write(lower.join("file"), "text").unwrap();
        });
        fs::write(rig.mount.join("new"), "new").unwrap();
        rig.end(Signal::SIGKILL);
        assert_eq!(fs::read(rig.mount.join("file")).unwrap(), b"text");
        assert_eq!(fs::read(rig.mount.join("new")).unwrap(), b"new");
        rig.mount.unmount().unwrap();
    }
}

#[test]
fn without_the_process_outside_a_daemon_is_taken_over() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    let rig = Rig::new("takeover-outside", LIMIT, |lower| {
        fs::write(lower.join("file"), "text").unwrap();
    });
    // Without the process outside the first daemon could not tell that the mount answers, and the mount would have failed.
    rig.end(Signal::SIGKILL);
    fs::write(rig.mount.join("before"), "before").unwrap();
    let outside = outside_of(rig.supervisor()).unwrap();
    nix::sys::signal::kill(outside, Signal::SIGKILL).unwrap();
    let begin = Instant::now();
    let is_dead = || {
        let stat = fs::read_to_string(format!("/proc/{outside}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
    };
    while !is_dead() {
        assert!(begin.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(1));
    }
    for round in 0..3 {
        fs::write(rig.mount.join("new"), format!("new {round}")).unwrap();
        rig.end(Signal::SIGKILL);
        assert_eq!(fs::read(rig.mount.join("file")).unwrap(), b"text");
        let new = fs::read_to_string(rig.mount.join("new")).unwrap();
        assert_eq!(new, format!("new {round}"));
    }
    let log = rig.mount.log();
    assert!(!log.contains("exit code"), "{log}");
    rig.mount.unmount().unwrap();
}

/// Where the kernel keeps what is written, a daemon that has it told something waits for requests that it answers itself: a
/// thread of one that is killed meanwhile ends when the next one has answered them.
#[test]
fn a_death_while_the_kernel_writes_back_is_taken_over() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    const KILLS: usize = 12;
    let rig = Rig::with_options("takeover-writeback", LIMIT, "passthrough=off", |_| {});
    let path = rig.mount.join("file");
    // CAP_NET_BIND_SERVICE, permitted and effective.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::create(&path).unwrap();
            let data = vec![b'x'; 1 << 20];
            while !stop.load(Ordering::Relaxed) {
                file.write_all_at(&data, 0).unwrap();
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(&path, "security.capability", &capability, flags).unwrap();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        for kill in 0..KILLS {
            let before = rounds.load(Ordering::Relaxed);
            let begin = Instant::now();
            while rounds.load(Ordering::Relaxed) == before && begin.elapsed() < LIMIT {
                thread::sleep(Duration::from_millis(1));
            }
            // At any moment of a round.
            thread::sleep(Duration::from_millis(3 * kill as u64));
            rig.end(Signal::SIGKILL);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read(&path).unwrap(), vec![b'x'; 1 << 20]);
    rig.mount.unmount().unwrap();
}

fn append_if_it_may(file: &mut File) {
    match file.write_all(b"!") {
        Ok(()) => {}
        Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EROFS)),
    }
}
