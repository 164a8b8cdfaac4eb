//! What is timed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// What a task does with a mounted directory.
type Step = fn(&Path) -> Result<()>;

/// One kind of work.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) name: &'static str,
    /// Not timed.
    pub(crate) prepare: Step,
    pub(crate) run: Step,
}

const LAYERS: usize = 5;
const DIRS: usize = 40;
const FILES: usize = 50;
const BIG: usize = 256 << 20;
const LARGE_LOWER: usize = 64 << 20;

pub(crate) const TASKS: &[Task] = &[
    Task {
        name: "walk and stat 10,000 files, first time",
        prepare: nothing,
        run: walk,
    },
    Task {
        name: "the same again",
        prepare: walk,
        run: walk,
    },
    Task {
        name: "open and read 2,000 small files, first time",
        prepare: nothing,
        run: read_small,
    },
    Task {
        name: "create and remove 2,000 files",
        prepare: nothing,
        run: create,
    },
    Task {
        name: "write 256 MiB",
        prepare: nothing,
        run: write_big,
    },
    Task {
        name: "read 256 MiB",
        prepare: prepare_big,
        run: read_big,
    },
    Task {
        name: "10,000 random writes of 4 KiB",
        prepare: prepare_big,
        run: write_random,
    },
    Task {
        name: "change one byte of a 64 MiB lower file",
        prepare: nothing,
        run: copy_up,
    },
    Task {
        name: "change the mode of 2,000 lower files",
        prepare: walk,
        run: change_modes,
    },
    Task {
        name: "`mv` of a lower directory of 50 files",
        prepare: walk,
        run: rename,
    },
];

/// Makes the lower layers, the topmost first.
pub(crate) fn layers(base: &Path) -> Result<Vec<PathBuf>> {
    let mut layers = Vec::new();
    for layer in 0..LAYERS {
        let root = base.join(format!("layer{layer}"));
        for dir in 0..DIRS {
            // Every other directory exists in several layers and so is merged.
            let name = if dir % 2 == 0 {
                format!("d{dir}")
            } else {
                format!("d{dir}-{layer}")
            };
            let dir = root.join(name);
            fs::create_dir_all(&dir)?;
            for file in 0..FILES {
                fs::write(
                    dir.join(format!("f{layer}-{file}")),
                    format!("{layer} {file}\n"),
                )?;
            }
        }
        layers.push(root);
    }
    fs::write(base.join("layer0/large"), vec![7; LARGE_LOWER])?;
    rustix::fs::sync();
    Ok(layers)
}

fn nothing(_: &Path) -> Result<()> {
    Ok(())
}

fn walk(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.metadata()?.is_dir() {
            walk(&entry.path())?;
        }
    }
    Ok(())
}

/// The small files of one layer.
fn small() -> impl Iterator<Item = String> {
    (0..DIRS).flat_map(|dir| {
        let name = if dir % 2 == 0 {
            format!("d{dir}")
        } else {
            format!("d{dir}-1")
        };
        (0..FILES).map(move |file| format!("{name}/f1-{file}"))
    })
}

fn read_small(dir: &Path) -> Result<()> {
    for name in small() {
        fs::read(dir.join(name))?;
    }
    Ok(())
}

fn change_modes(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for name in small() {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

fn create(dir: &Path) -> Result<()> {
    for i in 0..2000 {
        File::create(dir.join(format!("d0/new{i}")))?;
    }
    for i in 0..2000 {
        fs::remove_file(dir.join(format!("d0/new{i}")))?;
    }
    Ok(())
}

fn write_big(dir: &Path) -> Result<()> {
    let mut file = File::create(dir.join("big"))?;
    let block = vec![1; 1 << 20];
    for _ in 0..BIG / block.len() {
        file.write_all(&block)?;
    }
    Ok(())
}

fn prepare_big(dir: &Path) -> Result<()> {
    write_big(dir)?;
    Ok(File::open(dir.join("big"))?.sync_all()?)
}

fn read_big(dir: &Path) -> Result<()> {
    let mut file = File::open(dir.join("big"))?;
    let mut block = vec![0; 1 << 20];
    while file.read(&mut block)? != 0 {}
    Ok(())
}

fn write_random(dir: &Path) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(dir.join("big"))?;
    let block = [2; 4096];
    // A fixed sequence, the same for everyone.
    let mut at = 1u64;
    for _ in 0..10_000 {
        at = at
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let offset = (at >> 33) % (BIG as u64 / 4096) * 4096;
        file.write_all_at(&block, offset)?;
    }
    Ok(())
}

fn copy_up(dir: &Path) -> Result<()> {
    let file = File::options().write(true).open(dir.join("large"))?;
    Ok(file.write_all_at(b"x", 5)?)
}

/// By `mv`, which copies where the filesystem does not rename a lower directory.
fn rename(dir: &Path) -> Result<()> {
    let mut mv = Command::new("mv");
    let moved = mv.arg(dir.join("d1-1")).arg(dir.join("renamed")).status()?;
    if !moved.success() {
        bail!("mv: {moved}");
    }
    Ok(())
}
