//! From the first write to the last block.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::stand::{Stand, end};
use crate::common::{LoopImage, Watchdog, skip};
use crate::require;
use crate::rig::{MIB, Random, acetate, assert_whole, complete, mark, pattern, stat};

#[test]
fn only_the_touched_blocks_are_copied_until_the_file_is_completed() {
    require!(skip::privileged());
    let _limit = Watchdog::new("life", Duration::from_secs(60));
    let stand = Stand::new("life");
    let mut model = pattern(1, 5 * MIB + 1);
    fs::write(stand.lower.join("big"), &model).unwrap();
    fs::write(stand.lower.join("small"), vec![7; MIB]).unwrap();
    let mount = stand.acetate("complete=off").mount();
    let (big, upper) = (mount.join("big"), stand.upper.join("big"));
    let before = fs::metadata(&big).unwrap();

    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&big)
        .unwrap();
    file.write_all_at(b"here", 2_000_000).unwrap();
    model[2_000_000..2_000_004].copy_from_slice(b"here");
    assert!(fs::metadata(&upper).unwrap().blocks() <= 32);
    assert!(mark(&upper).is_some());
    assert!(fs::read(&big).unwrap() == model);
    assert_eq!(fs::metadata(&big).unwrap().ino(), before.ino());
    assert_eq!(fs::metadata(&big).unwrap().blocks(), before.blocks());
    assert_eq!(stat(mount.path(), "partial_files"), 1);
    assert_eq!(
        stat(mount.path(), "partial_missing"),
        (5 * MIB + 1 - 4096) as u64
    );
    let told = acetate(&["diff".as_ref(), mount.path().as_os_str()]);
    assert_eq!(told.text, "C /big (partial)\n");
    let told = acetate(&["explain".as_ref(), big.as_os_str()]);
    assert!(told.text.contains("copied up by blocks"), "{}", told.text);
    // Not larger than the threshold.
    fs::write(mount.join("small"), "x").unwrap();
    assert!(mark(&stand.upper.join("small")).is_none());

    // Names come and go, and another name is the same file.
    fs::rename(&big, mount.join("moved")).unwrap();
    fs::hard_link(mount.join("moved"), mount.join("link")).unwrap();
    file.write_all_at(b"there", 0).unwrap();
    model[..5].copy_from_slice(b"there");
    file.sync_all().unwrap();
    let mtime = file.metadata().unwrap().modified().unwrap();
    assert!(fs::read(mount.join("link")).unwrap() == model);
    assert!(complete(&mount.join("moved")).starts_with("files completed: 1"));
    assert_eq!(file.metadata().unwrap().modified().unwrap(), mtime);
    assert!(fs::read(mount.join("link")).unwrap() == model);
    assert_whole(&stand.upper.join("moved"), &stand.work, &model);
    assert_eq!(stat(mount.path(), "partial_files"), 0);

    // The handle that was there before goes on, and the kernel serves the file once it is closed.
    file.write_all_at(b"again", 3_000_000).unwrap();
    model[3_000_000..3_000_005].copy_from_slice(b"again");
    drop(file);
    let passed = stat(mount.path(), "passthrough_opens");
    assert!(fs::read(mount.join("moved")).unwrap() == model);
    assert!(stat(mount.path(), "passthrough_opens") > passed);
    end(mount);
    assert!(fs::read(stand.upper.join("link")).unwrap() == model);
}

#[test]
fn an_unmount_completes_what_is_left_and_a_discarded_upper_is_not_completed() {
    require!(skip::privileged());
    let _limit = Watchdog::new("unmount", Duration::from_secs(60));
    let stand = Stand::new("unmount");
    let mut model = pattern(2, 3 * MIB);
    fs::write(stand.lower.join("big"), &model).unwrap();
    let mount = stand.acetate("").mount();
    let file = OpenOptions::new()
        .write(true)
        .open(mount.join("big"))
        .unwrap();
    file.write_all_at(b"x", 70_000).unwrap();
    model[70_000] = b'x';
    drop(file);
    end(mount);
    assert_whole(&stand.upper.join("big"), &stand.work, &model);

    // In time for whoever mounts again at once, who does not wait for large copies either.
    let file = File::create(stand.lower.join("large")).unwrap();
    let part = pattern(3, MIB);
    for number in 0..256 {
        file.write_all_at(&part, number * MIB as u64).unwrap();
    }
    drop(file);
    let mount = stand.acetate("complete=off").daemon().mount();
    let file = OpenOptions::new()
        .write(true)
        .open(mount.join("large"))
        .unwrap();
    file.write_all_at(b"x", 70_000).unwrap();
    drop(file);
    nix::mount::umount(mount.path()).unwrap();
    drop(mount);
    let mount = stand.acetate("complete=off").mount();
    let mut block = vec![0; MIB];
    for number in [0, 100, 255] {
        let file = File::open(mount.join("large")).unwrap();
        file.read_exact_at(&mut block, number * MIB as u64).unwrap();
        if number == 0 {
            assert_eq!(block[70_000], b'x');
            block[70_000] = part[70_000];
        }
        assert!(block == part);
    }
    end(mount);
}

#[test]
fn the_background_completes_what_nobody_changes() {
    require!(skip::privileged());
    let _limit = Watchdog::new("background", Duration::from_secs(60));
    let stand = Stand::new("background");
    let mut model = pattern(4, 4 * MIB);
    fs::write(stand.lower.join("big"), &model).unwrap();
    let mount = stand.acetate("complete=0.2").mount();
    let file = OpenOptions::new()
        .write(true)
        .open(mount.join("big"))
        .unwrap();
    file.write_all_at(b"x", 1).unwrap();
    model[1] = b'x';
    assert_eq!(stat(mount.path(), "partial_files"), 1);
    while stat(mount.path(), "partial_files") > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_whole(&stand.upper.join("big"), &stand.work, &model);
    drop(file);
    end(mount);
}

/// The map of so many places does not fit into the file's mark.
#[test]
fn thousands_of_places_are_changed() {
    require!(skip::privileged());
    let _limit = Watchdog::new("places", Duration::from_secs(120));
    let stand = Stand::new("places");
    let mut model = pattern(5, 48 * MIB);
    fs::write(stand.lower.join("big"), &model).unwrap();
    let mut mount = stand.acetate("complete=off").mount();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.join("big"))
        .unwrap();
    let mut random = Random(77);
    for number in 0..2_500_u64 {
        let at = random.below((48 * MIB - 9000) as u64);
        let data = pattern(number, 1 + random.below(9000) as usize);
        file.write_all_at(&data, at).unwrap();
        model[at as usize..at as usize + data.len()].copy_from_slice(&data);
        if number == 300 {
            let blocks = fs::metadata(stand.upper.join("big")).unwrap().blocks();
            assert!(blocks < 300 * 4 * 8, "{blocks} units of 300 small writes");
        }
        if number % 500 == 0 {
            file.sync_all().unwrap();
        }
    }
    assert!(mark(&stand.upper.join("big")).is_some_and(|mark| mark.len() <= 2048));
    let mut found = vec![0; model.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == model);
    drop(file);
    // And the next mount reads the same.
    mount.kill();
    drop(mount);
    let mount = stand.acetate("complete=off").mount();
    assert!(fs::read(mount.join("big")).unwrap() == model);
    end(mount);
    assert_whole(&stand.upper.join("big"), &stand.work, &model);
}

/// Where the filesystem can clone, that is done instead.
#[test]
fn a_clone_is_made_where_it_can_be() {
    require!(skip::privileged());
    let _limit = Watchdog::new("clone", Duration::from_secs(120));
    let mut missing = Vec::new();
    for fstype in ["xfs", "btrfs"] {
        let mut stand = Stand::new("clone");
        let image = match LoopImage::new(&stand.scratch, fstype, 512 << 20) {
            Ok(image) => image,
            Err(reason) => {
                missing.push(reason);
                continue;
            }
        };
        stand.put_on(image.path());
        let model = pattern(6, 8 * MIB);
        for number in 0..5 {
            fs::write(stand.lower.join(number.to_string()), &model).unwrap();
        }
        // CAP_NET_RAW, permitted and effective (`vfs_cap_data` of revision 2).
        let mut capability = [0; 20];
        (capability[0], capability[3], capability[5]) = (1, 2, 0x20);
        let capable = stand.lower.join("capable");
        fs::write(&capable, &model).unwrap();
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&capable, "security.capability", &capability, none).unwrap();
        // A clone waits for what its source still has to write, and layers are at rest.
        rustix::fs::syncfs(File::open(image.path()).unwrap()).unwrap();
        let mount = stand.acetate("metacopy=on").mount();
        let mut fastest = Duration::MAX;
        for number in 0..5 {
            let begin = std::time::Instant::now();
            let path = mount.join(number.to_string());
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&[1; 4096], 8192).unwrap();
            fastest = fastest.min(begin.elapsed());
        }
        println!("{fstype}: open and first write of 8 MiB: {fastest:?}");
        // Likewise where the attributes came first. A clone takes capabilities away, which the opening of a file does not.
        let capable = mount.join("capable");
        fs::set_permissions(&capable, fs::Permissions::from_mode(0o700)).unwrap();
        drop(OpenOptions::new().append(true).open(&capable).unwrap());
        let mut value = [0; 64];
        let left = rustix::fs::getxattr(&capable, "security.capability", &mut value);
        assert_eq!(left, Ok(capability.len()), "{fstype}: the capability");
        assert_eq!(value[..capability.len()], capability);
        assert_eq!(stat(mount.path(), "copy_up_partial"), 0, "{fstype}");
        assert!(!stand.work.join("work/incompat").exists());
        end(mount);
        image.unmount().unwrap();
    }
    if missing.len() == 2 {
        crate::skip!("no filesystem that clones: {missing:?}");
    }
}

/// A file of which only the attributes were copied up becomes a partial one in place.
#[test]
fn opening_a_renamed_file_for_writing_changes_none_of_its_times() {
    require!(skip::privileged());
    let _limit = Watchdog::new("times", Duration::from_secs(60));
    let stand = Stand::new("times");
    let model = pattern(7, 2 * MIB);
    fs::write(stand.lower.join("big"), &model).unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let lower = OpenOptions::new().write(true).open(stand.lower.join("big"));
    lower.unwrap().set_modified(long_ago).unwrap();
    let mount = stand.acetate("complete=off,metacopy=on").mount();
    fs::rename(mount.join("big"), mount.join("moved")).unwrap();
    let file = OpenOptions::new()
        .append(true)
        .open(mount.join("moved"))
        .unwrap();
    assert!(mark(&stand.upper.join("moved")).is_some());
    assert_eq!(file.metadata().unwrap().modified().unwrap(), long_ago);
    complete(mount.path());
    assert_eq!(file.metadata().unwrap().modified().unwrap(), long_ago);
    assert_whole(&stand.upper.join("moved"), &stand.work, &model);
    drop(file);
    end(mount);
}

/// Where the holes of a file are.
fn holes(path: &std::path::Path) -> Vec<(u64, u64)> {
    use rustix::fs::SeekFrom;
    let file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < size {
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(at)).unwrap();
        if hole >= size {
            break;
        }
        at = match rustix::fs::seek(&file, SeekFrom::Data(hole)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => size,
            Err(e) => panic!("{e}"),
        };
        found.push((hole, at));
    }
    found
}

#[test]
fn holes_of_the_lower_are_the_same_before_and_after_the_completion() {
    require!(skip::privileged());
    let _limit = Watchdog::new("holes", Duration::from_secs(60));
    let stand = Stand::new("holes");
    let lower = File::create(stand.lower.join("big")).unwrap();
    lower.set_len(4 * MIB as u64).unwrap();
    // Smaller than what is copied at once, and of all lengths.
    let mut at = 8192;
    for blocks in 1..40 {
        lower
            .write_all_at(&pattern(blocks, blocks as usize * 1024), at)
            .unwrap();
        at += (blocks * 1024).next_multiple_of(4096) + 4096 * (1 + blocks % 5);
    }
    drop(lower);
    let mut model = fs::read(stand.lower.join("big")).unwrap();
    let mount = stand.acetate("complete=off").mount();
    let big = mount.join("big");
    let mut expected = holes(&stand.lower.join("big"));
    assert!(expected.len() > 30);
    let file = OpenOptions::new().write(true).open(&big).unwrap();
    // In the hole at the beginning.
    file.write_all_at(b"x", 1).unwrap();
    model[1] = b'x';
    assert_eq!(expected[0].0, 0);
    expected[0].0 = 4096;
    assert_eq!(holes(&big), expected);
    complete(&big);
    assert_eq!(holes(&big), expected);
    drop(file);
    assert_eq!(holes(&big), expected);
    assert!(fs::read(&big).unwrap() == model);
    end(mount);
    assert_whole(&stand.upper.join("big"), &stand.work, &model);
}

#[test]
fn a_change_of_mode_is_not_undone_by_the_filling_of_blocks() {
    require!(skip::privileged());
    let _limit = Watchdog::new("mode", Duration::from_secs(120));
    let stand = Stand::new("mode");
    let size = 128 * MIB;
    fs::write(stand.lower.join("large"), pattern(1, size)).unwrap();
    let mount = stand.acetate("complete=off").mount();
    let path = mount.join("large");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"x", 9).unwrap();
    drop(file);
    let done = AtomicBool::new(false);
    let set = |mode: u32| {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        // Time for who would put the old one back.
        std::thread::sleep(Duration::from_micros(500));
        let upper = fs::metadata(stand.upper.join("large")).unwrap();
        assert_eq!(upper.mode() & 0o7777, mode);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            complete(&path);
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            set(0o6755);
            set(0o600);
        }
    });
    end(mount);
}

/// The marks that hide a partial file in the other xattr namespace have names that programs may see. They go while a program asks.
#[test]
fn the_marks_of_a_file_that_is_completed_meanwhile_are_never_listed() {
    require!(skip::privileged());
    let _limit = Watchdog::new("listed marks", Duration::from_secs(300));
    let stand = Stand::new("listed-marks");
    for n in 0..150 {
        fs::write(stand.lower.join(n.to_string()), pattern(n, 40_000)).unwrap();
    }
    let mount = stand.acetate("partial=4096,complete=0").mount();
    let none = std::collections::BTreeMap::new();
    let begin = std::time::Instant::now();
    for n in 0..150 {
        // On a busy machine the background, which gives way to everybody, takes long for each.
        if begin.elapsed() > Duration::from_secs(60) {
            break;
        }
        let path = mount.join(n.to_string());
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"x", 20_000).unwrap();
        drop(file);
        while mark(&stand.upper.join(n.to_string())).is_some() {
            assert_eq!(crate::common::tree::xattrs(&path).unwrap(), none);
        }
    }
    end(mount);
}

/// Where there are so many pieces that the map has no room for what is copied meanwhile, gaps between them are filled.
#[test]
fn the_completion_of_a_file_in_many_pieces_keeps_its_attributes() {
    require!(skip::privileged());
    let _limit = Watchdog::new("pieces", Duration::from_secs(120));
    let stand = Stand::new("pieces");
    let mut model = pattern(1, 32 * MIB);
    fs::write(stand.lower.join("big"), &model).unwrap();
    let mount = stand.acetate("complete=off").mount();
    let big = mount.join("big");
    let file = OpenOptions::new().write(true).open(&big).unwrap();
    for piece in 0..700 {
        let at = piece * 11 * 4096;
        file.write_all_at(b"piece", at as u64).unwrap();
        model[at..at + 5].copy_from_slice(b"piece");
    }
    file.sync_all().unwrap();
    // `cap_net_raw`, effective and permitted.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(&big, "security.capability", &capability, none).unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    file.set_modified(long_ago).unwrap();
    complete(mount.path());
    assert_eq!(file.metadata().unwrap().modified().unwrap(), long_ago);
    let xattrs = crate::common::tree::xattrs(&big).unwrap();
    let found = xattrs.get(std::ffi::OsStr::new("security.capability"));
    assert_eq!(found.map(Vec::as_slice), Some(&capability[..]));
    assert!(fs::read(&big).unwrap() == model);
    drop(file);
    end(mount);
    assert_whole(&stand.upper.join("big"), &stand.work, &model);
}
