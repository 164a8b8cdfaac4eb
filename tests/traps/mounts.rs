//! Other mounts around ours: below it, in it and on top of it.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};

use crate::common::connection::mounted_at;
use crate::common::{Acetate, LoopImage, Overlay, Scratch, Watchdog, skip};
use crate::require;
use crate::rig::{Rig, open, set_times};

#[test]
fn a_bind_mount_on_a_file_survives_every_change_around_it() {
    require!(skip::privileged());
    for options in [
        "passthrough_lower=auto",
        "passthrough_lower=always",
        "passthrough=off",
    ] {
        let rig = Rig::new("bound", options, |lower| {
            fs::create_dir(lower.join("etc")).unwrap();
            for name in ["hosts", "resolv.conf", "group"] {
                fs::write(lower.join("etc").join(name), name).unwrap();
            }
            fs::hard_link(lower.join("etc/hosts"), lower.join("etc/hosts.link")).unwrap();
        });
        let hosts = rig.at("etc/hosts");
        let own = rig.scratch.join("own-hosts");
        fs::write(&own, "of the container").unwrap();
        mount(
            Some(&own),
            &hosts,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        let check = |step: &str| {
            assert!(
                mounted_at(&hosts).is_some(),
                "{options}: the mount is gone after: {step}"
            );
            assert_eq!(
                fs::read_to_string(&hosts).unwrap(),
                "of the container",
                "{options}: {step}"
            );
        };
        check("nothing");
        fs::write(rig.at("etc/resolv.conf"), "changed").unwrap();
        check("a sibling was copied up");
        let link = rig.at("etc/hosts.link");
        // A file that the kernel reads for a reader by itself gets a new node when it is changed, which detaches
        // what is mounted on it: a known difference of `passthrough_lower=always`.
        let reader =
            (options != "passthrough_lower=always").then(|| open(&link, libc::O_RDONLY).unwrap());
        fs::write(&link, "the file below, changed").unwrap();
        check("the file below was copied up by another name");
        drop(reader);
        fs::set_permissions(
            rig.at("etc"),
            std::os::unix::fs::PermissionsExt::from_mode(0o711),
        )
        .unwrap();
        check("the directory's mode");
        fs::rename(rig.at("etc/group"), rig.at("etc/group-")).unwrap();
        fs::remove_file(rig.at("etc/group-")).unwrap();
        check("siblings renamed and removed");
        for i in 0..200 {
            fs::write(rig.at(format!("etc/new-{i}")), "").unwrap();
        }
        assert_eq!(fs::read_dir(rig.at("etc")).unwrap().count(), 203);
        check("a listing");
        umount(&hosts).unwrap();
        assert!(
            !fs::read_to_string(&hosts)
                .unwrap()
                .starts_with("of the container")
        );
        rig.finish(|_| {});
    }
}

#[test]
fn kernel_overlayfs_can_be_mounted_on_top() {
    require!(skip::privileged());
    let rig = Rig::new("on-top", "", |lower| {
        fs::create_dir(lower.join("image")).unwrap();
        fs::write(lower.join("image/file"), "from the image").unwrap();
        fs::write(lower.join("image/program"), vec![7; 100_000]).unwrap();
        fs::set_permissions(
            lower.join("image/program"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
    });
    fs::write(rig.at("image/upper"), "of the upper").unwrap();
    let (top, upper, work) = (
        rig.scratch.dir("top"),
        rig.scratch.dir("top-upper"),
        rig.scratch.dir("top-work"),
    );
    let overlay = Overlay::mount(&top, &[rig.at("image")], Some((&upper, &work)), "").unwrap();
    assert_eq!(
        fs::read_to_string(top.join("file")).unwrap(),
        "from the image"
    );
    assert_eq!(
        fs::read_to_string(top.join("upper")).unwrap(),
        "of the upper"
    );
    assert_eq!(fs::read(top.join("program")).unwrap(), vec![7; 100_000]);
    fs::write(top.join("file"), "changed on top").unwrap();
    fs::remove_file(top.join("upper")).unwrap();
    assert_eq!(
        fs::read_to_string(top.join("file")).unwrap(),
        "changed on top"
    );
    assert_eq!(
        fs::read_to_string(rig.at("image/file")).unwrap(),
        "from the image"
    );
    overlay.unmount().unwrap();
    rig.finish(|_| {});
}

#[test]
fn an_acetate_mount_can_be_a_layer_of_another() {
    require!(skip::privileged());
    let rig = Rig::new("nested", "", |lower| {
        fs::write(lower.join("file"), "below").unwrap()
    });
    fs::remove_file(rig.at("file")).unwrap();
    fs::write(rig.at("kept"), "kept").unwrap();
    let (upper, work) = (rig.scratch.dir("upper2"), rig.scratch.dir("work2"));
    let outer = Acetate::new(rig.scratch.join("outer"))
        .lowers(&[rig.mount.path()])
        .upper(&upper, &work)
        .mount();
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1);
    fs::write(outer.join("kept"), "changed").unwrap();
    assert_eq!(fs::read_to_string(outer.join("kept")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(rig.at("kept")).unwrap(), "kept");
    outer.unmount().unwrap();
    rig.finish(|_| {});
}

/// A loop-mounted filesystem that holds every layer, mounted by the daemon in the background.
fn on_a_loop_image(scratch: &Scratch) -> Result<(LoopImage, crate::common::Mount), String> {
    let image = LoopImage::new(scratch, "ext4", 32 << 20)?;
    let dir = |name: &str| {
        let path = image.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (lower, upper, work) = (dir("lower"), dir("upper"), dir("work"));
    fs::write(lower.join("file"), "lower").unwrap();
    fs::write(lower.join("read"), "lower").unwrap();
    let mount = Acetate::new(scratch.join("merged"))
        .lowers(&[lower])
        .upper(&upper, &work)
        .daemon()
        .mount();
    fs::write(mount.join("file"), "changed").unwrap();
    assert_eq!(fs::read_to_string(mount.join("read")).unwrap(), "lower");
    Ok((image, mount))
}

#[test]
fn what_lies_below_can_be_unmounted_right_after_the_umount_command() {
    require!(skip::privileged());
    let _limit = Watchdog::new("unmount below", Duration::from_secs(60));
    let scratch = Scratch::new("below");
    let (image, mount) = match on_a_loop_image(&scratch) {
        Ok(both) => both,
        Err(reason) => crate::skip!("{reason}"),
    };
    let status = Command::new(env!("CARGO_BIN_EXE_acetate"))
        .arg("umount")
        .arg(mount.path())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(mounted_at(mount.path()).is_none());
    image.unmount().expect("the daemon still holds its layers");
    drop(mount);
}

#[test]
fn what_lies_below_can_be_unmounted_soon_after_the_system_call() {
    require!(skip::privileged());
    let _limit = Watchdog::new("unmount below", Duration::from_secs(60));
    let scratch = Scratch::new("below-call");
    let (image, mount) = match on_a_loop_image(&scratch) {
        Ok(both) => both,
        Err(reason) => crate::skip!("{reason}"),
    };
    umount(mount.path()).unwrap();
    // The system call does not wait for the daemon, which lets go by itself.
    let begin = Instant::now();
    while umount2(image.path(), MntFlags::empty()).is_err() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the daemon still holds its layers"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(mount);
}

#[test]
fn the_daemon_exits_by_itself() {
    require!(skip::privileged());
    let rig = Rig::new("exit", "", |lower| {
        fs::write(lower.join("file"), "x").unwrap()
    });
    fs::write(rig.at("file"), "y").unwrap();
    let pid = rig.mount.pid().unwrap();
    rig.finish(|_| {});
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn an_open_file_keeps_the_mount_busy_and_a_lazy_unmount_lets_it_finish() {
    require!(skip::privileged());
    let mut rig = Rig::new("lazy", "", |lower| {
        fs::write(lower.join("file"), "data").unwrap()
    });
    let file = open(&rig.at("file"), libc::O_RDWR).unwrap();
    assert_eq!(umount(rig.mount.path()), Err(nix::errno::Errno::EBUSY));
    umount2(rig.mount.path(), MntFlags::MNT_DETACH).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"DATA", 0).unwrap();
    assert_eq!(crate::rig::read_all(&file).unwrap(), b"DATA");
    drop(file);
    let pid = rig.mount.pid().unwrap();
    let begin = Instant::now();
    while File::open(format!("/proc/{pid}/ns/mnt")).is_ok() {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "the daemon stays"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(fs::read(rig.upper.join("file")).unwrap(), b"DATA");
    rig.mount.kill();
}

/// The files that a mount's last programs close are let go of in the background, so that an unmount may end the connection
/// while a thread is fetching such a request: the kernel calls that aborted, and it is an end like any other.
#[test]
fn an_unmount_while_the_last_files_are_being_closed_ends_the_daemon_well() {
    require!(skip::privileged());
    let _limit = Watchdog::new("unmounts after many closes", Duration::from_secs(100));
    // More threads than processors, so that one is stopped in the middle of fetching.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(unmount_after_many_closes);
        }
    });
}

fn unmount_after_many_closes() {
    let scratch = Scratch::new("last-closes");
    for dir in ["lower", "upper", "work"] {
        fs::create_dir(scratch.join(dir)).unwrap();
    }
    let lower = scratch.join("lower");
    for i in 0..300 {
        fs::write(lower.join(i.to_string()), "x").unwrap();
    }
    for round in 0..15 {
        let mount = Acetate::new(scratch.join("merged"))
            .lowers(&[&lower])
            .upper(&scratch.join("upper"), &scratch.join("work"))
            .mount();
        let open: Vec<File> = (0..300)
            .map(|i| File::open(mount.join(i.to_string())).unwrap())
            .collect();
        drop(open);
        mount
            .unmount()
            .unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
}

/// Of a directory, which is detached with the test.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn new(dir: &'a Path) -> Tmpfs<'a> {
        let none = None::<&str>;
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        Tmpfs(dir)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        if mounted_at(self.0).is_some_and(|mount| mount.source == "tmpfs") {
            umount2(self.0, MntFlags::MNT_DETACH).unwrap();
        }
    }
}

/// As on the kernel's overlayfs. Who unmounts the union and then that filesystem does not wait for the daemon's end in between.
#[test]
fn what_the_upper_lies_on_is_not_kept_busy() {
    require!(skip::privileged());
    let _limit = Watchdog::new("not-busy", Duration::from_secs(60));
    let scratch = Scratch::new("not-busy");
    let (lower, below) = (scratch.dir("lower"), scratch.dir("below"));
    let tmpfs = Tmpfs::new(&below);
    let (upper, work) = (below.join("one/upper"), below.join("two/work"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&work).unwrap();
    fs::write(lower.join("file"), "below").unwrap();
    let mount = Acetate::new(scratch.join("merged"))
        .lowers(&[&lower])
        .upper(&upper, &work)
        .mount();
    umount(&below).unwrap();
    assert!(!upper.exists());
    // Copied up, linked and renamed from the workdir all the same.
    fs::write(mount.join("file"), "changed").unwrap();
    fs::hard_link(mount.join("file"), mount.join("link")).unwrap();
    fs::rename(mount.join("file"), mount.join("renamed")).unwrap();
    assert_eq!(fs::read_to_string(mount.join("link")).unwrap(), "changed");
    assert_eq!(mount.unmount().unwrap().trim(), "");
    drop(tmpfs);
}

#[test]
fn access_times_of_upper_files_are_as_the_mount_was_told() {
    use std::os::unix::fs::MetadataExt;
    require!(skip::privileged());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let later = i64::try_from(now).unwrap() + 10_000;
    // The kernel's own rule for `relatime` would move the first and leave the second.
    for (options, past, future) in [
        ("noatime", false, false),
        ("noatime,passthrough=off", false, false),
        ("strictatime", true, true),
    ] {
        let rig = Rig::new("atime", options, |_| {});
        let file = rig.at("file");
        fs::write(&file, "data").unwrap();
        for (before, moves) in [(1_000, past), (later, future)] {
            set_times(&file, before, 2_000);
            fs::read(&file).unwrap();
            let after = fs::metadata(&file).unwrap().atime();
            assert_eq!(after != before, moves, "{options}: {before} became {after}");
        }
        rig.finish(|_| {});
    }
}
