//! What the first write costs, and what completing costs the others.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::stand::{Stand, end};
use crate::common::{Overlay, Watchdog, program, skip};
use crate::require;
use crate::rig::{MIB, complete, mark, pattern, stat};

/// An ext4 whose journal lies on another device, so that what is written to the one is what stays.
struct Disks {
    dir: PathBuf,
    data: String,
    journal: String,
}

impl Disks {
    fn new(stand: &Stand) -> Result<Disks, String> {
        for name in ["mkfs.ext4", "losetup", "mke2fs"] {
            skip::program(name)?;
        }
        let limit = Duration::from_secs(30);
        let sh = |line: String| {
            let line = format!("PATH=$PATH:/usr/sbin:/sbin; {line}");
            let done = program::run(Command::new("sh").arg("-c").arg(line), limit);
            if done.success() {
                Ok(done.text.trim().to_owned())
            } else {
                Err(done.text)
            }
        };
        let attach = |name: &str, size: u64| {
            let path = stand.scratch.join(name);
            File::create(&path).unwrap().set_len(size).unwrap();
            sh(format!("losetup -f --show {}", path.display()))
        };
        let data = attach("data", 4 << 30)?;
        let journal = attach("journal", 256 << 20)?;
        let disks = Disks {
            dir: stand.scratch.dir("disk"),
            data,
            journal,
        };
        sh(format!(
            "mke2fs -q -b 4096 -O journal_dev {}",
            disks.journal
        ))?;
        sh(format!(
            "mkfs.ext4 -q -b 4096 -E lazy_itable_init=0 -J device={} {}",
            disks.journal, disks.data
        ))?;
        sh(format!(
            "mount -t ext4 {} {}",
            disks.data,
            disks.dir.display()
        ))?;
        Ok(disks)
    }

    /// Bytes written to the data and to the journal so far.
    fn written(&self) -> [u64; 2] {
        [&self.data, &self.journal].map(|device| {
            let name = Path::new(device).file_name().unwrap();
            let path = Path::new("/sys/block").join(name).join("stat");
            let text = fs::read_to_string(path).unwrap();
            text.split_whitespace()
                .nth(6)
                .unwrap()
                .parse::<u64>()
                .unwrap()
                * 512
        })
    }

    fn sync(&self) {
        rustix::fs::syncfs(File::open(&self.dir).unwrap()).unwrap();
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        if let Err(e) = nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("umount {}: {e}", self.dir.display());
        }
        for device in [&self.data, &self.journal] {
            let done = program::run(
                Command::new("sh")
                    .arg("-c")
                    .arg(format!("PATH=$PATH:/usr/sbin:/sbin; losetup -d {device}")),
                Duration::from_secs(10),
            );
            if !done.success() {
                eprintln!("losetup -d {device}: {}", done.text);
            }
        }
    }
}

const TRIES: usize = 9;

#[test]
fn the_first_write_into_a_large_file_costs_a_few_blocks() {
    require!(skip::privileged());
    let _limit = Watchdog::new("first write", Duration::from_secs(120));
    let mut stand = Stand::new("first-write");
    let disks = match Disks::new(&stand) {
        Ok(disks) => disks,
        Err(reason) => crate::skip!("{reason}"),
    };
    stand.put_on(&disks.dir);
    let (ku, kw) = (disks.dir.join("ku"), disks.dir.join("kw"));
    for dir in [&ku, &kw] {
        fs::create_dir(dir).unwrap();
    }
    let place = |size: u64| size / 2 + 12_288;
    for (name, size) in [("1", 1 << 30), ("10", 10 << 30)] {
        for number in 0..=TRIES {
            let file = File::create(stand.lower.join(format!("{name}-{number}"))).unwrap();
            // Sparse, but with data around the place.
            file.write_all_at(&pattern(number as u64, MIB), size / 2)
                .unwrap();
            file.set_len(size).unwrap();
        }
    }
    disks.sync();
    let mount = stand.acetate("complete=off").mount();
    let kernel_dir = stand.scratch.dir("kernel");
    let kernel = Overlay::mount(&kernel_dir, &[&stand.lower], Some((&ku, &kw)), "").unwrap();
    let first = |root: &Path, name: &str, size: u64| {
        let begin = Instant::now();
        let file = OpenOptions::new()
            .write(true)
            .open(root.join(name))
            .unwrap();
        file.write_all_at(&[9; 4096], place(size)).unwrap();
        (begin.elapsed(), file)
    };
    for (name, size) in [("1", 1_u64 << 30), ("10", 10 << 30)] {
        let mut times = Vec::new();
        let mut data = Vec::new();
        for number in 0..TRIES {
            disks.sync();
            let before = disks.written();
            let (took, file) = first(mount.path(), &format!("{name}-{number}"), size);
            file.sync_all().unwrap();
            drop(file);
            disks.sync();
            let after = disks.written();
            times.push(took);
            data.push((after[0] - before[0], after[1] - before[1]));
        }
        times.sort();
        data.sort();
        disks.sync();
        let before = disks.written();
        let (theirs, file) = first(kernel.path(), &format!("{name}-{TRIES}"), size);
        file.sync_all().unwrap();
        disks.sync();
        let kernel_data = disks.written()[0] - before[0];
        let (median, written) = (times[TRIES / 2], data[TRIES / 2]);
        println!(
            "{name} GiB: open and first 4 KiB {:?} to {median:?} (median) to {:?}; {} bytes to the disk, {} to its \
             journal; kernel overlayfs: {theirs:?}, {kernel_data} bytes of the 1 MiB that is there",
            times[0],
            times[TRIES - 1],
            written.0,
            written.1
        );
        // Times are told, not judged: the machine may be doing something else. What is written is judged.
        assert!(written.0 <= 64 << 10, "{data:?}");
    }
    kernel.unmount().unwrap();
    assert_eq!(stat(mount.path(), "partial_files"), 2 * TRIES as u64);
    // Holes of the lower are none of the work.
    complete(mount.path());
    let file = File::open(mount.join("10-0")).unwrap();
    let mut block = [0; 8192];
    file.read_exact_at(&mut block, place(10 << 30)).unwrap();
    assert_eq!(block[..4096], [9; 4096]);
    assert_eq!(block[4096..], pattern(0, MIB)[12_288 + 4096..][..4096]);
    drop(file);
    end(mount);
}

#[test]
fn a_change_of_attributes_of_a_large_file_copies_none_of_it() {
    require!(skip::privileged());
    require!(skip::program("setfacl"));
    let _limit = Watchdog::new("attributes", Duration::from_secs(60));
    let stand = Stand::new("attributes");
    let names = ["xattr", "acl", "link", "rename", "chown", "remove", "times"];
    let size = 4_u64 << 30;
    for name in names {
        let file = File::create(stand.lower.join(name)).unwrap();
        file.write_all_at(&pattern(1, 4 * MIB), size / 2).unwrap();
        file.set_len(size).unwrap();
    }
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(stand.lower.join("remove"), "user.gone", b"x", none).unwrap();
    let mount = stand.acetate("").mount();
    let at = |name: &str| mount.join(name);
    rustix::fs::lsetxattr(at("xattr"), "user.large", &[1; 1000], none).unwrap();
    program::must(
        Command::new("setfacl")
            .args(["-m", "u:1234:rw"])
            .arg(at("acl")),
        Duration::from_secs(20),
    );
    fs::hard_link(at("link"), at("linked")).unwrap();
    fs::rename(at("rename"), at("renamed")).unwrap();
    std::os::unix::fs::chown(at("chown"), Some(5), Some(6)).unwrap();
    rustix::fs::lremovexattr(at("remove"), "user.gone").unwrap();
    let file = File::open(at("times")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    drop(file);
    assert_eq!(stat(mount.path(), "copy_up_bytes"), 0);
    assert_eq!(stat(mount.path(), "copy_up_data"), 0);
    assert_eq!(stat(mount.path(), "copy_up_partial"), 0);
    assert_eq!(stat(mount.path(), "copy_up_meta"), names.len() as u64);
    for name in [
        "xattr", "acl", "linked", "link", "renamed", "chown", "remove", "times",
    ] {
        let upper = fs::metadata(stand.upper.join(name)).unwrap();
        assert!(upper.blocks() <= 16, "{name}: {} units", upper.blocks());
        let mut data = vec![0; MIB];
        File::open(at(name))
            .unwrap()
            .read_exact_at(&mut data, size / 2)
            .unwrap();
        assert!(data == pattern(1, MIB), "{name}");
    }
    end(mount);
}

/// How long looking at names that are new and making files take, until told to stop.
fn others(root: &Path, next: &mut usize, stop: &dyn Fn() -> bool) -> [Vec<Duration>; 2] {
    let mut times = [Vec::new(), Vec::new()];
    while !stop() && *next < NAMES {
        let begin = Instant::now();
        fs::metadata(root.join(format!("small/{next}"))).unwrap();
        times[0].push(begin.elapsed());
        let begin = Instant::now();
        drop(File::create_new(root.join(format!("new-{next}"))).unwrap());
        times[1].push(begin.elapsed());
        *next += 1;
        std::thread::sleep(Duration::from_micros(300));
    }
    times
}

const NAMES: usize = 60_000;

/// Looks at other names and makes files while nothing goes on and while `work` does, which a large file is given to.
fn measure_stalls(options: &str, work: impl FnOnce(&Stand, &Path) + Send) {
    let stand = Stand::new("stalls");
    // 10 GiB where there is time and room.
    let size = if std::env::var_os("ACETATE_LONG").is_some() {
        10_u64 << 30
    } else {
        1 << 30
    };
    let file = File::create(stand.lower.join("large")).unwrap();
    let part = pattern(1, MIB);
    for at in (0..size).step_by(MIB) {
        file.write_all_at(&part, at).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    fs::create_dir(stand.lower.join("small")).unwrap();
    for number in 0..NAMES {
        fs::write(stand.lower.join(format!("small/{number}")), "").unwrap();
    }
    rustix::fs::syncfs(File::open(&stand.lower).unwrap()).unwrap();
    let mount = stand.acetate(options).mount();
    let mut next = 0;
    let quiet = |next: &mut usize| {
        let begin = Instant::now();
        others(mount.path(), next, &|| {
            begin.elapsed() > Duration::from_secs(3)
        })
    };
    let mut idle = quiet(&mut next);
    let done = AtomicBool::new(false);
    let begin = Instant::now();
    let (mut busy, took) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            work(&stand, mount.path());
            done.store(true, Ordering::Release);
            begin.elapsed()
        });
        let busy = others(mount.path(), &mut next, &|| done.load(Ordering::Acquire));
        (busy, worker.join().unwrap())
    });
    println!("{options}: {} MiB in {took:?}", size >> 20);
    // Before and after, as others may come and go on this machine.
    for (idle, after) in idle.iter_mut().zip(quiet(&mut next)) {
        idle.extend(after);
    }
    let p99 = |times: &mut Vec<Duration>| {
        times.sort();
        times[(times.len() - 1) * 99 / 100]
    };
    for (kind, name) in ["stat", "create"].into_iter().enumerate() {
        let (quiet, loud) = (p99(&mut idle[kind]), p99(&mut busy[kind]));
        let worst = busy[kind].last().unwrap();
        println!(
            "{name}: p99 {quiet:?} of {} idle, {loud:?} of {} meanwhile ({:.2} times), the longest {worst:?}",
            idle[kind].len(),
            busy[kind].len(),
            loud.as_secs_f64() / quiet.as_secs_f64()
        );
        // Not the bar for speed, which is told above: behind a lock that is held across the copy there would be one or two.
        assert!(
            busy[kind].len() > 10,
            "{name}: {} of them",
            busy[kind].len()
        );
    }
    end(mount);
}

#[test]
#[ignore = "heavy: completes a large file"]
fn completing_a_large_file_stalls_nothing_else() {
    require!(skip::privileged());
    let _limit = Watchdog::new("stalls", Duration::from_secs(1500));
    measure_stalls("complete=1", |stand, root| {
        let file = OpenOptions::new()
            .write(true)
            .open(root.join("large"))
            .unwrap();
        file.write_all_at(b"x", 500 << 20).unwrap();
        drop(file);
        // Looking costs next to nothing: a command that is started would be what the others wait for.
        while mark(&stand.upper.join("large")).is_some() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
#[ignore = "heavy: copies a large file"]
fn copying_a_large_file_stalls_nothing_else() {
    require!(skip::privileged());
    let _limit = Watchdog::new("stalls", Duration::from_secs(600));
    measure_stalls("partial=off", |_, root| {
        let file = OpenOptions::new()
            .write(true)
            .open(root.join("large"))
            .unwrap();
        file.write_all_at(b"x", 500 << 20).unwrap();
    });
}
