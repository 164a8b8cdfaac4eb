//! Deaths, restarts, and what is in use: of the server, its clients and the mounts.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use acetate::snapshotter::proto::Kind;
use tonic::Code;

use super::{Stand, prerequisites};
use crate::common::program;
use crate::require;
use crate::rig::{self, Client, Server, code, command};

#[test]
fn what_is_mounted_is_neither_committed_nor_deleted() {
    require!(prerequisites());
    let mut stand = Stand::new("busy");
    stand.client.prepare("a", "").unwrap();
    stand.client.commit("base", "a").unwrap();
    let mounts = stand.client.prepare("b", "base").unwrap();
    let mounted = stand.mount(&mounts);
    fs::write(mounted.path().join("file"), "kept").unwrap();
    assert_eq!(
        code(stand.client.commit("c", "b")),
        Code::FailedPrecondition
    );
    stand.client.remove("b").unwrap();
    assert_eq!(fs::read(mounted.path().join("file")).unwrap(), b"kept");
    // A restart does not take it for the rest of a crash, either.
    stand.server.take().unwrap().kill();
    let server = Server::start(&stand.scratch, &[]);
    stand.client = Client::new(&server.address);
    stand.server = Some(server);
    stand.client.cleanup().unwrap();
    fs::write(mounted.path().join("more"), "kept").unwrap();
    drop(mounted);
    let begin = Instant::now();
    while stand.left().len() > 2 {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{:?}",
            stand.left()
        );
        stand.client.cleanup().unwrap();
    }
    stand.client.remove("base").unwrap();
    assert_eq!(stand.left(), [""; 0]);
}

#[test]
fn a_kill_at_any_moment_leaves_whole_snapshots() {
    require!(prerequisites());
    let mut stand = Stand::new("kill");
    stand.client.prepare("a", "").unwrap();
    stand.client.commit("base", "a").unwrap();
    for round in 0..12u64 {
        let address = stand.scratch.join("s.sock");
        let worker = std::thread::spawn(move || {
            let mut client = Client::new(&address);
            let mut done = Vec::new();
            for number in 0.. {
                let (key, name) = (format!("k{round}-{number}"), format!("c{round}-{number}"));
                if client.prepare(&key, "base").is_err() {
                    break;
                }
                done.push(key.clone());
                if client.commit_with(&name, &key, "", &[("l", "v")]).is_err() {
                    break;
                }
                done.push(name.clone());
                if number % 2 == 0 && client.remove(&name).is_err() {
                    break;
                }
            }
            done
        });
        std::thread::sleep(Duration::from_millis(20 + round * 17 % 90));
        stand.server.take().unwrap().kill();
        let done = worker.join().unwrap();
        let server = Server::start(&stand.scratch, &[]);
        stand.client = Client::new(&server.address);
        stand.server = Some(server);
        stand.client.cleanup().unwrap();
        let names = stand.client.list(&[]).unwrap();
        // All that was answered is there, up to the call that was under way.
        for pair in done.chunks(2) {
            let [_, name] = pair else { continue };
            let number: u64 = name.rsplit('-').next().unwrap().parse().unwrap();
            if number % 2 == 1 {
                assert!(names.contains(name), "{name} is lost");
                assert_eq!(
                    stand.client.stat(name).unwrap().labels,
                    rig::map(&[("l", "v")])
                );
            }
        }
        assert_eq!(stand.left().len(), 2 * names.len(), "{:?}", stand.left());
        for name in names.iter().filter(|name| *name != "base") {
            if stand.client.stat(name).unwrap().kind() == Kind::Active {
                let mounts = stand.client.mounts(name).unwrap();
                drop(stand.mount(&mounts));
            }
            stand.client.remove(name).unwrap();
        }
    }
    stand.client.remove("base").unwrap();
    assert_eq!(stand.left(), [""; 0]);
}

#[test]
fn roots_and_sockets_in_use() {
    require!(prerequisites());
    let mut stand = Stand::new("use");
    let limit = Duration::from_secs(20);
    let refused = |command: &mut Command, word: &str| {
        let ended = program::run(command, limit);
        assert_eq!(ended.code(), Some(1), "{}", ended.text);
        assert!(ended.text.contains(word), "{}", ended.text);
    };
    refused(
        &mut command(&stand.scratch, "root"),
        "in use by another snapshotter",
    );
    refused(
        &mut command(&stand.scratch, "other"),
        "in use by a running server",
    );
    assert!(
        stand.client.list(&[]).is_ok(),
        "the first one is undisturbed"
    );
    stand.server.take().unwrap().kill();
    // What it left is no obstacle; what is no socket is.
    assert!(stand.scratch.join("s.sock").exists());
    let server = Server::start(&stand.scratch, &[]);
    assert_eq!(server.terminate(), Some(0));
    fs::write(stand.scratch.join("s.sock"), "").unwrap();
    refused(&mut command(&stand.scratch, "root"), "no socket");
    fs::remove_file(stand.scratch.join("s.sock")).unwrap();
    let version = stand.scratch.join("root/version.json");
    fs::write(&version, r#"{"format":"acetate snapshotter","version":99}"#).unwrap();
    refused(&mut command(&stand.scratch, "root"), "another version");
}

#[test]
fn a_client_that_vanishes_leaves_nothing_half_done() {
    require!(prerequisites());
    let mut stand = Stand::new("vanish");
    for number in 0..20u8 {
        let address = stand.scratch.join("s.sock");
        // A connection that ends within a call: the preface and part of a request.
        use std::io::Write;
        let mut raw = std::os::unix::net::UnixStream::connect(&address).unwrap();
        raw.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        raw.write_all(&[0, 0, number, 4, 0, 0]).unwrap();
        drop(raw);
        let mut client = Client::new(&address);
        client.prepare(&format!("k{number}"), "").unwrap();
    }
    assert_eq!(stand.client.list(&[]).unwrap().len(), 20);
    assert_eq!(stand.left().len(), 40);
}

#[test]
fn a_snapshot_that_cannot_be_mounted_is_not_made() {
    require!(prerequisites());
    let mut stand = Stand::with("unmountable", &["--mounts", "snapshotter"]);
    stand.client.prepare("a", "").unwrap();
    stand.client.commit("base", "a").unwrap();
    // The place of the next mount is taken by a file.
    let taken = stand.scratch.join("root/mounts/2");
    fs::write(&taken, "").unwrap();
    assert!(stand.client.prepare("b", "base").is_err());
    assert_eq!(code(stand.client.stat("b")), Code::NotFound);
    drop(fs::remove_file(&taken));
    let mounts = stand.client.prepare("b", "base").unwrap();
    drop(stand.mount(&mounts));
    stand.client.remove("b").unwrap();
}
