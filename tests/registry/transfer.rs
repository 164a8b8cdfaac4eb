//! Images there and back again: the same digests, the same tree, nothing sent twice.

use std::collections::HashMap;
use std::process::Command;

use crate::build::Packing;
use crate::common::program;
use crate::common::{Acetate, Tree, TreeOptions, skip};
use crate::proxy::{Fault, Proxy};
use crate::require;
use crate::server::{self, Server};
use crate::stand::{LIMIT, Stand, layers};

/// What an image shows when it is mounted.
fn mounted_tree(stand: &Stand, store: &str, image: &str) -> Tree {
    let mount = Acetate::new(stand.scratch.join("mnt"))
        .env("ACETATE_ROOT", stand.root(store))
        .argument("--ro")
        .argument("--pull=never")
        .argument(image)
        .mount();
    let tree = Tree::read(mount.path(), TreeOptions::CONTENTS).unwrap();
    mount.unmount().unwrap();
    tree
}

#[test]
fn an_image_comes_back_as_it_went() {
    require!(skip::privileged());
    require!(server::available());
    let stand = Stand::new("round-trip");
    let server = Server::start(stand.path());
    let name = format!("{}/team/app:1", server.host());
    for packing in [Packing::Gzip, Packing::Zstd, Packing::Plain] {
        let loaded = stand.load("a", &layers(1, 3, 300_000), packing, &name);
        let before = mounted_tree(&stand, "a", &name);
        let text = stand.ok("a", &["push", &name]);
        assert!(
            text.contains(&format!("1: digest: {} size: ", loaded.0)),
            "{text}"
        );
        assert!(text.contains(": Pushed"), "{text}");
        let catalog = program::must(
            Command::new("curl").args(["-sf", &format!("http://{}/v2/_catalog", server.host())]),
            LIMIT,
        );
        assert_eq!(catalog.trim(), r#"{"repositories":["team/app"]}"#);
        stand.remove("a", &name);
        assert_eq!(stand.image("a", &name), None);
        let text = stand.ok("a", &["pull", &name]);
        for part in [
            "1: Pulling from team/app",
            ": Pulling fs layer",
            ": Pull complete",
            &format!("Digest: {}", loaded.0),
            &format!("Status: Downloaded newer image for {name}"),
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(stand.image("a", &name), Some(loaded.clone()));
        mounted_tree(&stand, "a", &name).assert_same(&before, "the image before and after");
        // By its digest as well, which is a name of its own.
        let by_digest = format!("{}/team/app@{}", server.host(), loaded.0);
        stand.ok("b", &["pull", "-q", &by_digest]);
        assert_eq!(stand.image("b", &by_digest), Some(loaded.clone()));
        mounted_tree(&stand, "b", &by_digest).assert_same(&before, "the image by its digest");
        stand.remove("a", &name);
        stand.remove("b", &by_digest);
        stand.assert_whole("a");
        stand.assert_whole("b");
    }
}

#[test]
fn a_mount_pulls_what_is_missing() {
    require!(skip::privileged());
    require!(server::available());
    let stand = Stand::new("mount-pulls");
    let server = Server::start(stand.path());
    let name = format!("{}/app:1", server.host());
    stand.load("a", &layers(2, 2, 1000), Packing::Gzip, &name);
    stand.ok("a", &["push", "-q", &name]);
    let dir = stand.scratch.dir("m");
    let dir = dir.to_str().unwrap();
    let text = stand.fails("b", &["mount", "--pull=never", &name, dir]);
    assert!(text.contains("no such image"), "{text}");
    let text = stand.ok("b", &["mount", &name, dir]);
    assert!(text.contains("Pull complete"), "{text}");
    assert!(stand.scratch.join("m/usr/program").is_file());
    stand.ok("b", &["umount", dir]);
    // The second time nobody is asked.
    drop(server);
    stand.ok("b", &["mount", &name, dir]);
    stand.ok("b", &["umount", dir]);
    let text = stand.fails("b", &["mount", "--pull=always", &name, dir]);
    assert!(text.contains("cannot reach the registry"), "{text}");
    let other = name.replace("app", "other");
    let text = stand.fails("b", &["mount", &other, dir]);
    assert!(
        text.contains("no such image") && text.contains("cannot reach the registry"),
        "{text}"
    );
}

#[test]
fn nothing_is_sent_or_fetched_twice() {
    require!(server::available());
    let stand = Stand::new("twice");
    let server = Server::start(stand.path());
    let proxy = Proxy::counting(server.address());
    let name = format!("{}/team/app:1", proxy.host());
    stand.load("a", &layers(3, 3, 200_000), Packing::Gzip, &name);
    stand.ok("a", &["push", &name]);
    let sent = |from: usize| -> u64 { proxy.records()[from..].iter().map(|r| r.received).sum() };
    let total: u64 = stand.layers("a", &name).iter().map(|l| l.1).sum();
    assert!(sent(0) > total);
    // Again: only the manifest goes.
    let before = proxy.records().len();
    let text = stand.ok("a", &["push", &name]);
    assert_eq!(text.matches(": Layer already exists").count(), 3, "{text}");
    assert!(sent(before) < 2000, "{}", sent(before));
    // Into another repository: the registry takes the layers from the first one.
    let other = format!("{}/other/copy:2", proxy.host());
    let before = proxy.records().len();
    let text = stand.ok("a", &["push", &name, &other]);
    assert_eq!(text.matches(": Mounted from team/app").count(), 3, "{text}");
    assert!(sent(before) < 4000, "{}", sent(before));
    // A first pull fetches each layer once, a second one asks for the digest of the tag alone.
    let before = proxy.records().len();
    stand.ok("b", &["pull", &name]);
    let records = proxy.records()[before..].to_vec();
    let mut fetched: HashMap<String, usize> = HashMap::new();
    for record in records.iter().filter(|r| r.is_blob()) {
        *fetched.entry(record.path.clone()).or_default() += 1;
    }
    assert_eq!(fetched.len(), 4, "{fetched:?}");
    assert!(fetched.values().all(|&n| n == 1), "{fetched:?}");
    let before = proxy.records().len();
    let text = stand.ok("b", &["pull", &name]);
    assert_eq!(text.matches(": Already exists").count(), 3, "{text}");
    assert!(text.contains("Status: Image is up to date for"), "{text}");
    let records = proxy.records()[before..].to_vec();
    let asked: Vec<String> = records
        .iter()
        .map(|r| format!("{} {}", r.method, r.path))
        .collect();
    assert_eq!(
        asked,
        ["GET /v2/", "HEAD /v2/team/app/manifests/1"],
        "{asked:?}"
    );
    // The other name shares everything.
    let before = proxy.records().len();
    stand.ok("b", &["pull", &other]);
    assert!(!proxy.records()[before..].iter().any(|r| r.is_blob()));
    stand.assert_whole("b");
}

#[test]
fn layers_that_images_share_are_fetched_once() {
    require!(server::available());
    let stand = Stand::new("shared");
    let server = Server::start(stand.path());
    let proxy = Proxy::counting(server.address());
    let (one, two) = (
        format!("{}/one:1", proxy.host()),
        format!("{}/two:1", proxy.host()),
    );
    let all = layers(4, 3, 100_000);
    stand.load("a", &all[..2], Packing::Gzip, &one);
    stand.load("a", &all, Packing::Gzip, &two);
    stand.ok("a", &["push", &one]);
    stand.ok("a", &["push", &two]);
    stand.ok("b", &["pull", &one]);
    let (count, _) = proxy.blobs();
    let text = stand.ok("b", &["pull", &two]);
    assert_eq!(text.matches(": Already exists").count(), 2, "{text}");
    assert_eq!(text.matches(": Pull complete").count(), 1, "{text}");
    // A layer and a configuration.
    assert_eq!(proxy.blobs().0 - count, 2);
}

#[test]
fn two_pulls_at_once_share_the_work() {
    require!(server::available());
    let stand = Stand::new("at-once");
    let server = Server::start(stand.path());
    let proxy = Proxy::start(server.address(), |_, _| Fault::Slow);
    let name = format!("{}/app:1", server.host());
    let slow = format!("{}/app:1", proxy.host());
    stand.load("a", &layers(5, 4, 1_000_000), Packing::Gzip, &name);
    stand.ok("a", &["push", &name]);
    let pulls: Vec<_> = (0..3).map(|_| stand.begin("b", &["pull", &slow])).collect();
    for mut pull in pulls {
        assert!(pull.wait().unwrap().success());
    }
    let mut fetched: HashMap<String, usize> = HashMap::new();
    for record in proxy.records().iter().filter(|r| r.is_blob()) {
        *fetched.entry(record.path.clone()).or_default() += 1;
    }
    // The configuration is small, and each process looks at its own copy.
    for (digest, _) in stand.layers("a", &name) {
        let path = format!("/v2/app/blobs/{digest}");
        assert_eq!(fetched[&path], 1, "{fetched:?}");
    }
    stand.assert_whole("b");
    assert_eq!(stand.partial("b").0, 0);
}

#[test]
fn listings_show_what_a_registry_has() {
    require!(server::available());
    let stand = Stand::new("listings");
    let server = Server::start(stand.path());
    let host = server.host();
    stand.load(
        "a",
        &layers(6, 1, 100),
        Packing::Gzip,
        &format!("{host}/a/b:1"),
    );
    for tag in ["1", "2", "three"] {
        stand.ok(
            "a",
            &[
                "push",
                &format!("{host}/a/b:1"),
                &format!("{host}/a/b:{tag}"),
            ],
        );
    }
    stand.ok(
        "a",
        &["push", &format!("{host}/a/b:1"), &format!("{host}/c")],
    );
    assert_eq!(stand.ok("a", &["registry", "catalog", &host]), "a/b\nc\n");
    assert_eq!(
        stand
            .ok("a", &["registry", "catalog", "--json", &host])
            .trim(),
        r#"{"repositories":["a/b","c"]}"#
    );
    let tags = stand.ok("a", &["registry", "tags", &format!("{host}/a/b")]);
    let mut tags: Vec<&str> = tags.lines().collect();
    tags.sort_unstable();
    assert_eq!(tags, ["1", "2", "three"]);
    let text = stand.fails("a", &["registry", "tags", &format!("{host}/nobody")]);
    assert!(text.contains("not found: name unknown"), "{text}");
}

#[test]
fn what_a_registry_lacks_is_said_in_one_line() {
    require!(server::available());
    let stand = Stand::new("lacks");
    let server = Server::start(stand.path());
    let host = server.host();
    let name = format!("{host}/app:1");
    let text = stand.fails("a", &["pull", &name]);
    assert!(
        text.ends_with(&format!(
            "acetate: manifest for {name} not found: manifest unknown: manifest unknown\n"
        )),
        "{text}"
    );
    let text = stand.fails("a", &["push", &name]);
    assert!(text.contains("no such image"), "{text}");
    let digest = format!("{host}/app@sha256:{}", "0".repeat(64));
    let text = stand.fails("a", &["pull", &digest]);
    assert!(text.contains("not found: manifest unknown"), "{text}");
    stand.load("a", &layers(7, 1, 100), Packing::Gzip, &name);
    let text = stand.fails("a", &["push", &name, &digest]);
    assert!(text.contains("cannot push a digest reference"), "{text}");
    let text = stand.fails("a", &["pull", &format!("{host}/App:1")]);
    assert!(text.contains("invalid reference format"), "{text}");
    drop(server);
    let text = stand.fails("a", &["pull", &name]);
    assert!(text.contains("cannot reach the registry"), "{text}");
    assert_eq!(
        text.lines().filter(|l| l.starts_with("acetate:")).count(),
        1
    );
    stand.assert_whole("a");
}

#[test]
fn mirrors_are_asked_in_turn() {
    require!(server::available());
    let stand = Stand::new("mirrors");
    let server = Server::start(stand.path());
    let empty = Server::start(stand.path());
    let proxy = Proxy::counting(server.address());
    let here = format!("{}/library/tool:1", server.host());
    let loaded = stand.load("a", &layers(8, 2, 5000), Packing::Gzip, &here);
    stand.ok("a", &["push", &here]);
    // The first mirror is gone, the second does not have it.
    let config = stand.scratch.join("config.json");
    let mirrors = [
        "http://127.0.0.1:1".to_owned(),
        format!("http://{}", empty.host()),
        format!("http://{}/", proxy.host()),
    ];
    std::fs::write(
        &config,
        serde_json::json!({ "registry-mirrors": mirrors }).to_string(),
    )
    .unwrap();
    let config = config.to_str().unwrap();
    let text = stand.ok("b", &["pull", "--config", config, "tool:1"]);
    assert!(text.contains("trying"), "{text}");
    assert_eq!(
        stand.image("b", "docker.io/library/tool:1"),
        Some(loaded.clone())
    );
    assert!(proxy.blobs().0 >= 2);
    // By a flag as well.
    let mirror = format!("--registry-mirror=http://{}", proxy.host());
    stand.ok("c", &["pull", &mirror, "tool:1"]);
    assert_eq!(stand.image("c", "tool:1"), Some(loaded));
    // Other registries have no mirrors.
    let other = format!("{}/library/tool:1", empty.host());
    let text = stand.fails("c", &["pull", &mirror, &other]);
    assert!(text.contains("not found"), "{text}");
    stand.assert_whole("b");
}
