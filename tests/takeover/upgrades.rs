//! Mounts that go over to another program.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{Acetate, program, skip};
use crate::require;
use crate::rig::{Rig, worker_of};

const LIMIT: Duration = Duration::from_secs(180);

const ACETATE: &str = env!("CARGO_BIN_EXE_acetate");

/// This version, as it stands in the program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The same program as another build: its version has another last digit wherever it stands as a text. A compiler that optimises
/// makes some of so short a text part of an instruction, so that only what `--version` says is sure to be another.
fn another_build(scratch: &Path, digit: char) -> PathBuf {
    let mut version = VERSION.to_owned();
    assert!(version.pop().is_some_and(|last| last != digit));
    version.push(digit);
    let path = scratch.join(format!("acetate-{digit}"));
    let replaced = Command::new("sed")
        .env("LC_ALL", "C")
        .arg(format!("s/{}/{version}/g", VERSION.replace('.', r"\.")))
        .arg(ACETATE)
        .stdout(File::create(&path).unwrap())
        .status()
        .unwrap();
    assert!(replaced.success());
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let said = program::must(Command::new(&path).arg("--version"), LIMIT);
    assert_eq!(said.trim(), format!("acetate {version}"));
    path
}

fn script(path: &Path, text: &str) -> PathBuf {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    path.to_owned()
}

/// What `acetate upgrade` said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    lines: Vec<Value>,
}

fn upgrade(by: &Path, dir: &Path, more: &[&str]) -> Said {
    let mut command = Command::new(by);
    command.args(["upgrade", "--json"]).args(more).arg(dir);
    let done = program::run(&mut command, LIMIT);
    // An error may follow the list.
    let mut values = serde_json::Deserializer::from_str(&done.text).into_iter();
    let lines = values.next().and_then(Result::ok).unwrap_or_default();
    Said {
        code: done.code(),
        lines,
    }
}

/// What `acetate mounts` says of a mount.
fn record(dir: &Path) -> Value {
    let listed = program::must(Command::new(ACETATE).args(["mounts", "--json"]), LIMIT);
    let all: Vec<Value> = serde_json::from_str(&listed).unwrap();
    all.into_iter()
        .find(|one| one["mountpoint"].as_str() == dir.to_str())
        .unwrap()
}

fn served_by(dir: &Path) -> PathBuf {
    record(dir)["binary"].as_str().unwrap().into()
}

fn supervisor(dir: &Path) -> u32 {
    u32::try_from(record(dir)["pid"].as_u64().unwrap()).unwrap()
}

/// Why a mount did not go over.
#[track_caller]
fn refused(said: &Said) -> String {
    assert_eq!(said.code, Some(1), "{said:?}");
    said.lines[0]["error"].as_str().unwrap().to_owned()
}

fn with_a_file(name: &str) -> Rig {
    Rig::new(name, LIMIT, |lower| {
        fs::write(lower.join("file"), "text").unwrap();
    })
}

/// Dropped, also by a panic, it has the others stop.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nobody_notices_that_another_program_takes_over() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    let rig = with_a_file("upgrade-load");
    let builds = [
        another_build(rig.scratch.path(), '8'),
        another_build(rig.scratch.path(), '9'),
    ];
    let dir = rig.mount.path();
    let mut lower = File::open(dir.join("file")).unwrap();
    let mut nameless = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(dir.join("nameless"))
        .unwrap();
    nameless.write_all(b"a").unwrap();
    fs::remove_file(dir.join("nameless")).unwrap();
    assert_eq!(record(dir)["version"], VERSION);

    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let begin = Instant::now();
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) && begin.elapsed() < LIMIT {
                n += 1;
                let made = dir.join("made");
                fs::create_dir(&made).unwrap();
                fs::write(made.join("new"), n.to_string()).unwrap();
                fs::rename(made.join("new"), made.join("now")).unwrap();
                assert_eq!(fs::read_to_string(made.join("now")).unwrap(), n.to_string());
                // It has no name while another program takes over, now and then.
                let mut gone = File::options()
                    .read(true)
                    .write(true)
                    .open(made.join("now"))
                    .unwrap();
                fs::remove_file(made.join("now")).unwrap();
                gone.write_all(b"more than there was before").unwrap();
                gone.seek(SeekFrom::Start(0)).unwrap();
                let mut text = String::new();
                gone.read_to_string(&mut text).unwrap();
                assert_eq!(text, "more than there was before");
                fs::remove_dir(&made).unwrap();
                rounds.store(n, Ordering::Relaxed);
            }
        });
        let _stopped = Stop(&stop);
        for turn in 0..6 {
            let binary = &builds[turn % 2];
            let output = upgrade(binary, dir, &[]);
            assert_eq!(output.code, Some(0), "{output:?}: {}", rig.mount.log());
            let now = record(dir);
            assert_eq!(served_by(dir), *binary);
            assert_eq!(now["state"], "mounted");
            nameless.write_all(b"b").unwrap();
            if turn == 2 {
                // As ever, what is taken over can die.
                let worker = worker_of(supervisor(dir)).unwrap();
                kill(worker, Signal::SIGKILL).unwrap();
                // Who is asked to go over to another program meanwhile says that its daemon has just died.
                crate::rig::wait_for_end(worker);
            }
            let before = rounds.load(Ordering::Relaxed);
            let begin = Instant::now();
            while rounds.load(Ordering::Relaxed) == before && begin.elapsed() < LIMIT {
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let mut text = String::new();
    lower.read_to_string(&mut text).unwrap();
    assert_eq!(text, "text");
    text.clear();
    nameless.seek(SeekFrom::Start(0)).unwrap();
    nameless.read_to_string(&mut text).unwrap();
    assert_eq!(text, "abbbbbb");
    drop((lower, nameless));
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
    let upper = rig.upper.clone();
    rig.mount.unmount().unwrap();
    assert_eq!(fs::read_dir(upper).unwrap().count(), 0);
}

#[test]
fn a_program_that_cannot_is_found_out_before_anything_is_stopped() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    let rig = with_a_file("upgrade-refused");
    let dir = rig.mount.path().to_owned();
    let worker = rig.worker();
    let scratch = rig.scratch.path();
    let at = |name: &str| scratch.join(name);
    let other_form = format!(
        r#"for word; do
  case "$word" in
    --state=*) sed "1s/journal [0-9]*/journal 4711/" "/proc/self/fd/${{word#*=}}" > {0}/state; exec 9< {0}/state; set -- "$@" --state=9 ;;
    *) set -- "$@" "$word" ;;
  esac
  shift
done
exec {ACETATE} "$@""#,
        scratch.display()
    );
    fs::write(at("text"), "no program\n").unwrap();
    fs::set_permissions(at("text"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(at("plain"), "no program\n").unwrap();
    for (program, why) in [
        (script(&at("ends"), "exit 3"), "exit code 3"),
        (script(&at("crashes"), "kill -SEGV $$"), "SIGSEGV"),
        (script(&at("other-form"), &other_form), "journal 4711"),
        (at("text"), "Exec format error"),
        (at("plain"), "Permission denied"),
    ] {
        let output = upgrade(ACETATE.as_ref(), &dir, &["--to", program.to_str().unwrap()]);
        let said = refused(&output);
        assert!(said.contains(why), "{said}");
        assert_eq!(rig.worker(), worker, "{why}");
    }
    let output = upgrade(ACETATE.as_ref(), &dir, &["--to", "/nonexistent/acetate"]);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert_eq!(served_by(&dir), Path::new(ACETATE).canonicalize().unwrap());
    fs::write(dir.join("new"), "new").unwrap();
    rig.mount.unmount().unwrap();
}

/// It is convinced that it can, and fails then.
#[test]
fn a_program_that_fails_leaves_the_mount_to_the_one_before() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    let rig = with_a_file("upgrade-fails");
    let dir = rig.mount.path().to_owned();
    let before = rig.worker();
    let mut nameless = File::create_new(dir.join("nameless")).unwrap();
    fs::remove_file(dir.join("nameless")).unwrap();
    // What ends of itself, and what leaves processes behind.
    for (n, does) in ["exit 1", "sleep 1000 & kill -KILL $$"].iter().enumerate() {
        let text = format!(
            r#"case "$*" in *--rehearse*) exec {ACETATE} "$@" ;; esac
{does}"#
        );
        let program = script(&rig.scratch.join(format!("fails-{n}")), &text);
        let output = upgrade(ACETATE.as_ref(), &dir, &["--to", program.to_str().unwrap()]);
        let said = refused(&output);
        assert!(said.contains("did not serve the mount"), "{said}");
        assert_ne!(rig.worker(), before);
        assert_eq!(fs::read(dir.join("file")).unwrap(), b"text");
        nameless.write_all(b"more").unwrap();
        assert_eq!(supervisor(&dir), rig.supervisor());
    }
    assert_eq!(nameless.metadata().unwrap().len(), 8);
    drop(nameless);
    rig.mount.unmount().unwrap();
}

/// It serves the mount, and its workers crash again and again.
#[test]
fn a_program_that_crashes_is_gone_back_from() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    let rig = with_a_file("upgrade-crashes");
    let dir = rig.mount.path().to_owned();
    let own = Path::new(ACETATE).canonicalize().unwrap();
    let other = rig.scratch.join("other");
    fs::copy(ACETATE, &other).unwrap();
    let mut nameless = File::create_new(dir.join("nameless")).unwrap();
    fs::remove_file(dir.join("nameless")).unwrap();
    let output = upgrade(&other, &dir, &[]);
    assert_eq!(output.code, Some(0), "{output:?}");
    let went_over = supervisor(&dir);
    assert_eq!(served_by(&dir), other);
    // Made by the other program, and taken back from it.
    let mut later = File::create_new(dir.join("later")).unwrap();
    fs::remove_file(dir.join("later")).unwrap();
    let worker = worker_of(went_over).unwrap();
    kill(worker, Signal::SIGABRT).unwrap();
    nameless.write_all(b"one").unwrap();
    later.write_all(b"other").unwrap();
    let begin = Instant::now();
    while served_by(&dir) != own {
        assert!(begin.elapsed() < LIMIT, "{}", rig.mount.log());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(fs::read(dir.join("file")).unwrap(), b"text");
    assert_eq!(nameless.metadata().unwrap().len(), 3);
    assert_eq!(later.metadata().unwrap().len(), 5);
    let log = rig.mount.log();
    assert!(log.contains("takes the mount back"), "{log}");
    drop((nameless, later));
    rig.mount.unmount().unwrap();
}

#[test]
fn a_mount_without_a_supervisor_is_named() {
    require!(skip::privileged());
    let rig = with_a_file("upgrade-alone-beside");
    let dirs = [
        rig.scratch.dir("lower2"),
        rig.scratch.dir("upper2"),
        rig.scratch.dir("work2"),
    ];
    let mount = Acetate::new(rig.scratch.join("merged2"))
        .lowers(&[&dirs[0]])
        .upper(&dirs[1], &dirs[2])
        .options("supervise=off")
        .mount();
    let said = refused(&upgrade(ACETATE.as_ref(), mount.path(), &[]));
    assert!(said.contains("without a supervisor"), "{said}");
    // The other one goes over all the same.
    let output = upgrade(
        ACETATE.as_ref(),
        mount.path(),
        &[rig.mount.path().to_str().unwrap()],
    );
    assert_eq!(output.code, Some(1), "{output:?}");
    assert_eq!(output.lines[0]["error"], Value::Null, "{output:?}");
    assert!(output.lines[1]["error"].is_string(), "{output:?}");
    mount.unmount().unwrap();
    rig.mount.unmount().unwrap();
}

/// Who waits for a mount in the foreground waits on, and what is asked of it reaches the program that serves it.
#[test]
fn a_signal_to_the_first_process_ends_the_mount_of_the_last() {
    require!(skip::privileged());
    require!(skip::kernel_resends());
    let rig = with_a_file("upgrade-signal");
    let dir = rig.mount.path().to_owned();
    for _ in 0..2 {
        let output = upgrade(ACETATE.as_ref(), &dir, &[]);
        assert_eq!(output.code, Some(0), "{output:?}");
    }
    assert_ne!(supervisor(&dir), rig.supervisor());
    let first = Pid::from_raw(i32::try_from(rig.supervisor()).unwrap());
    // The first unmounts; where something is in use just then, the next one detaches.
    crate::rig::end_child(first, || kill(first, Signal::SIGTERM).unwrap());
    assert!(fs::read_dir(&dir).unwrap().next().is_none());
}
