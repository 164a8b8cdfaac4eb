//! What containers/storage asks of a mount program, and containers with ids of their own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::BINARY;
use crate::engine::{Engine, NAME, User};

const SHOW: &str = "stat -c '%n %A %u:%g' /data/* /etc/passwd; cat /data/file; echo new >/data/new; \
    chmod 640 /data/new; chown 3:4 /data/new; stat -c '%n %A %u:%g' /data/new";

fn show(engine: &Engine, options: &[&str]) -> String {
    let run = [&["run", "--rm"], options].concat();
    engine.podman(&run, &["localhost/base:1", "sh", "-c", SHOW])
}

fn import(engine: &Engine, base: &Path) {
    engine.podman(
        &["import", "-q"],
        &[&base.display().to_string(), "localhost/base:1"],
    );
}

/// The first file of this name below a directory.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() == name {
            return Some(entry.path());
        }
        if entry.file_type().unwrap().is_dir()
            && let Some(found) = find(&entry.path(), name)
        {
            return Some(found);
        }
    }
    None
}

/// Each option of `storage.conf` that changes how a mount program is called: containers see what they see without it.
pub(crate) fn options(dir: &Path, base: &Path, user: &User) {
    let engine = |name: &str, options: &[&str]| {
        let home = dir.join(name);
        fs::create_dir(&home).unwrap();
        let mut engine = Engine::new(&home, user, Some(BINARY));
        engine.storage_options(options);
        engine
    };
    let plain = engine("plain", &[]);
    import(&plain, base);
    let expected = show(&plain, &[]);
    assert!(expected.contains("/data/new -rw-r----- 3:4"), "{expected}");

    for (name, options) in [
        ("mountopt", ["overlay.mountopt=nodev,metacopy=on,fsync=0"]),
        ("chown", ["overlay.ignore_chown_errors=true"]),
        ("home", ["overlay.skip_mount_home=true"]),
    ] {
        let other = engine(name, &options);
        import(&other, base);
        assert_eq!(show(&other, &[]), expected, "{options:?}");
        other.assert_nothing_left();
    }

    // All is 0700 on disk, and podman tells the true modes by an attribute.
    let masked = engine("mask", &["overlay.force_mask=0700"]);
    import(&masked, base);
    assert_eq!(show(&masked, &[]), expected, "force_mask");
    let layers = masked.home().join("storage/overlay");
    let on_disk = find(&layers, "appended").unwrap();
    assert_eq!(fs::metadata(&on_disk).unwrap().mode() & 0o7777, 0o700);
    let keep = ["run", "--name", "kept"];
    let script = "echo more >>/etc/appended; stat -c '%A %u:%g' /etc/appended";
    let changed = masked.podman(&keep, &["localhost/base:1", "sh", "-c", script]);
    assert_eq!(changed, "-rw-r--r-- 0:0\n");
    masked.podman(&["commit", "-q"], &["kept", "localhost/kept:1"]);
    let script = "stat -c '%A %u:%g' /etc/appended; cat /etc/appended";
    let kept = masked.podman(&["run", "--rm"], &["localhost/kept:1", "sh", "-c", script]);
    assert_eq!(kept, "-rw-r--r-- 0:0\netc/appended of the image\nmore\n");
    masked.podman(&["rm", "-f"], &["kept"]);
    masked.assert_nothing_left();

    // The image lies in another store, which is not written to.
    let shared = plain.home().join("storage");
    let borrowed = engine(
        "borrowed",
        &[&format!("overlay.imagestore={}", shared.display())],
    );
    let below = find(&shared.join("overlay"), "appended").unwrap();
    let before = fs::read(&below).unwrap();
    assert_eq!(show(&borrowed, &[]), expected, "imagestore");
    let script =
        "echo more >>/etc/appended; rm /data/file; mv /tree/moved /tree/there; cat /etc/appended";
    let changed = borrowed.podman(&["run", "--rm"], &["localhost/base:1", "sh", "-c", script]);
    assert_eq!(changed, "etc/appended of the image\nmore\n");
    assert_eq!(fs::read(&below).unwrap(), before);
    borrowed.assert_nothing_left();
    plain.assert_nothing_left();
}

/// Ids that podman gives out by itself: two containers at once have none in common, and see the same image.
pub(crate) fn automatic_ids(dir: &Path, base: &Path, user: &User) {
    let mut engine = Engine::new(dir, user, Some(BINARY));
    let conf = format!(
        "[storage]\ndriver = \"overlay\"\nrunroot = \"{home}/runroot\"\ngraphroot = \"{home}/storage\"\n\
         [storage.options]\nroot-auto-userns-user = \"{NAME}\"\nauto-userns-min-size = 1024\n",
        home = dir.display()
    );
    fs::write(dir.join("storage.conf"), conf).unwrap();
    engine.storage_conf(&dir.join("storage.conf"));
    import(&engine, base);
    let auto = ["run", "-d", "--name", "first", "--userns=auto"];
    let script = "echo first >/data/mine; exec sleep 1000";
    engine.podman(&auto, &["localhost/base:1", "sh", "-c", script]);
    let map = |text: &str| -> u32 { text.split_whitespace().nth(1).unwrap().parse().unwrap() };
    let first = map(&engine.exec(&["first", "cat", "/proc/self/uid_map"]));
    let shown = show(&engine, &["--userns=auto"]);
    assert!(shown.contains("/data/new -rw-r----- 3:4"), "{shown}");
    assert!(shown.contains("/data/file -rw-r--r-- 0:0"), "{shown}");
    assert!(!shown.contains("mine"), "{shown}");
    let second = map(&engine.podman(
        &["run", "--rm", "--userns=auto"],
        &["localhost/base:1", "cat", "/proc/self/uid_map"],
    ));
    assert!(first.abs_diff(second) >= 1024, "{first} and {second}");
    engine.remove(&["first"]);
    engine.assert_nothing_left();
}
