//! The layers of a case, and every way of mounting them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::common::{Acetate, Mount, Overlay, Scratch, Tree, TreeOptions};
use super::exec::Executor;
use super::layers;
use super::op::{Features, Layer, Op, Setup, Step};
use super::outcome::Outcome;

/// What the kernel's overlayfs is mounted with to read all that acetate writes.
pub const ALL: &str = "redirect_dir=on,metacopy=on,index=on,xino=auto,noatime";

/// The same in the `user.` form, where the kernel refuses redirects and metacopy.
const USER: &str = "userxattr,index=on,noatime";

/// Layers on disk, an upper for each driver, and their untouched state.
pub struct Ground {
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
        let none = None::<&str>;
        mount(Some(&dir), &dir, none, MsFlags::MS_BIND, none).unwrap();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOATIME;
        mount(none, &dir, none, flags, none).unwrap();
        Quiet(dir)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        super::common::mount::detach(&self.0);
    }
}

impl Ground {
    /// Builds the layers. `metacopy`: those that the kernel writes may hold metacopy files.
    pub fn new(described: &[Layer], setup: Setup, metacopy: bool) -> Ground {
        let scratch = Scratch::new("differential");
        let quiet = Quiet::new(scratch.dir("quiet"));
        let base = quiet.0.clone();
        let mut lowers: Vec<PathBuf> = Vec::new();
        for (index, layer) in described.iter().enumerate().rev() {
            let dir = scratch.join(format!("lower{index}"));
            fs::create_dir(&dir).unwrap();
            match layer {
                Layer::Tree(entries) => {
                    layers::build(&dir, entries, setup.features == Features::User);
                }
                // Nothing below to write on.
                Layer::Written(_) if lowers.is_empty() => {}
                Layer::Written(steps) => written(&scratch, &dir, &lowers, steps, metacopy),
            }
            lowers.insert(0, dir);
        }
        for who in ["acetate", "kernel"] {
            for part in ["upper", "work", "root"] {
                fs::create_dir_all(base.join(who).join(part)).unwrap();
            }
            let upper = base.join(who).join("upper");
            fs::set_permissions(&upper, fs::Permissions::from_mode(setup.root_mode)).unwrap();
        }
        fs::create_dir_all(base.join("plain/root")).unwrap();
        let untouched = |l: &PathBuf| Tree::read(l, TreeOptions::UNTOUCHED).unwrap();
        let before = lowers.iter().map(untouched).collect();
        Ground {
            setup,
            lowers,
            before,
            base,
            _quiet: quiet,
            _scratch: scratch,
        }
    }

    /// The plain directory.
    pub fn plain(&self) -> PathBuf {
        self.base.join("plain/root")
    }

    /// Where a store may be made.
    pub fn store(&self) -> PathBuf {
        self.base.join("store")
    }

    /// The upper of `who`.
    pub fn upper(&self, who: &str) -> PathBuf {
        self.base.join(who).join("upper")
    }

    /// Makes the plain directory the copy of a merged tree; see [`layers::copy`].
    pub fn copy_to_plain(&self, merged: &Path) -> bool {
        layers::copy(merged, &self.plain())
    }

    /// Mounts the upper of `who` by the kernel's overlayfs with these options.
    pub fn overlay(&self, who: &str, options: &str) -> Overlay {
        let at = self.base.join(who);
        let (upper, work, root) = (at.join("upper"), at.join("work"), at.join("root"));
        Overlay::mount(&root, &self.lowers, Some((&upper, &work)), options)
            .unwrap_or_else(|e| panic!("kernel overlayfs on the upper of {who}: {e}"))
    }

    /// Mounts the upper of `who` by the kernel's overlayfs so that it reads what acetate writes.
    pub fn overlay_all(&self, who: &str) -> Overlay {
        self.overlay(
            who,
            if self.setup.features == Features::User {
                USER
            } else {
                ALL
            },
        )
    }

    /// Mounts the upper of `who` by acetate.
    pub fn acetate(&self, who: &str) -> Mount {
        let at = self.base.join(who);
        let user = if self.setup.features == Features::User {
            "userxattr"
        } else {
            ""
        };
        Acetate::new(at.join("root"))
            .lowers(&self.lowers)
            .upper(&at.join("upper"), &at.join("work"))
            .options("noatime")
            .options(user)
            .options(self.setup.options)
            .mount()
    }

    /// An error when anything in a lower layer is not what it was.
    pub fn untouched(&self) -> Result<(), String> {
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
fn written(scratch: &Scratch, dir: &Path, lowers: &[PathBuf], steps: &[Step], metacopy: bool) {
    let work = tempfile::tempdir_in(scratch.path()).unwrap();
    let root = tempfile::tempdir_in(scratch.path()).unwrap();
    let metacopy = if metacopy { "on" } else { "off" };
    let options = format!("redirect_dir=on,metacopy={metacopy},index=off,noatime");
    let upper = Some((dir, work.path()));
    let overlay = Overlay::mount(root.path(), lowers, upper, &options).unwrap();
    let mut executor = Executor::new(overlay.path(), false);
    for step in steps.iter().filter(|s| s.op != Op::Remount) {
        // Whatever comes of it: the layer is what the kernel left.
        let _: Outcome = executor.run(step);
    }
    drop(executor);
    overlay.unmount().unwrap();
}
