//! fsx: reads, writes, mappings, truncations, holes and copies at random, every read compared.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::stand::{Stand, end};
use crate::common::{Tree, TreeOptions, Watchdog, program, skip};
use crate::{require, skip};

const LENGTH: u64 = 256 << 10;

/// fsx never unmaps the stacks of its threads and some of its mappings: on any filesystem the next operation takes
/// the longer the more there were.
const PART: u32 = 20_000;

/// fsx's block mode opens the file without O_TRUNC and never changes its size: only so is the lower's data
/// copied up. The other mode truncates at the open, and changes the size all the time.
#[derive(Clone, Copy)]
enum Mode {
    Truncating,
    InPlace,
}

fn configuration(mode: Mode, synchronous: bool) -> String {
    let (block, sizes) = match mode {
        Mode::Truncating => (false, "truncate = 5\nposix_fallocate = 2\nclose_open = 1"),
        Mode::InPlace => (true, "truncate = 0\nposix_fallocate = 0\nclose_open = 0"),
    };
    // An msync of every mapped write makes each wait for the disk: minutes on any filesystem.
    let flush = if synchronous {
        "fsync = 1\nfdatasync = 1"
    } else {
        "fsync = 0.05\nfdatasync = 0.05"
    };
    format!(
        "flen = {LENGTH}\nblockmode = {block}\nnomsyncafterwrite = {}\n[opsize]\nmin = 1\nmax = 16384\n[weights]\n\
         read = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\npunch_hole = 3\nsendfile = 3\n\
         posix_fadvise = 1\ncopy_file_range = 3\n{sizes}\n{flush}\n",
        !synchronous
    )
}

struct Case {
    program: PathBuf,
    stand: Stand,
    seed: u32,
}

impl Case {
    fn fsx(&self, file: &Path, mode: Mode, synchronous: bool, operations: u32) {
        let configuration_file = self.stand.scratch.join("fsx.toml");
        fs::write(&configuration_file, configuration(mode, synchronous)).unwrap();
        let begin = Instant::now();
        for part in 0..operations.div_ceil(PART) {
            let number = PART.min(operations - part * PART).to_string();
            let text = program::must(
                Command::new(&self.program)
                    .arg("-f")
                    .arg(&configuration_file)
                    .args(["-N", &number, "-S", &(self.seed + part).to_string()])
                    .arg("-P")
                    .arg(self.stand.scratch.path())
                    .arg(file),
                Duration::from_secs(120),
            );
            assert!(text.contains("A-OK"), "{text}");
        }
        println!(
            "fsx: {operations} operations on {} in {:?}",
            file.display(),
            begin.elapsed()
        );
    }
}

fn bytes(length: u64) -> Vec<u8> {
    (0..length)
        .map(|i| u8::try_from((i * 31 + i / 251) % 251).unwrap())
        .collect()
}

fn run_all(program: PathBuf, options: &str, operations: u32) {
    let _limit = Watchdog::new("fsx", Duration::from_secs(800));
    let case = Case {
        program,
        stand: Stand::new("fsx"),
        seed: 20_261,
    };
    let stand = &case.stand;
    for name in ["lower", "in-place", "held", "held-truncated"] {
        fs::write(stand.lower.join(name), bytes(LENGTH)).unwrap();
    }
    let before = Tree::read(&stand.lower, TreeOptions::UNTOUCHED).unwrap();
    let mount = stand.acetate(options).mount();

    case.fsx(&mount.join("new"), Mode::Truncating, false, operations);
    case.fsx(
        &mount.join("new-synchronous"),
        Mode::Truncating,
        true,
        3_000,
    );
    case.fsx(&mount.join("lower"), Mode::Truncating, false, operations);
    case.fsx(&mount.join("in-place"), Mode::InPlace, false, operations);

    for (name, mode) in [
        ("held", Mode::InPlace),
        ("held-truncated", Mode::Truncating),
    ] {
        // Another process has the file open and mapped while it is copied up below it.
        let mut holder = Command::new("sh")
            .arg("-c")
            .arg("exec 3<\"$1\"; head -c 4096 <&3 >/dev/null; exec sleep 600")
            .arg("sh")
            .arg(mount.join(name))
            .spawn()
            .unwrap();
        let mut held = File::open(mount.join(name)).unwrap();
        let mut first = [0; 4096];
        held.read_exact(&mut first).unwrap();
        assert_eq!(first[..], bytes(4096));
        let inode = held.metadata().unwrap().ino();

        case.fsx(&mount.join(name), mode, false, operations);

        assert_eq!(fs::metadata(mount.join(name)).unwrap().ino(), inode);
        holder.kill().unwrap();
        holder.wait().unwrap();
    }
    end(mount);
    let after = Tree::read(&stand.lower, TreeOptions::UNTOUCHED).unwrap();
    before.assert_same(&after, "the lower layer");
}

#[test]
#[ignore = "heavy: needs fsx (cargo install fsx)"]
fn fsx_on_new_lower_and_copied_up_files() {
    require!(skip::privileged());
    match program::find("fsx") {
        Ok(program) => run_all(program, "", 200_000),
        Err(reason) => skip!("{reason}"),
    }
}

#[test]
#[ignore = "heavy: needs fsx (cargo install fsx)"]
fn fsx_without_passthrough_on_new_lower_and_copied_up_files() {
    require!(skip::privileged());
    match program::find("fsx") {
        Ok(program) => run_all(program, "passthrough=off", 40_000),
        Err(reason) => skip!("{reason}"),
    }
}

#[test]
#[ignore = "heavy: needs fsx (cargo install fsx)"]
fn fsx_with_partial_copy_up() {
    require!(skip::privileged());
    match program::find("fsx") {
        Ok(program) => run_all(program, "partial=4096,complete=off", 15_000),
        Err(reason) => skip!("{reason}"),
    }
}

#[test]
#[ignore = "heavy: needs fsx (cargo install fsx)"]
fn fsx_with_partial_copy_up_completed_meanwhile() {
    require!(skip::privileged());
    match program::find("fsx") {
        Ok(program) => run_all(program, "partial=4096,complete=0", 15_000),
        Err(reason) => skip!("{reason}"),
    }
}
