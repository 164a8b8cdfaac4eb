//! Pulls that are killed, and what goes on beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::build::Packing;
use crate::common::program;
use crate::proxy::{Fault, Proxy, Record};
use crate::require;
use crate::server::{self, Server};
use crate::stand::{LIMIT, Stand, layers};

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_pull_that_is_killed_half_way_fetches_the_rest_only() {
    require!(server::available());
    let stand = Stand::new("half-way");
    let server = Server::start(stand.path());
    let name = format!("{}/app:1", server.host());
    let image = stand.load("a", &layers(21, 3, 4_000_000), Packing::Gzip, &name);
    stand.ok("a", &["push", &name]);
    let total: u64 = stand.layers("a", &name).iter().map(|l| l.1).sum();
    let half = Proxy::start(server.address(), |r, _| {
        if r.is_blob() {
            Fault::Stall(2_000_000)
        } else {
            Fault::None
        }
    });
    let mut pull = stand.begin("b", &["pull", &format!("{}/app:1", half.host())]);
    wait_for("half of it", || stand.partial("b").1 >= 5_900_000);
    pull.kill().unwrap();
    pull.wait().unwrap();
    drop(half);
    stand.assert_whole("b");
    assert_eq!(stand.image("b", &name), None);
    let (files, there) = stand.partial("b");
    assert_eq!(files, 3);
    assert!(
        there >= total * 45 / 100 && there < total * 55 / 100,
        "{there} of {total}"
    );
    // From another place this time, which does not matter: a digest is a digest.
    let rest = Proxy::counting(server.address());
    let other = format!("{}/app:1", rest.host());
    stand.ok("b", &["pull", &other]);
    let layers: Vec<String> = stand
        .layers("a", &name)
        .iter()
        .map(|(digest, _)| format!("/v2/app/blobs/{digest}"))
        .collect();
    let records = rest.records();
    let of_layers: Vec<_> = records
        .iter()
        .filter(|r| layers.contains(&r.path))
        .collect();
    assert_eq!(of_layers.len(), 3);
    assert!(of_layers.iter().all(|r| r.range.is_some()), "{of_layers:?}");
    let brought: u64 = of_layers.iter().map(|r| r.sent).sum();
    assert_eq!(brought, total - there);
    assert_eq!(stand.image("b", &other), Some(image));
    stand.assert_whole("b");
    assert_eq!(stand.partial("b").0, 0);
}

/// Small pseudo-random numbers, the same in every run.
fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn kill_at_random_moments(rounds: usize) {
    let stand = Stand::new("random-moments");
    let server = Server::start(stand.path());
    let proxy = Proxy::start(server.address(), |_, _| Fault::Slow);
    let host = server.host();
    let (kept, name) = (format!("{host}/kept:1"), format!("{host}/app:1"));
    let slow = format!("{}/app:1", proxy.host());
    let kept_image = stand.load("a", &layers(22, 2, 50_000), Packing::Gzip, &kept);
    let image = stand.load("a", &layers(23, 4, 600_000), Packing::Gzip, &name);
    stand.ok("a", &["push", &kept]);
    stand.ok("a", &["push", &name]);
    stand.ok("b", &["pull", &kept]);
    // How long a pull takes here, now.
    let start = Instant::now();
    stand.ok("b", &["pull", &slow]);
    let whole = start.elapsed();
    let mut state = 4711;
    let mut unfinished = 0;
    for round in 0..rounds {
        if stand.image("b", &slow).is_some() {
            stand.remove("b", &slow);
        }
        let mut pull = stand.begin("b", &["pull", &slow]);
        let moment = whole.mul_f64((random(&mut state) % 1000) as f64 / 1000.0);
        std::thread::sleep(moment);
        // Every third time somebody tidies up meanwhile.
        let prune = (round % 3 == 0).then(|| stand.begin("b", &["image", "prune"]));
        unfinished += usize::from(pull.try_wait().unwrap().is_none());
        pull.kill().unwrap();
        pull.wait().unwrap();
        if let Some(mut prune) = prune {
            assert!(prune.wait().unwrap().success());
        }
        stand.assert_whole("b");
        assert_eq!(
            stand.image("b", &kept),
            Some(kept_image.clone()),
            "round {round}"
        );
        if round % 5 == 4 {
            stand.ok("b", &["pull", &slow]);
            assert_eq!(
                stand.image("b", &slow),
                Some(image.clone()),
                "round {round}"
            );
        }
    }
    assert!(
        unfinished * 2 > rounds,
        "{unfinished} of {rounds} were killed in time"
    );
    stand.ok("b", &["pull", &slow]);
    stand.assert_whole("b");
    assert_eq!(stand.partial("b").0, 0);
}

#[test]
fn killed_at_random_moments_the_store_stays_whole() {
    require!(server::available());
    kill_at_random_moments(8);
}

#[test]
#[ignore = "takes minutes: ACETATE_LONG=1 for the whole of it"]
fn killed_at_many_random_moments_the_store_stays_whole() {
    require!(server::available());
    let long = std::env::var_os("ACETATE_LONG").is_some();
    kill_at_random_moments(if long { 100 } else { 40 });
}

#[test]
fn a_prune_during_a_pull_takes_nothing_away() {
    require!(server::available());
    let stand = Stand::new("prune-during");
    let server = Server::start(stand.path());
    let proxy = Proxy::start(server.address(), |_, _| Fault::Slow);
    let name = format!("{}/app:1", server.host());
    let slow = format!("{}/app:1", proxy.host());
    let image = stand.load("a", &layers(24, 4, 500_000), Packing::Gzip, &name);
    stand.ok("a", &["push", &name]);
    for _ in 0..3 {
        let mut pull = stand.begin("b", &["pull", &slow]);
        let mut prunes = Vec::new();
        while pull.try_wait().unwrap().is_none() {
            prunes.push(stand.begin("b", &["image", "prune"]));
            std::thread::sleep(Duration::from_millis(40));
        }
        assert!(pull.wait().unwrap().success());
        for mut prune in prunes {
            assert!(prune.wait().unwrap().success());
        }
        assert_eq!(stand.image("b", &slow), Some(image.clone()));
        stand.assert_whole("b");
        stand.remove("b", &slow);
    }
}

#[test]
fn a_removal_does_not_wait_for_a_pull() {
    require!(server::available());
    let stand = Stand::new("remove-during");
    let server = Server::start(stand.path());
    let name = format!("{}/app:1", server.host());
    let pulled = layers(26, 3, 100_000);
    let image = stand.load("a", &pulled, Packing::Gzip, &name);
    stand.ok("a", &["push", &name]);
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let config = image.1.clone();
    let is_layer = move |record: &Record| record.is_blob() && !record.path.ends_with(&config);
    let held_back = is_layer.clone();
    let proxy = Proxy::start(server.address(), move |record, _| {
        while held_back(record) && !gate.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Fault::None
    });
    let _opened_at_the_end = Opened(Arc::clone(&open));
    let gated = format!("{}/app:1", proxy.host());
    // One image that has nothing to do with it, and one that has its first layer.
    stand.load("b", &layers(27, 2, 1000), Packing::Gzip, "other:1");
    stand.load("b", &pulled[..1], Packing::Gzip, "base:1");
    let mut pull = stand.begin("b", &["pull", &gated]);
    while !proxy.records().iter().any(&is_layer) {
        assert_eq!(pull.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(5));
    }
    stand.remove("b", "other:1");
    stand.remove("b", "base:1");
    stand.ok("b", &["image", "prune", "--all"]);
    assert_eq!(pull.try_wait().unwrap(), None);
    let trees = || std::fs::read_dir(stand.root("b").join("layers/sha256")).unwrap();
    assert_eq!(
        trees().count(),
        1,
        "the layer that the pull needs, and no other"
    );
    open.store(true, Ordering::Relaxed);
    assert!(pull.wait().unwrap().success());
    assert_eq!(stand.image("b", &gated), Some(image));
    assert_eq!(trees().count(), 3);
    // The config, and the two layers that were not there.
    assert_eq!(proxy.blobs().0, 3);
    stand.assert_whole("b");
}

/// Lets the proxy's threads end, also where the test fails.
struct Opened(Arc<AtomicBool>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "moves 200 MB, or 1 GB with ACETATE_LONG=1"]
fn memory_does_not_grow_with_the_image() {
    require!(server::available());
    let stand = Stand::new("memory");
    let server = Server::start(stand.path());
    let name = format!("{}/app:1", server.host());
    let long = std::env::var_os("ACETATE_LONG").is_some();
    let count = if long { 16 } else { 4 };
    stand.load("a", &layers(25, count, 64_000_000), Packing::Gzip, &name);
    for (store, action) in [("a", "push"), ("b", "pull")] {
        let mut child = stand.begin(store, &[action, &name]);
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0;
        while child.try_wait().unwrap().is_none() {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let high = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
            let high = high.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok());
            peak = peak.max(high.unwrap_or(0));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(child.wait().unwrap().success());
        println!("{action}: {} MiB at most", peak / 1024);
        assert!(peak > 0 && peak < 200 << 10, "{action}: {peak} kB");
    }
    let finished = program::run(&mut stand.command("b", &["image", "verify"]), LIMIT);
    assert!(finished.success(), "{}", finished.text);
}
