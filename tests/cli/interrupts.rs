//! Interrupted daemons: ctrl-C, termination, sudden death.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::connection::mounted_at;
use crate::common::{Acetate, Mount, skip};
use crate::require;
use crate::run::{Guard, Place};

fn foreground(place: &Place) -> Mount {
    Acetate::new(&place.merged)
        .lowers(&[&place.top, &place.bottom])
        .upper(&place.upper, &place.work)
        .mount()
}

fn signal(mount: &Mount, signal: Signal) {
    kill(Pid::from_raw(mount.pid().unwrap().cast_signed()), signal).unwrap();
}

fn gone_within(place: &Place, limit: Duration) -> bool {
    let begin = Instant::now();
    while mounted_at(&place.merged).is_some() {
        if begin.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn ctrl_c_and_termination_unmount() {
    require!(skip::privileged());
    for which in [Signal::SIGINT, Signal::SIGTERM] {
        let place = Place::new("ctrl-c");
        let mount = foreground(&place);
        fs::write(mount.join("kept"), "changed").unwrap();
        signal(&mount, which);
        assert!(
            gone_within(&place, Duration::from_secs(5)),
            "{which} does not unmount"
        );
        assert_eq!(
            fs::read_to_string(place.upper.join("kept")).unwrap(),
            "changed"
        );
        assert_eq!(mount.log().trim(), "");
        drop(mount);
    }
}

#[test]
fn a_second_ctrl_c_detaches_what_is_busy() {
    require!(skip::privileged());
    let place = Place::new("ctrl-c-busy");
    let mount = foreground(&place);
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(mount.join("kept"))
        .unwrap();
    signal(&mount, Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    file.write_all_at(b"KEPT", 0).unwrap();
    signal(&mount, Signal::SIGINT);
    assert!(
        gone_within(&place, Duration::from_secs(5)),
        "the second does not detach"
    );
    drop(file);
    drop(mount);
    assert_eq!(fs::read(place.upper.join("kept")).unwrap()[..4], *b"KEPT");
}

#[test]
fn a_killed_daemon_loses_nothing_acknowledged_and_the_next_mount_cleans_up() {
    require!(skip::privileged());
    for options in ["", "passthrough=off"] {
        let place = Place::new("killed");
        let mut mount = Acetate::new(&place.merged)
            .lowers(&[&place.top, &place.bottom])
            .upper(&place.upper, &place.work)
            .options(options)
            .mount();
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(mount.join("kept"))
            .unwrap();
        file.write_all_at(b"KEPT", 0).unwrap();
        if options == "passthrough=off" {
            file.sync_all().unwrap();
        }
        fs::remove_file(mount.join("deleted")).unwrap();
        fs::rename(mount.join("dir"), mount.join("moved")).unwrap();
        drop(file);
        mount.kill();
        // What a copy-up that was under way would have left.
        let left = place.work.join("work");
        if left.is_dir() {
            fs::write(left.join("#leftover"), "half a copy").unwrap();
        }
        place.ok("umount merged");
        drop(mount);
        place.ok("mount --lower top --lower bottom --upper upper --work work merged");
        let guard = Guard::at(&place.merged);
        assert_eq!(
            fs::read(place.merged.join("kept")).unwrap()[..4],
            *b"KEPT",
            "{options}"
        );
        assert!(!place.merged.join("deleted").exists());
        assert_eq!(
            fs::read_to_string(place.merged.join("moved/file")).unwrap(),
            "dir/file of the bottom"
        );
        assert!(
            !left.join("#leftover").exists(),
            "the workdir was not cleaned"
        );
        drop(guard);
    }
}
