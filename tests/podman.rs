//! podman, as root and rootless, with acetate as its mount program.
//!
//! The same life of a container is lived twice, on the kernel's overlayfs and on acetate. Both must print the
//! same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "podman/commands.rs"]
mod commands;
mod common;
#[path = "podman/engine.rs"]
mod engine;
#[path = "podman/storage.rs"]
mod storage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Scratch, Watchdog, program, skip};
use engine::{Engine, User};

const BINARY: &str = env!("CARGO_BIN_EXE_acetate");

/// Prints a tree as a container sees it: times and inode numbers left out, and link counts of directories, which the
/// kernel's overlayfs does not count.
const SHOW: &str = r#"find "$@" -xdev | sort | while read -r path; do
  if [ -L "$path" ]; then stat -c '%n %A %u:%g %N' "$path"
  elif [ -d "$path" ]; then stat -c '%n %A %u:%g' "$path"
  else stat -c '%n %A %u:%g %h' "$path"; fi
  if [ -f "$path" ]; then md5sum "$path"; fi
done"#;

const WRITE: &str = r#"set -e
echo new >/new
echo more >>/etc/appended
rm /etc/removed
rm -r /tree/gone
mkdir /tree/gone && echo again >/tree/gone/again
mv /tree/moved /tree/elsewhere
ln /data/file /data/link
ln -s ../new /data/symlink
chmod 4755 /data/suid
chown 7:8 /data/file
mknod /data/fifo p
mkdir -p /deep/a/b/c && echo deep >/deep/a/b/c/d
i=0; while [ $i -lt 200 ]; do echo $i >/many/new$i; mv /many/$i /many/moved$i; i=$((i+1)); done
echo written
"#;

const BUILD: &str = r#"FROM localhost/base:1
COPY copied /copied
RUN echo built >/built && rm /etc/removed && mv /tree/moved /tree/renamed
RUN rm -r /tree/gone && echo twice >>/built
"#;

/// The root filesystem of the image.
fn base(scratch: &Scratch) -> PathBuf {
    let root = scratch.dir("base");
    for dir in [
        "bin",
        "etc",
        "tmp",
        "proc",
        "dev",
        "sys",
        "data",
        "many",
        "tree/gone/sub",
        "tree/moved/sub",
    ] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let busybox = program::find("busybox").unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for applet in
        "sh echo rm mkdir mv ln ls chmod chown mknod cat find sort stat md5sum cmp sleep sync httpd"
            .split(' ')
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    for file in [
        "etc/appended",
        "etc/removed",
        "data/file",
        "data/suid",
        "tree/gone/sub/file",
        "tree/moved/sub/file",
    ] {
        fs::write(root.join(file), format!("{file} of the image\n")).unwrap();
    }
    for i in 0..200 {
        fs::write(root.join(format!("many/{i}")), format!("{i}\n")).unwrap();
    }
    let tar = scratch.join("base.tar");
    program::must(
        Command::new("tar")
            .args(["--owner=0", "--group=0", "--numeric-owner", "-cf"])
            .arg(&tar)
            .arg("-C")
            .arg(&root)
            .arg("."),
        Duration::from_secs(30),
    );
    tar
}

/// What a container's life printed, step by step.
fn live(engine: &Engine, base: &Path) -> Vec<(String, String)> {
    let mut said = Vec::new();
    let mut step = |name: &str, text: String| said.push((name.to_owned(), text));
    let show = |image: &str, path: &str| {
        engine.podman(&["run", "--rm"], &[image, "sh", "-c", SHOW, "sh", path])
    };
    engine.podman(
        &["import", "-q"],
        &[&base.display().to_string(), "localhost/base:1"],
    );

    step(
        "run",
        engine.podman(
            &["run", "--name", "writer"],
            &["localhost/base:1", "sh", "-c", WRITE],
        ),
    );
    let mut changes: Vec<String> = engine
        .podman(&["diff"], &["writer"])
        .lines()
        // Made anew: podman calls it deleted where it reads the upper itself, changed where it compares trees.
        .filter(|line| !line.contains(" /tree/gone"))
        .map(str::to_owned)
        .collect();
    changes.sort();
    step("diff", changes.join("\n"));
    // A stopped container is mounted again for the copy.
    let copied = engine.home().join("copied");
    engine.podman(
        &["cp"],
        &["writer:/etc/appended", &copied.display().to_string()],
    );
    step("cp", fs::read_to_string(&copied).unwrap());

    engine.podman(&["commit", "-q"], &["writer", "localhost/committed:1"]);
    // The rest of /etc holds what podman itself writes for each container.
    for path in [
        "/etc/appended",
        "/etc/passwd",
        "/tree",
        "/data",
        "/many",
        "/deep",
        "/new",
    ] {
        step(
            &format!("committed {path}"),
            show("localhost/committed:1", path),
        );
    }
    step("base unchanged", show("localhost/base:1", "/tree"));

    let context = engine.home().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Containerfile"), BUILD).unwrap();
    fs::write(context.join("copied"), "copied\n").unwrap();
    engine.podman(
        &["build", "-q", "-t", "localhost/built:1"],
        &[&context.display().to_string()],
    );
    for path in ["/etc/appended", "/tree", "/built", "/copied"] {
        step(&format!("built {path}"), show("localhost/built:1", path));
    }

    // Four at once over one image, and a file of the host bound over one of the image.
    let bound = engine.home().join("bound");
    fs::write(&bound, "bound\n").unwrap();
    let volume = format!("{}:/etc/appended:ro", bound.display());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|i| {
                let volume = &volume;
                scope.spawn(move || {
                    let script = format!(
                        "cat /etc/appended; cat /many/*; echo {i} >/many/0; mv /tree /tree{i}; cat /tree{i}/moved/sub/file"
                    );
                    engine.podman(
                        &["run", "--rm", "-v", volume],
                        &["localhost/base:1", "sh", "-c", &script],
                    )
                })
            })
            .collect();
        for run in runs {
            step("at once", run.join().unwrap());
        }
    });

    engine.podman(&["rm", "-f"], &["writer"]);
    engine.podman(
        &["rmi", "-f"],
        &[
            "localhost/built:1",
            "localhost/committed:1",
            "localhost/base:1",
        ],
    );
    said
}

fn same_life(user: &User, live: impl Fn(&Engine, &Path) -> Vec<(String, String)>) {
    let scratch = Scratch::new("podman");
    let base = base(&scratch);
    let mut lives = Vec::new();
    for (name, program) in [("judge", None), ("acetate", Some(BINARY))] {
        let begin = Instant::now();
        let engine = Engine::new(&scratch.dir(name), user, program);
        lives.push(live(&engine, &base));
        engine.assert_nothing_left();
        println!(
            "podman with {}: {:?}",
            program.unwrap_or("kernel overlayfs"),
            begin.elapsed()
        );
    }
    let ours = lives.pop().unwrap();
    let judge = lives.pop().unwrap();
    assert_eq!(judge.len(), ours.len());
    for ((step, judge), (_, ours)) in judge.iter().zip(&ours) {
        let only = |these: &str, those: &str| -> Vec<String> {
            let those: Vec<&str> = those.lines().collect();
            let lines = these.lines().filter(|line| !those.contains(line));
            lines.map(str::to_owned).collect()
        };
        assert!(
            judge == ours,
            "{step}: only the judge: {:#?}, only acetate: {:#?}",
            only(judge, ours),
            only(ours, judge)
        );
    }
}

#[test]
#[ignore = "heavy: needs podman, runc and busybox-static (Debian packages)"]
fn podman_as_root_lives_as_on_kernel_overlayfs() {
    require!(skip::privileged());
    for name in ["podman", "runc", "busybox"] {
        require!(program::find(name));
    }
    let _limit = Watchdog::new("podman", Duration::from_secs(300));
    same_life(&User::Root, live);
}

#[test]
#[ignore = "heavy: needs podman, runc, uidmap and busybox-static (Debian packages)"]
fn podman_rootless_lives_as_on_kernel_overlayfs() {
    require!(skip::privileged());
    for name in [
        "podman",
        "runc",
        "busybox",
        "newuidmap",
        "setpriv",
        "useradd",
    ] {
        require!(program::find(name));
    }
    let _limit = Watchdog::new("podman rootless", Duration::from_secs(300));
    let user = User::plain();
    same_life(&user, live);
}

#[test]
#[ignore = "heavy: needs podman, runc, docker-registry and busybox-static (Debian packages)"]
fn podman_commands_as_root_print_what_they_print_on_kernel_overlayfs() {
    require!(skip::privileged());
    for name in ["podman", "runc", "busybox"] {
        require!(program::find(name));
    }
    require!(commands::needs());
    let _limit = Watchdog::new("podman's commands", Duration::from_secs(460));
    let mapped = ["--uidmap", "0:100000:5000", "--gidmap", "0:100000:5000"];
    same_life(&User::Root, |engine, base| {
        commands::all(engine, base, &mapped)
    });
}

#[test]
#[ignore = "heavy: needs podman, runc, uidmap, docker-registry and busybox-static (Debian packages)"]
fn podman_commands_rootless_print_what_they_print_on_kernel_overlayfs() {
    require!(skip::privileged());
    for name in [
        "podman",
        "runc",
        "busybox",
        "newuidmap",
        "setpriv",
        "useradd",
    ] {
        require!(program::find(name));
    }
    require!(commands::needs());
    let _limit = Watchdog::new("podman's commands, rootless", Duration::from_secs(460));
    same_life(&User::plain(), |engine, base| {
        commands::all(engine, base, &["--userns=keep-id", "--user", "0"])
    });
}

#[test]
#[ignore = "heavy: needs podman, runc and busybox-static (Debian packages)"]
fn podman_as_root_with_each_option_of_the_storage() {
    require!(skip::privileged());
    for name in ["podman", "runc", "busybox"] {
        require!(program::find(name));
    }
    let _limit = Watchdog::new("podman's storage options", Duration::from_secs(300));
    let scratch = Scratch::new("storage");
    let base = base(&scratch);
    storage::options(scratch.path(), &base, &User::Root);
}

#[test]
#[ignore = "heavy: needs podman, runc, uidmap and busybox-static (Debian packages)"]
fn podman_gives_each_container_ids_of_its_own() {
    require!(skip::privileged());
    for name in ["podman", "runc", "busybox", "useradd"] {
        require!(program::find(name));
    }
    let _limit = Watchdog::new("podman's ids", Duration::from_secs(300));
    let scratch = Scratch::new("auto");
    let base = base(&scratch);
    // Its subordinate ids are what podman as root gives out.
    let _owner = User::plain();
    storage::automatic_ids(&scratch.dir("auto"), &base, &User::Root);
}
