//! Lower files of several names that no index entry keeps together.

use std::ffi::OsString;
use std::ops::ControlFlow;

use acetate::layer::{Access, LayerEntry, LayerLookup, Marks, Node, OverlayHandle, RealFile, Stat};

use super::*;

/// A layer on a filesystem without file handles.
#[derive(Debug)]
struct WithoutHandles(DirLayer);

impl Layer for WithoutHandles {
    fn root(&self) -> Node {
        self.0.root()
    }
    fn lookup(&self, dir: &Node, name: &OsStr, xwhiteouts: bool) -> io::Result<LayerLookup> {
        self.0.lookup(dir, name, xwhiteouts)
    }
    fn stat(&self, node: &Node) -> io::Result<Stat> {
        self.0.stat(node)
    }
    fn marks(&self, node: &Node, stat: &Stat) -> io::Result<Marks> {
        self.0.marks(node, stat)
    }
    fn read_dir(
        &self,
        dir: &Node,
        xwhiteouts: bool,
        sink: &mut dyn FnMut(LayerEntry<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.0.read_dir(dir, xwhiteouts, sink)
    }
    fn read_link(&self, node: &Node) -> io::Result<OsString> {
        self.0.read_link(node)
    }
    fn list_xattr(&self, node: &Node) -> io::Result<Vec<OsString>> {
        self.0.list_xattr(node)
    }
    fn get_xattr(&self, node: &Node, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        self.0.get_xattr(node, name)
    }
    fn open(&self, node: &Node, access: Access) -> io::Result<RealFile> {
        self.0.open(node, access)
    }
    fn handle(&self, _: &Node) -> io::Result<Option<OverlayHandle>> {
        Ok(None)
    }
    fn stat_by_handle(&self, _: &OverlayHandle) -> io::Result<Option<Stat>> {
        Ok(None)
    }
    fn ino_of_handle(&self, _: &OverlayHandle) -> Option<u64> {
        None
    }
    fn is_protected(&self) -> bool {
        self.0.is_protected()
    }
    fn statfs(&self) -> io::Result<nix::sys::statvfs::Statvfs> {
        self.0.statfs()
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn dev(&self) -> u64 {
        self.0.dev()
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
    each_name_is_a_file(true, |layer| Arc::new(WithoutHandles(layer)));
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
