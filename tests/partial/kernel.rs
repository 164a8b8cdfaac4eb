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
