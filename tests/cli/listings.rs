//! `mount`, `umount`, `mounts`, `diff`, `explain` and `stats`, for people and with `--json`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::connection::mounted_at;
use crate::common::{Tree, TreeOptions, skip};
use crate::require;
use crate::run::{Guard, Place};

const MOUNT: &str = "mount --lower top --lower bottom --upper upper --work work merged";

/// What `acetate mounts --json` says about the place's mount.
fn listed(place: &Place) -> Option<Value> {
    let all = place.json("mounts --json");
    all.as_array()
        .unwrap()
        .iter()
        .find(|m| m["mountpoint"].as_str().map(Path::new) == Some(&place.merged))
        .cloned()
}

#[test]
fn mount_returns_when_the_mount_answers_and_umount_when_it_is_gone() {
    require!(skip::privileged());
    let place = Place::new("answers");
    for _ in 0..5 {
        assert_eq!(place.ok(MOUNT), "");
        let _guard = Guard::at(&place.merged);
        // No waiting: the command's return is the promise.
        assert_eq!(
            fs::read_to_string(place.merged.join("overridden")).unwrap(),
            "overridden by the top"
        );
        let pid = listed(&place).unwrap()["pid"].as_u64().unwrap();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(place.ok("umount merged"), "");
        assert!(mounted_at(&place.merged).is_none());
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(
            state.is_empty() || state.contains(") Z "),
            "the daemon is still there: {state}"
        );
        assert!(listed(&place).is_none());
    }
}

#[test]
fn the_daemon_has_a_session_of_its_own_and_a_log() {
    require!(skip::privileged());
    let place = Place::new("session");
    place.ok("mount --lower top --log daemon.log merged");
    let _guard = Guard::at(&place.merged);
    let pid = listed(&place).unwrap()["pid"].as_u64().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let session: i32 = fields[3].parse().unwrap();
    assert_ne!(session, nix::unistd::getsid(None).unwrap().as_raw());
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        Path::new("/")
    );
    for fd in 0..2 {
        assert_eq!(
            fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap(),
            Path::new("/dev/null")
        );
    }
    assert!(place.scratch.join("daemon.log").exists());
    place.ok("umount merged");
    assert_eq!(
        fs::read_to_string(place.scratch.join("daemon.log")).unwrap(),
        "",
        "a warning"
    );
}

#[test]
fn mounts_lists_what_is_mounted() {
    require!(skip::privileged());
    let place = Place::new("mounts");
    place.ok(MOUNT);
    let guard = Guard::at(&place.merged);
    let text = place.ok("mounts");
    assert!(text.contains(place.merged.to_str().unwrap()), "{text}");
    let mount = listed(&place).unwrap();
    let layers: Vec<&str> = mount["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_str().unwrap())
        .collect();
    assert_eq!(
        layers,
        [place.top.to_str().unwrap(), place.bottom.to_str().unwrap()]
    );
    assert_eq!(
        mount["upper"].as_str().unwrap(),
        place.upper.to_str().unwrap()
    );
    drop(guard);
    assert!(listed(&place).is_none());
}

#[test]
fn a_dead_mount_is_listed_as_dead_and_can_be_unmounted() {
    require!(skip::privileged());
    let place = Place::new("dead");
    place.ok(MOUNT);
    let guard = Guard::at(&place.merged);
    let pid = listed(&place).unwrap()["pid"].as_u64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    let begin = std::time::Instant::now();
    // What the kernel remembers it still answers.
    while fs::read_dir(&place.merged).is_ok() {
        assert!(begin.elapsed().as_secs() < 30);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let dead = listed(&place).expect("a dead mount must still be listed");
    assert!(dead.to_string().contains("dead"), "{dead}");
    assert!(place.ok("mounts").contains("dead"));
    place.refused("stats merged", &["merged"]);
    place.ok("umount merged");
    assert!(mounted_at(&place.merged).is_none());
    assert!(listed(&place).is_none());
    drop(guard);
}

#[test]
fn diff_tells_what_was_added_changed_and_deleted() {
    require!(skip::privileged());
    let place = Place::new("diff");
    place.ok(MOUNT);
    let _guard = Guard::at(&place.merged);
    let at = |name: &str| place.merged.join(name);
    assert_eq!(place.ok("diff merged"), "");
    assert_eq!(place.json("diff merged --json"), Value::Array(Vec::new()));
    fs::write(at("overridden"), "changed").unwrap();
    fs::write(at("added"), "").unwrap();
    fs::remove_file(at("deleted")).unwrap();
    fs::create_dir(at("newdir")).unwrap();
    symlink("x", at("newdir/link")).unwrap();
    fs::write(at("dir/another"), "").unwrap();
    let expected = [
        "A /added",
        "D /deleted",
        "C /dir",
        "A /dir/another",
        "A /newdir",
        "A /newdir/link",
        "C /overridden",
    ];
    let text = place.ok("diff merged");
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    let json = place.json("diff merged --json");
    let lines: Vec<String> = json
        .as_array()
        .unwrap()
        .iter()
        .map(|c| {
            format!(
                "{} {}",
                c["kind"].as_str().unwrap(),
                c["path"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(lines, expected);
    // Undone, it is gone from the diff but for what stays changed.
    fs::remove_file(at("added")).unwrap();
    fs::remove_dir_all(at("newdir")).unwrap();
    assert!(!place.ok("diff merged").contains("added"));
    assert!(!place.ok("diff merged").contains("newdir"));
    fs::remove_dir_all(at("dir")).unwrap();
    assert!(place.ok("diff merged").lines().any(|l| l == "D /dir"));
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/file"), "again").unwrap();
    let text = place.ok("diff merged");
    assert!(text.lines().any(|l| l == "C /dir"), "{text}");
    assert!(text.lines().any(|l| l.ends_with(" /dir/file")), "{text}");
}

#[test]
fn diff_follows_a_renamed_directory() {
    require!(skip::privileged());
    let place = Place::new("diff-rename");
    place.ok(MOUNT);
    let _guard = Guard::at(&place.merged);
    fs::rename(place.merged.join("dir"), place.merged.join("moved")).unwrap();
    let text = place.ok("diff merged");
    // What it holds is not listed one by one: the time is that of the upper, which holds the directory alone.
    for line in ["D /dir", "A /moved"] {
        assert!(text.lines().any(|l| l == line), "no `{line}`: {text}");
    }
}

#[test]
fn explain_tells_which_layer_shows_a_path() {
    require!(skip::privileged());
    let place = Place::new("explain");
    place.ok(MOUNT);
    let _guard = Guard::at(&place.merged);
    let (top, bottom) = (place.top.to_str().unwrap(), place.bottom.to_str().unwrap());
    let explain = |name: &str| place.json(&format!("explain merged/{name} --json"));
    let role = |explained: &Value, layer: &str| -> String {
        explained["layers"]
            .as_array()
            .unwrap()
            .iter()
            .find(|l| l["layer"] == layer)
            .map_or_else(String::new, |l| l["role"].as_str().unwrap().to_owned())
    };

    let kept = explain("kept");
    assert_eq!(role(&kept, bottom), "shown");
    assert_eq!(kept["copied_up"], false);
    let overridden = explain("overridden");
    assert_eq!(role(&overridden, top), "shown");
    assert!(
        role(&overridden, bottom).starts_with("hidden"),
        "{overridden}"
    );
    let text = place.ok("explain merged/overridden");
    assert!(
        text.contains(top) && text.contains(bottom) && text.contains("hidden"),
        "{text}"
    );

    fs::write(place.merged.join("kept"), "changed").unwrap();
    let kept = explain("kept");
    assert_eq!(kept["copied_up"], true);
    assert!(kept["copy_up_time"].as_u64().unwrap() > 1_600_000_000);
    assert!(!kept["copy_up_reason"].as_str().unwrap().is_empty());
    assert!(role(&kept, bottom).starts_with("hidden"), "{kept}");

    fs::remove_file(place.merged.join("deleted")).unwrap();
    let deleted = explain("deleted");
    assert!(deleted.to_string().contains("whiteout"), "{deleted}");
    assert!(role(&deleted, bottom).starts_with("hidden"), "{deleted}");

    let dir = explain("dir");
    assert_eq!(dir["copied_up"], false, "{dir}");
    place.refused("explain merged/never-there", &["never-there"]);
}

#[test]
fn stats_count_operations_and_copy_ups() {
    require!(skip::privileged());
    let place = Place::new("stats");
    place.ok(MOUNT);
    let _guard = Guard::at(&place.merged);
    let before = place.json("stats merged --json");
    fs::write(place.bottom.join("sized"), vec![1; 100_000]).unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(place.merged.join("kept"))
        .unwrap();
    fs::create_dir(place.merged.join("new")).unwrap();
    fs::set_permissions(
        place.merged.join("dir"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    let after = place.json("stats merged --json");
    let grew = |name: &str| after[name].as_u64().unwrap() - before[name].as_u64().unwrap();
    assert_eq!(grew("copy_up_data"), 1, "{after}");
    assert_eq!(grew("copy_up_bytes"), "kept of the bottom".len() as u64);
    assert_eq!(grew("copy_up_meta"), 1, "{after}");
    let count = |stats: &Value, name: &str| {
        let all = stats["operations"].as_array().unwrap();
        all.iter()
            .find(|o| o["name"] == name)
            .map_or(0, |o| o["count"].as_u64().unwrap())
    };
    assert_eq!(count(&after, "mkdir") - count(&before, "mkdir"), 1);
    let text = place.ok("stats merged");
    assert!(
        text.contains("mkdir") && text.contains("copied up"),
        "{text}"
    );
}

#[test]
fn stats_watch_prints_again_until_it_is_stopped() {
    require!(skip::privileged());
    let place = Place::new("watch");
    place.ok(MOUNT);
    let _guard = Guard::at(&place.merged);
    let output = place
        .program("timeout")
        .args([
            "--signal",
            "INT",
            "3.5",
            crate::run::BINARY,
            "stats",
            "merged",
            "--watch",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.matches("lookup").count() >= 2,
        "printed once at most: {text}"
    );
}

/// How many uppers lie in the place's store.
fn private_uppers(place: &Place) -> usize {
    fs::read_dir(place.scratch.join("store/private"))
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_type().unwrap().is_dir())
        .count()
}

#[test]
fn without_an_upper_the_changes_are_discarded() {
    require!(skip::privileged());
    let place = Place::new("private");
    let before = Tree::read(&place.bottom, TreeOptions::UNTOUCHED).unwrap();
    place.ok("mount --lower top --lower bottom merged");
    let guard = Guard::at(&place.merged);
    fs::write(place.merged.join("kept"), "changed").unwrap();
    fs::remove_dir_all(place.merged.join("dir")).unwrap();
    assert_eq!(place.ok("diff merged").lines().count(), 2);
    place.ok("umount merged");
    place.ok("mount --lower top --lower bottom merged");
    assert_eq!(
        fs::read_to_string(place.merged.join("kept")).unwrap(),
        "kept of the bottom"
    );
    place.ok("umount merged");
    drop(guard);
    let left = private_uppers(&place);
    assert_eq!(left, 0, "discarded uppers stay behind");
    before.assert_same(
        &Tree::read(&place.bottom, TreeOptions::UNTOUCHED).unwrap(),
        "the layer",
    );
}

#[test]
fn the_upper_of_a_killed_daemon_is_swept() {
    require!(skip::privileged());
    let place = Place::new("swept");
    place.ok("mount --lower top merged");
    let guard = Guard::at(&place.merged);
    fs::write(place.merged.join("new"), vec![1; 1 << 20]).unwrap();
    let pid = listed(&place).unwrap()["pid"].as_u64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    place.ok("umount merged");
    place.ok("mount --lower top merged");
    place.ok("umount merged");
    drop(guard);
    let left = private_uppers(&place);
    assert_eq!(left, 0, "the upper of the killed daemon stays behind");
}

#[test]
fn keep_names_where_the_changes_stay() {
    require!(skip::privileged());
    let place = Place::new("keep");
    place.ok("mount --lower top --lower bottom --keep kept merged");
    let guard = Guard::at(&place.merged);
    fs::write(place.merged.join("new"), "kept").unwrap();
    place.ok("umount merged");
    assert_eq!(
        fs::read_to_string(place.scratch.join("kept/upper/new")).unwrap(),
        "kept"
    );
    place.ok("mount --lower top --lower bottom --keep kept merged");
    assert_eq!(
        fs::read_to_string(place.merged.join("new")).unwrap(),
        "kept"
    );
    drop(guard);
}

#[test]
fn a_read_only_mount_changes_nothing() {
    require!(skip::privileged());
    for flag in ["--ro", "-o ro"] {
        let place = Place::new("ro");
        place.ok(&format!("mount --lower top --lower bottom {flag} merged"));
        let _guard = Guard::at(&place.merged);
        let at = |name: &str| place.merged.join(name);
        for result in [
            fs::write(at("kept"), ""),
            fs::create_dir(at("new")),
            fs::remove_file(at("kept")),
            fs::rename(at("kept"), at("other")),
            fs::set_permissions(
                at("kept"),
                std::os::unix::fs::PermissionsExt::from_mode(0o600),
            ),
        ] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
        }
        assert_eq!(
            fs::read_to_string(at("overridden")).unwrap(),
            "overridden by the top"
        );
    }
}
