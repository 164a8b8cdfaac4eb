//! What cannot be right is an error, and nothing is guessed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use acetate::layer::format::PartialRecord;

use crate::common::stand::{Stand, end};
use crate::common::{LoopImage, Mount, Watchdog, skip};
use crate::require;
use crate::rig::{MIB, acetate, assert_whole, complete, mark, pattern, set_mark};

/// A lower file of 2 MiB of which one block was changed and synced and one changed, and a daemon that was killed.
fn left(stand: &Stand) -> Vec<u8> {
    let mut model = pattern(1, 2 * MIB);
    fs::write(stand.lower.join("big"), &model).unwrap();
    fs::write(stand.lower.join("small"), "small").unwrap();
    let mut mount = stand.acetate("complete=off").mount();
    let file = OpenOptions::new()
        .write(true)
        .open(mount.join("big"))
        .unwrap();
    file.write_all_at(b"synced", 100_000).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(b"written", 500_000).unwrap();
    drop(file);
    model[100_000..100_006].copy_from_slice(b"synced");
    model[500_000..500_007].copy_from_slice(b"written");
    mount.kill();
    drop(mount);
    model
}

/// The file answers EIO, everything else works, and the log says why.
#[track_caller]
fn refuses(mount: Mount, why: &str) {
    let big = mount.join("big");
    for _ in 0..2 {
        let error = fs::read(&big).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{why}");
        let error = OpenOptions::new()
            .write(true)
            .open(&big)
            .and_then(|f| f.set_len(5));
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EIO), "{why}");
    }
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 2);
    assert_eq!(fs::metadata(&big).unwrap().len(), 2 * MIB as u64);
    fs::write(mount.join("small"), "other").unwrap();
    let told = acetate(&["explain".as_ref(), big.as_os_str()]);
    assert!(told.text.contains(why), "{}", told.text);
    let done = acetate(&["complete".as_ref(), mount.path().as_os_str()]);
    assert!(!done.success(), "{}", done.text);
    fs::remove_file(&big).unwrap();
    let log = mount.unmount().unwrap();
    assert!(log.contains(why), "{log}");
}

#[test]
fn a_damaged_map_or_one_of_another_version_is_refused() {
    require!(skip::privileged());
    let _limit = Watchdog::new("damage", Duration::from_secs(60));
    for (at, value, why) in [
        (60, 0x55, "its block map is damaged"),
        (4, 9, "its block map is of version 9"),
    ] {
        let stand = Stand::new("damage");
        left(&stand);
        let upper = stand.upper.join("big");
        let mut bytes = mark(&upper).unwrap();
        bytes[at] = value;
        set_mark(&upper, &bytes);
        refuses(stand.acetate("complete=off").mount(), why);
    }
    // Without the mark the file has no data.
    let stand = Stand::new("damage");
    left(&stand);
    rustix::fs::lremovexattr(stand.upper.join("big"), crate::rig::MARK).unwrap();
    let mount = stand.acetate("complete=off").mount();
    let error = fs::read(mount.join("big")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    mount.unmount().unwrap();
}

#[test]
fn a_lower_that_changed_underneath_is_refused() {
    require!(skip::privileged());
    let _limit = Watchdog::new("changed", Duration::from_secs(60));
    let stand = Stand::new("changed");
    left(&stand);
    let lower = stand.lower.join("big");
    let file = OpenOptions::new().write(true).open(&lower).unwrap();
    file.write_all_at(b"changed", 0).unwrap();
    drop(file);
    refuses(
        stand.acetate("complete=off").mount(),
        "the lower file was changed",
    );

    let stand = Stand::new("changed");
    left(&stand);
    fs::remove_file(stand.lower.join("big")).unwrap();
    refuses(
        stand.acetate("complete=off").mount(),
        "the lower file is gone",
    );
}

#[test]
fn nothing_is_lost_with_the_workdir() {
    require!(skip::privileged());
    let _limit = Watchdog::new("workdir", Duration::from_secs(60));
    let stand = Stand::new("workdir");
    let model = left(&stand);
    fs::remove_dir_all(&stand.work).unwrap();
    fs::create_dir(&stand.work).unwrap();
    let mount = stand.acetate("complete=off").mount();
    assert!(fs::read(mount.join("big")).unwrap() == model);
    assert!(stand.work.join("work/incompat/acetate-partial").exists());
    complete(mount.path());
    assert_whole(&stand.upper.join("big"), &stand.work, &model);
    end(mount);
}

/// What a power cut leaves: the marks as they are, and of the data only what was synced.
#[test]
fn claims_that_were_not_durable_do_not_outlive_the_machine() {
    require!(skip::privileged());
    let _limit = Watchdog::new("power cut", Duration::from_secs(60));
    let stand = Stand::new("power-cut");
    let mut model = left(&stand);
    let upper = stand.upper.join("big");
    let mut record = PartialRecord::decode(&mark(&upper).unwrap()).unwrap();
    record.boot = [1; 16];
    set_mark(&upper, &record.encode());
    // Its data never reached the disk: there is a hole.
    let file = OpenOptions::new().write(true).open(&upper).unwrap();
    let start = 500_000 / 4096 * 4096;
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, start, 8192).unwrap();
    drop(file);
    let old = pattern(1, 2 * MIB);
    model[500_000..500_007].copy_from_slice(&old[500_000..500_007]);
    let mount = stand.acetate("complete=off").mount();
    assert!(fs::read(mount.join("big")).unwrap() == model);
    end(mount);
    assert_whole(&upper, &stand.work, &model);
}

/// As `sync` does it: no word of it reaches the daemon, but the disk has it all.
#[test]
fn what_the_machine_synced_outlives_it() {
    require!(skip::privileged());
    let _limit = Watchdog::new("sync", Duration::from_secs(60));
    let mut stand = Stand::new("sync");
    // With a journal, without which nothing tells what was written.
    let image = match LoopImage::new(&stand.scratch, "ext4", 64 << 20) {
        Ok(image) => image,
        Err(reason) => crate::skip!("{reason}"),
    };
    stand.put_changes_on(image.path());
    let mut model = left(&stand);
    // A hole over data that was written before, and over blocks that were the lower's.
    let mount = stand.acetate("complete=off,partial=64K").mount();
    let file = OpenOptions::new()
        .write(true)
        .open(mount.join("big"))
        .unwrap();
    file.write_all_at(&[7; 20_000], 800_000).unwrap();
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 810_000, 100_000).unwrap();
    drop(file);
    model[800_000..820_000].fill(7);
    model[810_000..910_000].fill(0);
    let mut mount = mount;
    mount.kill();
    drop(mount);
    let upper = stand.upper.join("big");
    rustix::fs::syncfs(File::open(&stand.upper).unwrap()).unwrap();
    let mut record = PartialRecord::decode(&mark(&upper).unwrap()).unwrap();
    assert!(!record.map.is_durable());
    record.boot = [1; 16];
    set_mark(&upper, &record.encode());
    let mount = stand.acetate("complete=off").mount();
    assert!(fs::read(mount.join("big")).unwrap() == model);
    end(mount);
    assert_whole(&upper, &stand.work, &model);
}

/// What was appended may be on disk long before the rest of the block that it lies in.
#[test]
fn an_append_does_not_vouch_for_the_end_of_the_lower() {
    require!(skip::privileged());
    let _limit = Watchdog::new("append", Duration::from_secs(60));
    for cut in [None, Some(MIB + 100)] {
        let mut stand = Stand::new("append");
        let image = match LoopImage::new(&stand.scratch, "ext4", 64 << 20) {
            Ok(image) => image,
            Err(reason) => crate::skip!("{reason}"),
        };
        stand.put_changes_on(image.path());
        let mut model = pattern(1, 2 * MIB + 100);
        fs::write(stand.lower.join("big"), &model).unwrap();
        let mut mount = stand.acetate("complete=off").mount();
        let file = OpenOptions::new()
            .write(true)
            .open(mount.join("big"))
            .unwrap();
        if let Some(size) = cut {
            file.set_len(size as u64).unwrap();
            model.truncate(size);
        }
        let end = model.len();
        model.extend_from_slice(b"appended");
        file.write_all_at(b"appended", end as u64).unwrap();
        file.sync_all().unwrap();
        drop(file);
        mount.kill();
        drop(mount);
        // A claim of that block, as a completion makes it, whose data never reached the disk.
        let upper = stand.upper.join("big");
        let mut record = PartialRecord::decode(&mark(&upper).unwrap()).unwrap();
        let block = end as u64 / 4096;
        record.map.add(block..block + 1, false);
        record.boot = [1; 16];
        set_mark(&upper, &record.encode());
        let mount = stand.acetate("complete=off").mount();
        assert!(fs::read(mount.join("big")).unwrap() == model, "{cut:?}");
        crate::common::stand::end(mount);
        assert_whole(&upper, &stand.work, &model);
    }
}

/// The marks go one after the other.
#[test]
fn a_daemon_killed_while_the_marks_go_leaves_none() {
    require!(skip::privileged());
    let _limit = Watchdog::new("marks", Duration::from_secs(60));
    for userxattr in [false, true] {
        let (namespace, options) = match userxattr {
            false => ("trusted", "partial=4096,complete=off"),
            true => ("user", "userxattr,partial=4096,complete=off"),
        };
        let names = ["redirect", "acetate.partial"].map(|n| format!("{namespace}.overlay.{n}"));
        let stand = Stand::new("marks");
        let mut model = pattern(1, 2 * MIB);
        fs::write(stand.lower.join("big"), &model).unwrap();
        let mount = stand.acetate(options).mount();
        let file = OpenOptions::new()
            .write(true)
            .open(mount.join("big"))
            .unwrap();
        file.write_all_at(b"written", 500_000).unwrap();
        drop(file);
        model[500_000..500_007].copy_from_slice(b"written");
        let upper = stand.upper.join("big");
        let before = crate::common::tree::xattrs(&upper).unwrap();
        end(mount);
        assert_whole(&upper, &stand.work, &model);
        // The first of all marks is gone, then another one.
        for left in [&names[..], &names[1..]] {
            for name in left {
                let value = before
                    .get(std::ffi::OsStr::new(name))
                    .unwrap_or_else(|| panic!("no {name} among {before:?}"));
                let none = rustix::fs::XattrFlags::empty();
                rustix::fs::lsetxattr(&upper, name.as_str(), value, none).unwrap();
            }
            fs::create_dir_all(stand.work.join("work/incompat/acetate-partial")).unwrap();
            let mount = stand.acetate(options).mount();
            assert!(fs::read(mount.join("big")).unwrap() == model);
            end(mount);
            assert_whole(&upper, &stand.work, &model);
        }
    }
}

#[test]
fn a_truncation_that_was_under_way_is_finished() {
    require!(skip::privileged());
    let _limit = Watchdog::new("truncation", Duration::from_secs(60));
    let stand = Stand::new("truncation");
    let mut model = left(&stand);
    let upper = stand.upper.join("big");
    let mut record = PartialRecord::decode(&mark(&upper).unwrap()).unwrap();
    record.truncating = Some(300_001);
    set_mark(&upper, &record.encode());
    model.truncate(300_001);
    let mount = stand.acetate("complete=off").mount();
    let file = OpenOptions::new()
        .write(true)
        .open(mount.join("big"))
        .unwrap();
    assert!(fs::read(mount.join("big")).unwrap() == model);
    // What is cut off does not come back.
    file.set_len(2 * MIB as u64).unwrap();
    model.resize(2 * MIB, 0);
    drop(file);
    assert!(fs::read(mount.join("big")).unwrap() == model);
    end(mount);
    assert_whole(&upper, &stand.work, &model);
}

#[test]
fn a_full_disk_leaves_a_partial_file_valid() {
    require!(skip::privileged());
    let _limit = Watchdog::new("full", Duration::from_secs(60));
    let mut stand = Stand::new("full");
    let image = match LoopImage::new(&stand.scratch, "ext4", 32 << 20) {
        Ok(image) => image,
        Err(reason) => crate::skip!("{reason}"),
    };
    stand.put_changes_on(image.path());
    let mut model = pattern(3, 48 * MIB);
    fs::write(stand.lower.join("big"), &model).unwrap();
    let mount = stand.acetate("complete=off").mount();
    let big = mount.join("big");
    let file = OpenOptions::new().write(true).open(&big).unwrap();
    file.write_all_at(b"here", 9_000_000).unwrap();
    model[9_000_000..9_000_004].copy_from_slice(b"here");
    let done = acetate(&["complete".as_ref(), mount.path().as_os_str()]);
    assert!(!done.success(), "{}", done.text);
    assert!(fs::read(&big).unwrap() == model);
    let error = file.sync_all().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    file.sync_all().unwrap();
    drop(file);
    fs::remove_file(&big).unwrap();
    let log = mount.unmount().unwrap();
    assert!(log.contains("stays partially copied up"), "{log}");
    image.unmount().unwrap();
}

#[test]
fn an_upper_on_a_full_disk_is_mounted_again() {
    require!(skip::privileged());
    let _limit = Watchdog::new("full again", Duration::from_secs(120));
    let mut stand = Stand::new("full-again");
    let image = match LoopImage::new(&stand.scratch, "ext4", 32 << 20) {
        Ok(image) => image,
        Err(reason) => crate::skip!("{reason}"),
    };
    stand.put_changes_on(image.path());
    let mut model = pattern(3, 48 * MIB);
    fs::write(stand.lower.join("big"), &model).unwrap();
    fs::write(stand.lower.join("other"), &model[..4 * MIB]).unwrap();
    // In the background, as its warning would else be all that is said.
    let mount = stand.acetate("complete=off").daemon().mount();
    let big = mount.join("big");
    let file = OpenOptions::new().write(true).open(&big).unwrap();
    file.write_all_at(b"here", 9_000_000).unwrap();
    model[9_000_000..9_000_004].copy_from_slice(b"here");
    // What does not fit is not begun: others may need the room.
    let free = || rustix::fs::statvfs(image.path()).unwrap().f_bfree;
    let before = free();
    let done = acetate(&["complete".as_ref(), big.as_os_str()]);
    assert!(!done.success(), "{}", done.text);
    assert!(
        free() + 64 > before,
        "{before} blocks before, {} after",
        free()
    );
    // The program's own writes take the rest. What was taken is there, and what was refused is as it was.
    let mut at = 0;
    let error = loop {
        match file.write_at(&[7; 65536], at) {
            Ok(n) => {
                model[at as usize..at as usize + n].fill(7);
                at += n as u64;
            }
            Err(e) => break e,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    drop(file);
    assert!(fs::read(&big).unwrap() == model);
    let fill = fs::File::create(image.path().join("fill")).unwrap();
    let mut at = 0;
    for size in [65536, 4096, 1024] {
        while let Ok(n) = fill.write_at(&[1; 65536][..size], at) {
            at += n as u64;
        }
    }
    let told = acetate(&["umount".as_ref(), mount.path().as_os_str()]);
    assert!(told.success(), "{}", told.text);
    assert!(told.text.contains("not all of the files"), "{}", told.text);
    drop(mount);

    let mount = stand.acetate("complete=off").daemon().mount();
    let big = mount.join("big");
    assert!(fs::read(&big).unwrap() == model);
    assert_eq!(fs::read(mount.join("other")).unwrap().len(), 4 * MIB);
    // A removal gives the room, as soon as the kernel has let go of the file.
    fs::remove_file(&big).unwrap();
    let begin = std::time::Instant::now();
    while free() < 16384 {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    let other = OpenOptions::new()
        .write(true)
        .open(mount.join("other"))
        .unwrap();
    other.write_all_at(b"x", 1).unwrap();
    complete(&mount.join("other"));
    drop(other);
    let told = acetate(&["umount".as_ref(), mount.path().as_os_str()]);
    assert!(told.success() && told.text.is_empty(), "{}", told.text);
    drop(mount);
    drop(fill);
    image.unmount().unwrap();
}

/// The program's own xattrs leave no room for a map, on ext4 with its one block for all.
#[test]
fn a_file_with_large_xattrs_is_copied_whole() {
    require!(skip::privileged());
    let _limit = Watchdog::new("xattr room", Duration::from_secs(60));
    let mut stand = Stand::new("xattr-room");
    let image =
        match LoopImage::with_options(&stand.scratch, "ext4", 256 << 20, &["-b", "4096"], "loop") {
            Ok(image) => image,
            Err(reason) => crate::skip!("{reason}"),
        };
    stand.put_on(image.path());
    let none = rustix::fs::XattrFlags::empty();
    let sizes = [3960, 3900, 3850, 3800, 3700, 3000];
    for size in sizes {
        let path = stand.lower.join(size.to_string());
        fs::write(&path, pattern(size as u64, 2 * MIB)).unwrap();
        rustix::fs::lsetxattr(&path, "user.large", &vec![5; size], none).unwrap();
    }
    let mount = stand.acetate("complete=off").mount();
    for size in sizes {
        // By a write, by a change of the mode and then a write, and by a rename.
        let path = mount.join(size.to_string());
        if size % 200 == 0 {
            fs::rename(&path, mount.join("moved")).unwrap();
            fs::rename(mount.join("moved"), &path).unwrap();
        }
        let mut model = pattern(size as u64, 2 * MIB);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for at in (0..2 * MIB).step_by(100_000) {
            file.write_all_at(b"changed", at as u64).unwrap();
            let end = (at + 7).min(model.len());
            model[at..end].copy_from_slice(&b"changed"[..end - at]);
        }
        file.set_len(2 * MIB as u64 - 5).unwrap();
        model.truncate(2 * MIB - 5);
        drop(file);
        assert!(fs::read(&path).unwrap() == model, "{size}");
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(&path, "user.large", &mut value[..]).unwrap();
        assert_eq!(value[..length], vec![5; size]);
    }
    end(mount);
    assert!(!stand.work.join("work/incompat").exists());
    image.unmount().unwrap();
}

#[test]
fn attributes_are_put_back_where_the_filling_of_blocks_was_cut_off() {
    require!(skip::privileged());
    let _limit = Watchdog::new("kept", Duration::from_secs(60));
    let stand = Stand::new("kept");
    let model = left(&stand);
    let upper = stand.upper.join("big");
    // As a daemon leaves them that dies at that moment: the time is that of its write, the capabilities are gone.
    let mut noted = vec![1];
    for (sec, nsec) in [(1_000_000_001_i64, 5_u32), (1_000_000_000, 7)] {
        noted.extend_from_slice(&sec.to_le_bytes());
        noted.extend_from_slice(&nsec.to_le_bytes());
    }
    // CAP_NET_RAW, permitted and effective (`vfs_cap_data` of revision 2).
    let mut capability = [0; 20];
    (capability[0], capability[3], capability[5]) = (1, 2, 0x20);
    noted.extend_from_slice(&capability);
    let name = "trusted.overlay.acetate.kept";
    rustix::fs::setxattr(&upper, name, &noted, rustix::fs::XattrFlags::empty()).unwrap();
    let mount = stand.acetate("complete=off").mount();
    let modified = Duration::new(1_000_000_000, 7);
    let time = fs::metadata(mount.join("big")).unwrap().modified().unwrap();
    assert_eq!(
        time.duration_since(std::time::UNIX_EPOCH).unwrap(),
        modified
    );
    let mut value = [0; 64];
    let len = rustix::fs::getxattr(mount.join("big"), "security.capability", &mut value).unwrap();
    assert_eq!(value[..len], capability);
    let gone = rustix::fs::getxattr(&upper, name, &mut value);
    assert_eq!(gone, Err(rustix::io::Errno::NODATA));
    // Completing keeps them, and leaves nothing behind.
    complete(mount.path());
    let time = fs::metadata(mount.join("big")).unwrap().modified().unwrap();
    assert_eq!(
        time.duration_since(std::time::UNIX_EPOCH).unwrap(),
        modified
    );
    assert_whole(&upper, &stand.work, &model);
    end(mount);
}

/// A program leaves no room for the map afterwards: then the file is copied whole.
#[test]
fn a_file_that_gets_large_xattrs_later_is_copied_whole() {
    require!(skip::privileged());
    let _limit = Watchdog::new("xattr room later", Duration::from_secs(120));
    let mut stand = Stand::new("xattr-later");
    let image =
        match LoopImage::with_options(&stand.scratch, "ext4", 128 << 20, &["-b", "4096"], "loop") {
            Ok(image) => image,
            Err(reason) => crate::skip!("{reason}"),
        };
    stand.put_on(image.path());
    let names = ["written", "completed"];
    for name in names {
        fs::write(stand.lower.join(name), pattern(1, 8 * MIB)).unwrap();
    }
    let mount = stand.acetate("complete=off").mount();
    for name in names {
        let mut model = pattern(1, 8 * MIB);
        let path = mount.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        assert!(mark(&stand.upper.join(name)).is_some());
        // As much as there is room for.
        let none = rustix::fs::XattrFlags::empty();
        let set = |size| rustix::fs::lsetxattr(&path, "user.large", &vec![5; size], none);
        let size = (1..4096).rev().find(|size| set(*size).is_ok()).unwrap();
        if name == "written" {
            for at in (1_000_000..7_000_000).step_by(1_000_000) {
                file.write_all_at(b"changed", at).unwrap();
                model[at as usize..at as usize + 7].copy_from_slice(b"changed");
            }
            assert!(fs::read(&path).unwrap() == model);
            file.sync_all().unwrap();
        }
        complete(&path);
        assert!(fs::read(&path).unwrap() == model, "{name}");
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(&path, "user.large", &mut value[..]).unwrap();
        assert_eq!(value[..length], vec![5; size]);
        drop(file);
    }
    end(mount);
    for name in names {
        let mut model = pattern(1, 8 * MIB);
        if name == "written" {
            for at in (1_000_000..7_000_000).step_by(1_000_000) {
                model[at..at + 7].copy_from_slice(b"changed");
            }
        }
        assert_whole(&stand.upper.join(name), &stand.work, &model);
    }
    image.unmount().unwrap();
}
