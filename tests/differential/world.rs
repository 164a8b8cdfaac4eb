//! Three filesystems that hold the same tree: acetate, the kernel's overlayfs, and a plain directory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::common::tree::xattrs;
use super::common::{Acetate, Mount, Overlay, Scratch, Tree, TreeOptions};
use super::compare;
use super::exec::Executor;
use super::layers;
use super::op::{Case, Layer, Op, Setup, Step};
use super::outcome::{Attr, Bytes, Outcome};

/// The kernel's features that acetate has too.
pub const ALL: &str = "redirect_dir=on,metacopy=on,index=on,xino=auto,noatime";

/// One path of a merged tree.
#[derive(Clone, Debug)]
struct Seen {
    attr: Attr,
    ino: u64,
    data: Option<Bytes>,
    xattrs: BTreeMap<std::ffi::OsString, Bytes>,
}

/// Everything that a program can see of a tree.
#[derive(Clone, Debug)]
pub struct View(BTreeMap<PathBuf, Seen>);

impl View {
    /// Reads a tree.
    pub fn read(root: &Path) -> Result<View, String> {
        View::read_with(root, false)
    }

    /// Reads a tree of the kernel's overlayfs.
    pub fn read_kernel(root: &Path) -> Result<View, String> {
        View::read_with(root, true)
    }

    fn read_with(root: &Path, ghosts: bool) -> Result<View, String> {
        let mut all = BTreeMap::new();
        let mut queue = vec![PathBuf::new()];
        while let Some(relative) = queue.pop() {
            let path = if relative.as_os_str().is_empty() {
                root.into()
            } else {
                root.join(&relative)
            };
            let told = |e: std::io::Error| format!("{}: {e}", path.display());
            let meta = match fs::symlink_metadata(&path) {
                // See `layers::copy`.
                Err(e) if ghosts && e.kind() == std::io::ErrorKind::NotFound => continue,
                meta => meta.map_err(told)?,
            };
            let kind = meta.mode() & libc::S_IFMT;
            let data = match kind {
                libc::S_IFDIR => {
                    for entry in fs::read_dir(&path).map_err(told)? {
                        queue.push(relative.join(entry.map_err(told)?.file_name()));
                    }
                    None
                }
                libc::S_IFREG => Some(Bytes(fs::read(&path).map_err(told)?)),
                libc::S_IFLNK => {
                    use std::os::unix::ffi::OsStringExt;
                    let target = fs::read_link(&path).map_err(told)?;
                    Some(Bytes(target.into_os_string().into_vec()))
                }
                _ => None,
            };
            let stat = rustix::fs::lstat(&path).map_err(|e| told(e.into()))?;
            let xattrs = xattrs(&path).map_err(told)?;
            let xattrs = xattrs.into_iter().map(|(k, v)| (k, Bytes(v))).collect();
            all.insert(
                relative,
                Seen {
                    attr: attr(&stat),
                    ino: meta.ino(),
                    data,
                    xattrs,
                },
            );
        }
        Ok(View(all))
    }

    /// Groups of paths that are one inode.
    fn links(&self) -> Vec<Vec<&Path>> {
        let mut groups: BTreeMap<u64, Vec<&Path>> = BTreeMap::new();
        for (path, seen) in self.0.iter().filter(|(_, s)| !s.attr.is_dir()) {
            groups.entry(seen.ino).or_default().push(path);
        }
        let mut groups: Vec<_> = groups.into_values().filter(|g| g.len() > 1).collect();
        groups.sort();
        groups
    }

    /// What differs between acetate and the plain directory, with the kernel's word where there is one.
    pub fn differences(&self, kernel: Option<&View>, plain: &View) -> String {
        let mut text = String::new();
        for (path, here) in &self.0 {
            let shown = path.display();
            let Some(there) = plain.0.get(path) else {
                writeln!(text, "{shown}: only in acetate: {:?}", here.attr).unwrap();
                continue;
            };
            let kernel = kernel.and_then(|k| k.0.get(path));
            if !compare::attr(&here.attr, kernel.map(|k| &k.attr), &there.attr) {
                let kernel = kernel.map(|k| &k.attr);
                let (here, there) = (&here.attr, &there.attr);
                writeln!(
                    text,
                    "{shown}: {here:?}\n  plain: {there:?}\n  kernel: {kernel:?}"
                )
                .unwrap();
            }
            if here.data != there.data {
                writeln!(text, "{shown}: {:?}\n  plain: {:?}", here.data, there.data).unwrap();
            }
            if here.xattrs != there.xattrs {
                writeln!(
                    text,
                    "{shown}: {:?}\n  plain: {:?}",
                    here.xattrs, there.xattrs
                )
                .unwrap();
            }
        }
        for path in plain.0.keys().filter(|p| !self.0.contains_key(*p)) {
            writeln!(text, "{}: only in the plain directory", path.display()).unwrap();
        }
        if self.links() != plain.links() {
            writeln!(
                text,
                "links: {:?}\n  plain: {:?}",
                self.links(),
                plain.links()
            )
            .unwrap();
        }
        text
    }

    /// Paths whose inode number differs.
    pub fn moved(&self, later: &View) -> String {
        let mut text = String::new();
        for (path, seen) in &self.0 {
            if let Some(now) = later.0.get(path).filter(|n| n.ino != seen.ino) {
                writeln!(
                    text,
                    "{}: inode {} became {}",
                    path.display(),
                    seen.ino,
                    now.ino
                )
                .unwrap();
            }
        }
        text
    }
}

fn attr(stat: &rustix::fs::Stat) -> Attr {
    use super::outcome::stamp;
    let kind = stat.st_mode & libc::S_IFMT;
    Attr {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == libc::S_IFDIR {
            0
        } else {
            stat.st_size
        },
        rdev: if matches!(kind, libc::S_IFCHR | libc::S_IFBLK) {
            stat.st_rdev
        } else {
            0
        },
        nlink: stat.st_nlink as _,
        mtime: stamp(stat.st_mtime as _, stat.st_mtime_nsec as _),
        atime: stamp(stat.st_atime as _, stat.st_atime_nsec as _),
    }
}

/// A filesystem under test.
enum Subject {
    Acetate(Mount),
    /// Stands in for acetate where the comparison itself is tested.
    Kernel(Overlay),
}

impl Subject {
    fn path(&self) -> &Path {
        match self {
            Subject::Acetate(mount) => mount.path(),
            Subject::Kernel(overlay) => overlay.path(),
        }
    }

    fn unmount(self) -> Result<(), String> {
        match self {
            Subject::Acetate(mount) => {
                let log = mount.unmount().map_err(|e| format!("unmount: {e}"))?;
                if log.trim().is_empty() {
                    Ok(())
                } else {
                    Err(format!("log:\n{log}"))
                }
            }
            Subject::Kernel(overlay) => overlay.unmount().map_err(|e| format!("umount: {e}")),
        }
    }
}

/// What plays acetate's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// The built binary.
    Acetate,
    /// The kernel's overlayfs: shows what the comparison itself holds for different.
    Kernel,
}

/// The three trees and what is needed to mount them again.
pub struct World {
    // Dropped in this order: handles, mounts, directories.
    executors: Option<[Executor; 3]>,
    subject: Option<Subject>,
    overlay: Option<Overlay>,
    against: Against,
    setup: Setup,
    lowers: Vec<PathBuf>,
    before: Vec<Tree>,
    base: PathBuf,
    _quiet: Quiet,
    _scratch: Scratch,
}

/// A mount of the scratch directory that keeps access times as they are set, so that they can be compared.
struct Quiet(PathBuf);

impl Quiet {
    fn new(dir: PathBuf) -> Quiet {
        mount(
            Some(&dir),
            &dir,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOATIME;
        mount(None::<&str>, &dir, None::<&str>, flags, None::<&str>).unwrap();
        Quiet(dir)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        super::common::mount::detach(&self.0);
    }
}

impl World {
    /// Builds the layers of a case and mounts everything. `None` when the kernel's overlayfs is to play both
    /// parts and does not show these layers as they are.
    pub fn new(case: &Case, against: Against) -> Option<World> {
        let scratch = Scratch::new("differential");
        let quiet = Quiet::new(scratch.dir("quiet"));
        let base = quiet.0.clone();
        let mut lowers: Vec<PathBuf> = Vec::new();
        for (index, layer) in case.layers.iter().enumerate().rev() {
            let dir = scratch.join(format!("lower{index}"));
            match layer {
                Layer::Tree(entries) => layers::build(&dir, entries),
                // Nothing below to write on.
                Layer::Written(_) if lowers.is_empty() => layers::build(&dir, &[]),
                Layer::Written(steps) => {
                    let metacopy = if against == Against::Acetate {
                        "on"
                    } else {
                        "off"
                    };
                    written(&scratch, &dir, &lowers, steps, metacopy);
                }
            }
            lowers.insert(0, dir);
        }
        for who in ["acetate", "kernel"] {
            for part in ["upper", "work"] {
                fs::create_dir_all(base.join(who).join(part)).unwrap();
            }
            let upper = base.join(who).join("upper");
            fs::set_permissions(&upper, fs::Permissions::from_mode(case.setup.root_mode)).unwrap();
            fs::create_dir(base.join(who).join("root")).unwrap();
        }
        fs::create_dir(base.join("plain")).unwrap();
        let before = lowers
            .iter()
            .map(|l| Tree::read(l, TreeOptions::UNTOUCHED).unwrap())
            .collect();
        let mut world = World {
            executors: None,
            subject: None,
            overlay: None,
            against,
            setup: Setup {
                kernel_all: case.setup.kernel_all || against == Against::Kernel,
                ..case.setup
            },
            lowers,
            before,
            base,
            _quiet: quiet,
            _scratch: scratch,
        };
        world.mount_kernel();
        let same = layers::copy(world.kernel_root(), &world.base.join("plain/root"));
        if !same && against == Against::Kernel {
            return None;
        }
        world.mount_subject();
        world.start();
        Some(world)
    }

    fn kernel_root(&self) -> &Path {
        self.overlay.as_ref().unwrap().path()
    }

    fn subject_root(&self) -> &Path {
        self.subject.as_ref().unwrap().path()
    }

    fn mount_overlay(&self, who: &str) -> Overlay {
        let options = match (self.against, self.setup.kernel_all) {
            // The kernel forgets the modification time when it copies the data of a metacopy file up.
            (Against::Kernel, _) => "redirect_dir=on,index=on,noatime",
            (Against::Acetate, true) => ALL,
            (Against::Acetate, false) => "noatime",
        };
        self.overlay_with(who, options)
    }

    /// Mounts the upper of `who` at its own root by the kernel's overlayfs.
    fn overlay_with(&self, who: &str, options: &str) -> Overlay {
        let at = self.base.join(who);
        let (upper, work) = (at.join("upper"), at.join("work"));
        Overlay::mount(
            &at.join("root"),
            &self.lowers,
            Some((&upper, &work)),
            options,
        )
        .unwrap_or_else(|e| panic!("kernel overlayfs on the upper of {who}: {e}"))
    }

    fn acetate_with(&self, who: &str) -> Mount {
        let at = self.base.join(who);
        Acetate::new(at.join("root"))
            .lowers(&self.lowers)
            .upper(&at.join("upper"), &at.join("work"))
            .options("noatime")
            .options(self.setup.options)
            .mount()
    }

    fn mount_kernel(&mut self) {
        self.overlay = Some(self.mount_overlay("kernel"));
    }

    fn mount_subject(&mut self) {
        self.subject = Some(match self.against {
            Against::Acetate => Subject::Acetate(self.acetate_with("acetate")),
            Against::Kernel => Subject::Kernel(self.mount_overlay("acetate")),
        });
    }

    fn start(&mut self) {
        let probe = self.setup.each;
        self.executors = Some([
            Executor::new(self.subject_root(), probe),
            Executor::new(self.kernel_root(), probe),
            Executor::new(&self.base.join("plain/root"), probe),
        ]);
    }

    /// Runs a step on all three. The error describes the difference.
    pub fn step(&mut self, step: &Step) -> Result<(), String> {
        if step.op == Op::Remount {
            return self.remount();
        }
        let Some([acetate, kernel, plain]) = &mut self.executors else {
            return Err("not mounted".into());
        };
        let plain = plain.run(step);
        let kernel = kernel.run(step);
        let acetate = acetate.run(step);
        // Without index the kernel breaks hard links, and without redirects it refuses renames: it has a
        // word to say only with all its features.
        let word = self.setup.kernel_all.then_some(&kernel);
        if let Some(wrong) = compare::outcome(&step.op, &acetate, word, &plain) {
            return Err(format!(
                "{step:?}: {wrong}\n  acetate: {acetate:?}\n  kernel:  {kernel:?}\n  plain:   {plain:?}"
            ));
        }
        if self.setup.each {
            self.same_trees()
                .map_err(|text| format!("after {step:?}:\n{text}"))?;
        }
        Ok(())
    }

    /// Compares the whole trees.
    pub fn same_trees(&self) -> Result<(), String> {
        let acetate = View::read(self.subject_root())?;
        let kernel = View::read_kernel(self.kernel_root())?;
        let plain = View::read(&self.base.join("plain/root"))?;
        let kernel = self.setup.kernel_all.then_some(&kernel);
        let text = acetate.differences(kernel, &plain);
        if text.is_empty() { Ok(()) } else { Err(text) }
    }

    fn remount(&mut self) -> Result<(), String> {
        let before = View::read(self.subject_root())?;
        self.executors = None;
        if let Some(subject) = self.subject.take() {
            subject.unmount()?;
        }
        self.overlay.take();
        self.mount_kernel();
        self.mount_subject();
        let moved = before.moved(&View::read(self.subject_root())?);
        self.start();
        if moved.is_empty() {
            Ok(())
        } else {
            Err(format!("by remounting: {moved}"))
        }
    }

    /// The end of a case: trees equal, layers untouched, uppers readable by the other one.
    pub fn finish(mut self) -> Result<(), String> {
        self.same_trees().map_err(|e| format!("at the end:\n{e}"))?;
        self.executors = None;
        let kernel = View::read_kernel(self.kernel_root())?;
        let plain = View::read(&self.base.join("plain/root"))?;
        if let Some(subject) = self.subject.take() {
            subject.unmount()?;
        }
        self.overlay.take();
        self.untouched()?;
        // Each other's upper, with the same workdir.
        {
            let overlay = self.overlay_with("acetate", ALL);
            let here = View::read_kernel(overlay.path())
                .map_err(|e| format!("acetate's upper, by the kernel: {e}"))?;
            let text = here.differences(self.setup.kernel_all.then_some(&kernel), &plain);
            if !text.is_empty() {
                return Err(format!("acetate's upper, mounted by the kernel:\n{text}"));
            }
        }
        if self.setup.kernel_all && self.against == Against::Acetate {
            let mount = self.acetate_with("kernel");
            let here = View::read(mount.path())
                .map_err(|e| format!("the kernel's upper, by acetate: {e}"))?;
            let text = here.differences(Some(&kernel), &kernel);
            if !text.is_empty() {
                return Err(format!("the kernel's upper, mounted by acetate:\n{text}"));
            }
            mount.unmount().map_err(|e| e.to_string())?;
        }
        self.untouched()
    }

    fn untouched(&self) -> Result<(), String> {
        for (dir, before) in self.lowers.iter().zip(&self.before) {
            let after = Tree::read(dir, TreeOptions::UNTOUCHED).map_err(|e| e.to_string())?;
            let lines = before.differences(&after);
            if !lines.is_empty() {
                return Err(format!(
                    "{} was touched:\n{}",
                    dir.display(),
                    lines.join("\n")
                ));
            }
        }
        Ok(())
    }
}

/// A layer that the kernel's overlayfs wrote on the layers below it.
fn written(scratch: &Scratch, dir: &Path, lowers: &[PathBuf], steps: &[Step], metacopy: &str) {
    layers::build(dir, &[]);
    let work = tempfile::tempdir_in(scratch.path()).unwrap();
    let root = tempfile::tempdir_in(scratch.path()).unwrap();
    let options = format!("redirect_dir=on,metacopy={metacopy},index=off,noatime");
    let overlay = Overlay::mount(root.path(), lowers, Some((dir, work.path())), &options).unwrap();
    let mut executor = Executor::new(overlay.path(), false);
    for step in steps.iter().filter(|s| s.op != Op::Remount) {
        // Whatever comes of it: the layer is what the kernel left.
        let _: Outcome = executor.run(step);
    }
    executor.close_all();
    drop(executor);
    overlay.unmount().unwrap();
}
