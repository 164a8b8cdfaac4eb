//! 64 processes at once.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::stand::{Stand, end};
use crate::common::{Tree, TreeOptions, Watchdog, program, skip};
use crate::data::pattern;
use crate::require;

const PROCESSES: usize = 64;

/// A minute where there is time, `ACETATE_LONG=1`; less otherwise.
fn seconds() -> u64 {
    if std::env::var_os("ACETATE_LONG").is_some() {
        60
    } else {
        20
    }
}

fn work_at_once(options: &str) {
    require!(skip::privileged());
    require!(program::find("python3"));
    let seconds = seconds();
    let _limit = Watchdog::new("64 processes", Duration::from_secs(seconds + 120));
    let stand = Stand::new("at-once");
    for i in 0..200 {
        let dir = stand.lower.join(format!("shared/{}", i % 10));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file{i}")), pattern(i, 20_000)).unwrap();
    }
    for process in 0..PROCESSES {
        let dir = stand.lower.join(format!("own/{process}/sub"));
        fs::create_dir_all(&dir).unwrap();
        for i in 0..10 {
            fs::write(dir.join(format!("lower{i}")), format!("{process} {i}")).unwrap();
        }
    }
    let before = Tree::read(&stand.lower, TreeOptions::UNTOUCHED).unwrap();
    let mount = stand.acetate(options).mount();

    let mut processes: Vec<_> = (0..PROCESSES)
        .map(|process| {
            let log = stand.scratch.join(format!("worker{process}"));
            let out = fs::File::create(&log).unwrap();
            let child = Command::new("python3")
                .arg("-c")
                .arg(include_str!("worker.py"))
                .arg(mount.path())
                .args([process.to_string(), seconds.to_string()])
                .stdin(Stdio::null())
                .stdout(out.try_clone().unwrap())
                .stderr(out)
                .spawn()
                .unwrap();
            (child, log)
        })
        .collect();
    let mut operations = 0u64;
    let mut failed = Vec::new();
    for (child, log) in &mut processes {
        let status = child.wait().unwrap();
        let text = fs::read_to_string(log).unwrap();
        match text.trim().parse::<u64>() {
            Ok(count) if status.success() => operations += count,
            _ => failed.push(format!("{status}: {text}")),
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {PROCESSES}:\n{}",
        failed.len(),
        failed[0]
    );
    println!("64 processes {options}: {operations} rounds of operations in {seconds} s");
    end(mount);
    let after = Tree::read(&stand.lower, TreeOptions::UNTOUCHED).unwrap();
    before.assert_same(&after, "the lower layer");
    assert!(
        stand.left_in_work().is_empty(),
        "{:?}",
        stand.left_in_work()
    );
}

#[test]
#[ignore = "heavy: 64 processes for a while"]
fn sixty_four_processes_at_once_meet_no_error() {
    work_at_once("");
}

#[test]
#[ignore = "heavy: 64 processes for a while"]
fn sixty_four_processes_at_once_meet_no_error_without_passthrough() {
    work_at_once("passthrough=off");
}
