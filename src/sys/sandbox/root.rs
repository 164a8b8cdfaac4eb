//! A mount namespace with nothing in it but `/proc`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::pivot_root;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::sys::mount_clone::lock_down;

/// Where the new root is built: a directory that is there for sure, as its content is needed.
const PROC: &str = "/proc";

pub(super) fn enter() -> io::Result<Result<(), String>> {
    let before = File::open("/proc/self/ns/mnt")?;
    match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => {}
        Err(e) => return Ok(Err(e.to_string())),
    }
    match change_root() {
        Ok(()) => Ok(Ok(())),
        Err(e) => {
            // On the initial ramdisk, or where the process was chrooted. Nothing may keep the copy of all mounts.
            setns(&before, CloneFlags::CLONE_NEWNS)?;
            Ok(Err(e.to_string()))
        }
    }
}

fn change_root() -> io::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // Without the mounts below it there would be more of it to see than the host shows.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let proc = open_tree(CWD, PROC, flags)?;
    lock_down(proc.as_fd())?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = Some("mode=0555,size=4k,nr_inodes=4");
    mount(Some("acetate"), PROC, Some("tmpfs"), flags, options)?;
    std::env::set_current_dir(PROC)?;
    std::fs::create_dir("proc")?;
    move_mount(
        &proc,
        "",
        CWD,
        "proc",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, ".", none, read_only, none)?;
    // The old root is stacked onto the new one, and taken off it.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}
