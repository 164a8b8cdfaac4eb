//! containerd itself, with the snapshotter as its proxy plugin: `ctr` pulls from a registry, runs, lists, and removes.

#![cfg(feature = "snapshotter")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "containerd/story.rs"]
mod story;
#[path = "containerd/suite.rs"]
mod suite;

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Scratch, Watchdog, program, skip};

const LIMIT: Duration = Duration::from_secs(60);

/// A service that ends with the test.
struct Service(Child);

impl Service {
    fn start(command: &mut Command, log: &Path, answers: impl Fn() -> bool) -> Service {
        let log = File::create(log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut service = Service(child);
        let begin = Instant::now();
        while !answers() {
            assert!(begin.elapsed() < LIMIT, "{command:?} does not answer");
            let ended = service.0.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended: {ended:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        service
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        if let Err(e) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM) {
            eprintln!("kill {pid}: {e}");
        }
        let begin = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            if begin.elapsed() > Duration::from_secs(20) {
                self.0.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

struct Stand {
    scratch: Scratch,
    port: u16,
    _snapshotter: Service,
    _registry: Service,
    _containerd: Service,
}

impl Drop for Stand {
    /// What a failed test left running would outlive containerd.
    fn drop(&mut self) {
        let ctr = |words: &[&str]| {
            let mut ctr = Command::new("ctr");
            ctr.arg("-a").arg(self.scratch.join("c.sock"));
            ctr.args(["-n", &self.namespace()]).args(words);
            program::run(&mut ctr, LIMIT)
        };
        for task in ctr(&["tasks", "ls", "-q"]).text.split_whitespace() {
            let ended = ctr(&["tasks", "rm", "-f", task]);
            eprintln!("task {task} was left: {}", ended.text);
        }
    }
}

impl Stand {
    fn new(mounts: &str) -> Stand {
        let scratch = Scratch::new("containerd");
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let path = |name: &str| scratch.join(name);
        let listens = |socket: PathBuf| move || UnixStream::connect(&socket).is_ok();
        let snapshotter = Service::start(
            Command::new(env!("CARGO_BIN_EXE_acetate"))
                .args(["snapshotter", "--debug", "--mounts", mounts, "--address"])
                .arg(path("s.sock"))
                .arg("--root")
                .arg(path("root")),
            &path("snapshotter.log"),
            listens(path("s.sock")),
        );
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
            scratch.dir("registry").display()
        );
        fs::write(path("registry.yml"), config).unwrap();
        let registry = Service::start(
            Command::new("docker-registry")
                .arg("serve")
                .arg(path("registry.yml")),
            &path("registry.log"),
            || TcpStream::connect(("127.0.0.1", port)).is_ok(),
        );
        let dir = scratch.path().display();
        let config = format!(
            r#"version = 2
root = "{dir}/containerd"
state = "{dir}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{dir}/c.sock"
[proxy_plugins.acetate]
  type = "snapshot"
  address = "{dir}/s.sock"
  capabilities = ["rebase"]
  [proxy_plugins.acetate.exports]
    root = "{dir}/root"
"#
        );
        fs::write(path("containerd.toml"), config).unwrap();
        let containerd = Service::start(
            Command::new("containerd")
                .arg("-c")
                .arg(path("containerd.toml")),
            &path("containerd.log"),
            listens(path("c.sock")),
        );
        Stand {
            port,
            _snapshotter: snapshotter,
            _registry: registry,
            _containerd: containerd,
            scratch,
        }
    }

    /// runc keeps the containers of all containerds in one folder, by namespace.
    fn namespace(&self) -> String {
        format!("acetate-{}", self.port)
    }

    fn ctr(&self, words: &[&str]) -> String {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a").arg(self.scratch.join("c.sock"));
        ctr.args(["-n", &self.namespace()]).args(words);
        program::must(&mut ctr, LIMIT)
    }

    fn snapshots(&self, words: &[&str]) -> String {
        self.ctr(&[&["snapshots", "--snapshotter", "acetate"], words].concat())
    }

    /// An image of two layers in the registry: the second hides a file of the first.
    fn image(&self) -> String {
        let layout = self.scratch.join("layout");
        let bundle = self.scratch.join("bundle");
        let image = format!("{}:1", layout.display());
        let umoci = |words: &[&str]| program::must(Command::new("umoci").args(words), LIMIT);
        umoci(&["init", "--layout", layout.to_str().unwrap()]);
        umoci(&["new", "--image", &image]);
        umoci(&["unpack", "--image", &image, bundle.to_str().unwrap()]);
        let root = bundle.join("rootfs");
        for dir in ["bin", "etc", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in ["sh", "ls", "cat", "echo", "rm", "mkdir", "sleep", "httpd"] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("etc/one"), "one").unwrap();
        // A bundle is unpacked anew for each layer, so that the layer is a difference.
        umoci(&["repack", "--image", &image, bundle.to_str().unwrap()]);
        fs::remove_dir_all(&bundle).unwrap();
        umoci(&["unpack", "--image", &image, bundle.to_str().unwrap()]);
        fs::remove_file(root.join("etc/one")).unwrap();
        fs::write(root.join("etc/two"), "two").unwrap();
        umoci(&["repack", "--image", &image, bundle.to_str().unwrap()]);
        let name = format!("127.0.0.1:{}/bb:1", self.port);
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "copy",
            "--dest-tls-verify=false",
            &format!("oci:{image}"),
            &format!("docker://{name}"),
        ]);
        program::must(&mut skopeo, LIMIT);
        name
    }
}

fn needs() -> Result<(), String> {
    skip::privileged()?;
    for name in [
        "containerd",
        "ctr",
        "runc",
        "docker-registry",
        "umoci",
        "skopeo",
        "busybox",
        "mount.fuse3",
    ] {
        skip::program(name)?;
    }
    Ok(())
}

fn life(mounts: &str) {
    require!(needs());
    let _limit = Watchdog::new("containerd", Duration::from_secs(200));
    let stand = Stand::new(mounts);
    let image = stand.image();
    stand.ctr(&[
        "images",
        "pull",
        "--plain-http",
        "--snapshotter",
        "acetate",
        &image,
    ]);
    let committed = |text: &str| {
        text.lines()
            .filter(|line| line.contains("Committed"))
            .count()
    };
    assert_eq!(committed(&stand.snapshots(&["ls"])), 2);
    assert_eq!(stand.snapshots(&["tree"]).lines().count(), 2);

    let script = "ls /etc; cat /etc/two; echo drawn >/etc/three; rm /etc/two; cat /etc/three";
    let printed = stand.ctr(&[
        "run",
        "--rm",
        "--snapshotter",
        "acetate",
        &image,
        "t1",
        "sh",
        "-c",
        script,
    ]);
    assert!(
        printed.contains("two\ntwo") && printed.contains("drawn") && !printed.contains("one"),
        "{printed}"
    );
    // The second container sees nothing of the first one's.
    let script = "ls /etc; echo kept >/etc/four";
    let printed = stand.ctr(&[
        "run",
        "--snapshotter",
        "acetate",
        &image,
        "t2",
        "sh",
        "-c",
        script,
    ]);
    assert!(
        printed.contains("two") && !printed.contains("three"),
        "{printed}"
    );

    let usage = stand.snapshots(&["usage"]);
    assert_eq!(usage.lines().count(), 4, "{usage}");
    let diff = stand.scratch.join("diff.tgz");
    let socket = stand.scratch.join("c.sock");
    let shell = format!(
        "ctr -a {} -n {} snapshots --snapshotter acetate diff t2 > {}",
        socket.display(),
        stand.namespace(),
        diff.display()
    );
    program::must(Command::new("sh").arg("-c").arg(shell), LIMIT);
    let listed = program::must(Command::new("tar").arg("tzf").arg(&diff), LIMIT);
    assert!(
        listed.contains("etc/four") && !listed.contains("etc/two"),
        "{listed}"
    );

    stand.ctr(&["containers", "rm", "t2"]);
    stand.snapshots(&["prepare", "by-hand"]);
    stand.snapshots(&["rm", "by-hand"]);
    stand.ctr(&["images", "rm", "--sync", &image]);
    assert_eq!(
        stand.snapshots(&["ls"]).lines().count(),
        1,
        "the collector took all"
    );
    for dir in ["records", "snapshots", "mounts", "trash"] {
        let left = fs::read_dir(stand.scratch.join("root").join(dir))
            .unwrap()
            .count();
        assert_eq!(left, 0, "{dir}");
    }
    let mounts: Vec<_> = common::connection::mounts()
        .into_iter()
        .filter(|m| m.target.starts_with(stand.scratch.path()))
        .collect();
    assert!(mounts.is_empty(), "{mounts:?}");
}

#[test]
#[ignore = "needs containerd, a registry and root"]
fn ctr_pulls_runs_and_collects() {
    life("helper");
}

#[test]
#[ignore = "needs containerd, a registry and root"]
fn ctr_does_the_same_on_mounts_that_the_snapshotter_keeps() {
    life("snapshotter");
}
