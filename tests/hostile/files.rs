//! Symlinks, mounts and special files within layers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount as bind_mount, umount2};
use nix::sys::stat::SFlag;

use super::view::{Layers, special, view};
use crate::common::{Watchdog, skip};
use crate::require;

#[test]
fn symlinks_of_a_layer_are_shown_and_never_followed_by_the_daemon() {
    require!(skip::privileged());
    let _limit = Watchdog::new("symlinks", Duration::from_secs(100));
    let layers = Layers::new("symlinks");
    let secret = layers.outside.join("secret");
    symlink(&secret, layers.top.join("file")).unwrap();
    symlink("../outside/secret", layers.top.join("relative")).unwrap();
    symlink("loop", layers.top.join("loop")).unwrap();
    symlink("/proc/self/root", layers.top.join("magic")).unwrap();
    // Where the top layer has a directory, the one below has a symlink to a directory outside.
    fs::create_dir(layers.top.join("dir")).unwrap();
    fs::write(layers.top.join("dir/own"), "own").unwrap();
    symlink(&layers.outside, layers.bottom.join("dir")).unwrap();
    // And the other way round.
    symlink(&layers.outside, layers.top.join("hidden")).unwrap();
    fs::create_dir(layers.bottom.join("hidden")).unwrap();
    fs::write(layers.bottom.join("hidden/below"), "below").unwrap();
    let (ours, kernel) = layers.both();
    assert_eq!(ours, kernel);

    let mount = layers.writable();
    for name in ["file", "relative", "loop", "magic", "hidden"] {
        std::os::unix::fs::lchown(mount.join(name), Some(7), Some(7)).unwrap();
        assert!(fs::symlink_metadata(mount.join(name)).unwrap().is_symlink());
    }
    // A program follows it in its own namespace, as on any filesystem; what it changes is not in the union.
    assert_eq!(fs::metadata(&secret).unwrap().uid(), 0);
    fs::remove_file(mount.join("file")).unwrap();
    fs::write(mount.join("file"), "mine").unwrap();
    assert_eq!(fs::read(&secret).unwrap(), b"SECRET");
    fs::write(mount.join("dir/new"), "new").unwrap();
    assert!(!layers.outside.join("new").exists());
    drop(mount.unmount().unwrap());
}

/// Detached with the test.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, to: &Path) -> Bound {
        let none = None::<&str>;
        bind_mount(Some(from), to, none, MsFlags::MS_BIND, none).unwrap();
        Bound(to.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(e) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("umount {}: {e}", self.0.display());
        }
    }
}

#[test]
fn what_is_mounted_within_a_layer_is_no_part_of_it() {
    require!(skip::privileged());
    let _limit = Watchdog::new("mounts within", Duration::from_secs(100));
    let layers = Layers::new("mounts-within");
    for layer in [&layers.top, &layers.bottom] {
        fs::create_dir(layer.join("dir")).unwrap();
        fs::write(layer.join("dir/own"), "own").unwrap();
        fs::write(layer.join("file"), "own").unwrap();
    }
    let _bound = [
        Bound::new(&layers.outside, &layers.top.join("dir")),
        Bound::new(&layers.outside.join("secret"), &layers.top.join("file")),
        Bound::new(&layers.outside, &layers.bottom.join("dir")),
    ];
    let (ours, kernel) = layers.both();
    assert_eq!(ours, kernel);
    assert_eq!(ours[Path::new("dir/own")], "\"own\"");
    // Also what comes later, and is written to.
    let mount = layers.writable();
    let _later = Bound::new(&layers.outside, &layers.top);
    fs::write(mount.join("dir/own"), "changed").unwrap();
    assert_eq!(view(mount.path())[Path::new("file")], "\"own\"");
    drop(mount.unmount().unwrap());
    assert_eq!(fs::read_dir(&layers.outside).unwrap().count(), 1);
}

/// Whoever opens a fifo waits for another: the daemon must not.
#[test]
fn special_files_are_passed_on_and_not_opened() {
    require!(skip::privileged());
    let _limit = Watchdog::new("special files", Duration::from_secs(100));
    let layers = Layers::new("special-files");
    for (layer, at) in [(&layers.top, "top"), (&layers.bottom, "bottom")] {
        special(&layer.join(format!("fifo-{at}")), SFlag::S_IFIFO, 0);
        special(&layer.join(format!("socket-{at}")), SFlag::S_IFSOCK, 0);
        special(&layer.join(format!("null-{at}")), SFlag::S_IFCHR, 0x103);
        special(
            &layer.join(format!("odd-{at}")),
            SFlag::S_IFCHR,
            0xffff_0000,
        );
        special(&layer.join(format!("block-{at}")), SFlag::S_IFBLK, 0x700);
        // A block device with a whiteout's number is none.
        special(&layer.join(format!("zero-{at}")), SFlag::S_IFBLK, 0);
    }
    // Kinds that change from layer to layer.
    special(&layers.top.join("dir"), SFlag::S_IFIFO, 0);
    fs::create_dir(layers.bottom.join("dir")).unwrap();
    fs::create_dir(layers.top.join("fifo")).unwrap();
    special(&layers.bottom.join("fifo"), SFlag::S_IFIFO, 0);
    special(&layers.top.join("gone"), SFlag::S_IFCHR, 0);
    special(&layers.bottom.join("gone"), SFlag::S_IFIFO, 0);
    let (ours, kernel) = layers.both();
    assert_eq!(ours, kernel);
    assert!(!ours.contains_key(Path::new("gone")));

    let mount = layers.writable();
    for at in ["top", "bottom"] {
        for kind in ["fifo", "socket", "null", "block", "zero"] {
            let path = mount.join(format!("{kind}-{at}"));
            let before = fs::symlink_metadata(&path).unwrap();
            std::os::unix::fs::chown(&path, Some(5), Some(6)).unwrap();
            fs::hard_link(&path, mount.join(format!("link-{kind}-{at}"))).unwrap();
            let after = fs::symlink_metadata(&path).unwrap();
            assert_eq!((after.rdev(), after.ino()), (before.rdev(), before.ino()));
            assert_eq!((after.uid(), after.nlink()), (5, 2));
        }
    }
    // Through the fifo two programs meet, and nothing of it reaches the daemon.
    let fifo = mount.join("fifo-bottom");
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
    let writer = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::write(fifo, "through")
    });
    assert_eq!(fs::read(&fifo).unwrap(), b"through");
    writer.join().unwrap().unwrap();
    drop(mount.unmount().unwrap());
}
