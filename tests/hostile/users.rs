//! Marks that whoever owns a file of a layer may set, in a mount that has more rights.

use std::fs;
use std::time::Duration;

use super::view::{Layers, mark};
use crate::common::{Watchdog, skip};
use crate::require;

/// As the kernel's overlayfs does without `userxattr`: the owner of `public` is shown no other file of the stack.
#[test]
fn users_redirects_lead_nowhere() {
    require!(skip::privileged());
    let _limit = Watchdog::new("users' redirects", Duration::from_secs(100));
    let layers = Layers::new("users-redirect");
    fs::create_dir(layers.bottom.join("private")).unwrap();
    fs::write(layers.bottom.join("private/key"), "secret").unwrap();
    fs::create_dir(layers.top.join("public")).unwrap();
    mark(
        &layers.top.join("public"),
        "user.overlay.redirect",
        b"/private",
    );
    let key = layers.top.join("stolen");
    fs::File::create(&key).unwrap().set_len(6).unwrap();
    mark(&key, "user.overlay.metacopy", b"");
    mark(&key, "user.overlay.redirect", b"/private/key");
    let (ours, kernel) = layers.both();
    assert_eq!(ours, kernel);
    for (path, text) in &ours {
        let own = path.starts_with("private");
        assert!(own || !text.contains("secret"), "{path:?}: {text}");
    }

    // With the option that asks for them they count.
    let mount = layers.read_only().options("userxattr").mount();
    assert_eq!(fs::read(mount.join("stolen")).unwrap(), b"secret");
    assert_eq!(fs::read(mount.join("public/key")).unwrap(), b"secret");
    mount.unmount().unwrap();
}

/// A user's layer makes no programs that run as root, and no devices.
#[test]
fn owners_that_users_wrote_are_refused() {
    require!(skip::privileged());
    let _limit = Watchdog::new("users' owners", Duration::from_secs(100));
    for name in [
        "user.containers.override_stat",
        "user.fuseoverlayfs.override_stat",
    ] {
        let layers = Layers::new("users-owners");
        fs::write(layers.bottom.join("program"), "").unwrap();
        mark(&layers.bottom, name, b"0:0:0755");
        mark(&layers.bottom.join("program"), name, b"0:0:4755");
        let refused = layers.read_only().try_mount().err().unwrap();
        assert!(
            refused.stderr.contains("xattr_permissions=2"),
            "{refused:?}"
        );

        let mount = layers.read_only().options("xattr_permissions=2").mount();
        let stat = nix::sys::stat::stat(&mount.join("program")).unwrap();
        assert_eq!(stat.st_mode & 0o7777, 0o4755);
        mount.unmount().unwrap();
    }
    // What only root can write counts.
    let layers = Layers::new("root-owners");
    fs::write(layers.bottom.join("program"), "").unwrap();
    let name = "security.fuseoverlayfs.override_stat";
    mark(&layers.bottom, name, b"0:0:0755");
    mark(&layers.bottom.join("program"), name, b"7:7:4755");
    let mount = layers.acetate();
    let stat = nix::sys::stat::stat(&mount.join("program")).unwrap();
    assert_eq!((stat.st_uid, stat.st_mode & 0o7777), (7, 0o4755));
    mount.unmount().unwrap();
}
