//! The snapshotter, through its socket, as containerd's own suite of snapshotters asks: mounts are made as containerd
//! makes them, changed, committed and compared with a plain directory that had the same changes.

#![cfg(feature = "snapshotter")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "snapshotter/lives.rs"]
mod lives;
#[path = "snapshotter/newer.rs"]
mod newer;
#[path = "snapshotter/rig.rs"]
mod rig;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use acetate::snapshotter::proto::{Kind, Timestamp};
use common::{Scratch, Tree, TreeOptions, Watchdog, program, skip};
use rig::{Client, Mounted, Server, code};
use tonic::Code;

const PLAIN: TreeOptions = TreeOptions {
    mtime: false,
    ..TreeOptions::CONTENTS
};

struct Stand {
    scratch: Scratch,
    server: Option<Server>,
    client: Client,
    _limit: Watchdog,
}

impl Stand {
    fn new(name: &str) -> Stand {
        Stand::with(name, &[])
    }

    fn with(name: &str, flags: &[&str]) -> Stand {
        let limit = Watchdog::new(name, Duration::from_secs(280));
        let scratch = Scratch::new(name);
        let server = Server::start(&scratch, flags);
        let client = Client::new(&server.address);
        Stand {
            scratch,
            server: Some(server),
            client,
            _limit: limit,
        }
    }

    fn mount(&self, mounts: &[acetate::snapshotter::proto::Mount]) -> Mounted {
        Mounted::new(mounts, &self.scratch.join("mnt"))
    }

    /// One layer after the other is made in a snapshot and in a plain directory: each view shows what lies there.
    fn layers(&mut self, layers: &[&dyn Fn(&Path)]) {
        let flat = self.scratch.dir("flat");
        fs::set_permissions(&flat, Permissions::from_mode(0o755)).unwrap();
        let mut parent = String::new();
        for (number, apply) in layers.iter().enumerate() {
            let key = format!("prepare {number}");
            let mounts = self.client.prepare(&key, &parent).unwrap();
            let mounted = self.mount(&mounts);
            same(&flat, mounted.path(), &format!("{number} before"));
            apply(mounted.path());
            apply(&flat);
            same(&flat, mounted.path(), &format!("{number} after"));
            drop(mounted);
            let name = format!("layer/{number}");
            self.client.commit(&name, &key).unwrap();
            let mounts = self.client.view("view", &name).unwrap();
            let mounted = self.mount(&mounts);
            same(&flat, mounted.path(), &format!("{number} committed"));
            let denied = fs::write(mounted.path().join("x"), "").unwrap_err();
            assert_eq!(denied.raw_os_error(), Some(libc::EROFS));
            drop(mounted);
            self.client.remove("view").unwrap();
            parent = name;
        }
    }

    /// Sweeps until no more is left: a daemon may live a little longer than its mount.
    fn swept_down_to(&mut self, files: usize) {
        let begin = Instant::now();
        while self.left().len() > files {
            let left = self.left();
            assert!(begin.elapsed() < Duration::from_secs(60), "{left:?}");
            self.client.cleanup().unwrap();
        }
        assert_eq!(self.left().len(), files, "{:?}", self.left());
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for dir in ["records", "snapshots", "mounts", "trash", "tmp"] {
            for entry in fs::read_dir(self.scratch.join("root").join(dir)).unwrap() {
                left.push(format!("{dir}/{}", entry.unwrap().file_name().display()));
            }
        }
        left
    }
}

#[track_caller]
fn same(a: &Path, b: &Path, what: &str) {
    let (a, b) = (Tree::read(a, PLAIN).unwrap(), Tree::read(b, PLAIN).unwrap());
    a.assert_same(&b, what);
}

fn file(root: &Path, name: &str, text: &str, mode: u32) {
    fs::write(root.join(name), text).unwrap();
    fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
}

fn dir(root: &Path, name: &str, mode: u32) {
    fs::create_dir(root.join(name)).unwrap();
    fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
}

fn own(root: &Path, name: &str, id: u32) {
    chown(root.join(name), Some(id), Some(id)).unwrap();
}

fn prerequisites() -> Result<(), String> {
    skip::privileged()?;
    skip::program("mount.fuse3")
}

fn basic(flags: &[&str]) {
    let mut stand = Stand::with("basic", flags);
    stand.layers(&[
        &|root| {
            file(root, "foo", "foo\n", 0o777);
            dir(root, "a", 0o755);
            dir(root, "a/b", 0o755);
            dir(root, "a/b/c", 0o755);
        },
        &|root| {
            file(root, "bar", "bar\n", 0o777);
            file(root, "foo", "bar\n", 0o777);
            fs::remove_dir_all(root.join("a/b")).unwrap();
        },
    ]);
    let client = &mut stand.client;
    assert_eq!(code(client.stat("prepare 0")), Code::NotFound);
    let top = client.stat("layer/1").unwrap();
    assert_eq!(
        (top.kind(), top.parent.as_str()),
        (Kind::Committed, "layer/0")
    );
    let refused = client.remove("layer/0").unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("remove"), "{refused}");
    client.remove("layer/1").unwrap();
    client.remove("layer/0").unwrap();
    stand.swept_down_to(0);
    // A client that keeps its connection does not hold up the end.
    let begin = Instant::now();
    assert_eq!(stand.server.take().unwrap().terminate(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(60));
    assert!(!stand.scratch.join("s.sock").exists());
}

#[test]
fn layers_are_made_and_removed() {
    require!(prerequisites());
    basic(&[]);
}

#[test]
fn without_the_helper_the_snapshotter_keeps_the_mounts() {
    require!(prerequisites());
    basic(&["--mounts", "snapshotter"]);
}

#[test]
fn files_and_directories_change() {
    require!(prerequisites());
    Stand::new("changes").layers(&[
        &|root| {
            dir(root, "etc", 0o700);
            file(root, "etc/hosts", "mydomain 10.0.0.1", 0o644);
            file(root, "etc/profile", "PATH=/usr/bin", 0o644);
            dir(root, "lib", 0o700);
            file(root, "lib/hidden", "", 0o644);
            file(root, "foobar", "foobar", 0o777);
        },
        &|root| {
            file(root, "etc/hosts", "mydomain 10.0.0.2", 0o644);
            file(root, "etc/profile", "PATH=/usr/bin", 0o666);
            dir(root, "root", 0o700);
            file(root, "root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644);
            fs::remove_dir_all(root.join("lib")).unwrap();
            dir(root, "lib", 0o700);
            file(root, "lib/not-hidden", "", 0o644);
            fs::remove_file(root.join("foobar")).unwrap();
        },
        &|root| file(root, "lib/newfile", "", 0o644),
        &|_| {},
    ]);
}

#[test]
fn owners_and_modes_are_committed() {
    require!(prerequisites());
    Stand::new("owners").layers(&[
        &|root| {
            for name in [
                "opt", "opt/a", "opt/a/b", "dir1", "dir2", "dir3", "dir4", "dir5",
            ] {
                dir(root, name, 0o700);
            }
            for name in ["opt/a/b/file.txt", "dir4/f1", "dir5/f1"] {
                file(root, name, "...", 0o644);
            }
            for name in ["dir1", "dir2", "dir3", "dir5", "dir5/f1"] {
                own(root, name, 1);
            }
        },
        &|root| {
            for name in [
                "opt",
                "opt/a",
                "opt/a/b",
                "opt/a/b/file.txt",
                "dir4",
                "dir4/f1",
            ] {
                own(root, name, 1);
            }
            own(root, "dir2", 0);
            fs::remove_dir_all(root.join("dir3")).unwrap();
        },
        &|root| {
            dir(root, "dir3", 0o700);
            own(root, "dir3", 1);
            fs::remove_dir_all(root.join("dir5")).unwrap();
            dir(root, "dir5", 0o700);
            own(root, "dir5", 1);
            // The root's own owner and mode, too.
            fs::set_permissions(root, Permissions::from_mode(0o750)).unwrap();
            chown(root, Some(3), Some(4)).unwrap();
        },
        &|root| own(root, "dir1", 2),
    ]);
}

#[test]
fn names_move_out_of_lower_layers() {
    require!(prerequisites());
    Stand::new("moves").layers(&[
        &|root| {
            dir(root, "dir1", 0o700);
            file(root, "dir1/f1", "Hello", 0o644);
            dir(root, "dir2", 0o700);
            file(root, "dir2/f2", "...", 0o644);
            dir(root, "moved", 0o700);
            file(root, "moved/inside", "was here first!", 0o644);
        },
        &|root| {
            dir(root, "dir3", 0o700);
            file(root, "dir3/f1", "Hello", 0o644);
            fs::remove_dir_all(root.join("dir1")).unwrap();
            fs::hard_link(root.join("dir2/f2"), root.join("dir3/f2")).unwrap();
            fs::remove_file(root.join("dir2/f2")).unwrap();
            fs::rename(root.join("moved"), root.join("renamed")).unwrap();
        },
        &|root| {
            file(root, "renamed/new", "new content", 0o644);
            fs::rename(root.join("renamed/new"), root.join("renamed/inside")).unwrap();
            fs::rename(root.join("dir3/f2"), root.join("dir3/f3")).unwrap();
        },
    ]);
}

#[test]
fn xattrs_and_capabilities_are_committed() {
    require!(prerequisites());
    require!(skip::program("setcap"));
    Stand::new("xattrs").layers(&[
        &|root| {
            file(root, "tool", "x", 0o755);
            let mut setcap = Command::new("setcap");
            program::must(
                setcap.arg("cap_net_raw=ep").arg(root.join("tool")),
                Duration::from_secs(10),
            );
        },
        &|root| {
            fs::set_permissions(root.join("tool"), Permissions::from_mode(0o750)).unwrap();
            let mut setfattr = Command::new("setfattr");
            setfattr
                .args(["-n", "user.a", "-v", "b"])
                .arg(root.join("tool"));
            program::must(&mut setfattr, Duration::from_secs(10));
        },
    ]);
}

#[test]
fn a_committed_snapshot_is_a_plain_layer() {
    require!(prerequisites());
    let mut stand = Stand::new("plain");
    let big = vec![7u8; 3 << 20];
    stand.layers(&[
        &|root| {
            fs::write(root.join("big"), &big).unwrap();
            file(root, "mode", "data", 0o644);
        },
        &|root| {
            use std::os::unix::fs::FileExt;
            let file = fs::File::options()
                .write(true)
                .open(root.join("big"))
                .unwrap();
            file.write_all_at(b"new", 1 << 20).unwrap();
            fs::set_permissions(root.join("mode"), Permissions::from_mode(0o600)).unwrap();
        },
    ]);
    let mounts = stand.client.prepare("top", "layer/1").unwrap();
    let lower = mounts[0]
        .options
        .iter()
        .find_map(|o| o.strip_prefix("lowerdir="))
        .unwrap();
    let layer = Path::new(lower.split(':').next().unwrap());
    // No union is needed to read what the layer holds.
    let mut expected = big.clone();
    expected[1 << 20..(1 << 20) + 3].copy_from_slice(b"new");
    assert!(fs::read(layer.join("big")).unwrap() == expected);
    assert_eq!(fs::read(layer.join("mode")).unwrap(), b"data");
}

#[test]
fn names_kinds_and_codes() {
    require!(prerequisites());
    let mut stand = Stand::new("codes");
    let c = &mut stand.client;
    c.prepare("a", "").unwrap();
    assert_eq!(code(c.prepare("a", "")), Code::AlreadyExists);
    assert_eq!(code(c.view("a", "")), Code::AlreadyExists);
    assert_eq!(code(c.prepare("x", "missing")), Code::NotFound);
    assert_eq!(code(c.prepare("x", "a")), Code::InvalidArgument);
    assert_eq!(code(c.prepare("", "")), Code::InvalidArgument);
    assert_eq!(code(c.mounts("missing")), Code::NotFound);
    assert_eq!(code(c.usage("missing")), Code::NotFound);
    assert_eq!(code(c.remove("missing")), Code::NotFound);
    assert_eq!(code(c.stat("missing")), Code::NotFound);
    assert_eq!(code(c.commit("c", "missing")), Code::NotFound);
    assert_eq!(code(c.commit("", "a")), Code::InvalidArgument);
    c.commit("c", "a").unwrap();
    assert_eq!(code(c.mounts("c")), Code::FailedPrecondition);
    c.prepare("b", "c").unwrap();
    assert_eq!(code(c.commit("c", "b")), Code::AlreadyExists);
    assert_eq!(code(c.commit("d", "c")), Code::FailedPrecondition);
    c.view("v", "c").unwrap();
    assert_eq!(code(c.commit("d", "v")), Code::FailedPrecondition);
    assert_eq!(code(c.remove("c")), Code::FailedPrecondition);
    // A snapshot without a parent may be put on one by its commit; one that has a parent keeps it.
    c.prepare("free", "").unwrap();
    assert_eq!(
        code(c.commit_with("f", "free", "missing", &[])),
        Code::NotFound
    );
    assert_eq!(
        code(c.commit_with("f", "free", "b", &[])),
        Code::FailedPrecondition
    );
    c.commit_with("f", "free", "c", &[]).unwrap();
    assert_eq!(c.stat("f").unwrap().parent, "c");
    assert_eq!(
        code(c.commit_with("g", "b", "f", &[])),
        Code::InvalidArgument
    );
    // Hostile names are names.
    for name in ["../../../etc", "/", "a\nb", "-o", "ü\u{202e}"] {
        c.prepare(name, "c").unwrap();
        assert_eq!(c.stat(name).unwrap().name, name);
        c.remove(name).unwrap();
    }
    let unknown: Result<acetate::snapshotter::proto::Empty, _> =
        c.call("Explode", acetate::snapshotter::proto::Empty {});
    assert_eq!(code(unknown), Code::Unimplemented);
    for key in ["f", "b", "v", "c"] {
        c.remove(key).unwrap();
    }
    stand.swept_down_to(0);
}

#[test]
fn names_are_free_again_after_removal() {
    require!(prerequisites());
    let mut stand = Stand::new("again");
    let c = &mut stand.client;
    c.prepare("committed-a", "").unwrap();
    c.commit("committed-1", "committed-a").unwrap();
    c.prepare("reuse-1", "committed-1").unwrap();
    c.remove("reuse-1").unwrap();
    c.view("reuse-1", "committed-1").unwrap();
    c.remove("reuse-1").unwrap();
    c.prepare("reuse-1", "").unwrap();
    c.remove("committed-1").unwrap();
    c.commit("committed-1", "reuse-1").unwrap();
}

fn now() -> Timestamp {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap(),
        nanos: i32::try_from(since.subsec_nanos()).unwrap(),
    }
}

#[test]
fn labels_are_updated_by_field() {
    require!(prerequisites());
    let mut stand = Stand::new("update");
    let c = &mut stand.client;
    let begin = now();
    c.prepare("c1-a", "").unwrap();
    c.commit_with("c1", "c1-a", "", &[("root", "r")]).unwrap();
    c.prepare("a1", "c1").unwrap();
    c.view("v1", "c1").unwrap();
    c.view("v2", "").unwrap();
    for (name, kind, parent) in [
        ("c1", Kind::Committed, ""),
        ("a1", Kind::Active, "c1"),
        ("v1", Kind::View, "c1"),
        ("v2", Kind::View, ""),
    ] {
        let mut info = c.stat(name).unwrap();
        let created = info.created_at.unwrap();
        assert!(begin <= created && created <= now());
        assert_eq!(info.updated_at, info.created_at);
        assert_eq!((info.kind(), info.parent.as_str()), (kind, parent));
        info.parent = "doesnotexist".into();
        info.labels = rig::map(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]);
        let before = now();
        let mut info = c.update(info, &[]).unwrap();
        assert_eq!(info.created_at, Some(created));
        assert!(before <= info.updated_at.unwrap() && info.updated_at.unwrap() <= now());
        assert_eq!((info.kind(), info.parent.as_str()), (kind, parent));
        assert_eq!(info.labels.len(), 3);
        info.labels = rig::map(&[("l1", "updated"), ("l4", "v4")]);
        let mut info = c.update(info, &["labels.l1", "labels.l2"]).unwrap();
        assert_eq!(info.labels, rig::map(&[("l1", "updated"), ("l3", "v3")]));
        info.labels = rig::map(&[("l4", "v4"), ("empty", "")]);
        let info = c.update(info, &["labels"]).unwrap();
        assert_eq!(info.labels, rig::map(&[("l4", "v4")]));
        assert_eq!(
            code(c.update(info.clone(), &["parent"])),
            Code::InvalidArgument
        );
        let mut long = info;
        long.labels = rig::map(&[("k", &"x".repeat(4096))]);
        assert_eq!(code(c.update(long, &[])), Code::InvalidArgument);
        assert_eq!(c.stat(name).unwrap().labels, rig::map(&[("l4", "v4")]));
    }
}

#[test]
fn lists_are_filtered() {
    require!(prerequisites());
    let mut stand = Stand::new("list");
    let c = &mut stand.client;
    let root = ("containerd.io/gc.root", "check-walk");
    c.create("Prepare", "a-np", "", &[root]).unwrap();
    c.prepare("p-tmp", "").unwrap();
    c.commit_with("p", "p-tmp", "", &[root]).unwrap();
    c.create("Prepare", "a", "p", &[root]).unwrap();
    c.create("View", "v", "p", &[root]).unwrap();
    c.prepare("p-wl-tmp", "").unwrap();
    c.commit_with("p-wl", "p-wl-tmp", "", &[root, ("l", "1")])
        .unwrap();
    c.create("Prepare", "a-wl", "p-wl", &[root, ("l", "2")])
        .unwrap();
    c.create("View", "v-wl", "p-wl", &[root, ("l", "3")])
        .unwrap();
    c.create("Prepare", "a-np-wl", "", &[root, ("l", "2")])
        .unwrap();
    let gc = "labels.\"containerd.io/gc.root\"==check-walk";
    for (filters, expected) in [
        (vec![gc.to_owned()], "a a-np a-np-wl a-wl p p-wl v v-wl"),
        (vec![], "a a-np a-np-wl a-wl p p-wl v v-wl"),
        (vec![format!("kind==active,{gc}")], "a a-np a-np-wl a-wl"),
        (vec![format!("kind==view,{gc}")], "v v-wl"),
        (vec![format!("kind==committed,{gc}")], "p p-wl"),
        (vec!["name==p".into(), "name==a-np-wl".into()], "a-np-wl p"),
        (vec!["name==a-wl,labels.l".into()], "a-wl"),
        (vec!["parent==p".into()], "a v"),
        (vec![format!("parent!=\"\",{gc}")], "a a-wl v v-wl"),
        (vec!["labels.l".into()], "a-np-wl a-wl p-wl v-wl"),
        (vec!["labels.l==2".into()], "a-np-wl a-wl"),
        (vec!["name~=/^v/".into()], "v v-wl"),
    ] {
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        assert_eq!(c.list(&filters).unwrap().join(" "), expected, "{filters:?}");
    }
    assert_eq!(code(c.list(&["kind="])), Code::InvalidArgument);
    // More than one message holds.
    for number in 0..150 {
        c.view(&format!("n{number:03}"), "").unwrap();
    }
    assert_eq!(c.list(&["name~=/^n/"]).unwrap().len(), 150);
}

#[test]
fn usage_is_that_of_the_upper() {
    require!(prerequisites());
    let mut stand = Stand::new("usage");
    let mounts = stand.client.prepare("a", "").unwrap();
    let mounted = stand.mount(&mounts);
    for number in 0..100 {
        fs::write(mounted.path().join(number.to_string()), vec![1; 8192]).unwrap();
    }
    drop(mounted);
    stand.client.commit("base", "a").unwrap();
    let base = stand.client.usage("base").unwrap();
    assert_eq!(base.inodes, 101);
    assert!((819_200..1_700_000).contains(&base.size), "{base:?}");
    let mounts = stand.client.prepare("b", "base").unwrap();
    assert_eq!(stand.client.usage("b").unwrap().inodes, 1);
    let mounted = stand.mount(&mounts);
    fs::write(mounted.path().join("new"), vec![1; 65_536]).unwrap();
    fs::File::open(mounted.path().join("new"))
        .unwrap()
        .sync_all()
        .unwrap();
    let used = stand.client.usage("b").unwrap();
    assert_eq!(used.inodes, 2);
    assert!((65_536..200_000).contains(&used.size), "{used:?}");
    stand.client.view("v", "base").unwrap();
    assert_eq!(stand.client.usage("v").unwrap().size, 0);
}

#[test]
fn id_maps_of_labels() {
    require!(prerequisites());
    let labels = [
        ("containerd.io/snapshot/uidmapping", "0:100000:65536"),
        ("containerd.io/snapshot/gidmapping", "0:200000:65536"),
    ];
    let mut stand = Stand::with("idmap", &["--remap-ids"]);
    let mounts = stand.client.prepare("a", "").unwrap();
    let mounted = stand.mount(&mounts);
    file(mounted.path(), "file", "x", 0o644);
    own(mounted.path(), "file", 7);
    drop(mounted);
    stand.client.commit("base", "a").unwrap();
    for call in ["Prepare", "View"] {
        let mounts = stand.client.create(call, call, "base", &labels).unwrap();
        let mounted = stand.mount(&mounts);
        let owner = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            (found.uid(), found.gid())
        };
        assert_eq!(owner(&mounted.path().join("file")), (100_007, 200_007));
        assert_eq!(owner(mounted.path()), (100_000, 200_000));
    }
    let wrong = [("containerd.io/snapshot/uidmapping", "0:1")];
    assert_eq!(
        code(stand.client.create("Prepare", "w", "base", &wrong)),
        Code::InvalidArgument
    );
    drop(stand);

    // Without the flag the root alone is the namespace's, as containerd remaps the layer below by itself.
    let mut stand = Stand::new("idmap-chown");
    let mounts = stand.client.create("Prepare", "a", "", &labels).unwrap();
    let found = fs::metadata(&mounts[0].source).unwrap();
    assert_eq!((found.uid(), found.gid()), (100_000, 200_000));
}

#[test]
fn a_hundred_and_twenty_eight_layers() {
    require!(prerequisites());
    let mut stand = Stand::new("many");
    let flat = stand.scratch.dir("flat");
    let mut parent = String::new();
    for layer in 0..128 {
        let apply = |root: &Path| {
            if layer == 0 {
                file(root, "bottom", "way at the bottom\n", 0o777);
                dir(root, "addhere", 0o755);
            } else {
                fs::remove_dir_all(root.join("onlyme")).unwrap();
            }
            file(root, "overwriteme", &format!("{layer} WAS HERE!\n"), 0o777);
            file(root, &format!("addhere/file-{layer}"), "same\n", 0o755);
            dir(root, "onlyme", 0o755);
            file(root, &format!("onlyme/file-{layer}"), "only me!\n", 0o777);
        };
        let key = format!("prepare-layer-{layer}");
        let mounts = stand.client.prepare(&key, &parent).unwrap();
        let mounted = stand.mount(&mounts);
        apply(&flat);
        apply(mounted.path());
        if layer % 16 == 0 {
            same(&flat, mounted.path(), &key);
        }
        drop(mounted);
        parent = format!("committed-{layer}");
        stand.client.commit(&parent, &key).unwrap();
    }
    let mounts = stand.client.view("fullview", &parent).unwrap();
    let mounted = stand.mount(&mounts);
    same(&flat, mounted.path(), "the full view");
}
