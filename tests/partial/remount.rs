//! The same file through many mounts, in every way of copying up.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::common::stand::{Stand, end};
use crate::common::{Watchdog, program, skip};
use crate::crash::Op;
use crate::require;
use crate::rig::{MIB, Random, assert_whole, pattern};

const MODES: [&str; 7] = [
    "metacopy=off,partial=off",
    "metacopy=on,partial=off",
    "partial=4096,complete=off",
    "partial=4096,complete=0",
    "partial=64K,complete=0,passthrough_lower=never",
    "userxattr,partial=4096,complete=off",
    "partial=4096,complete=off,passthrough=off",
];

/// How many times as much as usual.
fn long() -> u64 {
    if std::env::var_os("ACETATE_LONG").is_some() {
        10
    } else {
        1
    }
}

#[test]
fn a_file_is_the_same_after_each_of_many_mounts() {
    require!(skip::privileged());
    let _limit = Watchdog::new("remounts", Duration::from_secs(280));
    for (mode, options) in MODES.iter().enumerate() {
        let stand = Stand::new("remounts");
        let mut model = pattern(mode as u64, 2 * MIB + 77);
        fs::write(stand.lower.join("f"), &model).unwrap();
        let untouched = fs::metadata(stand.lower.join("f")).unwrap().mtime_nsec();
        let mut random = Random(mode as u64 + 99);
        let mut inode = None;
        for round in 0..4 * long() {
            let mut mount = stand.acetate(options).mount();
            let path = mount.join("f");
            assert!(
                fs::read(&path).unwrap() == model,
                "{options}, mount {round}"
            );
            let number = fs::metadata(&path).unwrap().ino();
            assert_eq!(
                *inode.get_or_insert(number),
                number,
                "{options}, mount {round}"
            );
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            for step in 0..12 {
                let op = Op::any(&mut random);
                op.run(&file).unwrap();
                op.apply(&mut model);
                if step % 4 == 0 {
                    assert!(
                        fs::read(&path).unwrap() == model,
                        "{options}, {round}: {op:?}"
                    );
                }
            }
            // A writer's cache is lost with its daemon.
            if options.contains("passthrough=off") {
                file.sync_all().unwrap();
            }
            drop(file);
            if round % 2 == 0 {
                mount.kill();
                drop(mount);
            } else {
                end(mount);
            }
        }
        let mount = stand.acetate(options).mount();
        assert!(fs::read(mount.join("f")).unwrap() == model, "{options}");
        end(mount);
        assert_whole(&stand.upper.join("f"), &stand.work, &model);
        let lower = fs::metadata(stand.lower.join("f")).unwrap();
        assert_eq!(lower.mtime_nsec(), untouched);
        assert!(fs::read(stand.lower.join("f")).unwrap() == pattern(mode as u64, 2 * MIB + 77));
    }
}

const LENGTH: u64 = 256 << 10;

/// fsx's block mode changes a file in place, the other one cuts it to nothing first and changes its size all the time.
fn configuration(in_place: bool) -> String {
    let sizes = if in_place {
        "truncate = 0\nposix_fallocate = 0\nclose_open = 0"
    } else {
        "truncate = 5\nposix_fallocate = 2\nclose_open = 1"
    };
    format!(
        "flen = {LENGTH}\nblockmode = {in_place}\nnomsyncafterwrite = true\n[opsize]\nmin = 1\nmax = 16384\n\
         [weights]\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\npunch_hole = 3\n\
         sendfile = 3\nposix_fadvise = 1\ncopy_file_range = 3\n{sizes}\nfsync = 0.05\nfdatasync = 0.05\n"
    )
}

#[test]
#[ignore = "heavy: needs fsx (cargo install fsx)"]
fn fsx_in_every_mode_with_mounts_between() {
    require!(skip::privileged());
    let fsx = match program::find("fsx") {
        Ok(fsx) => fsx,
        Err(reason) => crate::skip!("{reason}"),
    };
    let _limit = Watchdog::new("fsx", Duration::from_secs(280));
    for options in MODES {
        let stand = Stand::new("fsx-remounts");
        for name in ["cut", "in-place"] {
            fs::write(stand.lower.join(name), pattern(3, LENGTH as usize)).unwrap();
        }
        let mut left: Vec<Option<Vec<u8>>> = vec![None, None];
        for round in 0..3 {
            let mount = stand.acetate(options).mount();
            for (place, name) in ["cut", "in-place"].into_iter().enumerate() {
                let path = mount.join(name);
                if let Some(before) = &left[place] {
                    assert!(
                        fs::read(&path).unwrap() == *before,
                        "{options}, {name}, {round}"
                    );
                }
                let file = stand.scratch.join("fsx.toml");
                fs::write(&file, configuration(name == "in-place")).unwrap();
                let seed = (7 + round).to_string();
                let operations = (1_500 * long()).to_string();
                let text = program::must(
                    std::process::Command::new(&fsx)
                        .arg("-f")
                        .arg(&file)
                        .args(["-N", &operations, "-S", &seed, "-P"])
                        .arg(stand.scratch.path())
                        .arg(&path),
                    Duration::from_secs(120),
                );
                assert!(text.contains("A-OK"), "{options}: {text}");
                File::open(&path).unwrap().sync_all().unwrap();
                left[place] = Some(fs::read(&path).unwrap());
            }
            if round == 1 {
                let mut mount = mount;
                mount.kill();
                drop(mount);
            } else {
                end(mount);
            }
        }
        for (place, name) in ["cut", "in-place"].into_iter().enumerate() {
            let found = fs::read(stand.upper.join(name)).unwrap();
            assert!(
                Some(&found) == left[place].as_ref(),
                "{options}: {name} on disk"
            );
        }
    }
}
