//! Three filesystems that hold the same tree: acetate, the kernel's overlayfs, and a plain directory.

use std::path::Path;

use super::committed::Base;
use super::common::{Mount, Overlay};
use super::compare;
use super::exec::Executor;
use super::ground::{ALL, Ground};
use super::op::{Case, Features, Op, Setup, Step};
use super::view::View;

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
            Subject::Acetate(mount) => quiet_unmount(mount),
            Subject::Kernel(overlay) => overlay.unmount().map_err(|e| format!("umount: {e}")),
        }
    }
}

/// Unmounts; an error when the daemon had anything to say.
pub fn quiet_unmount(mount: Mount) -> Result<(), String> {
    let log = mount.unmount().map_err(|e| format!("unmount: {e}"))?;
    if log.trim().is_empty() {
        Ok(())
    } else {
        Err(format!("the daemon's log:\n{log}"))
    }
}

/// What plays acetate's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// The built binary.
    Acetate,
    /// The same; its upper becomes an image at the end.
    Image,
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
    base: Option<Base>,
    ground: Ground,
}

impl World {
    /// Builds the layers of a case and mounts everything. `None` when the kernel's overlayfs is to play both
    /// parts and does not show these layers as they are.
    pub fn new(case: &Case, against: Against) -> Option<World> {
        let ground = Ground::new(&case.layers, case.setup, against != Against::Kernel);
        let mut world = World {
            executors: None,
            subject: None,
            overlay: None,
            against,
            setup: case.setup,
            base: None,
            ground,
        };
        world.mount_kernel();
        if !world.ground.copy_to_plain(world.kernel_root()) && against == Against::Kernel {
            return None;
        }
        if against == Against::Image {
            world.base = Some(Base::new(&world.ground.store(), &world.ground.plain()));
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

    fn kernel_overlay(&self, who: &str) -> Overlay {
        match (self.against, self.setup.features) {
            // The kernel forgets the modification time when it copies the data of a metacopy file up.
            (Against::Kernel, _) => self.ground.overlay(who, "redirect_dir=on,index=on,noatime"),
            (Against::Acetate | Against::Image, Features::All) => self.ground.overlay(who, ALL),
            (Against::Acetate | Against::Image, Features::Default) => {
                self.ground.overlay(who, "noatime")
            }
            (Against::Acetate | Against::Image, Features::User) => self.ground.overlay_all(who),
        }
    }

    fn mount_kernel(&mut self) {
        self.overlay = Some(self.kernel_overlay("kernel"));
    }

    fn mount_subject(&mut self) {
        self.subject = Some(match self.against {
            Against::Acetate | Against::Image => Subject::Acetate(self.ground.acetate("acetate")),
            Against::Kernel => Subject::Kernel(self.kernel_overlay("acetate")),
        });
    }

    fn start(&mut self) {
        let probe = self.setup.each;
        self.executors = Some([
            Executor::new(self.subject_root(), probe),
            Executor::new(self.kernel_root(), probe),
            Executor::new(&self.ground.plain(), probe),
        ]);
    }

    /// Whether the kernel's overlayfs has a word to say about link counts: without an index it breaks hard
    /// links, and without redirects it refuses renames, so that its tree is soon another one.
    fn has_word(&self) -> bool {
        self.against == Against::Kernel || self.setup.features != Features::Default
    }

    /// Runs a step on all three. The error describes the difference.
    pub fn step(&mut self, step: &Step) -> Result<(), String> {
        if step.op == Op::Remount {
            return self.remount();
        }
        let word = self.has_word();
        let Some([acetate, kernel, plain]) = &mut self.executors else {
            return Err("not mounted".into());
        };
        if compare::left_out(step, &self.setup, plain) {
            return Ok(());
        }
        let unlike = compare::may_be_old(step, &self.setup, plain);
        let plain = plain.run(step);
        let kernel = kernel.run(step);
        let acetate = acetate.run(step);
        let link_counts = if word { &kernel } else { &acetate };
        if unlike {
            return Ok(());
        }
        if let Some(wrong) = compare::outcome(&step.op, &acetate, Some(link_counts), &plain) {
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
    fn same_trees(&self) -> Result<(), String> {
        let acetate = View::read(self.subject_root())?;
        let kernel = View::read_kernel(self.kernel_root())?;
        let plain = View::read(&self.ground.plain())?;
        let link_counts = if self.has_word() { &kernel } else { &acetate };
        let text = acetate.differences(link_counts, &plain);
        if text.is_empty() { Ok(()) } else { Err(text) }
    }

    fn unmount(&mut self) -> Result<(), String> {
        self.executors = None;
        if let Some(subject) = self.subject.take() {
            subject.unmount()?;
        }
        self.overlay = None;
        Ok(())
    }

    fn remount(&mut self) -> Result<(), String> {
        let before = View::read(self.subject_root())?;
        self.unmount()?;
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
        if let Some(base) = &self.base {
            base.commit(&self.ground.upper("acetate"), self.subject_root())?;
            self.unmount()?;
            return self.ground.untouched();
        }
        let kernel = View::read_kernel(self.kernel_root())?;
        let plain = View::read(&self.ground.plain())?;
        self.unmount()?;
        self.ground.untouched()?;
        by_the_kernel(&self.ground, self.has_word().then_some(&kernel), &plain)?;
        if self.against == Against::Acetate && self.setup.features != Features::Default {
            // As the kernel reads it: what it holds in memory is sometimes not what it stored.
            let overlay = self.ground.overlay_all("kernel");
            let kernel = View::read_kernel(overlay.path())?;
            overlay.unmount().map_err(|e| e.to_string())?;
            let mount = self.ground.acetate("kernel");
            let here = View::read(mount.path())
                .map_err(|e| format!("the kernel's upper, by acetate: {e}"))?;
            let text = here.differences(&kernel, &kernel);
            if !text.is_empty() {
                return Err(format!("the kernel's upper, mounted by acetate:\n{text}"));
            }
            quiet_unmount(mount)?;
        }
        self.ground.untouched()
    }
}

/// Mounts acetate's upper by the kernel's overlayfs, with the same workdir, and compares.
pub fn by_the_kernel(ground: &Ground, kernel: Option<&View>, plain: &View) -> Result<(), String> {
    let overlay = ground.overlay_all("acetate");
    let here = View::read_kernel(overlay.path())
        .map_err(|e| format!("acetate's upper, by the kernel: {e}"))?;
    let text = here.differences(kernel.unwrap_or(&here), plain);
    if text.is_empty() {
        return overlay.unmount().map_err(|e| e.to_string());
    }
    Err(format!("acetate's upper, mounted by the kernel:\n{text}"))
}
