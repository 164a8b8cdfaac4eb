//! Deaths, restarts, and what is in use: of the server, its clients and the mounts.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use acetate::snapshotter::proto::{CommitRequest, CreateRequest, Kind};
use tonic::Code;

use super::{Stand, prerequisites};
use crate::common::program;
use crate::require;
use crate::rig::{self, Client, Mounted, Server, code, command};

/// containerd's suite commits what is mounted. Whatever can still write to a layer must not.
fn commit_of_what_is_mounted(mounts: &str) {
    require!(prerequisites());
    let mut stand = Stand::with("frozen", &["--mounts", mounts]);
    stand.client.prepare("a", "").unwrap();
    stand.client.commit("base", "a").unwrap();
    let mounts = stand.client.prepare("b", "base").unwrap();
    let mounted = stand.mount(&mounts);
    let file = mounted.path().join("file");
    let mut open = fs::File::create(&file).unwrap();
    open.write_all(b"first").unwrap();
    let refused = stand.client.commit("c", "b").unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("open for writing"), "{refused}");
    open.write_all(b", second").unwrap();
    drop(open);

    // A commit that fails after all gives the mount back as it was.
    let tmp = stand.scratch.join("root/tmp");
    fs::remove_dir(&tmp).unwrap();
    assert!(stand.client.commit("c", "b").is_err());
    fs::create_dir(&tmp).unwrap();
    assert_eq!(stand.client.stat("b").unwrap().kind(), Kind::Active);
    fs::write(mounted.path().join("more"), "more").unwrap();

    stand.client.commit("c", "b").unwrap();
    let denied = fs::write(&file, "late").unwrap_err();
    assert_eq!(denied.raw_os_error(), Some(libc::EROFS));
    let denied = fs::File::create(mounted.path().join("late")).unwrap_err();
    assert_eq!(denied.raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::read(&file).unwrap(), b"first, second");
    // The layer is what the mount shows; one that stands on it is writable.
    let mounts = stand.client.prepare("d", "c").unwrap();
    let above = Mounted::new(&mounts, &stand.scratch.join("above"));
    assert_eq!(
        fs::read(above.path().join("file")).unwrap(),
        b"first, second"
    );
    fs::write(above.path().join("file"), "third").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"first, second");
    drop(above);
    drop(mounted);
    for key in ["d", "c", "base"] {
        stand.client.remove(key).unwrap();
    }
    stand.swept_down_to(0);
}

#[test]
fn a_commit_of_what_is_mounted_makes_it_read_only() {
    commit_of_what_is_mounted("helper");
}

#[test]
fn a_commit_of_a_mount_that_the_snapshotter_keeps_makes_it_read_only() {
    commit_of_what_is_mounted("snapshotter");
}

fn removal_of_what_is_mounted(mounts: &str) {
    require!(prerequisites());
    let mut stand = Stand::with("busy", &["--mounts", mounts]);
    stand.client.prepare("a", "").unwrap();
    stand.client.commit("base", "a").unwrap();
    let given = stand.client.prepare("b", "base").unwrap();
    let mounted = stand.mount(&given);
    fs::write(mounted.path().join("file"), "kept").unwrap();
    stand.client.remove("b").unwrap();
    assert_eq!(fs::read(mounted.path().join("file")).unwrap(), b"kept");
    // A restart does not take it for the rest of a crash, either.
    stand.server.take().unwrap().kill();
    let server = Server::start(&stand.scratch, &["--mounts", mounts]);
    stand.client = Client::new(&server.address);
    stand.server = Some(server);
    stand.client.cleanup().unwrap();
    fs::write(mounted.path().join("more"), "kept").unwrap();
    drop(mounted);
    stand.swept_down_to(2);
    stand.client.remove("base").unwrap();
    stand.swept_down_to(0);
}

#[test]
fn what_is_mounted_is_not_deleted() {
    removal_of_what_is_mounted("helper");
}

#[test]
fn what_is_bound_from_a_mount_of_the_snapshotter_is_not_deleted() {
    removal_of_what_is_mounted("snapshotter");
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
        stand.swept_down_to(2 * names.len());
        for name in names.iter().filter(|name| *name != "base") {
            if stand.client.stat(name).unwrap().kind() == Kind::Active {
                let mounts = stand.client.mounts(name).unwrap();
                drop(stand.mount(&mounts));
            }
            stand.client.remove(name).unwrap();
        }
    }
    stand.client.remove("base").unwrap();
    stand.swept_down_to(0);
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
fn a_client_that_vanishes_within_a_call_leaves_whole_snapshots() {
    require!(prerequisites());
    let mut stand = Stand::new("within");
    stand.client.prepare("a", "").unwrap();
    stand.client.commit("base", "a").unwrap();
    let address = stand.scratch.join("s.sock");
    for number in 0..24u64 {
        let after = Duration::from_micros(number * number * 30);
        let key = format!("k{number}");
        let prepare = CreateRequest {
            key: key.clone(),
            parent: "base".into(),
            ..CreateRequest::default()
        };
        if number % 2 == 0 {
            Client::new(&address).abandon("Prepare", prepare, after);
            continue;
        }
        stand.client.prepare(&key, "base").unwrap();
        let commit = CommitRequest {
            name: format!("c{number}"),
            key,
            ..CommitRequest::default()
        };
        Client::new(&address).abandon("Commit", commit, after);
    }
    // Calls that nobody waits for end before the server does.
    assert_eq!(stand.server.take().unwrap().terminate(), Some(0));
    let server = Server::start(&stand.scratch, &[]);
    stand.client = Client::new(&server.address);
    stand.server = Some(server);
    let names = stand.client.list(&[]).unwrap();
    assert!(names.len() > 12, "{names:?}");
    stand.swept_down_to(2 * names.len());
    for name in names.iter().filter(|name| *name != "base") {
        let kind = stand.client.stat(name).unwrap().kind();
        assert_eq!(kind == Kind::Committed, name.starts_with('c'), "{name}");
        if kind == Kind::Active {
            stand.client.mounts(name).unwrap();
            let done = format!("done {name}");
            stand.client.commit(&done, name).unwrap();
            stand.client.remove(&done).unwrap();
        } else {
            stand.client.remove(name).unwrap();
        }
    }
    stand.client.remove("base").unwrap();
    stand.swept_down_to(0);
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
