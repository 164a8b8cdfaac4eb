//! Several processes on one store, and processes that are killed.
//!
//! A process of its own is this test binary run again with one test of the right name chosen, which does the work when
//! the environment says where.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use acetate::image::{Commit, Store};

use super::build::*;
use super::common::skip;
use super::tree::tree;
use crate::{require, skip};

const STORE: &str = "ACETATE_TEST_STORE";
const IMAGE: &str = "ACETATE_TEST_IMAGE";
const ACTION: &str = "ACETATE_TEST_ACTION";

/// The work of a child process; without the environment, nothing.
#[test]
fn child_works() {
    let (Some(store), Some(image)) = (std::env::var_os(STORE), std::env::var_os(IMAGE)) else {
        return;
    };
    let store = Store::open(Path::new(&store)).unwrap();
    match std::env::var(ACTION).unwrap().as_str() {
        "prepare" => drop(store.prepare(&image, None).unwrap()),
        "load" => drop(store.load(&image, None).unwrap()),
        "remove" => drop(store.remove("gone:1", true)),
        "prune" => drop(store.prune(false).unwrap()),
        "commit" => {
            let base = super::commit::origin(&store.image("stays:1").unwrap());
            let folder = Path::new(&image).with_extension("folder");
            let what = Commit {
                base: Some(&base),
                upper: Some(&folder),
                marks: None,
                merged: &folder,
                unnamed: &[],
            };
            let new = super::commit::named("gone:2");
            drop(store.commit(&what, &new).unwrap());
        }
        other => panic!("{other}"),
    }
}

fn command(program: &Path, action: &str, store: &Path, image: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--exact", "processes::child_works", "--test-threads=1"])
        .env(STORE, store)
        .env(IMAGE, image)
        .env(ACTION, action)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn act(action: &str, store: &Path, image: &Path) -> Child {
    command(&std::env::current_exe().unwrap(), action, store, image)
        .spawn()
        .unwrap()
}

fn child(store: &Path, image: &Path) -> Child {
    act("prepare", store, image)
}

/// Small pseudo-random numbers, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.0 >> 33
    }
}

/// An image of three layers with some hundred files each.
fn image(dir: &Path) -> PathBuf {
    let layers: Vec<Vec<u8>> = (0..3)
        .map(|l| {
            let mut tar = Tar::new();
            for i in 0..400 {
                let data = format!("{l} {i} ").repeat(500);
                tar = tar.file(&format!("l{l}/d{}/f{i}", i % 20), data.as_bytes());
            }
            tar.finish()
        })
        .collect();
    let path = dir.join("image.tar");
    std::fs::write(&path, tar_of(&oci_files(&layers, Packing::Gzip))).unwrap();
    path
}

fn trees(store: &Path, image: &Path) -> Vec<std::collections::BTreeMap<String, String>> {
    let store = Store::open(store).unwrap();
    let image = store.prepare(image.as_os_str(), None).unwrap();
    image.layers.iter().map(|l| tree(l)).collect()
}

fn leftovers(store: &Path) -> usize {
    std::fs::read_dir(store.join("tmp")).unwrap().count()
}

#[test]
fn killed_at_any_moment_the_next_one_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let expected = trees(&dir.path().join("reference"), &image);
    let mut random = Random(12345);
    let mut unfinished = 0;
    for round in 0..25 {
        let store = dir.path().join(format!("store{}", round % 5));
        let mut process = child(&store, &image);
        std::thread::sleep(Duration::from_micros(random.next() % 65_536));
        process.kill().unwrap();
        process.wait().unwrap();
        // Whatever is in place now is whole.
        let layers = store.join("layers/sha256");
        let mut present = 0;
        for layer in std::fs::read_dir(&layers).into_iter().flatten() {
            let layer = layer.unwrap();
            let found = tree(&layer.path().join("diff"));
            assert!(
                expected.contains(&found),
                "{} is not whole",
                layer.path().display()
            );
            present += 1;
        }
        unfinished += usize::from(present < 3);
        if round % 5 == 4 {
            assert_eq!(trees(&store, &image), expected);
            assert_eq!(leftovers(&store), 0);
            std::fs::remove_dir_all(&store).unwrap();
        }
    }
    assert!(
        unfinished > 0,
        "no process was killed in time to show anything"
    );
    for round in 0..4 {
        let store = dir.path().join(format!("store{round}"));
        assert_eq!(trees(&store, &image), expected);
        assert_eq!(leftovers(&store), 0);
    }
}

#[test]
fn processes_and_threads_share_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let expected = trees(&dir.path().join("reference"), &image);
    let store = dir.path().join("store");
    let children: Vec<Child> = (0..4).map(|_| child(&store, &image)).collect();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(trees(&store, &image), expected));
        }
    });
    for process in children {
        let output = process.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
    }
    assert_eq!(trees(&store, &image), expected);
    assert_eq!(leftovers(&store), 0);
}

#[test]
fn load_commit_remove_and_prune_may_be_killed() {
    kill_at_random(12);
}

/// `ACETATE_LONG` asks for more of them.
#[test]
#[ignore = "every process waits for the disk"]
fn load_commit_remove_and_prune_may_be_killed_often() {
    let long = std::env::var_os("ACETATE_LONG").is_some();
    kill_at_random(if long { 100 } else { 40 });
}

fn kill_at_random(rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let store = dir.path().join("store");
    let small = |name: &str, text: &str| {
        let path = dir.path().join(name.replace(':', "-"));
        let layer = Tar::new().file("file", text.as_bytes()).finish();
        std::fs::write(&path, tar_of(&docker_files(&[layer], &[name]))).unwrap();
        path
    };
    let (stays, goes) = (small("stays:1", "stays"), small("gone:1", "gone"));
    let folder = image.with_extension("folder");
    for i in 0..300 {
        let sub = folder.join(format!("d{}", i % 10));
        std::fs::create_dir_all(&sub).unwrap();
        std::fs::write(sub.join(format!("f{i}")), format!("{i} ").repeat(2000)).unwrap();
    }
    let mut random = Random(54321);
    let mut killed = 0;
    for round in 0..rounds {
        let opened = Store::open(&store).unwrap();
        opened.load(stays.as_os_str(), None).unwrap();
        opened.load(goes.as_os_str(), None).unwrap();
        let action = ["load", "commit", "remove", "prune", "load", "commit"][round % 6];
        let mut process = act(action, &store, &image);
        std::thread::sleep(Duration::from_micros(random.next() % 40_000));
        killed += usize::from(process.try_wait().unwrap().is_none());
        process.kill().unwrap();
        process.wait().unwrap();
        let opened = Store::open(&store).unwrap();
        let report = opened.verify().unwrap();
        assert_eq!(report.damages, [], "{action} in round {round}");
        let kept = opened.prepare("stays:1".as_ref(), None).unwrap();
        assert_eq!(
            std::fs::read(kept.layers[0].join("file")).unwrap(),
            b"stays"
        );
        drop(kept);
        // Again, this time to the end.
        let output = act(action, &store, &image).wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(leftovers(&store), 0);
        match action {
            "load" => drop(opened.remove("localhost/1.0", true).unwrap()),
            "commit" => {
                let made = opened.prepare("gone:2".as_ref(), None).unwrap();
                assert_eq!(tree(&made.layers[0]), tree(&folder));
                drop(made);
                drop(opened.remove("gone:2", true).unwrap());
            }
            _ => {}
        }
    }
    assert!(
        killed > 2,
        "only {killed} were still running when they were killed"
    );
    let opened = Store::open(&store).unwrap();
    assert_eq!(opened.verify().unwrap().damages, []);
}

#[test]
fn prune_during_load_takes_nothing_away() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let store = dir.path().join("store");
    for _ in 0..6 {
        let mut running = vec![act("load", &store, &image), act("load", &store, &image)];
        for _ in 0..4 {
            running.push(act("prune", &store, &image));
        }
        for process in running {
            let output = process.wait_with_output().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let opened = Store::open(&store).unwrap();
        let report = opened.verify().unwrap();
        assert_eq!((report.images, report.layers, report.blobs), (1, 3, 5));
        assert_eq!(report.damages, []);
        opened.remove("localhost/1.0", false).unwrap();
        assert_eq!(opened.verify().unwrap().blobs, 0);
    }
}

#[test]
fn a_plain_user_unpacks_what_a_user_may() {
    if !nix::unistd::geteuid().is_root() {
        skip!("needs root, to become another user");
    }
    require!(skip::program("setpriv"));
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(path, mode).unwrap();
    };
    open(dir.path());
    let program = dir.path().join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let owned = Attr {
        mode: 0o4755,
        uid: 12,
        gid: 34,
        mtime: 1,
    };
    let layer = Tar::new()
        .entry(b"owned", tar::EntryType::Regular, b"", b"x", &owned)
        .pax(&[(
            "SCHILY.xattr.security.capability",
            b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        )])
        .file("capable", b"x")
        .device("null", tar::EntryType::Char, 1, 3)
        .device("fifo", tar::EntryType::Fifo, 0, 0)
        .file(".wh.white", b"")
        .dir("closed/", 0o500)
        .file("closed/file", b"")
        .dir("shut/", 0)
        .dir("shut/below/", 0o755)
        .file("opaque/.wh..wh..opq", b"")
        .finish();
    let image = dir.path().join("image.tar");
    std::fs::write(&image, tar_of(&docker_files(&[layer], &["x:1"]))).unwrap();
    let store = dir.path().join("store");
    let as_user = |action: &str| {
        let mut user = Command::new("setpriv");
        let inner = command(&program, action, &store, &image);
        user.args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .env(STORE, &store)
            .env(IMAGE, &image)
            .env(ACTION, action)
            .current_dir("/");
        let output = user.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stdout)
        );
    };
    as_user("load");
    let layers = store.join("layers/sha256");
    let layer = std::fs::read_dir(&layers)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let found = tree(&layer.join("diff"));
    assert!(
        found["/owned"].starts_with("4755 65534:65534 1."),
        "{}",
        found["/owned"]
    );
    assert!(found["/null"].ends_with(" c 0"), "{}", found["/null"]);
    assert!(found["/white"].ends_with(" c 0"));
    assert!(found["/fifo"].ends_with(" p 0"));
    assert!(found["/closed"].starts_with("500 ") && found.contains_key("/closed/file"));
    assert!(found["/shut"].starts_with("0 ") && found.contains_key("/shut/below"));
    assert!(
        found["/opaque"].contains("user.overlay.opaque=y"),
        "{}",
        found["/opaque"]
    );
    let info: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layer.join("layer.json")).unwrap()).unwrap();
    assert_eq!(info["devices"], serde_json::json!(["null: c 1:3"]));
    assert_eq!(
        info["xattrs"],
        serde_json::json!(["capable: security.capability"])
    );
    assert_eq!(info["squashed"], 7, "{info}");
    // Folders that the user may not enter are removed all the same.
    std::fs::write(
        store.join("index.json"),
        r#"{"schemaVersion":2,"manifests":[]}"#,
    )
    .unwrap();
    as_user("prune");
    assert_eq!(std::fs::read_dir(&layers).unwrap().count(), 0);
    assert_eq!(leftovers(&store), 0);
}
