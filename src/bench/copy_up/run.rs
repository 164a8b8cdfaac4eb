//! The measuring itself: every case on every system, in turns.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::changes::Change;
use super::files::{self, Files, Shape};
use super::plan::{Case, plan};
use super::stall::{self, Stall};
use super::{Cell, Report, Request, systems};
use crate::bench::Progress;
use crate::bench::disk::{Disk, Filesystem};
use crate::bench::error::{BenchError, at};
use crate::bench::machine::Machine;
use crate::bench::measure::Summary;
use crate::bench::scene::{Scene, finish};
use crate::bench::system::{Kind, Left, Mounted, Place, System};

/// What one case gave on one system so far.
#[derive(Debug, Default)]
struct Sum {
    times: Vec<Duration>,
    written: Option<u64>,
    space: u64,
    failed: Option<String>,
}

/// Everything that is needed to take turns.
struct Stand {
    scene: Scene,
    disks: BTreeMap<Filesystem, Disk>,
    /// How many names the large directories have.
    small: usize,
}

/// Measures what is asked for. Must be called before the process has any other thread.
pub fn run(request: &Request, progress: &dyn Progress) -> Result<Report, BenchError> {
    let root = rustix::process::geteuid().is_root();
    if request.rounds == 0 {
        return Err(BenchError::Usage("--rounds must be at least 1".into()));
    }
    let begin = Instant::now();
    let (found, mut left) = systems::systems(request, root)?;
    let (cases, files) = plan(request);
    if cases.is_empty() {
        let text = format!("no change is called like {}", request.change.join(", "));
        return Err(BenchError::Usage(text));
    }
    let (scene, _ending) = Scene::new(&request.dir)?;
    let machine = Machine::look(scene.dir());
    progress.note("making the layers");
    let stand = Stand::new(scene, &found, &files, request.max_size)?;
    let systems = stand.working(found, &mut left)?;
    for left in &left {
        progress.note(&format!("{} is left out: {}", left.name, left.why));
    }
    let steps = (cases.len() * request.rounds * systems.len()) as u64;
    let all = steps + (systems.len() * request.rounds) as u64;
    let mut done = 0;
    let mut cells = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let mut sums: Vec<Sum> = systems.iter().map(|_| Sum::default()).collect();
        for round in 0..request.rounds {
            for (system, sum) in systems.iter().zip(&mut sums) {
                progress.step(
                    done,
                    all,
                    &format!("{} on {}", case.name(), system.info.name),
                );
                done += 1;
                if sum.failed.is_none() {
                    stand.turn(system, case, round, sum)?;
                }
            }
        }
        cells.extend(sums.into_iter().enumerate().map(|(system, sum)| {
            let count = sum.times.len().max(1) as u64;
            Cell {
                case: number,
                system,
                latency: Summary::of(&sum.times).filter(|_| sum.failed.is_none()),
                written: sum.written.map(|bytes| bytes / count),
                space: sum.space / count,
                failed: sum.failed,
            }
        }));
    }
    let stalls = stand.stalls(request, &systems, |what| {
        progress.step(done, all, what);
        done += 1;
    })?;
    Ok(Report {
        benchmark: "copy-up".into(),
        seconds: begin.elapsed().as_secs_f64(),
        machine,
        systems: systems.into_iter().map(|system| system.info).collect(),
        left_out: left,
        rounds: request.rounds,
        cases,
        cells,
        stalls,
    })
}

impl Stand {
    fn new(
        scene: Scene,
        systems: &[System],
        files: &Files,
        max_size: u64,
    ) -> Result<Stand, BenchError> {
        let mut filesystems: Vec<Filesystem> = systems.iter().map(|s| s.fs).collect();
        filesystems.sort_unstable();
        filesystems.dedup();
        // The layers, one copy of the largest file at a time, and what small files take.
        let needed = files.bytes() + max_size + (512 << 20);
        let stat = rustix::fs::statvfs(scene.dir())
            .map_err(|e| at("cannot ask for the space of", scene.dir())(e.into()))?;
        let free = stat.f_bavail * stat.f_frsize;
        let all = needed * filesystems.len() as u64;
        if free < all {
            return Err(BenchError::Usage(format!(
                "{} has {} of free space and {} are needed: take a smaller --max-size or another --dir",
                scene.dir().display(),
                crate::bench::report::bytes(free),
                crate::bench::report::bytes(all),
            )));
        }
        let mut disks = BTreeMap::new();
        for fs in filesystems {
            let disk = Disk::new(&scene, fs, needed + needed / 4)?;
            let layers = disk.dir.join("layers");
            fs::create_dir_all(&layers).map_err(at("cannot make", &layers))?;
            if fs == Filesystem::Btrfs {
                let base = layers.join(files::BASE);
                finish(
                    Command::new("btrfs")
                        .args(["subvolume", "create"])
                        .arg(base),
                )?;
            }
            files.make(&layers)?;
            disk.settle()?;
            disks.insert(fs, disk);
        }
        Ok(Stand {
            scene,
            disks,
            small: files.small,
        })
    }

    fn disk(&self, system: &System) -> Result<&Disk, BenchError> {
        let disk = self.disks.get(&system.fs);
        disk.ok_or_else(|| BenchError::Wrong(format!("no disk for {}", system.info.name)))
    }

    fn place(&self, system: &System, depth: usize) -> Result<Place, BenchError> {
        let dir = &self.disk(system)?.dir;
        Ok(Place {
            base: dir.join("layers"),
            lowers: files::lowers(depth),
            private: dir.join("private"),
            image: None,
        })
    }

    /// Mounts each once, and leaves out those that cannot be.
    fn working(
        &self,
        systems: Vec<System>,
        left: &mut Vec<Left>,
    ) -> Result<Vec<System>, BenchError> {
        let mut working = Vec::new();
        for system in systems {
            let place = self.place(&system, 1)?;
            let mounted = system.mount(&self.scene, &place);
            match mounted.and_then(|mounted| mounted.unmount(&self.scene)) {
                Ok(()) => {
                    system.wipe(&place)?;
                    working.push(system);
                }
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(e) => {
                    fs::remove_dir_all(&place.private)
                        .map_err(at("cannot remove", &place.private))?;
                    left.push(Left {
                        name: system.info.name,
                        why: e.to_string(),
                    });
                }
            }
        }
        if working.is_empty() {
            let why: Vec<String> = left
                .iter()
                .map(|l| format!("{}: {}", l.name, l.why))
                .collect();
            return Err(BenchError::Wrong(format!(
                "nothing can be mounted: {}",
                why.join("; ")
            )));
        }
        Ok(working)
    }

    /// One case once on one system. What the system cannot do is a finding; only what keeps the run from going on is an error.
    fn turn(
        &self,
        system: &System,
        case: &Case,
        round: usize,
        sum: &mut Sum,
    ) -> Result<(), BenchError> {
        // A snapshot has one volume below, and a copied directory no layers.
        if case.depth > 1 && !system.is_union() {
            sum.failed = Some("it knows no layers".into());
            return Ok(());
        }
        let place = self.place(system, case.depth)?;
        let mounted = match system.mount(&self.scene, &place) {
            Ok(mounted) => mounted,
            Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
            Err(e) => {
                sum.failed = Some(e.to_string());
                return fs::remove_dir_all(&place.private)
                    .map_err(at("cannot remove", &place.private));
            }
        };
        let changed = self.change(system, case, round, &place, &mounted, sum);
        mounted.unmount(&self.scene)?;
        system.wipe(&place)?;
        match changed {
            Err(BenchError::Interrupted) => Err(BenchError::Interrupted),
            Err(e) => {
                sum.failed = Some(e.to_string());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn change(
        &self,
        system: &System,
        case: &Case,
        round: usize,
        place: &Place,
        mounted: &Mounted,
        sum: &mut Sum,
    ) -> Result<(), BenchError> {
        let disk = self.disk(system)?;
        let base = place.base.join(files::BASE);
        let paths: Vec<PathBuf> = match case.change {
            Change::RenameDir => vec![PathBuf::from(files::TREE)],
            _ => (0..files::count(case.size))
                .map(|number| files::path(case.shape, case.size, number))
                .collect(),
        };
        for path in &paths {
            let below = base.join(path);
            if case.change != Change::RenameDir {
                files::set_cached(&below, !case.cold).map_err(at("cannot prepare", &below))?;
            }
            if !case.cold && system.is_union() {
                let above = mounted.dir.join(path);
                fs::symlink_metadata(&above).map_err(at("cannot see", &above))?;
            }
        }
        let before = disk.settle()?;
        let seed = round as u64 * 1000;
        let one = |(number, path): (usize, &PathBuf)| -> Result<Duration, BenchError> {
            let target = mounted.dir.join(path);
            let begin = Instant::now();
            bring(system.kind, &base.join(path), &target).map_err(at("cannot copy", &target))?;
            let brought = begin.elapsed();
            let changed = case.change.make(&target, case.size, seed + number as u64);
            Ok(brought + changed.map_err(at(case.change.name(), &target))?)
        };
        let times: Vec<Result<Duration, BenchError>> = if case.writers > 1 {
            let share = paths.len().div_ceil(case.writers);
            let numbered: Vec<(usize, &PathBuf)> = paths.iter().enumerate().collect();
            thread::scope(|scope| {
                let running: Vec<_> = numbered
                    .chunks(share)
                    .map(|part| scope.spawn(|| part.iter().map(|p| one(*p)).collect::<Vec<_>>()))
                    .collect();
                running
                    .into_iter()
                    .flat_map(|thread| thread.join().unwrap_or_default())
                    .collect()
            })
        } else {
            paths.iter().enumerate().map(one).collect()
        };
        let after = disk.settle()?;
        for time in times {
            sum.times.push(time?);
        }
        if let Some(written) = after.written_since(&before) {
            *sum.written.get_or_insert(0) += written;
        }
        sum.space += after.used_since(&before);
        for (number, path) in paths.iter().enumerate() {
            let target = mounted.dir.join(path);
            let shows = case.change.shows(&target, case.size, seed + number as u64);
            // Where a system has no hard links between what it copied, the second name is its own file: that is a finding.
            if !shows.map_err(at("cannot look at", &target))? {
                return Err(BenchError::Wrong(format!(
                    "the change does not show: {}",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    fn stalls(
        &self,
        request: &Request,
        systems: &[System],
        mut step: impl FnMut(&str),
    ) -> Result<Vec<Stall>, BenchError> {
        let size = request.max_size.max(4096);
        let path = files::path(Shape::Dense, size, 0);
        let mut sums: Vec<(Vec<Duration>, Vec<Duration>, Vec<Duration>)> =
            systems.iter().map(|_| Default::default()).collect();
        for _ in 0..request.rounds {
            for (system, (idle, busy, change)) in systems.iter().zip(&mut sums) {
                step(&format!("others meanwhile on {}", system.info.name));
                if !system.is_union() && system.kind != Kind::Snapshot {
                    continue;
                }
                let place = self.place(system, 1)?;
                let below = place.base.join(files::BASE).join(&path);
                files::set_cached(&below, true).map_err(at("cannot prepare", &below))?;
                let mounted = system.mount(&self.scene, &place)?;
                let measured = stall::measure(&mounted.dir, &path, size, self.small, || Ok(()));
                mounted.unmount(&self.scene)?;
                system.wipe(&place)?;
                let (one, two, took) =
                    measured.map_err(at("stalls on", Path::new(&system.info.name)))?;
                idle.extend(one);
                busy.extend(two);
                change.push(took);
            }
        }
        let stalls = sums
            .iter()
            .enumerate()
            .filter_map(|(system, (idle, busy, change))| {
                Some(Stall {
                    system,
                    size,
                    change_us: Summary::of(change)?.p50_us,
                    idle: Summary::of(idle)?,
                    busy: Summary::of(busy)?,
                })
            });
        Ok(stalls.collect())
    }
}

/// Where there is no union, makes the private file that the change is to meet.
fn bring(kind: Kind, below: &Path, target: &Path) -> io::Result<()> {
    if !matches!(kind, Kind::Copy | Kind::Reflink) {
        return Ok(());
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if below.is_dir() {
        fs::create_dir(target)?;
        for entry in fs::read_dir(below)? {
            let entry = entry?;
            bring(kind, &entry.path(), &target.join(entry.file_name()))?;
        }
        return Ok(());
    }
    let mut from = File::open(below)?;
    let mut to = File::create_new(target)?;
    if kind == Kind::Reflink {
        crate::sys::reflink(&from, &to)?;
    } else {
        // Not io::copy, which would let a filesystem with reflinks clone.
        let mut block = vec![0; 1 << 20];
        loop {
            let read = from.read(&mut block)?;
            if read == 0 {
                break;
            }
            to.write_all(block.get(..read).unwrap_or(&block))?;
        }
    }
    let mode = from.metadata()?.mode();
    to.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
}
