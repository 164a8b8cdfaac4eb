//! What the disk has no room for, or cannot read, is told: data is never dropped, nor made up, without a word.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, fstatvfs};

use crate::common::stand::Stand;
use crate::common::{LoopImage, Watchdog, skip};
use crate::map::Map;
use crate::rig::{open, open_creat};
use crate::{require, skip};

const BLOCK: usize = 4096;

/// Takes the room on a filesystem but for so many blocks, or hardly more.
fn leave(filler: &File, blocks: u64) {
    rustix::fs::syncfs(filler).unwrap();
    let mut length = filler.metadata().unwrap().len();
    let mut chunk = 1 << 12;
    while chunk > 0 {
        let free = fstatvfs(filler).unwrap().f_bavail;
        if free < blocks + chunk {
            chunk /= 2;
            continue;
        }
        match fallocate(
            filler,
            FallocateFlags::empty(),
            length,
            chunk * BLOCK as u64,
        ) {
            Ok(()) => length += chunk * BLOCK as u64,
            Err(rustix::io::Errno::NOSPC) => chunk /= 2,
            Err(e) => panic!("{e}"),
        }
    }
}

/// A program is told of data that it wrote into the kernel's cache, and that found no room later, by its fsync.
#[test]
fn cached_pages_that_find_no_room_fail_the_fsync() {
    require!(skip::privileged());
    let _limit = Watchdog::new("no room", Duration::from_secs(180));
    let mut stand = Stand::new("no-room");
    let mkfs = ["-m", "0", "-b", "4096"];
    let image = match LoopImage::with_options(&stand.scratch, "ext4", 24 << 20, &mkfs, "loop") {
        Ok(image) => image,
        Err(reason) => skip!("{reason}"),
    };
    (stand.upper, stand.work) = (image.path().join("upper"), image.path().join("work"));
    for dir in [&stand.upper, &stand.work] {
        fs::create_dir(dir).unwrap();
    }
    let sparse = File::create(stand.lower.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    drop(sparse);
    let filler = File::create(image.path().join("filler")).unwrap();
    let data = vec![b'x'; 450 * BLOCK];
    for (options, mapped) in [("passthrough=off", false), ("complete=off", true)] {
        let mount = stand.acetate(options).mount();
        let name = if mapped { "sparse" } else { "new" };
        let file = open_creat(&mount.join(name), libc::O_RDWR, 0o644).unwrap();
        // Not a whole number of requests fits.
        leave(&filler, 400);
        let written = if mapped {
            let mut map = Map::shared(&file, data.len()).unwrap();
            map.write(0, &data);
            map.sync()
        } else {
            file.write_all_at(&data, 0)
        };
        let told = written.and_then(|()| file.sync_all());
        let lacking = told.unwrap_err().raw_os_error();
        assert!(
            matches!(lacking, Some(libc::ENOSPC | libc::EIO)),
            "{options}: {lacking:?}"
        );
        filler.set_len(0).unwrap();
        rustix::fs::syncfs(&filler).unwrap();
        file.write_all_at(&data, 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        mount.unmount().unwrap();
        let found = fs::read(stand.upper.join(name)).unwrap();
        assert!(found[..data.len()] == data, "{options}");
    }
    drop(filler);
    image.unmount().unwrap();
}

fn is_unreadable(path: &Path) -> bool {
    match fs::read(path) {
        Ok(data) => {
            println!("{} bytes are read", data.len());
            false
        }
        Err(e) => {
            println!("{e}");
            e.raw_os_error() == Some(libc::EIO)
        }
    }
}

/// A disk that cannot be read is no end of the file, nor zeros, and costs nothing but what it cannot give.
#[test]
fn an_error_in_the_middle_of_a_file_is_not_its_end() {
    require!(skip::privileged());
    let _limit = Watchdog::new("unreadable", Duration::from_secs(180));
    let mut stand = Stand::new("unreadable");
    // A journal may lie behind the file.
    let mkfs = ["-m", "0", "-b", "4096", "-O", "^has_journal"];
    let image = match LoopImage::with_options(&stand.scratch, "ext4", 24 << 20, &mkfs, "loop") {
        Ok(image) => image,
        Err(reason) => skip!("{reason}"),
    };
    stand.lower = image.path().join("lower");
    fs::create_dir(&stand.lower).unwrap();
    let path = stand.lower.join("file");
    let mut data = vec![b'x'; 6 << 20];
    for (number, block) in data.chunks_mut(BLOCK).enumerate() {
        block[..8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    fs::write(&path, &data).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    // The disk loses what lies behind the middle of the file, not where a request begins.
    let disk = image.path().with_extension("");
    let half = (3 << 20) + 5 * BLOCK;
    let middle = &data[half..half + BLOCK];
    let bytes = fs::read(&disk).unwrap();
    let at = bytes.chunks(BLOCK).position(|block| block == middle);
    let disk = File::options().write(true).open(&disk).unwrap();
    disk.set_len((at.unwrap() * BLOCK) as u64).unwrap();
    let begin = Instant::now();
    loop {
        // Until the kernel has none of it in memory.
        fadvise(File::open(&path).unwrap(), 0, None, Advice::DontNeed).unwrap();
        if is_unreadable(&path) {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
    for options in ["partial=64K,complete=off", "passthrough=off"] {
        (stand.upper, stand.work) = (
            stand.scratch.dir(format!("upper-{}", options.len())),
            stand.scratch.dir(format!("work-{}", options.len())),
        );
        let mount = stand.acetate(options).mount();
        let seen = mount.join("file");
        assert!(is_unreadable(&seen), "{options}");
        let mut first = [0; BLOCK];
        let file = open(&seen, libc::O_RDONLY).unwrap();
        file.read_exact_at(&mut first, 0).unwrap();
        assert!(first == data[..BLOCK], "{options}");
        if options.starts_with("partial") {
            // Copied up by blocks it is no different.
            let file = open(&seen, libc::O_RDWR).unwrap();
            file.write_all_at(b"new", 100).unwrap();
            assert!(is_unreadable(&seen));
            file.read_exact_at(&mut first, BLOCK as u64).unwrap();
            assert!(first == data[BLOCK..2 * BLOCK]);
        }
        drop(file);
        mount.unmount().unwrap();
    }
    drop(disk);
    image.unmount().unwrap();
}

/// btrfs makes one file's name durable ahead of others when it syncs the file.
#[test]
fn a_synced_write_after_a_rename_leaves_the_old_name_to_nobody() {
    require!(skip::privileged());
    let _limit = Watchdog::new("synced write", Duration::from_secs(120));
    let mut stand = Stand::new("synced-write");
    let image = match LoopImage::new(&stand.scratch, "btrfs", 128 << 20) {
        Ok(image) => image,
        Err(reason) => skip!("{reason}"),
    };
    stand.put_changes_on(image.path());
    fs::create_dir(stand.lower.join("dir")).unwrap();
    let flags = [libc::O_SYNC, libc::O_DSYNC];
    for at in 0..flags.len() {
        fs::write(stand.lower.join(format!("dir/old-{at}")), "lower").unwrap();
    }
    let mount = stand.acetate("").mount();
    fs::write(mount.join("dir/first"), "").unwrap();
    rustix::fs::syncfs(File::open(image.path()).unwrap()).unwrap();
    for (at, flags) in flags.into_iter().enumerate() {
        let new = mount.join(format!("dir/new-{at}"));
        fs::rename(mount.join(format!("dir/old-{at}")), &new).unwrap();
        let file = open(&new, libc::O_WRONLY | flags).unwrap();
        file.write_all_at(b"written", 0).unwrap();
        // What a power cut would leave.
        let disk = stand.scratch.join(format!("disk-{at}"));
        fs::copy(image.path().with_extension(""), &disk).unwrap();
    }
    mount.unmount().unwrap();
    image.unmount().unwrap();
    for at in 0..flags.len() {
        let disk = stand.scratch.join(format!("disk-{at}"));
        let after = LoopImage::mounted(&disk, "btrfs", "loop").unwrap();
        let dir = after.path().join("upper/dir");
        assert_eq!(fs::read(dir.join(format!("new-{at}"))).unwrap(), b"written");
        let old = fs::symlink_metadata(dir.join(format!("old-{at}")));
        assert!(old.unwrap().file_type().is_char_device(), "no whiteout");
        after.unmount().unwrap();
    }
}
