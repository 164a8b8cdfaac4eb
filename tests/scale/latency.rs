//! While a large file is copied up, everything else goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::stand::{Stand, end};
use crate::common::{Watchdog, skip};
use crate::data::large_file;
use crate::require;

const FILES: usize = 30_000;
const KINDS: [&str; 3] = ["stat", "create", "read"];

/// 4 GiB where there is time and room, `ACETATE_LONG=1`; less otherwise.
fn size() -> u64 {
    if std::env::var_os("ACETATE_LONG").is_some() {
        4 << 30
    } else {
        1 << 30
    }
}

/// Latencies by kind of operation.
type Latencies = [Vec<Duration>; 3];

/// Names never looked up before, new files, and files never opened before, until `stop`.
fn work(root: &Path, first: &mut usize, stop: &dyn Fn() -> bool) -> Latencies {
    let mut latencies = Latencies::default();
    while !stop() && *first + 1 < FILES {
        let looked_up = root.join(format!("small/{}", *first));
        let opened = root.join(format!("small/{}", *first + 1));
        let created = root.join(format!("new/{}", *first));
        let mut text = String::new();
        let mut time = |kind: usize, operation: &mut dyn FnMut()| {
            let begin = Instant::now();
            operation();
            latencies[kind].push(begin.elapsed());
        };
        time(0, &mut || {
            fs::metadata(&looked_up).unwrap();
        });
        time(1, &mut || drop(File::create_new(&created).unwrap()));
        time(2, &mut || {
            File::open(&opened)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
        });
        assert_eq!(text, format!("{}", *first + 1));
        *first += 2;
    }
    latencies
}

fn show(name: &str, latencies: &mut Latencies) -> Duration {
    let mut worst = Duration::ZERO;
    for (kind, all) in KINDS.iter().zip(latencies) {
        assert!(
            all.len() > 20,
            "{name} {kind}: only {} operations",
            all.len()
        );
        all.sort();
        let at = |percent: usize| all[(all.len() - 1) * percent / 100];
        let max = all[all.len() - 1];
        println!(
            "{name:>14} {kind:>6}: {:>6} operations, p50 {:>9.1?} p99 {:>9.1?} max {max:>9.1?}",
            all.len(),
            at(50),
            at(99)
        );
        worst = worst.max(max);
    }
    worst
}

#[test]
#[ignore = "heavy: copies a large file"]
fn a_large_copy_up_stalls_nothing_else() {
    require!(skip::privileged());
    let _limit = Watchdog::new("latency", Duration::from_secs(400));
    let stand = Stand::new("latency");
    let size = size();
    large_file(&stand.lower.join("large"), size);
    for dir in ["small", "new"] {
        fs::create_dir(stand.lower.join(dir)).unwrap();
    }
    for i in 0..FILES {
        fs::write(stand.lower.join(format!("small/{i}")), i.to_string()).unwrap();
    }
    let mount = stand.acetate("partial=off").mount();
    let root = mount.path();
    let mut first = 0;

    let begin = Instant::now();
    let mut idle = work(root, &mut first, &|| {
        begin.elapsed() > Duration::from_secs(1)
    });

    let done = AtomicBool::new(false);
    let (copying, copied, mut busy) = std::thread::scope(|scope| {
        let copy = scope.spawn(|| {
            let begin = Instant::now();
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(root.join("large"))
                .unwrap();
            file.seek(SeekFrom::Start(4096)).unwrap();
            file.write_all(b"written").unwrap();
            let copying = begin.elapsed();
            done.store(true, Ordering::Release);
            (copying, file)
        });
        let busy = work(root, &mut first, &|| done.load(Ordering::Acquire));
        let (copying, file) = copy.join().unwrap();
        (copying, file, busy)
    });
    println!("copy-up of {} MiB: {copying:?}", size >> 20);
    show("idle", &mut idle);
    let worst = show("while copying", &mut busy);
    // Not the bar for speed: a lock that is held across the copy makes an operation wait for all of it.
    assert!(
        worst < copying / 2,
        "an operation took {worst:?} of the {copying:?} that the copy took"
    );

    drop(copied);
    assert_eq!(fs::metadata(stand.upper.join("large")).unwrap().len(), size);
    let same = |offset: u64| {
        let read = |path: &Path| {
            let mut file = File::open(path).unwrap();
            let mut block = vec![0; 4096];
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.read_exact(&mut block).unwrap();
            block
        };
        read(&stand.lower.join("large")) == read(&root.join("large"))
    };
    assert!(same(0) && same(size / 2) && same(size - 4096) && !same(4096));
    end(mount);
}
