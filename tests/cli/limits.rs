//! Limits of the machine: too many open files.

use std::fs::{self, File};

use crate::common::{Acetate, skip};
use crate::require;
use crate::run::{Guard, Place};

#[test]
fn too_few_descriptors_for_the_layers() {
    require!(skip::privileged());
    require!(skip::program("prlimit"));
    let place = Place::new("descriptors");
    let mut words: Vec<String> = ["--nofile=24:24", "--", crate::run::BINARY, "mount"]
        .map(Into::into)
        .into();
    for i in 0..60 {
        place.scratch.dir(format!("l{i}"));
        words.extend(["--lower".into(), format!("l{i}")]);
    }
    words.push("merged".into());
    place.refused_command(place.program("prlimit").args(words), &["open files"]);
}

#[test]
fn too_few_descriptors_while_mounted() {
    require!(skip::privileged());
    require!(skip::program("prlimit"));
    let place = Place::new("descriptors-later");
    for i in 0..400 {
        fs::write(place.bottom.join(format!("f{i}")), format!("{i}")).unwrap();
    }
    for options in ["passthrough_lower=never", "passthrough_lower=always"] {
        let mount = Acetate::new(&place.merged)
            .lowers(&[&place.bottom])
            .upper(&place.upper, &place.work)
            .options(options)
            .by(&["prlimit", "--nofile=120:120", "--"])
            .mount();
        let mut held: Vec<File> = Vec::new();
        for i in 0..400 {
            match File::open(mount.join(format!("f{i}"))) {
                Ok(file) => held.push(file),
                // A clear answer of the right kind: the daemon's table is full, not the file broken.
                Err(e) => assert!(
                    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)),
                    "{options}: {e}"
                ),
            }
        }
        drop(held);
        for i in 0..400 {
            assert_eq!(
                fs::read_to_string(mount.join(format!("f{i}"))).unwrap(),
                i.to_string()
            );
        }
        mount.unmount().unwrap();
    }
}

#[test]
fn hundreds_of_layers_need_no_higher_limit_than_is_allowed() {
    require!(skip::privileged());
    require!(skip::program("prlimit"));
    let place = Place::new("soft-limit");
    let mut words: Vec<String> = ["--nofile=64:4096", "--", crate::run::BINARY, "mount"]
        .map(Into::into)
        .into();
    for i in 0..300 {
        fs::write(place.scratch.dir(format!("l{i}")).join(format!("f{i}")), "").unwrap();
        words.extend(["--lower".into(), format!("l{i}")]);
    }
    words.push("merged".into());
    let output = place.program("prlimit").args(words).output().unwrap();
    let _guard = Guard::at(&place.merged);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(fs::read_dir(&place.merged).unwrap().count(), 300);
}
