//! Lower files of several names that no index entry keeps together.

use super::*;
use crate::watched::{Method, Watch, WatchedLayer};

/// A layer on a filesystem without file handles.
#[derive(Debug)]
struct WithoutHandles;

impl Watch for WithoutHandles {
    fn asked(&self, _: Method) {}

    fn has_handles(&self) -> bool {
        false
    }
}

/// Whose layers may be looked at by name alone.
#[derive(Debug)]
struct WithoutRights;

impl Watch for WithoutRights {
    fn asked(&self, _: Method) {}

    fn may_open_handles(&self) -> bool {
        false
    }
}

/// What a listing says.
fn d_ino(rig: &Rig, dir: &str, name: &str) -> u64 {
    let mut ino = None;
    let node = rig.node(dir);
    rig.u()
        .readdir(node, 0, &mut |entry| {
            if entry.name == name {
                ino = Some(entry.ino);
            }
            false
        })
        .unwrap();
    ino.unwrap()
}

fn without_handles(inner: DirLayer) -> Arc<dyn Layer> {
    Arc::new(WatchedLayer {
        inner,
        watch: WithoutHandles,
    })
}

fn each_name_is_a_file(index: bool, wrap: fn(DirLayer) -> Arc<dyn Layer>) {
    let params = Params {
        index,
        ..Params::default()
    };
    let mut rig = Rig::new(1, params, |l| {
        for name in ["written", "moved", "removed", "replaced"] {
            put(&l[0].join("A").join(name), "lower");
            fs::create_dir_all(l[0].join("B")).unwrap();
            fs::hard_link(l[0].join("A").join(name), l[0].join("B").join(name)).unwrap();
        }
    });
    rig.mount_with(wrap);
    for dir in ["A", "B"] {
        for name in ["written", "moved", "removed", "replaced"] {
            rig.get(&format!("{dir}/{name}"));
        }
    }
    let nodes = ["A/written", "B/written"].map(|path| rig.node(path));
    assert_ne!(nodes[0], nodes[1]);
    // As they lie there they are one file to whoever copies them.
    let [one, other] = ["A/written", "B/written"].map(|path| rig.get(path).attr);
    assert_eq!((one.ino, one.nlink), (other.ino, 2));
    assert_eq!(d_ino(&rig, "A", "written"), one.ino);
    rig.write("A/written", "first");
    let changed = rig.get("A/written").attr;
    assert_ne!(changed.ino, other.ino);
    assert_eq!(rig.get("B/written").attr.ino, other.ino);
    assert_eq!(d_ino(&rig, "A", "written"), changed.ino);
    rig.write("B/written", "other");
    assert_eq!(["A/written", "B/written"].map(|path| rig.node(path)), nodes);
    rig.rename("B/moved", "B/there", RenameMode::Replace)
        .unwrap();
    rig.rename("B/moved", "B/nowhere", RenameMode::Replace)
        .unwrap_err();
    rig.rename("A/replaced", "B/replaced", RenameMode::Replace)
        .unwrap();
    let dir = rig.node("A");
    rig.u().unlink(dir, OsStr::new("removed")).unwrap();
    let expect = |rig: &Rig| {
        assert_eq!(rig.read("A/written"), "first");
        assert_eq!(rig.read("B/written"), "other");
        for path in ["A/moved", "B/there", "B/removed", "B/replaced"] {
            assert_eq!(rig.read(path), "lower", "{path}");
        }
        assert_eq!(rig.list("A"), ["moved", "written"]);
        assert_eq!(rig.list("B"), ["removed", "replaced", "there", "written"]);
    };
    expect(&rig);
    rig.mount_with(wrap);
    expect(&rig);
    let lower = &rig.lowers[0];
    assert_eq!(fs::read(lower.join("A/written")).unwrap(), b"lower");
}

#[test]
fn names_of_a_file_are_apart_without_an_index() {
    each_name_is_a_file(false, |layer| Arc::new(layer));
}

#[test]
fn names_of_a_file_are_apart_where_the_lower_has_no_handles() {
    each_name_is_a_file(true, without_handles);
}

/// A copy that tells nothing of where it comes from is one file under all its names, whoever asks for them when.
fn a_copy_stays_one_file(index: bool, names: usize, wrap: fn(DirLayer) -> Arc<dyn Layer>) {
    let params = Params {
        index,
        metacopy: true,
        ..Params::default()
    };
    let mut rig = Rig::new(1, params, |l| {
        put(&l[0].join("x"), "lower lower");
        for name in 1..names {
            fs::hard_link(l[0].join("x"), l[0].join(name.to_string())).unwrap();
        }
    });
    rig.mount_with(wrap);
    rig.chmod("x", 0o600);
    let x = rig.node("x");
    let link = rig.u().link(&ME, x, ROOT, OsStr::new("z")).unwrap();
    rig.rename("x", "y", RenameMode::Replace).unwrap();
    for name in ["z", "y"] {
        let found = rig.get(name);
        assert_eq!((found.node, found.attr.ino), (x, link.attr.ino), "{name}");
    }
    rig.write("z", "NEW");
    rig.write("y", "N");
    assert_eq!(rig.read("z"), "NEWer lower");
    rig.mount_with(wrap);
    assert_eq!(rig.read("y"), "NEWer lower");
    assert_eq!(rig.node("y"), rig.node("z"));
}

#[test]
fn a_copy_is_one_file_without_an_index() {
    a_copy_stays_one_file(false, 2, |layer| Arc::new(layer));
}

#[test]
fn a_copy_is_one_file_where_the_lower_has_no_handles() {
    for names in [1, 2] {
        a_copy_stays_one_file(true, names, without_handles);
    }
}

/// Without the right to open a layer's files by handle nobody can ask how many names they have there.
#[test]
fn other_names_keep_what_was_written_by_one_that_goes() {
    let wrap = |inner| -> Arc<dyn Layer> {
        let watch = WithoutRights;
        Arc::new(WatchedLayer { inner, watch })
    };
    let mut rig = Rig::new(1, Params::default(), |l| {
        put(&l[0].join("a"), "old");
        for name in ["b", "c", "d"] {
            fs::hard_link(l[0].join("a"), l[0].join(name)).unwrap();
        }
    });
    rig.mount_with(wrap);
    rig.write("a", "new");
    let unlink = |rig: &Rig, name| rig.u().unlink(ROOT, OsStr::new(name)).unwrap();
    rig.mount_with(wrap);
    assert_eq!(rig.get("a").attr.nlink, 4);
    unlink(&rig, "a");
    rig.mount_with(wrap);
    assert_eq!(rig.get("b").attr.nlink, 3);
    let b = rig.node("b");
    rig.u().link(&ME, b, ROOT, OsStr::new("e")).unwrap();
    rig.mount_with(wrap);
    for name in ["b", "c", "d", "e"] {
        assert_eq!(rig.read(name), "new", "{name}");
        assert_eq!(rig.get(name).attr.nlink, 4, "{name}");
    }
    for name in ["e", "b", "c", "d"] {
        assert_eq!(rig.read(name), "new");
        unlink(&rig, name);
        rig.mount_with(wrap);
    }
    assert_eq!(rig.list(""), [] as [&str; 0]);
    let index = rig.dir.path().join("work/index");
    assert_eq!(fs::read_dir(index).unwrap().count(), 0);
}

/// The copies of former versions, and those of which the machine went down in the middle, tell no count of their own.
#[test]
fn an_unknown_number_of_names_costs_nobody_his_data() {
    for linked in [false, true] {
        unknown_number_of_names(linked);
    }
}

fn unknown_number_of_names(linked: bool) {
    let wrap = |inner| -> Arc<dyn Layer> {
        let watch = WithoutRights;
        Arc::new(WatchedLayer { inner, watch })
    };
    let mut rig = Rig::new(1, Params::default(), |l| {
        put(&l[0].join("a"), "old");
        for name in ["b", "c"] {
            fs::hard_link(l[0].join("a"), l[0].join(name)).unwrap();
        }
    });
    rig.write("a", "new");
    rig.union = None;
    let none = rustix::fs::XattrFlags::empty();
    let mark = "trusted.overlay.nlink";
    rustix::fs::setxattr(rig.upper().join("a"), mark, b"L+0", none).unwrap();
    rig.mount_with(wrap);
    let mut names = vec!["b", "c"];
    if linked {
        let a = rig.node("a");
        rig.u().link(&ME, a, ROOT, OsStr::new("d")).unwrap();
        names.push("d");
    }
    rig.u().unlink(ROOT, OsStr::new("a")).unwrap();
    rig.mount_with(wrap);
    for name in names {
        assert_eq!(rig.read(name), "new", "{name}");
        rig.u().unlink(ROOT, OsStr::new(name)).unwrap();
    }
    assert_eq!(rig.list(""), [] as [&str; 0]);
}

/// `linkat` of an open file by its descriptor.
#[test]
fn a_file_with_names_that_nobody_asked_for_is_not_gone() {
    let rig = Rig::new(1, Params::default(), |l| {
        put(&l[0].join("one"), "data");
        fs::hard_link(l[0].join("one"), l[0].join("other")).unwrap();
    });
    let opened = rig.open("one", libc::O_RDONLY);
    let node = rig.node("one");
    rig.u().unlink(ROOT, OsStr::new("one")).unwrap();
    let again = rig.u().link(&ME, node, ROOT, OsStr::new("again")).unwrap();
    assert_eq!((again.node, again.attr.nlink), (node, 2));
    assert_eq!(rig.read("again"), "data");
    rig.u().unlink(ROOT, OsStr::new("other")).unwrap();
    rig.u().unlink(ROOT, OsStr::new("again")).unwrap();
    let error = rig.u().link(&ME, node, ROOT, OsStr::new("back"));
    assert_eq!(error.unwrap_err().errno(), libc::ENOENT);
    rig.u().release(opened.handle);
}

/// What is told of a layer by another overlay than the one of which it is a lower.
#[test]
fn marks_of_a_lower_are_not_those_of_the_upper() {
    let mut rig = Rig::new(2, Params::default(), |l| {
        put(&l[0].join("d/a"), "above");
        put(&l[1].join("d/b"), "below");
        let none = rustix::fs::XattrFlags::empty();
        for (name, value) in [("user.overlay.opaque", "y"), ("user.kept", "value")] {
            rustix::fs::setxattr(l[0].join("d"), name, value.as_bytes(), none).unwrap();
        }
    });
    assert_eq!(rig.list("d"), ["a"]);
    rig.chmod("d", 0o700);
    rig.u()
        .mkdir(&ME, rig.node("d"), OsStr::new("c"), 0o755, 0)
        .unwrap();
    assert_eq!(rig.list("d"), ["a", "c"]);
    // The upper becomes the topmost of the layers.
    rig.union = None;
    let layer = rig.dir.path().join("layer");
    fs::rename(rig.upper(), &layer).unwrap();
    let mut value = [0; 16];
    let kept = rustix::fs::getxattr(layer.join("d"), "user.kept", &mut value);
    assert_eq!(kept, Ok(5));
    fs::remove_dir_all(rig.dir.path().join("work")).unwrap();
    for name in ["upper", "work"] {
        fs::create_dir(rig.dir.path().join(name)).unwrap();
    }
    rig.lowers.insert(0, layer);
    rig.mount();
    assert_eq!(rig.list("d"), ["a", "c"]);
}
