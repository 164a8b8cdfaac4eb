//! The same on other filesystems, and on full ones.

use std::process::Command;

use super::*;
use crate::layer::error::UpperError;

/// A mount that goes away with the value.
pub(super) struct Mounted(pub(super) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(e) = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {e}", self.0.display());
        }
    }
}

pub(super) fn run(command: &mut Command) -> bool {
    let output = Command::new("timeout")
        .arg("60")
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

fn loop_mount(dir: &Path, filesystem: &str) -> Option<Mounted> {
    loop_mount_with(dir, filesystem, &[], "loop")
}

/// `making`: words for `mkfs`; `options`: for `mount`.
fn loop_mount_with(
    dir: &Path,
    filesystem: &str,
    making: &[&str],
    options: &str,
) -> Option<Mounted> {
    let (image, at) = (dir.join("image"), dir.join("mnt"));
    std::fs::create_dir(&at).unwrap();
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(400 << 20).unwrap();
    let made = run(Command::new(format!("mkfs.{filesystem}"))
        .arg("-q")
        .args(making)
        .arg(&image));
    let mounted = made
        && run(Command::new("mount")
            .args(["-t", filesystem, "-o", options])
            .args([&image, &at]));
    mounted.then_some(Mounted(at))
}

fn tmpfs(dir: &Path, options: &str) -> Mounted {
    let at = dir.join("mnt");
    std::fs::create_dir(&at).unwrap();
    assert!(run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "t"])
        .arg(&at)));
    Mounted(at)
}

/// A little of everything.
fn exercise(dir: &Path) {
    let fixture = Fixture::in_dir(dir, options(Namespace::Trusted));
    let (upper, root) = (&fixture.upper, fixture.root());
    assert_eq!(upper.work.form, WhiteoutForm::Device);
    let sub = fixture.hiding_dir(&root, "sub");
    let file = fixture.file(&root, "f", Replace::Nothing);
    upper
        .link(&file, &sub, name("g"), Replace::Nothing)
        .unwrap();
    upper
        .rename(
            (&root, name("f")),
            &file,
            (&sub, name("h1")),
            None,
            Replace::Whiteout,
            true,
        )
        .unwrap();
    assert!(fixture.is_whiteout(&root, "f"));
    let handle = upper.handle(&file).unwrap().unwrap();
    let stat = upper.stat_by_handle(&handle).unwrap().unwrap();
    assert_eq!(stat.ino, upper.stat(&file).unwrap().ino);
    assert_eq!(upper.ino_of_handle(&handle), Some(stat.ino));
    upper.index_add(&handle, &file).unwrap();
    assert!(upper.index_lookup(&handle).unwrap().is_some());
    upper.sync().unwrap();
    assert!(fixture.leftovers().is_empty());
}

#[test]
fn loop_mounted_filesystems() {
    if !is_root() {
        return skip("loop mounts need root");
    }
    for filesystem in ["xfs", "btrfs", "ext4"] {
        let temp = tempfile::tempdir().unwrap();
        match loop_mount(temp.path(), filesystem) {
            Some(mount) => exercise(&mount.0),
            None => skip(filesystem),
        }
    }
}

/// Which ext4 keeps data without a sync, and which tells what was written, is a matter of how it was made and mounted.
#[test]
fn an_ext4_is_asked_for_its_journal_and_its_options() {
    if !is_root() {
        return skip("loop mounts need root");
    }
    let bare = ["-O", "^has_journal"];
    let behind = "loop,data=writeback,journal_async_commit";
    for (making, options, follows_data, shows_written) in [
        (&[][..], "loop", true, true),
        (&[], "loop,nodelalloc", true, true),
        (&[], "loop,data=journal", true, true),
        (&[], "loop,data=writeback", true, false),
        (&[], behind, false, false),
        (&bare, "loop", false, false),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let Some(mount) = loop_mount_with(temp.path(), "ext4", making, options) else {
            skip("ext4");
            continue;
        };
        let fixture = Fixture::in_dir(&mount.0, super::options(Namespace::Trusted));
        let order = &fixture.upper.order;
        assert_eq!(order.follows_data(), follows_data, "{making:?} {options}");
        assert_eq!(
            fixture.upper.shows_written(),
            shows_written,
            "{making:?} {options}"
        );
    }
}

/// On the kernel's overlayfs no device is a whiteout, and renames leave none.
#[test]
fn an_upper_on_an_overlay() {
    if !is_root() {
        return skip("mounts need root");
    }
    let temp = tempfile::tempdir().unwrap();
    for dir in ["l", "u", "w", "m"] {
        std::fs::create_dir(temp.path().join(dir)).unwrap();
    }
    let at = |dir: &str| temp.path().join(dir).display().to_string();
    let options_text = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("l"),
        at("u"),
        at("w")
    );
    let mounted = run(Command::new("mount")
        .args(["-t", "overlay", "-o", &options_text, "o"])
        .arg(at("m")));
    if !mounted {
        return skip("no kernel overlay");
    }
    let mount = Mounted(temp.path().join("m"));
    let fixture = Fixture::in_dir(&mount.0, options(Namespace::Trusted));
    let (upper, root) = (&fixture.upper, fixture.root());
    assert_eq!(upper.work.form, WhiteoutForm::Marked);
    assert!(!upper.work.renames.whiteout);
    let sub = fixture.hiding_dir(&root, "sub");
    let file = fixture.file(&root, "f", Replace::Nothing);
    let places = ((&root, name("f")), (&sub, name("h1")));
    upper
        .rename(places.0, &file, places.1, None, Replace::Whiteout, true)
        .unwrap();
    assert!(fixture.is_whiteout(&root, "f"));
    assert_eq!(fixture.found(&sub, "h1").stat.size, 1);
    fixture.file(&root, "f", Replace::Whiteout);
    upper
        .remove(&sub, name("h1"), Some(&file), false, true)
        .unwrap();
    upper
        .remove(&root, name("sub"), Some(&sub), true, true)
        .unwrap();
    assert!(fixture.is_whiteout(&root, "sub"));
    assert_eq!(fixture.listing(&root).len(), 2);
    assert!(fixture.leftovers().is_empty());
}

#[test]
fn tmpfs_as_upper() {
    if !is_root() {
        return skip("mounts need root");
    }
    let temp = tempfile::tempdir().unwrap();
    exercise(&tmpfs(temp.path(), "size=4m").0);
}

#[test]
fn a_full_filesystem_leaves_nothing_behind() {
    if !is_root() {
        return skip("mounts need root");
    }
    let temp = tempfile::tempdir().unwrap();
    let mount = tmpfs(temp.path(), "size=256k,nr_inodes=40");
    let fixture = Fixture::in_dir(&mount.0, options(Namespace::Trusted));
    let (upper, root) = (&fixture.upper, fixture.root());
    let file = fixture.file(&root, "f", Replace::Nothing);
    let dir = fixture.hiding_dir(&root, "d");
    let mut made = 0;
    let error = loop {
        match upper.stage(Stage::Dir) {
            Ok(staged) => {
                let at = format!("x{made}");
                upper
                    .publish(staged, &root, name(&at), Replace::Nothing)
                    .unwrap();
                made += 1;
            }
            Err(e) => break e,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    let no_space = |result: io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    };
    no_space(upper.stage(Stage::Symlink(name("x"))).map(|_| ()));
    no_space(upper.remove(&root, name("low"), None, false, true));
    no_space(upper.remove(&root, name("f"), Some(&file), false, true));
    no_space(upper.remove(&root, name("d"), Some(&dir), true, true));
    let x0 = fixture.found(&root, "x0").node;
    no_space(upper.rename(
        (&root, name("x0")),
        &x0,
        (&root, name("d")),
        Some(&dir),
        Replace::EmptyDir,
        false,
    ));
    assert_eq!(upper.stat(&file).unwrap().size, 1);
    assert!(fixture.is_whiteout(&dir, "h1"));
    assert!(fixture.leftovers().is_empty());
    // With an inode to spare, and room for an xattr, all of it works.
    for spare in ["x1", "x2"] {
        let node = fixture.found(&root, spare).node;
        upper
            .remove(&root, name(spare), Some(&node), true, false)
            .unwrap();
    }
    upper
        .rename(
            (&root, name("x0")),
            &x0,
            (&root, name("d")),
            Some(&dir),
            Replace::EmptyDir,
            false,
        )
        .unwrap();
    assert!(fixture.listing(&x0).is_empty());
    assert!(fixture.leftovers().is_empty());
}

#[test]
fn a_filesystem_without_xattrs_is_refused() {
    if !is_root() {
        return skip("mounts need root");
    }
    let temp = tempfile::tempdir().unwrap();
    let at = temp.path().join("mnt");
    std::fs::create_dir(&at).unwrap();
    if !run(Command::new("mount").args(["-t", "ramfs", "r"]).arg(&at)) {
        return skip("no ramfs");
    }
    let mount = Mounted(at);
    let (u, w) = (mount.0.join("u"), mount.0.join("w"));
    std::fs::create_dir(&u).unwrap();
    std::fs::create_dir(&w).unwrap();
    let opened = Upper::open(
        &u,
        &w,
        options(Namespace::Trusted),
        Arc::new(FdCache::new(8)),
    );
    let error = opened.unwrap_err();
    assert!(
        matches!(error, UpperError::NoXattrs(_, "trusted")),
        "{error}"
    );
}

#[test]
fn a_read_only_filesystem_is_refused() {
    if !is_root() {
        return skip("mounts need root");
    }
    let temp = tempfile::tempdir().unwrap();
    let mount = tmpfs(temp.path(), "size=1m");
    std::fs::create_dir(mount.0.join("u")).unwrap();
    std::fs::create_dir(mount.0.join("w")).unwrap();
    assert!(run(Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(&mount.0)));
    let error = Upper::open(
        &mount.0.join("u"),
        &mount.0.join("w"),
        options(Namespace::User),
        Arc::new(FdCache::new(8)),
    )
    .unwrap_err();
    assert!(matches!(error, UpperError::ReadOnly(..)), "{error}");
}
