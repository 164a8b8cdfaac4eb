//! Several processes on one store, and processes that are killed.
//!
//! A process of its own is this test binary run again with one test of the right name chosen, which does the work when
//! the environment says where.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use acetate::image::Store;

use super::build::*;
use super::tree::tree;

const STORE: &str = "ACETATE_TEST_STORE";
const IMAGE: &str = "ACETATE_TEST_IMAGE";

/// The work of a child process; without the environment, nothing.
#[test]
fn child_prepares() {
    let (Some(store), Some(image)) = (std::env::var_os(STORE), std::env::var_os(IMAGE)) else {
        return;
    };
    let store = Store::open(Path::new(&store)).unwrap();
    store.prepare(&image, None).unwrap();
}

fn child(store: &Path, image: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::child_prepares", "--test-threads=1"])
        .env(STORE, store)
        .env(IMAGE, image)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
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
    let mut state = 12345u64;
    let mut unfinished = 0;
    for round in 0..25 {
        let store = dir.path().join(format!("store{}", round % 5));
        let mut process = child(&store, &image);
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_micros(state >> 48));
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
