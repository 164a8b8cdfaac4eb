//! Each change on a filesystem that has hardly a block left: a program is told so or its change is made, and nothing else.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

use crate::changes::{CHANGES, Change, fill};
use crate::common::stand::Stand;
use crate::common::{LoopImage, Mount, Tree, TreeOptions, Watchdog, skip};
use crate::{require, skip};

const BLOCK: u64 = 4096;
const OPTIONS: &str = "partial=8K,complete=off";

/// What programs see, but for times.
const SEEN: TreeOptions = TreeOptions {
    mtime: false,
    ..TreeOptions::CONTENTS
};

/// What takes the room away.
struct Filler(File);

impl Filler {
    fn free(&self) -> u64 {
        fstatvfs(&self.0).unwrap().f_bavail
    }

    /// Leaves so many blocks to others, or hardly more.
    fn leave(&self, blocks: u64) {
        // What is freed is there once the journal says so.
        rustix::fs::syncfs(&self.0).unwrap();
        let mut length = self.0.metadata().unwrap().len();
        let mut chunk = 1 << 12;
        while chunk > 0 {
            // Of metadata the file may need some as well.
            if self.free() < blocks + chunk {
                chunk /= 2;
                continue;
            }
            match fallocate(&self.0, FallocateFlags::empty(), length, chunk * BLOCK) {
                Ok(()) => length += chunk * BLOCK,
                Err(rustix::io::Errno::NOSPC) => chunk /= 2,
                Err(e) => panic!("{e}"),
            }
        }
        // The last of them it may lack a block of metadata for.
        assert!(self.free() <= blocks + 2, "{} are free", self.free());
    }

    fn give_back(&self) {
        self.0.set_len(0).unwrap();
        rustix::fs::syncfs(&self.0).unwrap();
    }
}

fn seen(mount: &Mount, dir: &Path) -> Result<Tree, String> {
    Tree::read(&mount.join(dir), SEEN).map_err(|e| e.to_string())
}

/// Makes a change with so many blocks left, and again with room; says what is wrong.
fn on_full_disk(
    mount: &Mount,
    dir: &Path,
    change: &Change,
    (filler, blocks): (&Filler, u64),
    (before, after): (&Tree, &Tree),
) -> (bool, Vec<String>) {
    let path = mount.join(dir);
    (change.before)(&path).unwrap();
    filler.leave(blocks);
    let result = (change.act)(&path);
    let mut wrong = Vec::new();
    if let Err(e) = &result {
        // A command tells it in words.
        let errno = if change.name == "completion" {
            libc::EIO
        } else {
            libc::ENOSPC
        };
        if e.raw_os_error() != Some(errno) {
            wrong.push(format!("answers {e}"));
        }
    }
    match seen(mount, dir) {
        Err(e) => wrong.push(e),
        Ok(found) => {
            let expected = if result.is_ok() { after } else { before };
            let differences = expected.differences(&found);
            // The truncation is the first part of its open.
            let truncated =
                change.name == "truncate on opening" && after.differences(&found).is_empty();
            if !differences.is_empty() && !truncated {
                wrong.push(format!("{result:?}, but: {}", differences.join("\n  ")));
            }
        }
    }
    filler.give_back();
    if result.is_err() {
        if let Err(e) = (change.act)(&path) {
            wrong.push(format!("with room: {e}"));
        }
        match seen(mount, dir) {
            Err(e) => wrong.push(e),
            Ok(found) => {
                let differences = after.differences(&found);
                if !differences.is_empty() {
                    wrong.push(format!("with room: {}", differences.join("\n  ")));
                }
            }
        }
    }
    (result.is_err(), wrong)
}

#[test]
#[ignore = "heavy: fills a disk some hundred times"]
fn a_change_on_a_full_disk_is_made_or_refused() {
    require!(skip::privileged());
    let long = std::env::var_os("ACETATE_LONG").is_some();
    let _limit = Watchdog::new("full", Duration::from_secs(if long { 3000 } else { 270 }));
    let mut stand = Stand::new("full");
    let mkfs = ["-m", "0", "-b", "4096"];
    let image = match LoopImage::with_options(&stand.scratch, "ext4", 32 << 20, &mkfs, "loop") {
        Ok(image) => image,
        Err(reason) => skip!("{reason}"),
    };
    (stand.upper, stand.work) = (image.path().join("upper"), image.path().join("work"));
    for dir in [&stand.upper, &stand.work] {
        fs::create_dir(dir).unwrap();
    }
    let all: Vec<u64> = if long {
        (0..=20).collect()
    } else {
        vec![0, 1, 3, 6]
    };
    let count = CHANGES.len() * (all.len() + 1);
    for number in 0..count {
        fill(&stand.lower.join(format!("dir-{number}")));
    }
    let mut dirs = (0..count).map(|number| PathBuf::from(format!("dir-{number}")));
    let filler = Filler(File::create(image.path().join("filler")).unwrap());
    let mount = stand.acetate(OPTIONS).mount();
    let mut expected: Vec<(PathBuf, Tree)> = Vec::new();
    let (mut failed, mut wrong) = (0, Vec::new());
    for change in CHANGES {
        let Some(model) = dirs.next() else { break };
        let path = mount.join(&model);
        (change.before)(&path).unwrap();
        let before = seen(&mount, &model).unwrap();
        (change.act)(&path).unwrap();
        let after = seen(&mount, &model).unwrap();
        for (&blocks, dir) in all.iter().zip(&mut dirs) {
            let trees = (&before, &after);
            let (refused, found) = on_full_disk(&mount, &dir, change, (&filler, blocks), trees);
            failed += usize::from(refused);
            let what = |text| format!("{} with {blocks} blocks in {dir:?}: {text}", change.name);
            wrong.extend(found.into_iter().map(what));
            expected.push((dir.clone(), after.clone()));
        }
        expected.push((model, after));
    }
    println!("{} changes, {failed} refused", expected.len());
    let left: Vec<_> = stand.left_in_work();
    if left.iter().any(|path| !path.ends_with("incompat")) {
        wrong.push(format!("left in the workdir: {left:?}"));
    }
    // Unmounted and mounted again without a block left.
    filler.leave(0);
    mount.unmount().unwrap();
    let mount = stand.acetate(OPTIONS).mount();
    for (dir, tree) in &expected {
        match seen(&mount, dir) {
            Err(e) => wrong.push(format!("{dir:?} after a remount: {e}")),
            Ok(found) => {
                let differences = tree.differences(&found).join("\n  ");
                if !differences.is_empty() {
                    wrong.push(format!("{dir:?} after a remount: {differences}"));
                }
            }
        }
    }
    mount.unmount().unwrap();
    // With room what was copied up by blocks is completed as well.
    filler.give_back();
    let mount = stand.acetate(OPTIONS).mount();
    fs::metadata(mount.path()).unwrap();
    mount.unmount().unwrap();
    if !stand.left_in_work().is_empty() {
        wrong.push(format!("after a remount: {:?}", stand.left_in_work()));
    }
    let report = wrong.join("\n");
    assert!(wrong.is_empty(), "{} are wrong:\n{report}", wrong.len());
    assert!(failed > 20, "{failed} were refused");
    drop(filler);
    image.unmount().unwrap();
}
