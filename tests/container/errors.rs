//! What cannot be had: a clear word, docker's code, and nothing left.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::require;
use crate::rig::{LIMIT, Rig, able};

#[test]
fn what_cannot_be_run_is_told_and_leaves_nothing() {
    require!(able());
    let rig = Rig::new("errors");
    for (code, words, part) in [
        (127, &["bb", "nope"][..], "nope"),
        (127, &["bb", "/no/such"], "no such file"),
        (126, &["bb", "/etc"], "permission denied"),
        (126, &["bb", "/etc/passwd"], "permission denied"),
        (126, &["bb", "/bin/sh/below"], "not a directory"),
        (125, &["-p", "80:80", "bb"], "engine"),
        (125, &["--mount", "type=bind,target=/x", "bb"], "source"),
        (
            125,
            &["--mount", "type=bind,source=/no/such,target=/x", "bb"],
            "/no/such",
        ),
        (125, &["--tmpfs", "/t", "-v", "aa:/t", "bb"], "two volumes"),
        (125, &["--tmpfs", "/t:frob", "bb"], "frob"),
        (125, &["--frob", "bb"], "--frob"),
        (125, &["--net", "bridge", "bb"], "none and host"),
        (125, &["--name", "a/b", "bb"], "invalid container name"),
        (125, &["-u", "nobody", "bb"], "unable to find user nobody"),
        (125, &["-v", "a b:/x", "bb"], "invalid volume name"),
        (125, &["-v", "aa:/x", "-v", "bb:/x", "bb"], "two volumes"),
        (125, &["-v", "/no/such/dir:/x", "bb"], "/no/such/dir"),
        (125, &["-v", "/tmp:/../x", "bb"], "absolute path"),
        (125, &["-w", "relative", "bb"], "absolute path"),
        (125, &["--ulimit", "frob=1", "bb"], "ulimit"),
        (125, &["--cap-add", "frob", "bb"], "capability"),
        (
            125,
            &["--runtime", "no-such-runtime", "bb"],
            "no-such-runtime",
        ),
        (125, &["--pull", "never", "missing:1"], "missing"),
        (125, &["-it", "bb"], "no terminal"),
    ] {
        let words = [&["run", "--rm"], words].concat();
        let said = rig.fails(code, &words);
        // runc and crun do not agree on capitals.
        let found = said.to_ascii_lowercase().contains(part);
        assert!(found, "{words:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    }
    rig.nothing_is_left();
    // Without --rm a container that could not be started is there to be looked at.
    rig.fails(127, &["run", "--name", "kept", "bb", "nope"]);
    assert_eq!(rig.status("kept"), "created");
    assert!(
        rig.inspect("kept")["State"]["Error"]
            .as_str()
            .unwrap()
            .contains("nope")
    );
    rig.must(&["rm", "kept"]);
    rig.nothing_is_left();
}

#[test]
fn without_a_runtime_nothing_is_run() {
    require!(able());
    let rig = Rig::new("runtime");
    let mut command = rig.command(&["run", "--rm", "bb", "true"]);
    let empty = rig.scratch.dir("empty");
    let finished = crate::common::program::run(command.env("PATH", &empty), LIMIT);
    assert_eq!(finished.code(), Some(125));
    assert!(
        finished.text.contains("install crun or runc"),
        "{}",
        finished.text
    );
    rig.must(&["container", "prune"]);
    rig.nothing_is_left();
}

#[test]
fn without_a_range_of_ids_a_plain_user_is_told_what_to_do() {
    require!(able());
    require!(crate::common::program::find("setpriv").map(drop));
    let rig = Rig::new("plain");
    let home = rig.scratch.dir("home");
    std::os::unix::fs::chown(&home, Some(2000), Some(2000)).unwrap();
    // The build directory may lie where a plain user may not look.
    let binary = home.join("acetate");
    fs::copy(rig.command(&[]).get_program(), &binary).unwrap();
    let store = home.join("store");
    for words in [["run", "bb"], ["create", "bb"]] {
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid", "2000", "--regid", "2000", "--clear-groups"])
            .arg(&binary)
            .args(words)
            .env("ACETATE_ROOT", &store);
        let finished = crate::common::program::run(&mut command, LIMIT);
        let code = if words[0] == "run" { 125 } else { 2 };
        assert_eq!(finished.code(), Some(code), "{}", finished.text);
        assert!(finished.text.contains("/etc/subuid"), "{}", finished.text);
    }
    rig.nothing_is_left();
}

#[test]
fn images_that_cannot_be_followed_are_refused() {
    require!(able());
    let rig = Rig::new("images");
    let tree = rig.scratch.join("tree");
    let folder = tree.to_str().unwrap();
    let other = if cfg!(target_arch = "x86_64") {
        "linux/arm64"
    } else {
        "linux/amd64"
    };
    rig.must(&["image", "import", "--platform", other, folder, "foreign"]);
    let said = rig.fails(125, &["run", "--rm", "--pull", "never", "foreign", "true"]);
    assert!(said.contains(other), "{said}");
    // One that somebody else made, with places for volumes that lead out.
    let layout = rig.scratch.join("layout");
    rig.must(&[
        "image",
        "save",
        "--format",
        "oci-dir",
        "-o",
        layout.to_str().unwrap(),
        "bb",
    ]);
    let index = read(&layout.join("index.json"));
    let mut manifest = read(&blob(&layout, &index["manifests"][0]["digest"]));
    let mut config = read(&blob(&layout, &manifest["config"]["digest"]));
    config["config"]["Volumes"] = json!({"/../../etc": {}});
    manifest["config"] = put(&layout, &config, &manifest["config"]);
    let mut entry = put(&layout, &manifest, &index["manifests"][0]);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "hostile:1"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    rig.must(&["image", "load", "-i", layout.to_str().unwrap()]);
    let said = rig.fails(125, &["run", "--rm", "hostile:1", "true"]);
    assert!(said.contains("/../../etc"), "{said}");
    rig.nothing_is_left();
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, digest: &Value) -> PathBuf {
    layout
        .join("blobs")
        .join(digest.as_str().unwrap().replace(':', "/"))
}

/// Adds a document; gives the descriptor that leads to it, after the one that led to another.
fn put(layout: &Path, document: &Value, descriptor: &Value) -> Value {
    let text = document.to_string();
    let hex: String = Sha256::digest(&text)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let mut descriptor = descriptor.clone();
    descriptor["digest"] = json!(format!("sha256:{hex}"));
    descriptor["size"] = json!(text.len());
    fs::write(blob(layout, &descriptor["digest"]), text).unwrap();
    descriptor
}
