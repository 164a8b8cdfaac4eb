//! A hundred containers of one image at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::daemon::worker_of;
use crate::require;
use crate::rig::{LIMIT, Rig, able};

fn kib(text: &str, field: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .map_or(0, |number| number.parse().unwrap())
}

/// The digests of all files of the layers.
fn layers(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut command = std::process::Command::new("sh");
    command
        .args([
            "-c",
            "find layers -type f -print0 | sort -z | xargs -0 sha256sum",
        ])
        .current_dir(root);
    crate::common::program::must(&mut command, LIMIT)
        .lines()
        .map(|line| {
            let (digest, path) = line.split_once("  ").unwrap();
            (path.into(), digest.to_owned())
        })
        .collect()
}

/// How much of a file is in memory for a process that runs it, and the process's share of that, in KiB.
fn mapped(pid: i64, file: &str) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut rss, mut pss, mut of_file) = (0, 0, false);
    for line in text.lines() {
        if line
            .split(' ')
            .next()
            .is_some_and(|range| range.contains('-'))
        {
            of_file = line.ends_with(file) && line.contains(" r-xp ");
        } else if of_file {
            rss += kib(line, "Rss:");
            pss += kib(line, "Pss:");
        }
    }
    (rss, pss)
}

#[test]
#[ignore = "takes a minute"]
fn a_hundred_run_on_one_base_and_leave_it_as_it_was() {
    require!(able());
    let count = 100;
    let rig = Rig::new("many");
    let before = layers(&rig.root);
    let cached = || kib(&fs::read_to_string("/proc/meminfo").unwrap(), "Cached:");
    let first = cached();
    for n in 0..count {
        let script = format!("echo {n} > /data/mine; cat /bin/busybox > /dev/null; sleep 1000");
        rig.must(&[
            "run",
            "-d",
            "--name",
            &format!("h{n}"),
            "bb",
            "sh",
            "-c",
            &script,
        ]);
    }
    assert_eq!(rig.must(&["ps", "-q"]).lines().count(), count);
    for n in [0, count / 2, count - 1] {
        let said = rig.must(&["exec", &format!("h{n}"), "cat", "/data/mine"]);
        assert_eq!(said, format!("{n}\n"));
    }
    let mounts: serde_json::Value = serde_json::from_str(&rig.must(&["mounts", "--json"])).unwrap();
    let mut daemons = Vec::new();
    for mount in mounts.as_array().unwrap() {
        if Path::new(mount["mountpoint"].as_str().unwrap()).starts_with(&rig.root) {
            let pid = u32::try_from(mount["pid"].as_u64().unwrap()).unwrap();
            let mut sum = (0, 0, 0);
            // The supervisor, and the one that it has serve the mount.
            for pid in [Some(pid), worker_of(pid)].into_iter().flatten() {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
                sum.0 += kib(&status, "VmRSS:");
                sum.1 += kib(&status, "RssAnon:");
                sum.2 += kib(&rollup, "Pss:");
            }
            daemons.push(sum);
        }
    }
    assert_eq!(daemons.len(), count);
    let most = daemons.iter().map(|(rss, ..)| *rss).max().unwrap();
    let own = daemons.iter().map(|(_, own, _)| own).sum::<u64>() / count as u64;
    let share = daemons.iter().map(|(_, _, share)| share).sum::<u64>() / count as u64;
    let program = rig.inspect(&format!("h{}", count / 2))["State"]["Pid"].as_i64();
    let (rss, pss) = mapped(program.unwrap(), "/bin/busybox");
    let busybox = fs::metadata(rig.scratch.join("tree/bin/busybox"))
        .unwrap()
        .len()
        / 1024;
    println!(
        "{count} containers: a daemon has at most {most} KiB resident, {own} KiB of its own, {share} KiB with its share of what others have too; the page cache grew by {} KiB, busybox is {busybox} KiB, of which {rss} KiB are mapped in each, a share of {pss} KiB",
        cached().saturating_sub(first)
    );
    assert!(own < 10 << 10 && share < 10 << 10, "{own} KiB, {share} KiB");
    // The same pages in all of them: with a copy each, the share would be the whole.
    assert!(rss > 0 && pss * 10 < rss, "{rss} KiB, {pss} KiB");
    let names: Vec<String> = (0..count).map(|n| format!("h{n}")).collect();
    let mut words = vec!["rm", "--force"];
    words.extend(names.iter().map(String::as_str));
    let removed = crate::common::program::run(&mut rig.command(&words), LIMIT * 2);
    assert!(removed.success(), "{}", removed.text);
    rig.nothing_is_left();
    assert_eq!(layers(&rig.root), before);
}
