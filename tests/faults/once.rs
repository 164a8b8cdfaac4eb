//! Each system call fails once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::changes::{CHANGES, Change, fill};
use crate::common::stand::Stand;
use crate::common::{LoopImage, Mount, Tree, TreeOptions, Watchdog, skip};
use crate::inject;
use crate::{require, skip};

const ERRORS: [(&str, i32); 5] = [
    ("ENOSPC", libc::ENOSPC),
    ("EIO", libc::EIO),
    ("EDQUOT", libc::EDQUOT),
    ("ENOMEM", libc::ENOMEM),
    ("EMFILE", libc::EMFILE),
];

/// What changes nothing.
const READS: [&str; 4] = ["newfstatat", "fstat", "statx", "fstatfs"];

/// What programs see, but for times.
const SEEN: TreeOptions = TreeOptions {
    mtime: false,
    ..TreeOptions::CONTENTS
};

/// A mount with directories that are all the same, taken one after the other.
struct Field {
    stand: Stand,
    mount: Mount,
    next: usize,
    count: usize,
    log: PathBuf,
    /// What each directory that was used is to be.
    expected: Vec<(PathBuf, Tree)>,
    wrong: Vec<String>,
    failed: usize,
    survived: usize,
}

impl Field {
    fn pid(&self) -> u32 {
        self.mount.pid().unwrap()
    }

    fn take(&mut self, change: &Change) -> PathBuf {
        assert!(self.next < self.count, "too few directories");
        let dir = PathBuf::from(format!("dir-{}", self.next));
        self.next += 1;
        (change.before)(&self.mount.join(&dir)).unwrap();
        dir
    }

    fn seen(&self, dir: &Path) -> Result<Tree, String> {
        Tree::read(&self.mount.join(dir), SEEN).map_err(|e| e.to_string())
    }

    /// Open files of the upper that have no name, or one of the scratch directory.
    fn leaked(&self) -> Vec<PathBuf> {
        let disk = self.stand.upper.parent().unwrap();
        let scratch = self.stand.work.join("work");
        let all = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        all.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .filter(|path| {
                let unnamed = path.to_string_lossy().ends_with(" (deleted)");
                (path.starts_with(disk) && unnamed)
                    || (path.starts_with(&scratch) && *path != scratch)
            })
            .collect()
    }

    /// Lets one call of a change fail; what is wrong afterwards.
    fn fail(
        &mut self,
        change: &Change,
        call: &str,
        number: usize,
        error: (&str, i32),
        trees: (&Tree, &Tree),
    ) {
        let dir = self.take(change);
        let path = self.mount.join(&dir);
        let what = format!(
            "{}: {} of {call} number {number} in {dir:?}",
            change.name, error.0
        );
        let (result, hit) = inject::failing(self.pid(), &self.log, call, error.0, number, || {
            (change.act)(&path)
        });
        let mut wrong = Vec::new();
        let mut again = true;
        let (before, after) = trees;
        let expected = match &result {
            Ok(()) => {
                self.survived += usize::from(hit);
                after
            }
            Err(e) => {
                self.failed += 1;
                if !hit || ![Some(error.1), Some(libc::EIO)].contains(&e.raw_os_error()) {
                    wrong.push(format!("answers {e}"));
                }
                before
            }
        };
        match self.seen(&dir) {
            Err(e) => wrong.push(e),
            Ok(found) => {
                let differences = expected.differences(&found);
                // Where the answer alone could not be told, the change was made; a truncation is the first part of its open.
                let told = READS.contains(&call) || change.name == "truncate on opening";
                let made = told && after.differences(&found).is_empty();
                if !differences.is_empty() && !made {
                    wrong.push(format!("{result:?}, but: {}", differences.join("\n  ")));
                }
                again = !made;
            }
        }
        // What was to take something away may have failed to: the next mount does it.
        let left = self.stand.left_in_work();
        let left: Vec<_> = left.iter().filter(|p| !p.ends_with("incompat")).collect();
        if !left.is_empty() && !matches!(call, "unlinkat" | "getdents64" | "openat") {
            wrong.push(format!("left in the workdir: {left:?}"));
        }
        if result.is_err() && again {
            if let Err(e) = (change.act)(&path) {
                wrong.push(format!("the next attempt: {e}"));
            }
            match self.seen(&dir) {
                Err(e) => wrong.push(e),
                Ok(found) => {
                    let differences = after.differences(&found);
                    if !differences.is_empty() {
                        wrong.push(format!("the next attempt: {}", differences.join("\n  ")));
                    }
                }
            }
        }
        self.expected.push((dir, after.clone()));
        self.wrong
            .extend(wrong.into_iter().map(|text| format!("{what}: {text}")));
    }

    fn run(&mut self, change: &Change, long: bool, turn: &mut usize) {
        let dir = self.take(change);
        let path = self.mount.join(&dir);
        let before = self.seen(&dir).unwrap();
        let pid = self.pid();
        let calls = inject::calls(pid, &self.log, || (change.act)(&path).unwrap());
        let after = self.seen(&dir).unwrap();
        self.expected.push((dir, after.clone()));
        for (call, count) in calls {
            for number in 1..=count.min(8) {
                let errors = if long {
                    ERRORS.to_vec()
                } else {
                    *turn += 1;
                    vec![ERRORS[*turn % ERRORS.len()]]
                };
                for error in errors {
                    self.fail(change, &call, number, error, (&before, &after));
                }
            }
        }
        let leaked = self.leaked();
        if !leaked.is_empty() {
            self.wrong
                .push(format!("{}: {leaked:?} is still open", change.name));
        }
    }
}

#[test]
#[ignore = "heavy: some hundred failures"]
fn each_step_of_each_change_may_fail() {
    require!(skip::privileged());
    require!(skip::program("strace"));
    let long = std::env::var_os("ACETATE_LONG").is_some();
    let _limit = Watchdog::new("faults", Duration::from_secs(if long { 3000 } else { 270 }));
    let mut stand = Stand::new("faults");
    let image = match LoopImage::new(&stand.scratch, "ext4", 256 << 20) {
        Ok(image) => image,
        Err(reason) => skip!("{reason}"),
    };
    (stand.upper, stand.work) = (image.path().join("upper"), image.path().join("work"));
    for dir in [&stand.upper, &stand.work] {
        fs::create_dir(dir).unwrap();
    }
    let count = if long { 6000 } else { 1500 };
    for number in 0..count {
        fill(&stand.lower.join(format!("dir-{number}")));
    }
    let options = "partial=8K,complete=off";
    let mount = stand.acetate(options).mount();
    let log = stand.scratch.join("strace.log");
    let mut field = Field {
        stand,
        mount,
        next: 0,
        count,
        log,
        expected: Vec::new(),
        wrong: Vec::new(),
        failed: 0,
        survived: 0,
    };
    let only = std::env::var("ACETATE_ONLY").ok();
    let mut turn = 0;
    for change in CHANGES {
        if only.as_ref().is_none_or(|only| only == change.name) {
            field.run(change, long, &mut turn);
        }
    }
    println!(
        "{} changes, {} failed, {} came about all the same",
        CHANGES.len(),
        field.failed,
        field.survived
    );
    // What was seen is what there is.
    let Field {
        stand,
        mount,
        expected,
        mut wrong,
        ..
    } = field;
    mount.unmount().unwrap();
    let mount = stand.acetate(options).mount();
    if !stand.left_in_work().is_empty() {
        wrong.push(format!("after a remount: {:?}", stand.left_in_work()));
    }
    for (dir, tree) in &expected {
        match Tree::read(&mount.join(dir), SEEN) {
            Err(e) => wrong.push(format!("{dir:?} after a remount: {e}")),
            Ok(found) => {
                let differences = tree.differences(&found);
                if !differences.is_empty() {
                    wrong.push(format!(
                        "{dir:?} after a remount: {}",
                        differences.join("\n  ")
                    ));
                }
            }
        }
    }
    mount.unmount().unwrap();
    assert!(
        wrong.is_empty(),
        "{} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        only.is_some() || field.failed > 100,
        "{} failed",
        field.failed
    );
    image.unmount().unwrap();
}
