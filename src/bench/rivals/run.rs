//! The measuring itself: every workload on every system, in turns.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::daemon::Daemon;
use super::sum::{Sum, cells, means};
use super::tree::{self, Survey};
use super::work::{Ground, TASKS, Task};
use super::{Report, Request, Workload, metadata, programs};
use crate::bench::Progress;
use crate::bench::disk::{Disk, Filesystem};
use crate::bench::error::{BenchError, at};
use crate::bench::machine::Machine;
use crate::bench::scene::Scene;
use crate::bench::system::{
    Kind, Left, Mounted, Place, StoredImage, System, find_program, mount_programs, only,
    this_program,
};

/// Measures what is asked for. Must be called before the process has any other thread.
pub fn run(request: &Request, progress: &dyn Progress) -> Result<Report, BenchError> {
    if request.rounds == 0 {
        return Err(BenchError::Usage("--rounds must be at least 1".into()));
    }
    for layer in &request.layers {
        if !layer.is_dir() {
            let text = format!("the layer {} is not a directory", layer.display());
            return Err(BenchError::Usage(text));
        }
    }
    let begin = Instant::now();
    let root = rustix::process::geteuid().is_root();
    let (found, mut left) = systems(request, root)?;
    let (scene, _ending) = Scene::new(&request.dir)?;
    let machine = Machine::look(scene.dir());
    progress.note("making what the work needs");
    let mut stand = Stand::new(scene, request)?;
    let systems = stand.working(found, &mut left)?;
    for left in &left {
        progress.note(&format!("{} is left out: {}", left.name, left.why));
    }
    let (tasks, skipped) = stand.tasks(request, &systems)?;
    for left in &skipped {
        progress.note(&format!("\"{}\" is left out: {}", left.name, left.why));
    }
    let mut sums: Vec<Vec<Sum>> = Vec::new();
    let all = (tasks.len() * request.rounds * systems.len()) as u64;
    let mut done = 0;
    for task in &tasks {
        let mut row: Vec<Sum> = systems.iter().map(|_| Sum::default()).collect();
        for round in 0..request.rounds {
            // Another one begins each round: whoever is first finds less in the machine's caches.
            for turn in 0..systems.len() {
                let at = (round + turn) % systems.len();
                let (Some(system), Some(sum)) = (systems.get(at), row.get_mut(at)) else {
                    continue;
                };
                progress.step(done, all, &format!("{} on {}", task.name, system.info.name));
                done += 1;
                if sum.failed.is_none() {
                    stand.turn(system, task, request.limit, sum)?;
                }
            }
        }
        sums.push(row);
    }
    let base = base(&systems);
    let cells = cells(sums, base);
    Ok(Report {
        benchmark: "rivals".into(),
        seconds: begin.elapsed().as_secs_f64(),
        machine,
        layers: format!("{}, {} layers", request.layers_name, stand.lowers.len()),
        entries: stand.ground.survey.entries,
        means: means(&cells, &tasks, systems.len()),
        systems: systems.into_iter().map(|system| system.info).collect(),
        left_out: left,
        rounds: request.rounds,
        base,
        workloads: tasks
            .iter()
            .map(|task| Workload {
                name: task.name.to_owned(),
                group: task.group,
            })
            .collect(),
        skipped,
        cells,
    })
}

/// Everything that this machine may have. Whether it works is seen when it is mounted.
fn systems(request: &Request, root: bool) -> Result<(Vec<System>, Vec<Left>), BenchError> {
    let (programs, mut left) = mount_programs(&request.rivals)?;
    let mut all = Vec::new();
    let mut add = |name: &str, kind, options: &'static str, program: &Path, about: &str| {
        let fs = Filesystem::Host;
        all.push(System::new(name, kind, fs, options, program, about));
    };
    let none = Path::new("");
    let mut missing = |name: &str, why: &str| {
        left.push(Left {
            name: name.to_owned(),
            why: why.to_owned(),
        });
    };
    if root {
        let about = "the kernel's overlayfs with its default options";
        add("kernel", Kind::Kernel, "", none, about);
        let options = "metacopy=on,redirect_dir=on,volatile";
        let about = "the kernel's overlayfs with metacopy=on,redirect_dir=on,volatile";
        add(
            "kernel metacopy volatile",
            Kind::Kernel,
            options,
            none,
            about,
        );
    } else {
        missing("kernel", "only root may mount it");
    }
    let this = this_program()?;
    let about = "this program with its default options";
    add("acetate", Kind::Acetate, "", &this, about);
    let about = "this program with -o volatile";
    add("acetate volatile", Kind::Acetate, "volatile", &this, about);
    for (name, program) in &programs {
        let about = format!("{}, a mount program", program.display());
        add(name, Kind::FuseOverlayfs, "", program, &about);
    }
    match find_program("unionfs-fuse") {
        Some(program) if root => add(
            "unionfs-fuse",
            Kind::Unionfs,
            "",
            &program,
            "unionfs-fuse with cow",
        ),
        Some(_) => missing("unionfs-fuse", "a plain user may not mount it for others"),
        None => missing("unionfs-fuse", "not installed"),
    }
    add(
        "plain directory",
        Kind::Plain,
        "",
        none,
        "no union: a copy of the merged tree, written where it is",
    );
    only(&request.only, all, left)
}

/// Whom the others are compared with: the kernel, or the first that is there.
fn base(systems: &[System]) -> usize {
    let of = |kind: Kind| systems.iter().position(|system| system.kind == kind);
    of(Kind::Kernel)
        .or_else(|| of(Kind::FuseOverlayfs))
        .unwrap_or(0)
}

/// The size of the filesystem that is written to: room for an image and what the work writes.
const DISK: u64 = 16 << 30;

struct Stand {
    ground: Ground,
    /// Links to the layers, whose names are short.
    base: PathBuf,
    lowers: Vec<PathBuf>,
    /// The layers are this image's.
    image: Option<StoredImage>,
    /// The plain directory holds what the layers show.
    plain: Cell<bool>,
    /// Where everything is written.
    disk: Disk,
}

impl Stand {
    fn new(scene: Scene, request: &Request) -> Result<Stand, BenchError> {
        // On a filesystem of our own, because unmounting an overlayfs waits until all of its upper's is written out.
        let fs = if rustix::process::geteuid().is_root() {
            Filesystem::Ext4
        } else {
            Filesystem::Host
        };
        let disk = Disk::new(&scene, fs, DISK)?;
        let base = scene.make_dir("layers")?;
        let layers = if request.layers.is_empty() {
            tree::generate(&disk.dir)?
        } else {
            request.layers.clone()
        };
        let mut lowers = Vec::new();
        for (i, layer) in layers.iter().enumerate() {
            let name = PathBuf::from(i.to_string());
            let layer = fs::canonicalize(layer).map_err(at("cannot reach the layer", layer))?;
            let link = base.join(&name);
            symlink(&layer, &link).map_err(at("cannot link to the layer", &link))?;
            lowers.push(name);
        }
        let less = if request.quick { 10 } else { 1 };
        let tar = make_tar(&scene, less)?;
        let mut stand = Stand {
            ground: Ground {
                scene,
                survey: Survey::default(),
                tar,
                debs: None,
                repository: None,
                less,
            },
            base,
            lowers,
            image: request.image.clone(),
            plain: Cell::new(false),
            disk,
        };
        if find_program("git").is_some() {
            let dir = stand.ground.scene.make_dir("repository")?;
            programs::make_repository(&stand.ground, &dir)?;
            stand.ground.repository = Some(dir);
        }
        stand.ground.debs = programs::make_packages(&stand.ground.scene)?;
        stand.ground.survey = stand.on(&viewer()?, |dir| {
            Survey::of(dir, less).map_err(at("cannot walk", dir))
        })?;
        Ok(stand)
    }

    fn place(&self) -> Place {
        Place {
            base: self.base.clone(),
            lowers: self.lowers.clone(),
            private: self.disk.dir.join("private"),
            image: self.image.clone(),
        }
    }

    /// Does something on a fresh mount, and takes it away.
    fn on<T>(
        &self,
        system: &System,
        act: impl FnOnce(&Path) -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        self.on_mount(system, false, |mounted| act(&mounted.dir))
    }

    fn on_mount<T>(
        &self,
        system: &System,
        harms: bool,
        act: impl FnOnce(&Mounted) -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        let mut place = self.place();
        if system.kind == Kind::Plain {
            place.private = self.disk.dir.join("plain");
        }
        let mounted = match system.mount(&self.ground.scene, &place) {
            Ok(mounted) => mounted,
            Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
            Err(e) => {
                remove(&place.private)?;
                return Err(e);
            }
        };
        if system.kind == Kind::Plain {
            return self.on_plain(&mounted, harms, act);
        }
        let acted = act(&mounted);
        let gone = mounted.unmount(&self.ground.scene);
        remove(&place.private)?;
        acted.and_then(|value| gone.map(|()| value))
    }

    /// A plain directory is copied again only where something was changed that the layers have: that takes longer than most work.
    fn on_plain<T>(
        &self,
        mounted: &Mounted,
        harms: bool,
        act: impl FnOnce(&Mounted) -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        if !self.plain.replace(false) {
            remove(&mounted.dir)?;
            fs::create_dir(&mounted.dir).map_err(at("cannot make", &mounted.dir))?;
            self.copy_into(&mounted.dir)?;
        }
        let done = act(mounted)?;
        if !harms {
            let entries = fs::read_dir(&mounted.dir).map_err(at("cannot list", &mounted.dir))?;
            for entry in entries {
                let entry = entry.map_err(at("cannot list", &mounted.dir))?;
                if !entry.file_name().as_encoded_bytes().starts_with(b"bench-") {
                    continue;
                }
                let path = entry.path();
                if path.is_dir() {
                    remove(&path)?;
                } else {
                    fs::remove_file(&path).map_err(at("cannot remove", &path))?;
                }
            }
            self.plain.set(true);
        }
        Ok(done)
    }

    /// A plain directory begins with what the layers show together: their own trees have whiteouts in them.
    fn copy_into(&self, dir: &Path) -> Result<(), BenchError> {
        self.on(&viewer()?, |merged| {
            let mut command = std::process::Command::new("cp");
            command.args(["-a", "-T"]).arg(merged).arg(dir);
            let status = self.ground.scene.run(&mut command)?;
            if status.success() {
                return Ok(());
            }
            Err(BenchError::Program("cp".into(), status.to_string()))
        })
    }

    fn working(
        &mut self,
        systems: Vec<System>,
        left: &mut Vec<Left>,
    ) -> Result<Vec<System>, BenchError> {
        let mut working = Vec::new();
        for system in systems {
            match self.on(&system, |_| Ok(())) {
                Ok(()) => working.push(system),
                Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                Err(e) => left.push(Left {
                    name: system.info.name,
                    why: e.to_string(),
                }),
            }
        }
        if working.is_empty() {
            let why: Vec<String> = left
                .iter()
                .map(|l| format!("{}: {}", l.name, l.why))
                .collect();
            let text = format!("nothing can be mounted: {}", why.join("; "));
            return Err(BenchError::Wrong(text));
        }
        Ok(working)
    }

    /// What can be done on these layers, and what not.
    fn tasks(
        &self,
        request: &Request,
        systems: &[System],
    ) -> Result<(Vec<Task>, Vec<Left>), BenchError> {
        let mut wanted: Vec<Task> = TASKS.to_vec();
        if !request.work.is_empty() {
            let is = |task: &Task| {
                request
                    .work
                    .iter()
                    .any(|part| task.name.contains(part.as_str()))
            };
            wanted.retain(is);
            if wanted.is_empty() {
                let text = format!("no workload is called like {}", request.work.join(", "));
                return Err(BenchError::Usage(text));
            }
        }
        let Some(system) = systems.first() else {
            return Ok((Vec::new(), Vec::new()));
        };
        self.on(system, |dir| {
            let mut tasks = Vec::new();
            let mut skipped = Vec::new();
            for task in wanted {
                match (task.lacks)(&self.ground, dir) {
                    None => tasks.push(task),
                    Some(why) => skipped.push(Left {
                        name: task.name.to_owned(),
                        why,
                    }),
                }
            }
            Ok((tasks, skipped))
        })
    }

    /// One workload once on one system. What the system cannot do, or not in time, is a finding.
    fn turn(
        &self,
        system: &System,
        task: &Task,
        limit: Duration,
        sum: &mut Sum,
    ) -> Result<(), BenchError> {
        let counts = system.kind == Kind::Acetate;
        let measured = self.on_mount(system, task.harms, |mounted| {
            let (ground, dir) = (&self.ground, mounted.dir.as_path());
            let act = || {
                (task.prepare)(ground, dir)?;
                let before = Daemon::now(mounted.pid(), dir, counts);
                let begin = Instant::now();
                let operations = (task.run)(ground, dir)?;
                let time = begin.elapsed();
                let after = Daemon::now(mounted.pid(), dir, counts);
                let daemon = after
                    .zip(before)
                    .map(|(after, before)| after.since(&before));
                Ok((time, operations, daemon))
            };
            match ground.scene.limited(limit, mounted.pid(), act) {
                (_, true) => Err(BenchError::Wrong(format!(
                    "stopped after {} s",
                    limit.as_secs()
                ))),
                (measured, false) => measured,
            }
        });
        match measured {
            Ok((time, operations, daemon)) => {
                sum.times.push(time);
                sum.operations = operations;
                sum.daemons.extend(daemon);
                Ok(())
            }
            Err(BenchError::Interrupted) => Err(BenchError::Interrupted),
            Err(e) => {
                sum.failed = Some(e.to_string());
                Ok(())
            }
        }
    }
}

/// What shows the layers merged where nothing is measured.
fn viewer() -> Result<System, BenchError> {
    let this = this_program()?;
    let fs = Filesystem::Host;
    Ok(System::new("acetate", Kind::Acetate, fs, "", &this, ""))
}

fn remove(path: &Path) -> Result<(), BenchError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(at("cannot remove", path)),
    }
}

/// A tar of small files: 12,000 with 63 MB where everything is done.
fn make_tar(scene: &Scene, less: usize) -> Result<(PathBuf, u64), BenchError> {
    let path = scene.dir().join("small.tar");
    let count = 12_000 / less;
    let make = || -> std::io::Result<()> {
        let mut builder = tar::Builder::new(std::io::BufWriter::new(File::create(&path)?));
        let block: Vec<u8> = (0..64u32 << 10).map(|i| ((i * 7919) >> 5) as u8).collect();
        for i in 0..count {
            let name = format!("{}/d{}/f{i}", metadata::UNPACKED, i / 50);
            let size = 500usize << (i % 6);
            let data = block.get(..size).unwrap_or(&block);
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, data)?;
        }
        builder
            .into_inner()?
            .into_inner()
            .map_err(|e| e.into_error())?;
        Ok(())
    };
    make().map_err(at("cannot write", &path))?;
    Ok((path, count as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_have_names_of_their_own() {
        let names: std::collections::HashSet<_> = TASKS.iter().map(|task| task.name).collect();
        assert_eq!(names.len(), TASKS.len());
    }
}
