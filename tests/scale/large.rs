//! Many layers, many entries.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::stand::{Stand, end};
use crate::common::{Acetate, Mount, Watchdog, program, skip};
use crate::require;

fn layers(stand: &Stand, count: usize) -> Vec<PathBuf> {
    let layers: Vec<PathBuf> = (0..count)
        .map(|i| stand.scratch.dir(format!("l/{i}")))
        .collect();
    for (i, layer) in layers.iter().enumerate() {
        fs::create_dir_all(layer.join("usr/lib/deep")).unwrap();
        fs::write(layer.join(format!("usr/lib/deep/of{i}")), format!("{i}")).unwrap();
        fs::write(layer.join("usr/everywhere"), format!("{i}")).unwrap();
    }
    let bottom = layers.last().unwrap();
    for i in 0..2000 {
        fs::write(bottom.join(format!("usr/lib/bottom{i}")), "").unwrap();
    }
    layers
}

/// The time of looking up each of 2000 names of the bottom layer for the first time.
fn lookups(mount: &Mount) -> Duration {
    fs::read_dir(mount.join("usr/lib")).unwrap().count();
    let begin = Instant::now();
    for i in 0..2000 {
        fs::metadata(mount.join(format!("usr/lib/bottom{i}"))).unwrap();
    }
    begin.elapsed()
}

#[test]
fn five_hundred_lower_layers_mount_and_answer() {
    require!(skip::privileged());
    let _limit = Watchdog::new("500 layers", Duration::from_secs(120));
    let stand = Stand::new("layers");
    let layers = layers(&stand, 500);
    let on = |name: &str, layers: &[PathBuf]| {
        Acetate::new(stand.scratch.join(name))
            .lowers(layers)
            .upper(
                &stand.scratch.dir(format!("{name}-upper")),
                &stand.scratch.dir(format!("{name}-work")),
            )
            .mount()
    };

    let one = on("one", &layers[499..]);
    let judge = lookups(&one);
    end(one);

    let begin = Instant::now();
    let mount = on("all", &layers);
    let mounted = begin.elapsed();
    let ours = lookups(&mount);
    println!(
        "500 layers: mounted in {mounted:?}, 2000 first lookups {ours:?}, over one layer {judge:?}"
    );

    let names: BTreeSet<_> = fs::read_dir(mount.join("usr/lib/deep"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, (0..500).map(|i| format!("of{i}")).collect());
    for i in [0, 1, 250, 498, 499] {
        let text = fs::read_to_string(mount.join(format!("usr/lib/deep/of{i}"))).unwrap();
        assert_eq!(text, i.to_string());
    }
    assert_eq!(
        fs::read_to_string(mount.join("usr/everywhere")).unwrap(),
        "0"
    );
    fs::rename(mount.join("usr"), mount.join("moved")).unwrap();
    fs::remove_dir_all(mount.join("moved/lib")).unwrap();
    fs::write(mount.join("moved/everywhere"), "written").unwrap();
    end(mount);

    let mount = on("all", &layers);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(mount.join("moved")).unwrap().count(), 1);
    assert_eq!(
        fs::read_to_string(mount.join("moved/everywhere")).unwrap(),
        "written"
    );
    assert_eq!(
        fs::read_to_string(layers[0].join("usr/everywhere")).unwrap(),
        "0"
    );
    end(mount);
}

const ENTRIES: usize = 100_000;

#[test]
#[ignore = "heavy: makes 100,000 files"]
fn a_directory_of_100_000_entries_lists_completely_while_others_come_and_go() {
    require!(skip::privileged());
    require!(program::find("python3"));
    let _limit = Watchdog::new("100,000 entries", Duration::from_secs(240));
    let stand = Stand::new("entries");
    let dir = stand.scratch.dir("lower/large");
    for i in 0..ENTRIES {
        fs::write(dir.join(format!("entry-{i:06}")), "").unwrap();
    }
    let mount = stand.acetate("").mount();
    let large = mount.join("large");
    // Some of them are the upper's, and one is gone.
    for i in (0..ENTRIES).step_by(1000) {
        fs::write(large.join(format!("entry-{i:06}")), "upper").unwrap();
    }
    fs::remove_file(large.join("entry-000001")).unwrap();

    let stop = stand.scratch.join("stop");
    let mut other = Command::new("python3")
        .arg("-c")
        .arg(include_str!("churn.py"))
        .arg(&large)
        .arg(&stop)
        .spawn()
        .unwrap();
    let mut slowest = Duration::ZERO;
    let begin = Instant::now();
    let mut listings = 0;
    while listings < 5 || begin.elapsed() < Duration::from_secs(8) {
        let begin = Instant::now();
        let mut seen = vec![0u8; ENTRIES];
        for entry in fs::read_dir(&large).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            match name.strip_prefix("entry-") {
                Some(number) => seen[number.parse::<usize>().unwrap()] += 1,
                None => assert!(name.starts_with("churn-"), "{name}"),
            }
        }
        slowest = slowest.max(begin.elapsed());
        listings += 1;
        let wrong: Vec<_> = (0..ENTRIES)
            .filter(|&i| seen[i] != u8::from(i != 1))
            .take(10)
            .collect();
        assert!(
            wrong.is_empty(),
            "missing or twice in listing {listings}: {wrong:?}"
        );
        assert!(
            other.try_wait().unwrap().is_none(),
            "the other process died"
        );
    }
    fs::write(stop, "").unwrap();
    assert!(other.wait().unwrap().success());
    println!("100,000 entries: {listings} complete listings, the slowest took {slowest:?}");
    end(mount);
}
