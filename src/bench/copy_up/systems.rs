//! Whose copy-up is measured.

use std::path::Path;

use super::Request;
use crate::bench::disk::Filesystem;
use crate::bench::error::BenchError;
use crate::bench::system::{Kind, Left, System, find_program, mount_programs, only, this_program};

/// Everything that this machine may have. Whether it works is seen when it is mounted.
pub(super) fn systems(
    request: &Request,
    root: bool,
) -> Result<(Vec<System>, Vec<Left>), BenchError> {
    let this = this_program()?;
    let main = if root {
        Filesystem::Ext4
    } else {
        Filesystem::Host
    };
    let none = Path::new("");
    let mut all = vec![
        System::new(
            "acetate",
            Kind::Acetate,
            main,
            "",
            &this,
            "this program with its default options",
        ),
        System::new(
            "acetate complete=off",
            Kind::Acetate,
            main,
            "complete=off",
            &this,
            "this program; nothing is copied in the background, so that all that is counted is the change's own",
        ),
        System::new(
            "acetate partial=off",
            Kind::Acetate,
            main,
            "partial=off",
            &this,
            "this program; data is copied whole, when it first changes",
        ),
        System::new(
            "acetate metacopy=off",
            Kind::Acetate,
            main,
            "metacopy=off",
            &this,
            "this program; every change copies the data",
        ),
        System::new(
            "acetate volatile",
            Kind::Acetate,
            main,
            "volatile",
            &this,
            "this program with -o volatile: nothing waits for the disk",
        ),
    ];
    let (programs, mut left) = mount_programs(&request.rivals)?;
    let mut missing = |name: &str, why: &str| {
        left.push(Left {
            name: name.to_owned(),
            why: why.to_owned(),
        });
    };
    if root {
        all.push(System::new(
            "kernel",
            Kind::Kernel,
            main,
            "",
            none,
            "the kernel's overlayfs with its default options",
        ));
        all.push(System::new(
            "kernel metacopy",
            Kind::Kernel,
            main,
            "metacopy=on,redirect_dir=on,index=on",
            none,
            "the kernel's overlayfs with metacopy=on,redirect_dir=on,index=on",
        ));
    } else {
        missing("kernel", "only root may mount it");
    }
    for (name, program) in programs {
        let about = format!("{}, a mount program", program.display());
        all.push(System::new(
            &name,
            Kind::FuseOverlayfs,
            main,
            "",
            &program,
            &about,
        ));
    }
    match find_program("unionfs-fuse") {
        Some(program) if root => {
            all.push(System::new(
                "unionfs-fuse",
                Kind::Unionfs,
                main,
                "",
                &program,
                "unionfs-fuse with cow",
            ));
        }
        Some(_) => missing("unionfs-fuse", "a plain user may not mount it for others"),
        None => missing("unionfs-fuse", "not installed"),
    }
    all.push(System::new("copy", Kind::Copy, main, "", none, "no union: the file is copied whole before its first change, as the vfs driver does for all files at once"));
    if root {
        all.push(System::new(
            "acetate on xfs",
            Kind::Acetate,
            Filesystem::Xfs,
            "",
            &this,
            "this program with its default options on a filesystem with reflinks",
        ));
        all.push(System::new(
            "reflink",
            Kind::Reflink,
            Filesystem::Xfs,
            "",
            none,
            "no union: the file is cloned before its first change",
        ));
        all.push(System::new(
            "acetate on btrfs",
            Kind::Acetate,
            Filesystem::Btrfs,
            "",
            &this,
            "this program with its default options on a filesystem with reflinks",
        ));
        match find_program("btrfs") {
            Some(program) => all.push(System::new(
                "btrfs snapshot",
                Kind::Snapshot,
                Filesystem::Btrfs,
                "",
                &program,
                "no union: a writable snapshot of the volume, as block-level drivers make",
            )),
            None => missing("btrfs snapshot", "btrfs is not installed"),
        }
    } else {
        missing(
            "reflink, snapshot",
            "only root may mount a filesystem for them",
        );
    }
    if !Path::new("/dev/mapper/control").exists() || !device_mapper_answers() {
        missing("device-mapper snapshot", "the kernel has no device-mapper");
    } else {
        missing(
            "device-mapper snapshot",
            "the btrfs snapshot stands for the block-level ones",
        );
    }
    only(&request.only, all, left)
}

fn device_mapper_answers() -> bool {
    let devices = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    devices
        .lines()
        .any(|line| line.trim().ends_with(" device-mapper"))
}
