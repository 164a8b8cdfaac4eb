//! What the kernel's overlayfs makes of an upper with a partial file: nothing, and never wrong data.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::common::stand::{Stand, end};
use crate::common::{Overlay, Watchdog, skip};
use crate::require;
use crate::rig::{MIB, pattern};

const OPTIONS: [&str; 8] = [
    "",
    "metacopy=off",
    "metacopy=on,redirect_dir=on",
    "metacopy=on,redirect_dir=on,index=on",
    "redirect_dir=nofollow",
    "index=on",
    "volatile",
    "xino=auto,redirect_dir=on",
];

#[test]
fn the_kernel_refuses_the_upper_until_the_file_is_complete() {
    require!(skip::privileged());
    let _limit = Watchdog::new("kernel", Duration::from_secs(60));
    let stand = Stand::new("kernel");
    let mut model = pattern(1, 2 * MIB);
    fs::write(stand.lower.join("big"), &model).unwrap();
    fs::write(stand.lower.join("other"), "other").unwrap();
    let mut mount = stand.acetate("complete=off").mount();
    let file = OpenOptions::new()
        .write(true)
        .open(mount.join("big"))
        .unwrap();
    file.write_all_at(b"here", 500_000).unwrap();
    model[500_000..500_004].copy_from_slice(b"here");
    file.sync_all().unwrap();
    drop(file);
    mount.kill();
    drop(mount);

    let dir = stand.scratch.dir("kernel");
    let both = Some((stand.upper.as_path(), stand.work.as_path()));
    for options in OPTIONS.iter().chain(&["userxattr"]) {
        let mounted = Overlay::mount(&dir, &[&stand.lower], both, options);
        assert!(
            mounted.is_err(),
            "the kernel takes the upper with {options:?}"
        );
    }
    // As a layer the file is refused, by the kernel and by acetate, and the others are not.
    let layers = [&stand.upper, &stand.lower];
    for options in OPTIONS {
        if options == "volatile" || options.contains("index") {
            continue;
        }
        let overlay = Overlay::mount(&dir, &layers, None, options).unwrap();
        let mut text = Vec::new();
        let read =
            File::open(overlay.path().join("big")).and_then(|mut f| f.read_to_end(&mut text));
        let error = read.expect_err(options).raw_os_error();
        assert!(
            matches!(error, Some(libc::EIO | libc::EPERM)),
            "{options}: {error:?}"
        );
        assert_eq!(fs::read(overlay.path().join("other")).unwrap(), b"other");
        overlay.unmount().unwrap();
    }
    let mount = crate::common::Acetate::new(stand.scratch.join("layered"))
        .lowers(&layers)
        .mount();
    let error = fs::read(mount.join("big")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(fs::read(mount.join("other")).unwrap(), b"other");
    mount.unmount().unwrap();

    // The next mount goes on with it and completes it at the end.
    let mount = stand.acetate("complete=off").mount();
    assert!(fs::read(mount.join("big")).unwrap() == model);
    end(mount);
    for options in OPTIONS {
        let overlay = Overlay::mount(&dir, &[&stand.lower], both, options)
            .unwrap_or_else(|e| panic!("{options:?}: {e}"));
        assert!(
            fs::read(overlay.path().join("big")).unwrap() == model,
            "{options}"
        );
        assert_eq!(fs::read(overlay.path().join("other")).unwrap(), b"other");
        overlay.unmount().unwrap();
        if options == "volatile" {
            fs::remove_dir_all(stand.work.join("work/incompat")).unwrap();
        }
    }
}

/// Root's marks are in `trusted.` xattrs, a plain user's in `user.` ones, and a kernel's mount reads one kind only.
#[test]
fn no_reader_of_either_form_takes_a_partial_file_of_a_layer_for_whole() {
    require!(skip::privileged());
    let _limit = Watchdog::new("forms", Duration::from_secs(60));
    for form in ["", "userxattr,"] {
        let stand = Stand::new("forms");
        let mut model = pattern(1, 2 * MIB);
        fs::write(stand.lower.join("big"), &model).unwrap();
        fs::write(stand.lower.join("other"), "other").unwrap();
        let options = format!("{form}partial=64K,complete=off");
        let mut mount = stand.acetate(&options).mount();
        let big = mount.join("big");
        let file = OpenOptions::new().write(true).open(&big).unwrap();
        file.write_all_at(b"here", 500_000).unwrap();
        model[500_000..500_004].copy_from_slice(b"here");
        file.sync_all().unwrap();
        drop(file);
        // Programs do not see what was added for other readers.
        let names = crate::common::tree::xattrs(&big).unwrap();
        assert!(names.is_empty(), "{names:?}");
        mount.kill();
        drop(mount);

        let dir = stand.scratch.dir("kernel");
        let layers = [&stand.upper, &stand.lower];
        for options in OPTIONS.iter().chain(&["userxattr"]) {
            if *options == "volatile" || options.contains("index") {
                continue;
            }
            let overlay = Overlay::mount(&dir, &layers, None, options).unwrap();
            let error = fs::read(overlay.path().join("big")).expect_err(options);
            assert!(
                matches!(error.raw_os_error(), Some(libc::EIO | libc::EPERM)),
                "{form}{options}: {error}"
            );
            assert_eq!(fs::read(overlay.path().join("other")).unwrap(), b"other");
            overlay.unmount().unwrap();
        }
        for options in ["", "userxattr"] {
            let (upper, work) = (stand.scratch.dir("u2"), stand.scratch.dir("w2"));
            let mount = crate::common::Acetate::new(stand.scratch.join("layered"))
                .lowers(&layers)
                .upper(&upper, &work)
                .options(options)
                .mount();
            let error = fs::read(mount.join("big")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{form}{options}");
            assert_eq!(fs::read(mount.join("other")).unwrap(), b"other");
            mount.unmount().unwrap();
        }

        // A program that uses such names itself keeps what it set.
        let mount = stand.acetate(&options).mount();
        let name = if form.is_empty() {
            "user.overlay.metacopy"
        } else {
            "trusted.overlay.metacopy"
        };
        let none = rustix::fs::XattrFlags::empty();
        let mut value = [0; 8];
        assert!(rustix::fs::lgetxattr(mount.join("big"), name, &mut value[..]).is_err());
        rustix::fs::lsetxattr(mount.join("big"), name, b"mine", none).unwrap();
        crate::rig::complete(&mount.join("big"));
        let length = rustix::fs::lgetxattr(mount.join("big"), name, &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"mine");
        rustix::fs::lremovexattr(mount.join("big"), name).unwrap();
        assert!(fs::read(mount.join("big")).unwrap() == model);
        end(mount);
        crate::rig::assert_whole(&stand.upper.join("big"), &stand.work, &model);
    }
}

/// A file of which the attributes alone are in the upper, and that upper as a layer.
#[test]
fn a_metacopy_file_of_a_layer_is_refused_or_read_right() {
    require!(skip::privileged());
    let _limit = Watchdog::new("metacopy layer", Duration::from_secs(60));
    let stand = Stand::new("metacopy-layer");
    let model = pattern(1, MIB);
    fs::write(stand.lower.join("big"), &model).unwrap();
    let mount = stand.acetate("metacopy=on").mount();
    fs::rename(mount.join("big"), mount.join("moved")).unwrap();
    end(mount);
    let dir = stand.scratch.dir("kernel");
    let layers = [&stand.upper, &stand.lower];
    for options in OPTIONS {
        if options == "volatile" || options.contains("index") {
            continue;
        }
        let overlay = Overlay::mount(&dir, &layers, None, options).unwrap();
        let read = fs::read(overlay.path().join("moved"));
        match read {
            Ok(data) => assert!(
                options.contains("metacopy=on") && data == model,
                "{options}"
            ),
            Err(e) => assert!(!options.contains("metacopy=on"), "{options}: {e}"),
        }
        overlay.unmount().unwrap();
    }
    for options in ["", "userxattr", "metacopy=off"] {
        let (upper, work) = (stand.scratch.dir("u2"), stand.scratch.dir("w2"));
        let mount = crate::common::Acetate::new(stand.scratch.join("layered"))
            .lowers(&layers)
            .upper(&upper, &work)
            .options(options)
            .mount();
        assert!(fs::read(mount.join("moved")).unwrap() == model, "{options}");
        end(mount);
    }
}
