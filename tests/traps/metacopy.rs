//! A file of which only attributes or names change keeps its data below, and nobody takes its own bytes for data.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::process::{Resource, Rlimit};

use crate::common::{Acetate, Overlay, Scratch, Watchdog, skip};
use crate::require;
use crate::rig::{Rig, open};

const FILES: usize = 200;
const READS_METACOPY: &str = "metacopy=on,redirect_dir=on,index=on";

fn content(at: usize) -> Vec<u8> {
    vec![at as u8 + 1; 10_000]
}

#[test]
fn changes_of_attributes_and_names_copy_no_data() {
    require!(skip::privileged());
    let rig = Rig::new("metacopy", "", |lower| {
        fs::create_dir(lower.join("dir")).unwrap();
        for at in 0..FILES {
            fs::write(lower.join(format!("dir/{at}")), content(at)).unwrap();
        }
    });
    for at in 0..FILES {
        let path = rig.at(format!("dir/{at}"));
        match at % 4 {
            0 => fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap(),
            1 => std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap(),
            2 => fs::rename(&path, rig.at(format!("moved{at}"))).unwrap(),
            _ => fs::hard_link(&path, rig.at(format!("linked{at}"))).unwrap(),
        }
    }
    fs::rename(rig.at("dir"), rig.at("other")).unwrap();
    assert_eq!(rig.counter("copy_up_bytes"), 0);
    assert_eq!(rig.counter("copy_up_data"), 0);
    let reader = open(&rig.at("other/0"), libc::O_RDONLY).unwrap();
    reader.sync_all().unwrap();
    // The first write brings the data.
    let mut changed = content(4);
    changed[5] = b'!';
    use std::os::unix::fs::FileExt;
    let file = open(&rig.at("other/4"), libc::O_RDWR).unwrap();
    file.write_all_at(b"!", 5).unwrap();
    drop((file, reader));
    assert_eq!(rig.counter("copy_up_bytes"), 10_000);
    let expect = |root: &Path| {
        for at in 0..FILES {
            let path = match at % 4 {
                2 => root.join(format!("moved{at}")),
                3 => root.join(format!("linked{at}")),
                _ => root.join(format!("other/{at}")),
            };
            let wanted = if at == 4 {
                changed.clone()
            } else {
                content(at)
            };
            assert!(fs::read(&path).unwrap() == wanted, "{}", path.display());
        }
        let meta = fs::metadata(root.join("other/1")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (7, 8));
    };
    expect(rig.mount.path());
    let place = rig.scratch.path().to_owned();
    let at = |name: &str| place.join(name);
    let Rig { mount, scratch, .. } = rig;
    assert_eq!(mount.unmount().unwrap().trim(), "");
    let (lower, upper, work) = (at("lower"), at("upper"), at("work"));
    fs::create_dir_all(at("kernel")).unwrap();
    let pair = Some((upper.as_path(), work.as_path()));
    let overlay = Overlay::mount(&at("kernel"), &[&lower], pair, READS_METACOPY).unwrap();
    expect(overlay.path());
    overlay.unmount().unwrap();
    // Without the option the kernel refuses such a file.
    let pair = Some((upper.as_path(), work.as_path()));
    let plain = "metacopy=off,redirect_dir=on,index=on";
    let overlay = Overlay::mount(&at("kernel"), &[&lower], pair, plain).unwrap();
    assert!(fs::read(overlay.path().join("moved2")).is_err());
    overlay.unmount().unwrap();
    let again = Acetate::new(at("merged"))
        .lowers(&[&lower])
        .upper(&upper, &work)
        .mount();
    expect(again.path());
    // The layer that has the data is missing.
    again.unmount().unwrap();
    let empty = scratch.dir("empty");
    let alone = Acetate::new(at("merged")).lowers(&[&upper, &empty]).mount();
    assert!(fs::read(alone.join("moved2")).is_err());
    assert_eq!(fs::read(alone.join("other/4")).unwrap(), changed);
    alone.unmount().unwrap();
}

/// Beside the kernel's overlayfs with the same layers.
#[test]
fn data_only_layers_give_data_alone() {
    require!(skip::privileged());
    let _limit = Watchdog::new("data-only", Duration::from_secs(60));
    let scratch = Scratch::new("data-only");
    let (meta, first, second) = (
        scratch.dir("meta"),
        scratch.dir("first"),
        scratch.dir("second"),
    );
    let digest = |layer: &Path, name: &str, data: &[u8]| {
        fs::create_dir_all(layer.join("objects")).unwrap();
        fs::write(layer.join("objects").join(name), data).unwrap();
    };
    digest(&first, "a", b"in the first");
    digest(&second, "b", b"in the second");
    digest(&second, "a", b"hidden here!");
    for (name, object, len) in [("one", "a", 12), ("two", "b", 13), ("gone", "c", 5)] {
        let path = meta.join(name);
        fs::File::create(&path).unwrap().set_len(len).unwrap();
        let redirect = format!("/objects/{object}");
        let set = |name: &str, value: &[u8]| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&path, name, value, flags).unwrap();
        };
        set("trusted.overlay.metacopy", b"");
        set("trusted.overlay.redirect", redirect.as_bytes());
    }
    let layers = format!(
        "{}::{}::{}",
        meta.display(),
        first.display(),
        second.display()
    );
    let (upper, work) = (scratch.dir("upper"), scratch.dir("work"));
    let mount = Acetate::new(scratch.join("merged"))
        .options(format!("lowerdir={layers}"))
        .upper(&upper, &work)
        .mount();
    let kernel = scratch.dir("kernel");
    let options = format!("lowerdir={layers},metacopy=on,redirect_dir=on");
    let status = std::process::Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&kernel)
        .status()
        .unwrap();
    assert!(status.success(), "the kernel refuses {options}");
    let shown = |root: &Path| {
        let mut names: Vec<_> = fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        let read = |name: &str| fs::read(root.join(name)).ok();
        (names, read("one"), read("two"), read("gone"))
    };
    let (ours, theirs) = (shown(mount.path()), shown(&kernel));
    crate::common::mount::detach(&kernel);
    assert_eq!(ours, theirs);
    assert_eq!(ours.1.as_deref(), Some(b"in the first".as_slice()));
    assert_eq!(ours.2.as_deref(), Some(b"in the second".as_slice()));
    assert_eq!(ours.3, None);
    // Two steps above the data, and then a file of its own.
    let one = mount.join("one");
    fs::set_permissions(&one, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&one, mount.join("renamed")).unwrap();
    assert_eq!(fs::read(mount.join("renamed")).unwrap(), b"in the first");
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(mount.join("renamed"))
        .unwrap();
    std::io::Write::write_all(&mut file, b" and more").unwrap();
    drop(file);
    assert_eq!(
        fs::read(mount.join("renamed")).unwrap(),
        b"in the first and more"
    );
    assert_eq!(fs::read(first.join("objects/a")).unwrap(), b"in the first");
    mount.unmount().unwrap();
}

/// Data copied up alone, after the attributes, is no change of the file, however it ends.
#[test]
fn a_copy_of_data_that_is_cut_off_leaves_attributes_as_they_were() {
    require!(skip::privileged());
    let capability = {
        let mut value = [0; 20];
        value[..4].copy_from_slice(&0x0200_0001_u32.to_le_bytes());
        value[5] = 0x20;
        value
    };
    let read = |path: &Path| {
        let mut value = [0; 64];
        let found = rustix::fs::getxattr(path, "security.capability", &mut value);
        found.map(|length| value[..length].to_vec())
    };
    let mut rig = Rig::new("metacopy-cut", "metacopy=on,partial=off", |lower| {
        fs::write(lower.join("file"), vec![7; 16 << 20]).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        let file = lower.join("file");
        rustix::fs::setxattr(&file, "security.capability", &capability, flags).unwrap();
    });
    let path = rig.at("file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let before = fs::metadata(&path).unwrap().mtime();
    assert_eq!(before, crate::rig::OLD);
    // In the midst of the copy the kernel ends the daemon.
    let pid = rustix::process::Pid::from_raw(rig.mount.pid().unwrap() as i32);
    for (what, most) in [(Resource::Core, 0), (Resource::Fsize, 5 << 20)] {
        let most = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        rustix::process::prlimit(pid, what, most).unwrap();
    }
    open(&path, libc::O_RDWR).unwrap_err();
    rig.mount.kill();
    let upper = rig.upper.join("file");
    assert!(
        fs::metadata(&upper).unwrap().blocks() > 0,
        "nothing was copied"
    );
    // Nothing less would say that it was cut off, and the next mount is to copy again.
    let mut value = [0; 64];
    rustix::fs::getxattr(&upper, "trusted.overlay.metacopy", &mut value).unwrap();
    drop(rig.mount);
    let mount = Acetate::new(rig.scratch.join("merged"))
        .lowers(&[&rig.lower])
        .upper(&rig.upper, &rig.scratch.join("work"))
        .options("metacopy=on,partial=off")
        .mount();
    let path = mount.join("file");
    let check = |what: &str| {
        // Not what the kernel remembers.
        let told = statx(CWD, &path, AtFlags::STATX_FORCE_SYNC, StatxFlags::MTIME).unwrap();
        assert_eq!(told.stx_mtime.tv_sec, before, "{what}");
        assert_eq!(read(&path).unwrap(), capability, "{what}");
    };
    check("mounted again");
    // Nor is there a moment without them while the copy runs.
    let copying = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while copying.load(std::sync::atomic::Ordering::Acquire) {
                check("while the data is copied");
            }
        });
        let opened = open(&path, libc::O_RDWR);
        copying.store(false, std::sync::atomic::Ordering::Release);
        opened.unwrap();
    });
    check("with its data");
    assert_eq!(fs::read(&path).unwrap(), vec![7; 16 << 20]);
    mount.unmount().unwrap();
    let names = crate::common::tree::xattrs(&upper).unwrap();
    let left: Vec<_> = names
        .keys()
        .filter(|name| *name != "security.capability" && *name != "trusted.overlay.origin")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
