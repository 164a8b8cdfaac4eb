//! `acetate bench`: small runs of each, what they leave behind, and what they refuse.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Scratch, Watchdog, connection, program, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn bench(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_acetate"));
    command.arg("bench").args(words).env("TMPDIR", dir);
    command
}

/// Nothing is left: no file, no mount, no loop device of a file in there.
#[track_caller]
fn assert_clean(dir: &Path) {
    let left: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    let mounts: Vec<_> = connection::mounts()
        .into_iter()
        .filter(|m| m.target.starts_with(dir))
        .collect();
    assert!(mounts.is_empty(), "left mounted: {mounts:?}");
    for device in fs::read_dir("/sys/block").unwrap() {
        let file = device.unwrap().path().join("loop/backing_file");
        let Ok(backing) = fs::read_to_string(&file) else {
            continue;
        };
        assert!(
            !Path::new(backing.trim()).starts_with(dir),
            "left attached: {backing}"
        );
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.lines().find(|l| l.starts_with('{')).unwrap()).unwrap()
}

/// Standard output alone: notes go elsewhere.
fn output(command: &mut Command, limit: Duration) -> String {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let begin = Instant::now();
    let mut out = child.stdout.take().unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    let (done, end) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if end
            .recv_timeout(limit)
            .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            kill(pid, Signal::SIGTERM).unwrap();
        }
    });
    out.read_to_string(&mut text).unwrap();
    let status = child.wait().unwrap();
    drop(done);
    watch.join().unwrap();
    assert!(
        status.success(),
        "{command:?}: {status} after {:?}",
        begin.elapsed()
    );
    text
}

#[test]
fn copy_up_tells_what_each_system_writes() {
    require!(skip::privileged());
    let _limit = Watchdog::new("bench copy-up", Duration::from_secs(120));
    let scratch = Scratch::new("bench");
    let work = scratch.dir("work");
    let page = scratch.join("page.html");
    let words = [
        "copy-up",
        "--quick",
        "--max-size",
        "1M",
        "--rounds",
        "1",
        "--json",
    ];
    let only = [
        "--only", "kernel", "--only", "acetate", "--only", "reflink", "--html",
    ];
    let mut command = bench(&work, &words);
    let report = json(&output(
        command.args(only).arg(&page),
        Duration::from_secs(90),
    ));
    assert_clean(&work);
    assert_eq!(report["benchmark"], "copy-up");
    assert!(report["machine"]["kernel"].as_str().unwrap().contains('.'));
    let systems = report["systems"].as_array().unwrap();
    let number = |name: &str| systems.iter().position(|s| s["name"] == name).unwrap();
    let cases = report["cases"].as_array().unwrap();
    let largest = cases
        .iter()
        .position(|c| c["change"] == "block" && c["size"] == 1 << 20)
        .unwrap();
    let cell = |system: &str| {
        let cells = report["cells"].as_array().unwrap();
        let is = |c: &&Value| c["case"] == largest && c["system"] == number(system);
        cells.iter().find(is).unwrap().clone()
    };
    // The kernel copies all of it, a clone shares it: the counters see both.
    let kernel = cell("kernel");
    assert!(kernel["latency"]["p50_us"].as_f64().unwrap() > 0.0);
    assert!(kernel["written"].as_u64().unwrap() >= 1 << 20, "{kernel}");
    let reflink = cell("reflink");
    assert!(
        reflink["written"].as_u64().unwrap() < 256 << 10,
        "{reflink}"
    );
    assert!(cell("acetate")["latency"]["samples"].as_u64().unwrap() > 0);
    let stalls = report["stalls"].as_array().unwrap();
    assert!(stalls.iter().any(|s| s["system"] == number("kernel")));
    let html = fs::read_to_string(page).unwrap();
    assert!(html.starts_with("<!DOCTYPE html>") && html.contains("<svg"));
    for part in ["http://", "https://", "<script", "NaN"] {
        assert!(!html.contains(part), "{part} on the page");
    }
}

#[test]
fn rivals_count_what_the_daemon_is_asked() {
    require!(skip::privileged());
    let _limit = Watchdog::new("bench rivals", Duration::from_secs(120));
    let scratch = Scratch::new("bench");
    let work = scratch.dir("work");
    let layer = scratch.dir("layer");
    for i in 0..300 {
        let dir = layer.join(format!("d{}", i % 6));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{i}")), "some text\n").unwrap();
    }
    // A whiteout in the place of a directory, as images have them: a copy of the trees one over the other cannot be made.
    let top = scratch.dir("top");
    let mut mknod = Command::new("mknod");
    mknod.arg(top.join("d5")).args(["c", "0", "0"]);
    program::must(&mut mknod, Duration::from_secs(10));
    let words = [
        "rivals", "--quick", "--rounds", "1", "--json", "--work", "walk", "--work", "mv of",
        "--only", "kernel", "--only", "acetate", "--only", "plain", "--layers",
    ];
    let table = scratch.join("table.md");
    let mut command = bench(&work, &words);
    let text = output(
        command.args([&top, &layer]).arg("--markdown").arg(&table),
        Duration::from_secs(90),
    );
    let report = json(&text);
    assert_clean(&work);
    assert_eq!(report["benchmark"], "rivals");
    // The figures of a run can be shown again without it.
    let kept = scratch.join("report.json");
    fs::write(&kept, &text).unwrap();
    let again = scratch.join("again.md");
    let mut command = bench(&work, &["rivals", "--from"]);
    command.arg(&kept).arg("--markdown").arg(&again);
    output(&mut command, Duration::from_secs(30));
    let table = fs::read_to_string(table).unwrap();
    assert_eq!(table, fs::read_to_string(again).unwrap());
    let row = table
        .lines()
        .find(|line| line.starts_with("| walk, fresh mount |"))
        .unwrap();
    let head = table.lines().next().unwrap();
    assert_eq!(
        row.matches('|').count(),
        head.matches('|').count(),
        "{table}"
    );
    assert_eq!(report["entries"], 255);
    let systems = report["systems"].as_array().unwrap();
    let number = |name: &str| systems.iter().position(|s| s["name"] == name).unwrap();
    assert_eq!(report["base"], number("kernel"));
    let workloads = report["workloads"].as_array().unwrap();
    let walk = workloads
        .iter()
        .position(|w| w["name"] == "walk, fresh mount")
        .unwrap();
    let cells = report["cells"].as_array().unwrap();
    let of = |system: &str| {
        let is = |c: &&Value| c["workload"] == walk && c["system"] == number(system);
        cells.iter().find(is).unwrap().clone()
    };
    assert_eq!(of("kernel")["ratio"], 1.0);
    let acetate = of("acetate");
    assert_eq!(acetate["operations"], 255);
    assert_eq!(of("plain directory")["operations"], 255);
    let requests = &acetate["daemon"]["requests"];
    assert!(
        requests["readdirplus"].as_u64().unwrap_or(0) + requests["lookup"].as_u64().unwrap_or(0)
            > 0,
        "{requests}"
    );
    assert!(cells.iter().all(|c| c["failed"].is_null()), "{cells:?}");
    assert!(report["means"][number("acetate")]["all"].as_f64().unwrap() > 0.0);
    // The layer was not touched.
    assert_eq!(fs::read_dir(&layer).unwrap().count(), 6);
}

#[test]
fn growth_has_a_figure_for_each_number() {
    require!(skip::privileged());
    let _limit = Watchdog::new("bench growth", Duration::from_secs(180));
    let scratch = Scratch::new("bench");
    let work = scratch.dir("work");
    let page = scratch.join("page.html");
    let words = [
        "growth", "--quick", "--rounds", "1", "--json", "--what", "layers", "--what", "mounts",
        "--only", "kernel", "--only", "acetate", "--html",
    ];
    let mut command = bench(&work, &words);
    let report = json(&output(command.arg(&page), Duration::from_secs(150)));
    assert_clean(&work);
    assert_eq!(report["benchmark"], "growth");
    let systems = report["systems"].as_array().unwrap();
    let points = report["points"].as_array().unwrap();
    for (axis, number) in [("layers", 1), ("layers", 10), ("mounts", 1), ("mounts", 10)] {
        for (i, system) in systems.iter().enumerate() {
            let is = |p: &&Value| p["axis"] == axis && p["number"] == number && p["system"] == i;
            let point = points.iter().find(is).unwrap();
            assert!(point["failed"].is_null(), "{point}");
            for figure in ["mount_us", "lookup_us", "missing_us"] {
                assert!(point[figure].as_f64().unwrap() > 0.0, "{figure}: {point}");
            }
            let daemon = system["name"] == "acetate";
            for figure in ["memory", "idle_memory"] {
                assert_eq!(point[figure].is_u64(), daemon, "{figure}: {point}");
            }
            for figure in ["mount_cpu_us", "lookup_cpu_us", "lookup_requests"] {
                assert_eq!(point[figure].is_f64(), daemon, "{figure}: {point}");
                assert!(
                    !daemon || point[figure].as_f64().unwrap() > 0.0,
                    "{figure}: {point}"
                );
            }
        }
    }
    assert!(fs::read_to_string(page).unwrap().contains("</svg>"));
}

#[test]
fn a_signal_leaves_nothing_behind() {
    require!(skip::privileged());
    let _limit = Watchdog::new("bench signal", Duration::from_secs(120));
    let scratch = Scratch::new("bench");
    let work = scratch.dir("work");
    // Early: while filesystems are made; later: while systems are mounted.
    for (what, wait) in [
        ("copy-up", "disk-ext4"),
        ("rivals", "disk-ext4/private/merged"),
    ] {
        let mut child = bench(&work, &[what, "--quick", "--rounds", "9"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        let there = || {
            let dirs = fs::read_dir(&work).unwrap();
            dirs.flatten().any(|dir| dir.path().join(wait).is_dir())
        };
        while !there() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{what} does not begin"
            );
            assert!(child.try_wait().unwrap().is_none(), "{what} ends at once");
            std::thread::sleep(Duration::from_millis(2));
        }
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(130), "{what}");
        // A daemon lets go of its loop device when its mount is gone.
        let begin = Instant::now();
        let attached = || {
            let text = Command::new("losetup")
                .arg("--all")
                .output()
                .unwrap()
                .stdout;
            String::from_utf8_lossy(&text).contains(work.to_str().unwrap())
        };
        while attached() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_clean(&work);
    }
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    let scratch = Scratch::new("bench");
    let work = scratch.dir("work");
    for (words, part) in [
        (vec![], "command"),
        (vec!["copy-up", "--max-size", "0"], "a size"),
        (
            vec!["copy-up", "--max-size", "1M", "--rounds", "0"],
            "--rounds",
        ),
        (vec!["copy-up", "--max-size", "900G"], "free space"),
        (vec!["copy-up", "--only", "nobody"], "nobody"),
        (vec!["copy-up", "--rival", "/nowhere/x"], "/nowhere/x"),
        (
            vec!["copy-up", "--html", "/nowhere/x.html"],
            "/nowhere/x.html",
        ),
        (vec!["copy-up", "--dir", "/nowhere"], "/nowhere"),
        (vec!["copy-up", "--trace"], "--image"),
        (vec!["copy-up", "--image", "x"], "--trace"),
        (vec!["rivals", "--layers", "/nowhere"], "/nowhere"),
        (vec!["rivals", "--rounds", "0"], "--rounds"),
        (vec!["rivals", "--limit", "0"], "--limit"),
        (vec!["rivals", "--from", "/nowhere"], "/nowhere"),
        (vec!["rivals", "--from", "/dev/null"], "/dev/null"),
        (vec!["rivals", "--markdown", "/nowhere/x"], "/nowhere/x"),
        (vec!["growth", "--rounds", "0"], "--rounds"),
        (vec!["growth", "--max-files", "10"], "--max-files"),
        (vec!["growth", "--what", "hair"], "layers"),
        (vec!["copy-up", "--change", "nothing like it"], "nothing"),
        (
            vec!["rivals", "--layers", "/tmp", "--image", "x"],
            "--image",
        ),
        (
            vec!["rivals", "--work", "nothing like it", "--only", "acetate"],
            "nothing like it",
        ),
    ] {
        if part == "nothing like it" && skip::privileged().is_err() {
            continue;
        }
        let finished = program::run(&mut bench(&work, &words), Duration::from_secs(60));
        assert!(!finished.success(), "{words:?}");
        assert!(finished.text.contains(part), "{words:?}: {}", finished.text);
        assert_clean(&work);
    }
}

#[test]
fn a_trace_names_the_files_and_the_reason() {
    require!(skip::privileged());
    require!(skip::program("busybox"));
    let _limit = Watchdog::new("bench trace", Duration::from_secs(60));
    let scratch = Scratch::new("bench");
    let work = scratch.dir("work");
    let layer = scratch.dir("rootfs");
    for dir in ["bin", "var/log", "srv", "proc", "dev"] {
        fs::create_dir_all(layer.join(dir)).unwrap();
    }
    fs::copy(program::find("busybox").unwrap(), layer.join("bin/sh")).unwrap();
    fs::write(layer.join("var/log/app.log"), "old line\n").unwrap();
    fs::write(layer.join("srv/data"), vec![1; 3 << 20]).unwrap();
    fs::write(layer.join("srv/other"), "other\n").unwrap();
    let tar = scratch.join("rootfs.tar");
    let tar_up = Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&layer)
        .arg(".")
        .status();
    assert!(tar_up.unwrap().success());
    let store = scratch.join("store");
    let acetate = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_acetate"));
        command.env("ACETATE_ROOT", &store).env("TMPDIR", &work);
        command
    };
    let limit = Duration::from_secs(30);
    program::must(acetate().args(["import"]).arg(&tar).arg("traced:1"), limit);
    let script = "echo new >> /var/log/app.log; printf x | dd of=/srv/data conv=notrunc bs=1 seek=9 2>/dev/null; echo fresh > /srv/fresh";
    let page = scratch.join("trace.html");
    let words = [
        "bench", "copy-up", "--image", "traced:1", "--trace", "--json", "--html",
    ];
    let mut command = acetate();
    command.args(words).arg(&page);
    let command = command.args(["--", "/bin/sh", "-c", script]);
    let report = json(&output(command, limit));
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("/var/log/app.log"), "{html}");
    assert_clean(&work);
    let files = report["files"].as_array().unwrap();
    let of = |path: &str| files.iter().find(|f| f["path"] == path);
    let data = of("/srv/data").unwrap();
    assert_eq!(data["reason"], "open for writing");
    assert_eq!(data["size"], 3 << 20, "{data}");
    // One byte was changed, and the rest of its block was copied; the host's filesystem may share the whole instead.
    let copied = data["bytes"].as_u64().unwrap();
    assert!([0, 4095].contains(&copied), "{data}");
    let log = of("/var/log/app.log").unwrap();
    assert_eq!(log["bytes"], 9, "{log}");
    assert!(log["advice"].as_str().unwrap().contains("log"), "{log}");
    assert!(
        of("/srv/other").is_none() && of("/srv/fresh").is_none(),
        "{files:?}"
    );
    assert!(!report["advice"].as_array().unwrap().is_empty());
    let words = [
        "bench", "copy-up", "--image", "traced:1", "--trace", "--", "/bin/sh", "-c", "exit 3",
    ];
    let finished = program::run(acetate().args(words), limit);
    assert_eq!(finished.code(), Some(1));
    assert!(
        finished.text.contains("exit status: 3"),
        "{}",
        finished.text
    );
    assert_clean(&work);
}

#[test]
fn a_user_who_may_not_write_the_table_learns_it_before_the_work() {
    require!(skip::privileged());
    let _limit = Watchdog::new("bench of a user", Duration::from_secs(120));
    let scratch = Scratch::new("bench");
    let work = scratch.dir("work");
    std::os::unix::fs::chown(&work, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Root's: the user may look into it, and nothing else.
    let table = scratch.dir("roots").join("table.md");
    for option in ["--markdown", "--html"] {
        let words = [
            "rivals", "--quick", "--rounds", "1", "--user", "65534", option,
        ];
        let mut command = bench(&work, &words);
        let finished = program::run(command.arg(&table), Duration::from_secs(100));
        assert!(!finished.success(), "{}", finished.text);
        let text = &finished.text;
        assert!(
            text.contains("cannot write") && text.contains("table.md"),
            "{text}"
        );
        assert!(!text.contains("making what the work needs"), "{text}");
        assert!(!table.exists());
        assert_clean(&work);
    }
}

#[test]
#[ignore = "heavy: opens the pages in a browser"]
fn the_pages_open_in_a_browser_without_an_error() {
    require!(skip::privileged());
    require!(skip::program("chromium"));
    let _limit = Watchdog::new("bench pages", Duration::from_secs(240));
    let scratch = Scratch::new("bench");
    let work = scratch.dir("work");
    for (what, words) in [
        (
            "copy-up",
            vec!["--quick", "--max-size", "256K", "--rounds", "1"],
        ),
        (
            "rivals",
            vec![
                "--quick", "--rounds", "1", "--work", "walk", "--work", "random",
            ],
        ),
        (
            "growth",
            vec!["--quick", "--rounds", "1", "--max-files", "10000"],
        ),
    ] {
        let page = scratch.join(format!("{what}.html"));
        let mut command = bench(&work, &[what]);
        output(
            command.args(words).arg("--html").arg(&page),
            Duration::from_secs(120),
        );
        let mut browser = Command::new("chromium");
        browser
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ])
            .args([
                "--enable-logging=stderr",
                "--window-size=1180,2400",
                "--dump-dom",
            ])
            .arg(format!(
                "--user-data-dir={}",
                scratch.join("profile").display()
            ))
            .arg(format!("file://{}", page.display()));
        let dom = program::must(&mut browser, Duration::from_secs(60));
        assert!(
            !dom.contains("CONSOLE"),
            "{what}: the console has something to say:\n{dom}"
        );
        assert!(dom.contains("</svg>"), "{what}: no plot");
    }
}
