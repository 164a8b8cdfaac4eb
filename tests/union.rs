//! The union without FUSE: operations on real directories, with a kernel played by the test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(missing_docs)]

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use acetate::layer::Layer;
use acetate::layer::dir::{DirLayer, LayerOptions};
use acetate::layer::fdcache::FdCache;
use acetate::layer::format::OverrideStat;
use acetate::layer::upper::{AccessTimes, Namespace, Upper, UpperOptions};
use acetate::union::{
    Backing, BackingOpener, Caller, ChangeKind, Entry, Lookup, NodeId, OpenMode, Opened, Params,
    ROOT, RenameMode, SetAttr, Union, WriteFlags,
};

#[path = "union/links.rs"]
mod links;
#[path = "union/opens.rs"]
mod opens;
#[path = "union/stress.rs"]
mod stress;
#[allow(unreachable_pub)]
#[path = "common/watched.rs"]
mod watched;

const ME: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};

struct Rig {
    union: Option<Union>,
    params: Params,
    lowers: Vec<PathBuf>,
    dir: tempfile::TempDir,
}

/// Counts the backing files that it registers.
#[derive(Default)]
struct Kernel {
    opened: AtomicUsize,
}

impl BackingOpener for Kernel {
    fn open_backing(&self, _: BorrowedFd<'_>, _: bool) -> io::Result<Backing> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(()))
    }
}

impl Rig {
    /// `fill` makes the lower layers, topmost first.
    fn new(lowers: usize, params: Params, fill: impl FnOnce(&[PathBuf])) -> Rig {
        assert_eq!(
            rustix::process::geteuid().as_raw(),
            0,
            "these tests write trusted xattrs and so need root"
        );
        let dir = tempfile::tempdir().unwrap();
        let lowers: Vec<PathBuf> = (0..lowers)
            .map(|i| {
                let path = dir.path().join(format!("lower{i}"));
                fs::create_dir(&path).unwrap();
                path
            })
            .collect();
        fs::create_dir(dir.path().join("upper")).unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        fill(&lowers);
        let mut rig = Rig {
            union: None,
            params,
            lowers,
            dir,
        };
        rig.mount();
        rig
    }

    fn mount(&mut self) {
        self.mount_with(|layer| Arc::new(layer));
    }

    fn mount_with(&mut self, wrap: fn(DirLayer) -> Arc<dyn Layer>) {
        self.union = None;
        let cache = Arc::new(FdCache::for_this_process());
        let lowers = self
            .lowers
            .iter()
            .map(|p| {
                let layer = DirLayer::open(p, LayerOptions::default(), cache.clone()).unwrap();
                wrap(layer)
            })
            .collect();
        let options = UpperOptions {
            namespace: Namespace::Trusted,
            volatile: true,
            override_stat: OverrideStat::Off,
            access_times: AccessTimes::AsBelow,
        };
        let upper = Upper::open(
            &self.upper(),
            &self.dir.path().join("work"),
            options,
            cache.clone(),
        )
        .unwrap();
        self.union = Some(Union::new(lowers, Some(upper), self.params.clone()).unwrap());
    }

    fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    fn u(&self) -> &Union {
        self.union.as_ref().unwrap()
    }

    fn find(&self, path: &str) -> Option<Entry> {
        let mut node = ROOT;
        let mut last = None;
        for name in path.split('/') {
            match self.u().lookup(node, OsStr::new(name)).unwrap() {
                Lookup::Found(entry) => {
                    node = entry.node;
                    last = Some(entry);
                }
                Lookup::Absent(_) => return None,
            }
        }
        last
    }

    fn get(&self, path: &str) -> Entry {
        self.find(path)
            .unwrap_or_else(|| panic!("{path} is not there"))
    }

    fn node(&self, path: &str) -> NodeId {
        self.get(path).node
    }

    fn open(&self, path: &str, flags: i32) -> Opened {
        let node = self.node(path);
        self.u().open(&ME, node, flags, &Kernel::default()).unwrap()
    }

    fn read(&self, path: &str) -> String {
        let opened = self.open(path, libc::O_RDONLY);
        let text = self.read_handle(&opened);
        self.u().release(opened.handle);
        text
    }

    fn read_handle(&self, opened: &Opened) -> String {
        let mut buf = vec![0; 4096];
        let n = self.u().read(opened.handle, 0, &mut buf).unwrap();
        String::from_utf8(buf[..n].to_vec()).unwrap()
    }

    fn write(&self, path: &str, text: &str) {
        let opened = self.open(path, libc::O_WRONLY);
        self.u()
            .write(opened.handle, 0, text.as_bytes(), WriteFlags::default())
            .unwrap();
        self.u().release(opened.handle);
    }

    fn list(&self, path: &str) -> Vec<String> {
        let node = if path.is_empty() {
            ROOT
        } else {
            self.node(path)
        };
        let mut names = Vec::new();
        self.u()
            .readdir(node, 0, &mut |entry| {
                names.push(entry.name.to_str().unwrap().to_owned());
                false
            })
            .unwrap();
        names.retain(|n| n != "." && n != "..");
        names.sort();
        names
    }

    fn rename(&self, from: &str, to: &str, mode: RenameMode) -> acetate::union::Result<()> {
        let split = |p: &str| match p.rsplit_once('/') {
            Some((dir, name)) => (self.node(dir), name.to_owned()),
            None => (ROOT, p.to_owned()),
        };
        let ((a, an), (b, bn)) = (split(from), split(to));
        self.u()
            .rename(&ME, a, OsStr::new(&an), b, OsStr::new(&bn), mode)
    }

    fn chmod(&self, path: &str, mode: u32) {
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        self.u().setattr(&ME, self.node(path), &set).unwrap();
    }
}

fn put(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn whiteout(path: &Path) {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
}

#[test]
fn layers_merge_and_whiteouts_hide() {
    let rig = Rig::new(2, Params::default(), |l| {
        put(&l[0].join("d/top"), "top");
        whiteout(&l[0].join("d/gone"));
        put(&l[1].join("d/gone"), "x");
        put(&l[1].join("d/low"), "low");
    });
    assert_eq!(rig.list("d"), ["low", "top"]);
    assert!(rig.find("d/gone").is_none());
    assert_eq!(rig.read("d/low"), "low");
}

#[test]
fn copy_up_keeps_number_owner_mode_and_times() {
    let rig = Rig::new(1, Params::default(), |l| {
        put(&l[0].join("a/b/f"), "old");
        fs::set_permissions(l[0].join("a/b"), fs::Permissions::from_mode(0o711)).unwrap();
        std::os::unix::fs::chown(l[0].join("a/b/f"), Some(7), Some(8)).unwrap();
    });
    let before = rig.get("a/b/f").attr;
    let dir_before = rig.get("a/b").attr;
    rig.write("a/b/f", "new");
    let after = rig.get("a/b/f").attr;
    assert_eq!(rig.read("a/b/f"), "new");
    assert_eq!((after.ino, after.uid, after.gid), (before.ino, 7, 8));
    let dir = rig.get("a/b").attr;
    assert_eq!(
        (dir.ino, dir.mode, dir.mtime, dir.nlink),
        (
            dir_before.ino,
            dir_before.mode,
            dir_before.mtime,
            dir_before.nlink
        )
    );
    assert_eq!(fs::read(rig.lowers[0].join("a/b/f")).unwrap(), b"old");
    let explained = rig.u().explain(Path::new("/a/b/f")).unwrap();
    assert!(explained.copied_up);
    let roles: Vec<_> = explained.layers.iter().map(|l| l.role.as_str()).collect();
    assert_eq!(roles, ["shown", "hidden by layer 0 (file /a/b/f)"]);
    assert_eq!(
        explained.copy_up_reason.as_deref(),
        Some("open for writing")
    );
    assert_eq!(explained.copy_up_bytes, Some(3));
    assert!(explained.copy_up_us.is_some());
}

#[test]
fn numbers_stay_over_a_remount() {
    let mut rig = Rig::new(1, Params::default(), |l| {
        put(&l[0].join("f"), "x");
        put(&l[0].join("d/g"), "x");
    });
    let numbers = |rig: &Rig, d: &str| {
        (
            rig.get("f").attr.ino,
            rig.get(d).attr.ino,
            rig.get(&format!("{d}/g")).attr.ino,
        )
    };
    let before = numbers(&rig, "d");
    rig.chmod("f", 0o600);
    rig.rename("d", "moved", RenameMode::Replace).unwrap();
    assert_eq!(numbers(&rig, "moved"), before);
    rig.mount();
    assert_eq!(numbers(&rig, "moved"), before);
}

#[test]
fn hard_links_stay_one_file_with_exact_counts() {
    let mut rig = Rig::new(1, Params::default(), |l| {
        put(&l[0].join("a"), "one");
        fs::hard_link(l[0].join("a"), l[0].join("b")).unwrap();
        fs::hard_link(l[0].join("a"), l[0].join("c")).unwrap();
    });
    rig.write("a", "two");
    for round in 0..2 {
        assert_eq!(rig.read("b"), "two", "round {round}");
        let (a, b) = (rig.get("a").attr, rig.get("b").attr);
        assert_eq!((a.ino, a.nlink), (b.ino, b.nlink));
        assert_eq!(a.nlink, 3);
        rig.mount();
    }
    rig.u().unlink(ROOT, OsStr::new("b")).unwrap();
    assert_eq!(rig.get("a").attr.nlink, 2);
    rig.u()
        .link(&ME, rig.node("c"), ROOT, OsStr::new("d"))
        .unwrap();
    assert_eq!(rig.get("d").attr.nlink, 3);
    rig.mount();
    assert_eq!(rig.list(""), ["a", "c", "d"]);
    assert_eq!(rig.get("c").attr.nlink, 3);
    for name in ["a", "c", "d"] {
        rig.u().unlink(ROOT, OsStr::new(name)).unwrap();
    }
    assert_eq!(rig.list(""), [] as [&str; 0]);
    assert_eq!(
        fs::read_dir(rig.dir.path().join("work/index"))
            .unwrap()
            .count(),
        0,
        "the index keeps an inode that has no name"
    );
}

#[test]
fn removing_one_name_of_a_lower_link_is_counted() {
    let rig = Rig::new(1, Params::default(), |l| {
        put(&l[0].join("a"), "one");
        fs::hard_link(l[0].join("a"), l[0].join("b")).unwrap();
    });
    rig.u().unlink(ROOT, OsStr::new("a")).unwrap();
    assert_eq!(rig.get("b").attr.nlink, 1);
    assert_eq!(rig.read("b"), "one");
}

#[test]
fn a_link_goes_on_when_its_only_upper_name_is_removed() {
    let rig = Rig::new(1, Params::default(), |l| {
        put(&l[0].join("d/a"), "one");
        fs::hard_link(l[0].join("d/a"), l[0].join("b")).unwrap();
    });
    rig.write("d/a", "two");
    rig.get("b");
    rig.u().unlink(rig.node("d"), OsStr::new("a")).unwrap();
    assert_eq!(rig.get("b").attr.nlink, 1);
    assert_eq!(rig.read("b"), "two");
}

#[test]
fn merged_directories_move_by_redirect() {
    let mut rig = Rig::new(2, Params::default(), |l| {
        put(&l[0].join("x/d/top"), "1");
        put(&l[1].join("x/d/low"), "2");
        put(&l[1].join("y/d/other"), "3");
    });
    rig.rename("x/d", "y/e", RenameMode::NoReplace).unwrap();
    rig.rename("y/d", "x/d", RenameMode::NoReplace).unwrap();
    for _ in 0..2 {
        assert_eq!(rig.list("y/e"), ["low", "top"]);
        assert_eq!(rig.list("x/d"), ["other"]);
        assert_eq!(rig.list("y"), ["e"]);
        assert_eq!(rig.read("y/e/low"), "2");
        rig.mount();
    }
    rig.rename("x/d", "y/e", RenameMode::Exchange).unwrap();
    assert_eq!(rig.list("y/e"), ["other"]);
    rig.mount();
    assert_eq!(rig.list("x/d"), ["low", "top"]);
}

#[test]
fn a_new_directory_does_not_show_what_was_there() {
    let mut rig = Rig::new(1, Params::default(), |l| put(&l[0].join("d/f"), "x"));
    rig.u().unlink(rig.node("d"), OsStr::new("f")).unwrap();
    rig.u().rmdir(ROOT, OsStr::new("d")).unwrap();
    rig.u().mkdir(&ME, ROOT, OsStr::new("d"), 0o755, 0).unwrap();
    assert_eq!(rig.list("d"), [] as [&str; 0]);
    rig.mount();
    assert_eq!(rig.list("d"), [] as [&str; 0]);
    let changes: Vec<_> = rig
        .u()
        .diff()
        .unwrap()
        .into_iter()
        .map(|c| (c.kind, c.path))
        .collect();
    assert_eq!(
        changes,
        [
            (ChangeKind::C, "/d".to_owned()),
            (ChangeKind::D, "/d/f".to_owned())
        ]
    );
}

#[test]
fn a_directory_in_place_of_a_file_is_a_change() {
    let rig = Rig::new(1, Params::default(), |l| put(&l[0].join("f"), "x"));
    rig.u().unlink(ROOT, OsStr::new("f")).unwrap();
    rig.u().mkdir(&ME, ROOT, OsStr::new("f"), 0o755, 0).unwrap();
    let changes = rig.u().diff().unwrap();
    assert_eq!(changes.len(), 1);
    assert_eq!(
        (changes[0].kind, changes[0].path.as_str()),
        (ChangeKind::C, "/f")
    );
}

#[test]
fn a_full_directory_is_not_removed() {
    let rig = Rig::new(1, Params::default(), |l| put(&l[0].join("d/f"), "x"));
    let e = rig.u().rmdir(ROOT, OsStr::new("d")).unwrap_err();
    assert_eq!(e.errno(), libc::ENOTEMPTY);
}

#[test]
fn an_unlinked_open_file_goes_on() {
    let rig = Rig::new(1, Params::default(), |l| put(&l[0].join("f"), "text"));
    let node = rig.node("f");
    let opened = rig.open("f", libc::O_RDONLY);
    rig.u().unlink(ROOT, OsStr::new("f")).unwrap();
    assert!(rig.find("f").is_none());
    assert_eq!(rig.read_handle(&opened), "text");
    assert_eq!(rig.u().getattr(node, None).unwrap().0.nlink, 0);
    let set = SetAttr {
        mode: Some(0o600),
        size: Some(2),
        ..SetAttr::default()
    };
    let (attr, _) = rig.u().setattr(&ME, node, &set).unwrap();
    assert_eq!((attr.mode & 0o777, attr.size, attr.nlink), (0o600, 2, 0));
    assert_eq!(rig.read_handle(&opened), "te");
    assert_eq!(rig.list(""), [] as [&str; 0]);
    rig.u().release(opened.handle);
    let left: Vec<_> = fs::read_dir(rig.dir.path().join("work/work"))
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.file_type().unwrap().is_file())
        .collect();
    assert!(
        left.is_empty(),
        "the workdir keeps a nameless file: {left:?}"
    );
}

#[test]
fn a_descriptor_opened_before_copy_up_reads_the_new_data() {
    let rig = Rig::new(1, Params::default(), |l| put(&l[0].join("f"), "old"));
    let opened = rig.open("f", libc::O_RDONLY);
    rig.write("f", "new");
    assert_eq!(rig.read_handle(&opened), "new");
    rig.u().release(opened.handle);
}

#[test]
fn a_passthrough_reader_retires_the_node_at_copy_up() {
    let params = Params {
        passthrough: true,
        passthrough_lower: acetate::union::params::PassthroughLower::Always,
        ..Params::default()
    };
    let rig = Rig::new(1, params, |l| put(&l[0].join("f"), "old"));
    let entry = rig.get("f");
    let kernel = Kernel::default();
    let reader = rig
        .u()
        .open(&ME, entry.node, libc::O_RDONLY, &kernel)
        .unwrap();
    assert!(matches!(reader.mode, OpenMode::Passthrough(_)));
    // The first open for writing copies up; the node's backing file is the lower's, so it is opened no more.
    for flags in [libc::O_RDWR, libc::O_RDONLY] {
        let e = rig.u().open(&ME, entry.node, flags, &kernel).err().unwrap();
        assert_eq!(e.errno(), libc::ESTALE);
    }
    let again = rig.get("f");
    assert_ne!(again.node, entry.node);
    assert_eq!(again.attr.ino, entry.attr.ino);
    assert!(
        again.attr_ttl.is_zero(),
        "the node id would pass for st_ino"
    );
    let writer = rig
        .u()
        .open(&ME, again.node, libc::O_RDWR, &kernel)
        .unwrap();
    assert!(matches!(writer.mode, OpenMode::Passthrough(_)));
    assert_eq!(kernel.opened.load(Ordering::Relaxed), 2);
    let (attr, ttl) = rig.u().getattr(entry.node, None).unwrap();
    assert_eq!(attr.ino, entry.attr.ino);
    assert!(
        ttl.is_zero(),
        "the retired node's attributes change elsewhere"
    );
    let (_, ttl) = rig.u().getattr(again.node, None).unwrap();
    assert!(ttl.is_zero(), "they change through the retired node too");
    rig.u().release(reader.handle);
    rig.u().release(writer.handle);
}

#[test]
fn opens_of_one_node_are_of_one_kind() {
    let params = Params {
        passthrough: true,
        ..Params::default()
    };
    let rig = Rig::new(1, params, |l| put(&l[0].join("f"), "old"));
    let reader = rig.open("f", libc::O_RDONLY);
    assert!(matches!(reader.mode, OpenMode::Cached { .. }));
    let writer = rig.open("f", libc::O_RDWR);
    assert!(
        matches!(writer.mode, OpenMode::Cached { .. }),
        "passthrough beside a cached handle"
    );
    rig.u().release(reader.handle);
    let late = rig.open("f", libc::O_RDONLY);
    assert!(matches!(late.mode, OpenMode::Cached { .. }));
    rig.u().release(writer.handle);
    rig.u().release(late.handle);
    let fresh = rig.open("f", libc::O_RDONLY);
    assert!(matches!(fresh.mode, OpenMode::Passthrough(_)));
    rig.u().release(fresh.handle);
}

#[test]
fn metacopy_leaves_the_data_below_until_it_is_written() {
    let params = Params {
        metacopy: true,
        ..Params::default()
    };
    let mut rig = Rig::new(1, params, |l| put(&l[0].join("d/f"), "data"));
    rig.chmod("d/f", 0o640);
    assert_eq!(rig.get("d/f").attr.size, 4);
    assert_eq!(
        fs::read(rig.upper().join("d/f")).unwrap(),
        [0; 4],
        "data was copied"
    );
    rig.mount();
    assert_eq!(rig.read("d/f"), "data");
    assert_eq!(rig.get("d/f").attr.mode & 0o777, 0o640);
    let opened = rig.open("d/f", libc::O_WRONLY);
    rig.u()
        .write(opened.handle, 2, b"XX", WriteFlags::default())
        .unwrap();
    rig.u().release(opened.handle);
    assert_eq!(rig.read("d/f"), "daXX");
    rig.mount();
    assert_eq!(rig.read("d/f"), "daXX");
    let mut buf = [0; 4];
    fs::File::open(rig.upper().join("d/f"))
        .unwrap()
        .read_exact_at(&mut buf, 0)
        .unwrap();
    assert_eq!(&buf, b"daXX");
}

#[test]
fn names_of_whiteouts_cannot_be_made() {
    let rig = Rig::new(1, Params::default(), |l| put(&l[0].join("f"), "x"));
    for name in [".wh.f", ".wh..wh..opq"] {
        let name = OsStr::new(name);
        let e = rig.u().mkdir(&ME, ROOT, name, 0o755, 0).unwrap_err();
        assert_eq!(e.errno(), libc::EINVAL);
        let e = rig
            .u()
            .rename(&ME, ROOT, OsStr::new("f"), ROOT, name, RenameMode::Replace)
            .unwrap_err();
        assert_eq!(e.errno(), libc::EINVAL);
    }
    assert_eq!(rig.read("f"), "x");
}

#[test]
fn directory_link_counts_are_as_on_ext4() {
    let rig = Rig::new(2, Params::default(), |l| {
        put(&l[0].join("d/one/f"), "x");
        put(&l[1].join("d/two/f"), "x");
    });
    assert_eq!(rig.get("d").attr.nlink, 4);
    rig.u()
        .mkdir(&ME, rig.node("d"), OsStr::new("three"), 0o755, 0)
        .unwrap();
    assert_eq!(rig.get("d").attr.nlink, 5);
}

/// The kernel sees no entry of an answer that is an error, and would never forget the nodes that it was told by it.
#[test]
fn a_listing_ends_before_what_cannot_be_told() {
    let rig = Rig::new(1, Params::default(), |l| {
        for i in 0..10 {
            put(&l[0].join(format!("file{i}")), "data");
        }
    });
    let mut names = Vec::new();
    rig.u()
        .readdir(ROOT, 0, &mut |entry| {
            names.push(entry.name.to_str().unwrap().to_owned());
            false
        })
        .unwrap();
    // Known, and gone from the layer behind the union's back.
    let last = names.pop().unwrap();
    rig.get(&last);
    fs::remove_file(rig.lowers[0].join(&last)).unwrap();
    let (mut told, mut cookie) = (Vec::new(), 0);
    rig.u()
        .readdirplus(ROOT, 0, &mut |entry, _| {
            told.push(entry.name.to_str().unwrap().to_owned());
            cookie = entry.cookie;
            false
        })
        .unwrap();
    assert_eq!(told, names);
    let mut more = 0;
    let failed = rig.u().readdirplus(ROOT, cookie, &mut |_, _| {
        more += 1;
        false
    });
    assert!(failed.is_err());
    assert_eq!(more, 0);
}
