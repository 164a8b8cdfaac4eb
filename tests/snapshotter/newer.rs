//! What containerd 2.x asks of a snapshotter beyond 1.6.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, mknod};
use tonic::Code;

use super::{Stand, dir, file, prerequisites};
use crate::common::program;
use crate::require;
use crate::rig::{Mounted, code};

fn whiteout(path: &Path) {
    mknod(path, SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
}

fn make_opaque(dir: &Path) {
    let mut setfattr = std::process::Command::new("setfattr");
    setfattr.args(["-n", "trusted.overlay.opaque", "-v", "y"]);
    program::must(setfattr.arg(dir), std::time::Duration::from_secs(30));
}

/// With the capability `rebase` layers are unpacked at the same time, none of them on another: what a layer deletes is
/// written as the kernel's overlayfs writes it, and the commit tells what the layer stands on.
#[test]
fn layers_that_were_unpacked_apart_are_put_on_one_another_by_their_commits() {
    require!(prerequisites());
    require!(crate::skip::program("setfattr"));
    let mut stand = Stand::new("rebase");
    let mut sources = Vec::new();
    for number in 1..=3 {
        let labels = [
            ("containerd.io/snapshot.ref", "sha256:x"),
            ("containerd.io/snapshot/diff-id", "sha256:y"),
            ("containerd.io/snapshot/max-size", "1073741824"),
        ];
        let key = format!("extract {number}");
        let mounts = stand.client.create("Prepare", &key, "", &labels).unwrap();
        // containerd takes the one bind's source for an upper, and what is read-only for a layer that is there already.
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].r#type, "bind");
        assert!(!mounts[0].options.contains(&"ro".to_owned()));
        assert_eq!(stand.client.stat(&key).unwrap().labels.len(), 3);
        sources.push(std::path::PathBuf::from(&mounts[0].source));
    }
    let [first, second, third] = &sources[..] else {
        panic!("{sources:?}")
    };
    // The topmost first: no layer waits for the one below.
    file(third, "top", "top", 0o644);
    dir(second, "a", 0o755);
    file(second, "a/x", "changed", 0o644);
    whiteout(&second.join("gone"));
    dir(second, "hidden", 0o755);
    make_opaque(&second.join("hidden"));
    file(second, "hidden/new", "new", 0o644);
    dir(first, "a", 0o755);
    file(first, "a/x", "x", 0o644);
    file(first, "a/y", "y", 0o644);
    file(first, "gone", "", 0o644);
    dir(first, "hidden", 0o755);
    file(first, "hidden/old", "", 0o644);

    let early = stand.client.commit_with("c2", "extract 2", "c1", &[]);
    assert_eq!(code(early), Code::NotFound);
    stand.client.commit("c1", "extract 1").unwrap();
    for (name, key, parent) in [("c2", "extract 2", "c1"), ("c3", "extract 3", "c2")] {
        stand.client.commit_with(name, key, parent, &[]).unwrap();
        assert_eq!(stand.client.stat(name).unwrap().parent, parent);
    }
    for call in ["View", "Prepare"] {
        let mounts = stand.client.create(call, call, "c3", &[]).unwrap();
        let mounted = Mounted::new(&mounts, &stand.scratch.join(call));
        let root = mounted.path();
        let names = |path: &Path| -> Vec<String> {
            let all = fs::read_dir(path).unwrap();
            let mut names: Vec<String> = all
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(root), ["a", "hidden", "top"]);
        assert_eq!(names(&root.join("hidden")), ["new"]);
        assert_eq!(fs::read(root.join("a/x")).unwrap(), b"changed");
        assert_eq!(fs::read(root.join("a/y")).unwrap(), b"y");
    }
    // What stands on it keeps a layer that was put on another.
    assert_eq!(code(stand.client.remove("c1")), Code::FailedPrecondition);
    let kind = fs::symlink_metadata(second.join("gone"))
        .unwrap()
        .file_type();
    assert!(kind.is_char_device(), "the layer is as it was unpacked");
}

/// Two clients unpack one layer: the second one's commit finds the name taken, and its snapshot goes.
#[test]
fn a_layer_that_somebody_else_committed_first() {
    require!(prerequisites());
    let mut stand = Stand::new("first");
    for key in ["extract a", "extract b"] {
        stand.client.prepare(key, "").unwrap();
    }
    stand.client.commit("layer", "extract a").unwrap();
    let late = stand.client.commit("layer", "extract b");
    assert_eq!(code(late), Code::AlreadyExists);
    stand.client.remove("extract b").unwrap();
    assert_eq!(stand.client.list(&[]).unwrap(), ["layer"]);
    stand.client.remove("layer").unwrap();
    stand.swept_down_to(0);
}

/// Views are read-only by their options, wherever they are made.
#[test]
fn views_say_that_they_are_read_only() {
    require!(prerequisites());
    for mounts in ["helper", "snapshotter"] {
        let mut stand = Stand::with("views", &["--mounts", mounts]);
        let mut parent = String::new();
        for number in 0..2 {
            for (call, read_only) in [("View", true), ("Prepare", false)] {
                let key = format!("{call} {number}");
                let given = stand.client.create(call, &key, &parent, &[]).unwrap();
                let last = given.last().unwrap();
                let says = last.options.contains(&"ro".to_owned());
                assert_eq!(says, read_only, "{key}: {given:?}");
            }
            parent = format!("layer {number}");
            stand
                .client
                .commit(&parent, &format!("Prepare {number}"))
                .unwrap();
        }
    }
}
