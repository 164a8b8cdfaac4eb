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
    rig.write("A/written", "first");
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
    each_name_is_a_file(true, |inner| {
        Arc::new(WatchedLayer {
            inner,
            watch: WithoutHandles,
        })
    });
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
