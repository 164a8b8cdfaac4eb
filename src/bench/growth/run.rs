//! The measuring itself: every number on every system, in turns.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::stage::{self, NAMES, SHARED};
use super::{Axis, Figures, Point, Report, Request};
use crate::bench::Progress;
use crate::bench::disk::{Disk, Filesystem};
use crate::bench::error::{BenchError, at};
use crate::bench::machine::Machine;
use crate::bench::rivals::Daemon;
use crate::bench::scene::Scene;
use crate::bench::system::{
    Kind, Left, Mounted, Place, System, mount_programs, only, this_program,
};

/// How many files are walked by many programs, and by each of many mounts.
const WALKED: u64 = 10_000;

/// Measures what is asked for. Must be called before the process has any other thread.
pub fn run(request: &Request, progress: &dyn Progress) -> Result<Report, BenchError> {
    if request.rounds == 0 {
        return Err(BenchError::Usage("--rounds must be at least 1".into()));
    }
    if request.max_files < NAMES {
        let text = format!("--max-files must be at least {NAMES}");
        return Err(BenchError::Usage(text));
    }
    let begin = Instant::now();
    let root = rustix::process::geteuid().is_root();
    let (systems, left_out) = systems(request, root)?;
    let (scene, _ending) = Scene::new(&request.dir)?;
    let machine = Machine::look(scene.dir());
    for left in &left_out {
        progress.note(&format!("{} is left out: {}", left.name, left.why));
    }
    let fs = if root {
        Filesystem::Ext4
    } else {
        Filesystem::Host
    };
    // An inode takes 16 KiB of an ext4.
    let numbers = numbers(request);
    let files = numbers.iter().filter(|(axis, _)| *axis == Axis::Files);
    let most = files.map(|(_, number)| *number).max().unwrap_or(WALKED);
    let disk = Disk::new(&scene, fs, (2 << 30) + most * (20 << 10))?;
    let mut stand = Stand {
        scene,
        base: disk.dir.join("layers"),
        private: disk.dir.join("private"),
        limit: request.limit,
    };
    fs::create_dir(&stand.base).map_err(at("cannot make", &stand.base))?;
    let all = (numbers.len() * request.rounds * systems.len()) as u64;
    let mut done = 0;
    let mut points = Vec::new();
    for (axis, number) in numbers {
        progress.step(done, all, &format!("making {number} {}", axis.name()));
        let lowers = stand.make(axis, number)?;
        let mut sums: Vec<Result<Vec<Figures>, String>> =
            systems.iter().map(|_| Ok(Vec::new())).collect();
        for _ in 0..request.rounds {
            for (system, sum) in systems.iter().zip(&mut sums) {
                let what = format!("{number} {} on {}", axis.name(), system.info.name);
                progress.step(done, all, &what);
                done += 1;
                let Ok(figures) = sum else { continue };
                match stand.turn(system, axis, number, &lowers) {
                    Ok(found) => figures.push(found),
                    Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                    // What a system cannot do is a finding.
                    Err(e) => *sum = Err(e.to_string()),
                }
            }
        }
        points.extend(sums.into_iter().enumerate().map(|(system, sum)| {
            Point {
                axis,
                number,
                system,
                figures: sum
                    .as_ref()
                    .map_or_else(|_| Figures::default(), |all| Figures::median(all)),
                failed: sum.err(),
            }
        }));
        stand.clear(&lowers)?;
    }
    Ok(Report {
        benchmark: "growth".into(),
        machine,
        systems: systems.into_iter().map(|system| system.info).collect(),
        left_out,
        rounds: request.rounds,
        seconds: begin.elapsed().as_secs_f64(),
        points,
    })
}

/// What is measured, smallest first.
fn numbers(request: &Request) -> Vec<(Axis, u64)> {
    let wanted = |axis: &Axis| request.axes.is_empty() || request.axes.contains(axis);
    let mut numbers = Vec::new();
    for axis in Axis::ALL.into_iter().filter(wanted) {
        let of: Vec<u64> = match axis {
            Axis::Layers => vec![1, 10, 100, 500],
            Axis::Files => {
                let tens = std::iter::successors(Some(NAMES), |files| files.checked_mul(10));
                let mut of: Vec<u64> = tens.take_while(|n| *n < request.max_files).collect();
                of.push(request.max_files);
                of
            }
            Axis::Clients => vec![1, 4, 16, 64],
            Axis::Mounts => vec![1, 10, 50, 200],
        };
        let most = of.iter().max().copied().unwrap_or(1);
        let few = |n: &u64| !request.quick || *n <= most / 10;
        numbers.extend(of.into_iter().filter(few).map(|n| (axis, n)));
    }
    numbers
}

fn systems(request: &Request, root: bool) -> Result<(Vec<System>, Vec<Left>), BenchError> {
    let (programs, mut left) = mount_programs(&request.rivals)?;
    let fs = if root {
        Filesystem::Ext4
    } else {
        Filesystem::Host
    };
    let this = this_program()?;
    let about = "this program with its default options";
    let mut all = vec![System::new("acetate", Kind::Acetate, fs, "", &this, about)];
    if root {
        let about = "the kernel's overlayfs with its default options";
        all.push(System::new(
            "kernel",
            Kind::Kernel,
            fs,
            "",
            Path::new(""),
            about,
        ));
    } else {
        left.push(Left {
            name: "kernel".into(),
            why: "only root may mount it".into(),
        });
    }
    for (name, program) in &programs {
        let about = format!("{}, a mount program", program.display());
        all.push(System::new(
            name,
            Kind::FuseOverlayfs,
            fs,
            "",
            program,
            &about,
        ));
    }
    only(&request.only, all, left)
}

struct Stand {
    scene: Scene,
    base: PathBuf,
    private: PathBuf,
    limit: Duration,
}

impl Stand {
    fn make(&mut self, axis: Axis, number: u64) -> Result<Vec<PathBuf>, BenchError> {
        match axis {
            Axis::Layers => stage::stack(&self.base, number),
            Axis::Files => stage::tree(&self.base, number),
            Axis::Clients | Axis::Mounts => stage::tree(&self.base, WALKED),
        }
    }

    fn clear(&self, lowers: &[PathBuf]) -> Result<(), BenchError> {
        for lower in lowers {
            let dir = self.base.join(lower);
            fs::remove_dir_all(&dir).map_err(at("cannot remove", &dir))?;
        }
        Ok(())
    }

    /// One number once on one system.
    fn turn(
        &self,
        system: &System,
        axis: Axis,
        number: u64,
        lowers: &[PathBuf],
    ) -> Result<Figures, BenchError> {
        let count = if axis == Axis::Mounts { number } else { 1 };
        let mut mounts = Vec::new();
        let measured = self
            .mounted(system, count, lowers, &mut mounts)
            .and_then(|took| {
                let Some(last) = mounts.last() else {
                    return Err(BenchError::Wrong("nothing was mounted".into()));
                };
                let counts = system.kind == Kind::Acetate;
                let begun = Daemon::now(last.pid(), &last.dir, false);
                let idle = memory(&mounts);
                let act = || self.look(axis, number, &mounts, last, counts);
                match self.scene.limited(self.limit, last.pid(), act) {
                    (_, true) => {
                        let text = format!("stopped after {} s", self.limit.as_secs());
                        Err(BenchError::Wrong(text))
                    }
                    (found, false) => found.map(|figures| Figures {
                        mount_us: (axis != Axis::Clients).then_some(took.as_secs_f64() * 1e6),
                        mount_cpu_us: begun
                            .filter(|_| axis != Axis::Clients)
                            .map(|daemon| daemon.cpu * 1e6),
                        idle_memory: idle,
                        ..figures
                    }),
                }
            });
        let mut gone = Ok(());
        for mounted in mounts {
            gone = gone.and(mounted.unmount(&self.scene));
        }
        match fs::remove_dir_all(&self.private) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(at("cannot remove", &self.private)(e));
            }
            _ => {}
        }
        measured.and_then(|figures| gone.map(|()| figures))
    }

    /// Makes the mounts, and says how long the last took until its root was listed.
    fn mounted(
        &self,
        system: &System,
        count: u64,
        lowers: &[PathBuf],
        mounts: &mut Vec<Mounted>,
    ) -> Result<Duration, BenchError> {
        let mut took = Duration::ZERO;
        for i in 0..count {
            let place = Place {
                base: self.base.clone(),
                lowers: lowers.to_vec(),
                private: self.private.join(i.to_string()),
                image: None,
            };
            let begin = Instant::now();
            let mounted = system.mount(&self.scene, &place)?;
            let listed = fs::read_dir(&mounted.dir).map(Iterator::count);
            took = begin.elapsed();
            let dir = mounted.dir.clone();
            mounts.push(mounted);
            listed.map_err(at("cannot list", &dir))?;
        }
        Ok(took)
    }

    fn look(
        &self,
        axis: Axis,
        number: u64,
        mounts: &[Mounted],
        last: &Mounted,
        counts: bool,
    ) -> Result<Figures, BenchError> {
        let dir = &last.dir;
        let below = match axis {
            Axis::Layers => dir.join(SHARED),
            _ => dir.join("d0"),
        };
        let mut figures = Figures::default();
        let now = || Daemon::now(last.pid(), dir, counts);
        if axis != Axis::Clients {
            let before = now();
            figures.lookup_us = Some(names(&below, "f", true)?);
            if let Some(used) = used(before, now()) {
                figures.lookup_cpu_us = Some(used.cpu * 1e6 / NAMES as f64);
                figures.lookup_requests = counts.then(|| used.asked() as f64 / NAMES as f64);
            }
            figures.missing_us = Some(names(&below, "none", false)?);
        }
        let before = now();
        match axis {
            Axis::Files => {
                let begin = Instant::now();
                let seen = stage::walk(dir).map_err(at("cannot walk", dir))?.max(1);
                figures.walk_us = Some(begin.elapsed().as_secs_f64() * 1e6 / seen as f64);
                figures.walk_cpu_us = used(before, now()).map(|used| used.cpu * 1e6 / seen as f64);
            }
            Axis::Clients => {
                figures.walk_us = Some(self.clients(dir, number)?);
                let seen = (number * WALKED) as f64;
                figures.walk_cpu_us = used(before, now()).map(|used| used.cpu * 1e6 / seen);
            }
            Axis::Layers | Axis::Mounts => {}
        }
        figures.memory = memory(mounts);
        Ok(figures)
    }

    /// Walks a mount by so many programs at once.
    fn clients(&self, dir: &Path, number: u64) -> Result<f64, BenchError> {
        let begin = Instant::now();
        let walked: Vec<Result<(), BenchError>> = thread::scope(|scope| {
            let walk = || {
                let mut command = Command::new("find");
                // It has to look at each file to know its size.
                command.arg(dir).args(["-size", "+1M"]);
                let status = self.scene.run(command.stdout(Stdio::null()))?;
                if status.success() {
                    return Ok(());
                }
                Err(BenchError::Program("find".into(), status.to_string()))
            };
            let running: Vec<_> = (0..number).map(|_| scope.spawn(walk)).collect();
            let panicked = || BenchError::Wrong("a thread panicked".into());
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(panicked())))
                .collect()
        });
        let took = begin.elapsed();
        walked.into_iter().collect::<Result<(), _>>()?;
        Ok(took.as_secs_f64() * 1e6 / (number * WALKED) as f64)
    }
}

/// Bytes of memory that are each daemon's own, the mean of all.
fn memory(mounts: &[Mounted]) -> Option<u64> {
    let used: Vec<u64> = mounts
        .iter()
        .filter_map(|m| Some(Daemon::now(m.pid(), &m.dir, false)?.memory))
        .collect();
    let count = used.len() as u64;
    (count > 0).then(|| used.iter().sum::<u64>() / count)
}

/// What a daemon used between two moments.
fn used(before: Option<Daemon>, after: Option<Daemon>) -> Option<Daemon> {
    Some(after?.since(&before?))
}

/// Looks up names that the kernel has not asked for yet; microseconds each.
fn names(dir: &Path, prefix: &str, there: bool) -> Result<f64, BenchError> {
    let begin = Instant::now();
    for i in 0..NAMES {
        let path = dir.join(format!("{prefix}{i}"));
        match fs::symlink_metadata(&path) {
            Ok(_) if there => {}
            Err(e) if !there && e.kind() == io::ErrorKind::NotFound => {}
            Ok(_) => return Err(BenchError::Wrong(format!("{} is there", path.display()))),
            Err(e) => return Err(at("cannot look at", &path)(e)),
        }
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / NAMES as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_to_what_was_asked_for() {
        let mut request = Request {
            dir: "/".into(),
            rounds: 1,
            rivals: Vec::new(),
            only: Vec::new(),
            axes: Vec::new(),
            max_files: 1_000_000,
            quick: false,
            limit: Duration::from_secs(1),
        };
        let all = numbers(&request);
        for expected in [
            (Axis::Layers, 500),
            (Axis::Files, 1_000_000),
            (Axis::Clients, 64),
            (Axis::Mounts, 200),
        ] {
            assert!(all.contains(&expected), "{all:?}");
        }
        request.quick = true;
        request.axes = vec![Axis::Mounts];
        assert_eq!(numbers(&request), [(Axis::Mounts, 1), (Axis::Mounts, 10)]);
    }
}
