//! The story of a page: made in a container of containerd, committed, pushed, pulled, and served by containerd again.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{LIMIT, Stand, needs};
use crate::common::{Watchdog, program};
use crate::require;

/// Fetches a page over loopback, as soon as somebody serves it.
#[track_caller]
fn get(port: u16) -> String {
    let begin = Instant::now();
    loop {
        let fetch = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        match fetch() {
            Ok(text) if text.contains(" 200 ") => {
                let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                return body.to_owned();
            }
            other => assert!(begin.elapsed() < LIMIT, "127.0.0.1:{port}: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn wait_for(path: &Path) {
    let begin = Instant::now();
    while !path.exists() {
        assert!(begin.elapsed() < LIMIT, "{} is missing", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Stand {
    /// acetate with a store of the test.
    fn acetate(&self, words: &[&str]) -> String {
        let mut acetate = Command::new(env!("CARGO_BIN_EXE_acetate"));
        acetate.args(words);
        acetate.env("ACETATE_ROOT", self.scratch.join("store"));
        program::must(&mut acetate, LIMIT).trim().to_owned()
    }

    fn pull(&self, image: &str) {
        self.ctr(&[
            "images",
            "pull",
            "--plain-http",
            "--snapshotter",
            "acetate",
            image,
        ]);
    }

    /// The digest of an image's manifest, as containerd has it.
    fn digest(&self, image: &str) -> String {
        let listed = self.ctr(&["images", "ls", &format!("name=={image}")]);
        let line = listed.lines().nth(1).unwrap();
        let digest = line.split_whitespace().find(|w| w.starts_with("sha256:"));
        digest.unwrap().to_owned()
    }

    fn start(&self, flags: &[&str], words: &[&str]) {
        let run = ["run", "-d", "--snapshotter", "acetate"];
        self.ctr(&[&run, flags, words].concat());
    }

    fn end(&self, container: &str) {
        self.ctr(&["tasks", "rm", "-f", container]);
        self.ctr(&["containers", "rm", container]);
    }
}

#[test]
#[ignore = "needs containerd, a registry and root"]
fn a_page_is_made_committed_pushed_pulled_and_served() {
    require!(needs());
    let _limit = Watchdog::new("containerd's story", Duration::from_secs(400));
    let stand = Stand::new("helper");
    let base = stand.image();
    stand.pull(&base);

    let make = "mkdir -p /data/html; echo a page >/data/html/index.html; exec sleep 1000";
    stand.start(&[], &[&base, "maker", "sh", "-c", make]);
    let tasks = stand.scratch.join("state/io.containerd.runtime.v2.task");
    let rootfs = tasks.join(stand.namespace()).join("maker/rootfs");
    wait_for(&rootfs.join("data/html/index.html"));
    let rootfs = rootfs.to_str().unwrap();

    // Without a name, and named twice afterwards.
    let place = format!("127.0.0.1:{}/pages/page", stand.port);
    let unnamed = stand.acetate(&["commit", rootfs]);
    for tag in ["one", "two"] {
        stand.acetate(&["image", "tag", &unnamed, &format!("{place}:{tag}")]);
    }
    let command =
        |image: &str| stand.acetate(&["image", "inspect", "-f", "{{json .Config.Cmd}}", image]);
    assert_eq!(command(&unnamed), "null");
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|socket| socket.local_addr())
        .unwrap()
        .port();
    let serve = format!(r#"["/bin/httpd","-f","-p","127.0.0.1:{port}","-h","/data/html"]"#);
    let served = format!("{place}:served");
    let change = format!("CMD {serve}");
    let described = ["-q", "-a", "an author", "-m", "a message", "-c", &change];
    stand.acetate(&[&["commit"], &described[..], &[rootfs, &served]].concat());
    assert_eq!(command(&served), serve);

    let pushed = stand.acetate(&["push", &format!("{place}:one")]);
    assert!(!pushed.contains("exists"), "{pushed}");
    for again in [format!("{place}:two"), served.clone()] {
        let pushed = stand.acetate(&["push", &again]);
        assert!(pushed.contains("exists"), "{pushed}");
    }
    let catalog = stand.acetate(&["registry", "catalog", &format!("127.0.0.1:{}", stand.port)]);
    assert!(catalog.contains("pages/page"), "{catalog}");

    // From here on containerd has it from the registry alone.
    stand.end("maker");
    stand.acetate(&["image", "prune", "--all"]);
    stand.ctr(&["images", "rm", "--sync", &base]);
    assert_eq!(stand.snapshots(&["ls"]).lines().count(), 1);
    let mut before = None;
    for _ in 0..2 {
        stand.pull(&served);
        stand.start(&["--net-host"], &[&served, "server"]);
        assert_eq!(get(port), "a page\n");
        let digest = stand.digest(&served);
        if let Some(before) = before.replace(digest.clone()) {
            assert_eq!(before, digest);
        }
        // A container that runs keeps its layers, whatever becomes of the image's name.
        stand.ctr(&["images", "rm", "--sync", &served]);
        assert_eq!(get(port), "a page\n");
        stand.end("server");
        // The collector runs once more with the next removal.
        stand.pull(&served);
        stand.ctr(&["images", "rm", "--sync", &served]);
        assert_eq!(stand.snapshots(&["ls"]).lines().count(), 1);
    }
    let left = fs::read_dir(stand.scratch.join("root/snapshots")).unwrap();
    assert_eq!(left.count(), 0);
}
