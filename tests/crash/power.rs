//! The tests: workloads on each filesystem, and the disk at many moments of each.
//!
//! At a cut everything is on the disk that was answered before the last flush. Of what came after it some is there and some is
//! not, in units that the filesystem takes for indivisible. Of two writes to one place the later never gets lost alone while a
//! disk keeps both, but a subset covers that anyway.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use acetate::layer::format::PartialRecord;
use rustix::fs::XattrFlags;

use crate::check::{Judge, Order, Tree};
use crate::common::stand::Stand;
use crate::common::{self, Scratch, TreeOptions, Watchdog, skip};
use crate::disk::{self, Disk, Event, Mounted};
use crate::model::History;
use crate::require;
use crate::workload::{Random, Workload, build_lower};

/// What may not change of the lower. Not when it was read: other programs of the machine may look at it.
const LOWER: TreeOptions = TreeOptions {
    atime: false,
    ..TreeOptions::UNTOUCHED
};

const MARK: &str = "trusted.overlay.acetate.partial";

/// Options of the mounts, in turn.
const OPTIONS: [&str; 5] = [
    "partial=4096,complete=off",
    "",
    "partial=4096,complete=0",
    "metacopy=off,partial=off",
    "passthrough=off,partial=8K,complete=0.05",
];

/// What ext4 and btrfs write at least.
const BLOCK: usize = 4096;

/// A filesystem to be cut off.
#[derive(Clone, Copy)]
struct Below {
    fstype: &'static str,
    /// What it takes for written as a whole or not at all: ext4 and btrfs write their superblocks, which are checked by one sum, in
    /// blocks; xfs in sectors.
    atom: usize,
    /// Whether an fsync takes a file ahead of the rest.
    fsync: Order,
}

const BELOW: [Below; 3] = [
    Below {
        fstype: "ext4",
        atom: 4096,
        fsync: Order::Moment,
    },
    Below {
        fstype: "xfs",
        atom: 512,
        fsync: Order::Moment,
    },
    Below {
        fstype: "btrfs",
        atom: 4096,
        fsync: Order::Names,
    },
];

/// One workload that was run and recorded.
struct Recorded {
    history: History,
    events: Vec<Event>,
}

/// Runs a workload of so many steps on a copy of the empty disk.
fn record(below: Below, stand: &mut Stand, shelf: &Shelf, seed: u64, options: &str) -> Recorded {
    let mut random = Random::new(seed);
    let history = build_lower(&stand.lower, &mut random);
    let image = shelf.scratch.join("recorded");
    disk::copy(&shelf.empty, &image);
    let disk = Disk::new(&image, stand.scratch.join("device"));
    let mounted = Mounted::try_new(below.fstype, &disk.file(), stand.scratch.join("disk")).unwrap();
    (stand.upper, stand.work) = (mounted.path().join("upper"), mounted.path().join("work"));
    let mount = stand.acetate(options).mount();
    let stop = AtomicBool::new(false);
    let record = disk.record.clone();
    let mut workload = Workload {
        root: mount.path().to_owned(),
        disk: mounted.path().to_owned(),
        record: &record,
        random,
        history,
        next: 1000,
    };
    let noise = !seed.is_multiple_of(3);
    std::thread::scope(|scope| {
        // The machine writes back when it likes.
        let handle = scope.spawn(|| {
            let mut random = Random::new(seed + 7);
            while noise && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(random.below(30_000)));
                mounted.sync();
            }
        });
        let steps = std::panic::AssertUnwindSafe(|| {
            for _ in 0..60 {
                workload.any_step();
            }
        });
        let done = std::panic::catch_unwind(steps);
        stop.store(true, Ordering::Relaxed);
        handle.join().unwrap();
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
    let history = workload.history;
    drop(record);
    let whole = Judge {
        history: &history,
        cut: usize::MAX,
    };
    let last = History {
        synced: vec![crate::model::Promise {
            position: 0,
            state: history.states.len() - 1,
            attributes: true,
        }],
        states: history.states.clone(),
        steps: history.steps.clone(),
        begins: history.begins.clone(),
        data: history.data.clone(),
        ..History::default()
    };
    let last = Judge {
        history: &last,
        ..whole
    };
    let found = Tree::read(mount.path()).unwrap();
    if let Some(wrong) = last.wrong(&found, Order::Moment) {
        panic!("{} seed {seed} before any cut: {wrong}", below.fstype);
    }
    drop(found);
    common::stand::end(mount);
    drop(mounted);
    let events = disk.end();
    fs::remove_file(&image).unwrap();
    Recorded { history, events }
}

/// Where images lie: in memory, where there is room.
pub(crate) struct Shelf {
    pub(crate) scratch: Scratch,
    /// A filesystem with nothing in it.
    pub(crate) empty: PathBuf,
}

impl Shelf {
    pub(crate) fn new(fstype: &str) -> Result<Shelf, String> {
        let memory = Path::new("/dev/shm");
        let room =
            rustix::fs::statfs(memory).is_ok_and(|s| s.f_bavail * s.f_bsize as u64 > 1 << 30);
        let scratch = if room {
            Scratch::new_in(memory, "crash")
        } else {
            Scratch::new("crash")
        };
        let made = scratch.join("made");
        disk::format(fstype, &made, scratch.join("mnt"))?;
        let empty = scratch.join("empty");
        disk::copy(&made, &empty);
        fs::remove_file(made).unwrap();
        Ok(Shelf { scratch, empty })
    }
}

pub(crate) fn apply(image: &File, event: &Event) {
    match event {
        Event::Write { at, data } => image.write_all_at(data, *at).unwrap(),
        Event::Discard { at, len } => disk::discard(image, *at, *len).unwrap(),
        Event::Flush => {}
    }
}

/// What of the unflushed writes has reached the disk.
#[derive(Clone, Copy, Debug)]
enum Kept {
    All,
    None,
    /// Of a hundred.
    Some(u64),
    /// Likewise, by the unit.
    Torn(u64),
}

impl Kept {
    fn any(random: &mut Random) -> Kept {
        match random.below(6) {
            0 => Kept::All,
            1 => Kept::None,
            2 | 3 => Kept::Some(10 + random.below(80)),
            _ => Kept::Torn(10 + random.below(80)),
        }
    }

    fn apply(self, image: &File, event: &Event, atom: usize, random: &mut Random) {
        match (self, event) {
            (Kept::All, _) => apply(image, event),
            (Kept::None, _) => {}
            (Kept::Torn(share), Event::Write { at, data }) => {
                for (number, unit) in data.chunks(atom).enumerate() {
                    if random.below(100) < share {
                        let at = at + (number * atom) as u64;
                        image.write_all_at(unit, at).unwrap();
                    }
                }
            }
            (Kept::Some(share) | Kept::Torn(share), _) => {
                if random.below(100) < share {
                    apply(image, event);
                }
            }
        }
    }
}

/// The positions at which the power goes: half of them just before a flush, when most is to lose.
fn cuts(events: &[Event], count: usize, random: &mut Random) -> Vec<usize> {
    let flushes: Vec<usize> = (0..events.len())
        .filter(|i| matches!(events[*i], Event::Flush))
        .collect();
    let mut cuts: Vec<usize> = (0..count)
        .map(|number| {
            if number % 2 == 0 && !flushes.is_empty() {
                flushes[random.below(flushes.len() as u64) as usize]
            } else {
                random.below(events.len() as u64 + 1) as usize
            }
        })
        .collect();
    cuts.sort_unstable();
    cuts
}

/// The machine was started again: partial files know of which start they are. Tells of them.
fn reboot(dir: &Path, told: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let file_type = entry.file_type().unwrap();
        if file_type.is_dir() {
            reboot(&entry.path(), told);
        }
        let mut value = vec![0; 8192];
        if !file_type.is_file() {
            continue;
        }
        match rustix::fs::lgetxattr(entry.path(), MARK, &mut value[..]) {
            Ok(len) => {
                let mut record = PartialRecord::decode(&value[..len]).unwrap();
                record.boot = [1; 16];
                let name = entry.file_name();
                told.push_str(&format!("\n{name:?}: {:?}", (record.limit, &record.map)));
                rustix::fs::lsetxattr(entry.path(), MARK, &record.encode(), XattrFlags::empty())
                    .unwrap();
            }
            Err(rustix::io::Errno::NODATA) => {}
            Err(e) => panic!("{:?}: {e}", entry.path()),
        }
    }
}

/// What was met on the way.
#[derive(Debug, Default)]
struct Met {
    images: usize,
    lost: usize,
    unfinished: usize,
    partial: usize,
    /// Disks that the filesystem below could not mount itself; not among the images.
    unmountable: usize,
}

/// Looks at one disk as it was found.
fn look(
    below: Below,
    stand: &mut Stand,
    image: &Path,
    judge: &Judge<'_>,
    order: Order,
    kept: Kept,
    met: &mut Met,
) -> Result<(), String> {
    let mounted = match Mounted::try_new(below.fstype, image, stand.scratch.join("disk")) {
        Ok(mounted) => mounted,
        // Nothing of ours has run by then: a filesystem that writes blocks of several sectors, and takes but a sector for indivisible, may
        // not be able to replay its log onto one of which only some are there.
        Err(e) if below.atom < BLOCK && matches!(kept, Kept::Torn(_)) => {
            eprintln!("{} does not mount its own disk: {e}", below.fstype);
            met.unmountable += 1;
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    (stand.upper, stand.work) = (mounted.path().join("upper"), mounted.path().join("work"));
    if !stand.upper.is_dir() || !stand.work.is_dir() {
        return Err("upper and work are gone".into());
    }
    let mut partial = String::new();
    for dir in [stand.upper.clone(), stand.work.join("index")] {
        if dir.is_dir() {
            reboot(&dir, &mut partial);
        }
    }
    if stand.work.join("work").is_dir() {
        let left = stand.left_in_work();
        met.unfinished += usize::from(left.iter().any(|p| !p.ends_with("incompat")));
        met.partial += usize::from(stand.work.join("work/incompat/acetate-partial").exists());
    }
    let mount = stand
        .acetate("partial=64K,complete=off")
        .try_mount()
        .map_err(|e| format!("no mount: {e}"))?;
    let mut result = Tree::read(mount.path()).and_then(|tree| {
        let wrong = judge.wrong(&tree, order);
        wrong.map_or(Ok(()), Err)
    });
    let mut left = stand.left_in_work();
    left.retain(|path| !path.ends_with("incompat"));
    if !left.is_empty() {
        result = result.and(Err(format!("left in the workdir: {left:?}")));
    }
    if result.is_ok() && met.images.is_multiple_of(4) {
        // Whatever it is, it can be worked with.
        result = empty(mount.path()).map_err(|e| format!("{e}\n{}", listing(&stand.upper)));
    }
    let log = mount.unmount().map_err(|e| format!("unmount: {e}"))?;
    if result.is_ok() && !log.trim().is_empty() {
        result = Err(format!("the log: {log}"));
    }
    drop(mounted);
    met.images += 1;
    result.map_err(|text| format!("{text}\npartial files:{partial}"))
}

/// What lies in an upper directory.
fn listing(upper: &Path) -> String {
    let mut find = std::process::Command::new("find");
    find.arg(upper).args(["-printf", "%P %M %s %i\\n"]);
    common::program::run(&mut find, Duration::from_secs(20)).text
}

/// Removes everything from a mount.
fn empty(root: &Path) -> Result<(), String> {
    let told = |path: &Path, e: std::io::Error| format!("removal of {}: {e}", path.display());
    for entry in fs::read_dir(root).map_err(|e| told(root, e))? {
        let entry = entry.map_err(|e| told(root, e))?;
        let path = entry.path();
        if entry.file_type().map_err(|e| told(&path, e))?.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        }
        .map_err(|e| told(&path, e))?;
    }
    match fs::read_dir(root).map_err(|e| told(root, e))?.next() {
        None => Ok(()),
        Some(entry) => Err(format!("{entry:?} is left after a removal of everything")),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn power_cuts(below: Below) {
    require!(skip::privileged());
    let long = std::env::var_os("ACETATE_LONG").is_some();
    let images = number("ACETATE_CUTS").unwrap_or(if long { 1000 } else { 30 }) as usize;
    let each = if long { 25 } else { 6 };
    let limit = Duration::from_secs(280 + if long { 10 * images as u64 } else { 0 });
    let _limit = Watchdog::new("power cuts", limit);
    let shelf = match Shelf::new(below.fstype) {
        Ok(shelf) => shelf,
        Err(reason) => crate::skip!("{reason}"),
    };
    let first = number("ACETATE_SEED").unwrap_or(1);
    let mut met = Met::default();
    let mut failures = Vec::new();
    let mut seed = first;
    while met.images + met.unmountable + failures.len() < images {
        let options = OPTIONS[seed as usize % OPTIONS.len()];
        let mut stand = Stand::new("crash");
        let recorded = record(below, &mut stand, &shelf, seed, options);
        let untouched = common::Tree::read(&stand.lower, LOWER).unwrap();
        let mut random = Random::new(seed + 1_000_000);
        let order = if recorded.history.fsynced.is_empty() {
            Order::Moment
        } else {
            below.fsync
        };
        let durable = shelf.scratch.join("durable");
        disk::copy(&shelf.empty, &durable);
        let base = OpenOptions::new().write(true).open(&durable).unwrap();
        let mut applied = 0;
        let count = each.min(images - met.images.min(images));
        for cut in cuts(&recorded.events, count, &mut random) {
            let before = &recorded.events[..cut];
            let flushed = before
                .iter()
                .rposition(|e| matches!(e, Event::Flush))
                .map_or(0, |i| i + 1);
            for event in &recorded.events[applied.min(flushed)..flushed] {
                apply(&base, event);
            }
            applied = applied.max(flushed);
            let image = shelf.scratch.join("image");
            disk::copy(&durable, &image);
            let file = OpenOptions::new().write(true).open(&image).unwrap();
            let kept = Kept::any(&mut random);
            for event in &before[flushed..] {
                kept.apply(&file, event, below.atom, &mut random);
            }
            met.lost += usize::from(flushed < cut && !matches!(kept, Kept::All));
            drop(file);
            let judge = Judge {
                history: &recorded.history,
                cut,
            };
            let kept_image = std::env::var_os("ACETATE_KEEP").map(PathBuf::from);
            if let Some(kept_image) = &kept_image {
                disk::copy(&image, kept_image);
            }
            if let Err(wrong) = look(below, &mut stand, &image, &judge, order, kept, &mut met) {
                let text = format!(
                    "{} seed {seed} ({options:?}) cut {cut} of {}, {kept:?}: {wrong}",
                    below.fstype,
                    recorded.events.len()
                );
                eprintln!("{text}");
                if let Some(kept_image) = kept_image {
                    fs::rename(&kept_image, kept_image.with_extension("wrong")).unwrap();
                }
                failures.push(text);
            }
            fs::remove_file(&image).unwrap();
        }
        let after = common::Tree::read(&stand.lower, LOWER).unwrap();
        untouched.assert_same(&after, "the lower layer");
        seed += 1;
    }
    println!("{}: {met:?}, seeds {first} to {}", below.fstype, seed - 1);
    assert!(
        failures.is_empty(),
        "{} of {images} are wrong",
        failures.len()
    );
    assert!(met.unmountable <= 1 + images / 100, "{met:?}");
    assert!(met.lost > images / 4, "hardly anything was lost: {met:?}");
}

#[test]
#[ignore = "heavy: thirty disks"]
fn power_cuts_on_ext4() {
    power_cuts(BELOW[0]);
}

#[test]
#[ignore = "heavy: thirty disks"]
fn power_cuts_on_xfs() {
    power_cuts(BELOW[1]);
}

#[test]
#[ignore = "heavy: thirty disks"]
fn power_cuts_on_btrfs() {
    power_cuts(BELOW[2]);
}
