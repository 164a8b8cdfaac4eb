//! What is written here, the kernel's overlayfs reads, and the other way round.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

use super::filesystems::{Mounted, run};
use super::*;
use crate::layer::Opaque;
use crate::layer::dir::{DirLayer, LayerOptions};
use crate::layer::error::UpperError;

fn kernel_mount(dir: &Path, extra: &str) -> Option<Mounted> {
    let at = dir.join("m");
    std::fs::create_dir_all(&at).unwrap();
    let [l, u, w] = ["l", "u", "w"].map(|d| dir.join(d));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}{extra}",
        l.display(),
        u.display(),
        w.display()
    );
    run(Command::new("mount")
        .args(["-t", "overlay", "-o", &options, "overlay"])
        .arg(&at))
    .then_some(Mounted(at))
}

/// A lower layer: `d/{a,b}`, `e/c`, `x/y`, a file with two names, a symlink.
fn lower(dir: &Path) -> DirLayer {
    for sub in ["l/d", "l/e", "l/x", "u", "w"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
    }
    for file in ["d/a", "d/b", "e/c", "x/y", "one"] {
        std::fs::write(dir.join("l").join(file), file).unwrap();
    }
    std::fs::hard_link(dir.join("l/one"), dir.join("l/two")).unwrap();
    std::os::unix::fs::symlink("one", dir.join("l/s")).unwrap();
    std::fs::hard_link(dir.join("l/s"), dir.join("l/s2")).unwrap();
    open_lower(dir)
}

fn open_lower(dir: &Path) -> DirLayer {
    DirLayer::open(
        &dir.join("l"),
        LayerOptions::default(),
        Arc::new(FdCache::new(8)),
    )
    .unwrap()
}

fn lower_node(layer: &DirLayer, path: &str) -> Found {
    let mut dir = layer.root();
    let mut last = None;
    for part in path.split('/') {
        let LayerLookup::Found(found) = layer.lookup(&dir, part.as_ref(), false).unwrap() else {
            panic!("{path} is not there");
        };
        dir = found.node.clone();
        last = Some(found);
    }
    last.unwrap()
}

const FEATURES: &str = ",index=on,redirect_dir=on,metacopy=on";

#[test]
fn the_kernel_reads_what_is_written() {
    if !is_root() {
        return skip("kernel overlay mounts need root");
    }
    for namespace in [Namespace::Trusted, Namespace::User] {
        let trusted = namespace == Namespace::Trusted;
        let temp = tempfile::tempdir().unwrap();
        let layer = lower(temp.path());
        let fixture = Fixture::in_dir(temp.path(), options(namespace));
        let (upper, root) = (&fixture.upper, fixture.root());
        let dir = fixture.mkdir(&root, "d", Replace::Nothing);
        upper.remove(&dir, name("a"), None, false, true).unwrap();
        let staged = upper.stage(Stage::Dir).unwrap();
        staged.set_mark(&Mark::Opaque).unwrap();
        staged.chmod(0o755).unwrap();
        let opaque = upper
            .publish(staged, &root, name("e"), Replace::Nothing)
            .unwrap()
            .node;
        fixture.file(&opaque, "new", Replace::Nothing);
        upper.set_mark(&root, &Mark::Impure).unwrap();
        let lower_one = lower_node(&layer, "one");
        let handle = layer.handle(&lower_one.node).unwrap().unwrap();
        if trusted {
            // A directory that was moved, a hard link whose one name was copied up.
            let staged = upper.stage(Stage::Dir).unwrap();
            staged.set_mark(&Mark::Redirect(Some("/x".into()))).unwrap();
            staged.chmod(0o755).unwrap();
            upper
                .publish(staged, &root, name("moved"), Replace::Nothing)
                .unwrap();
            let staged = upper.stage(Stage::File).unwrap();
            std::io::Write::write_all(&mut staged.file().unwrap(), b"ONE").unwrap();
            staged.set_mark(&Mark::Origin(handle.clone())).unwrap();
            staged.set_mark(&Mark::Nlink(Some("U+0".into()))).unwrap();
            upper.index_add(&handle, staged.node()).unwrap();
            upper
                .publish(staged, &root, name("one"), Replace::Nothing)
                .unwrap();
        }
        // A symlink with two names: without an origin the kernel takes no entry for it.
        let staged = upper.stage(Stage::Symlink(name("one"))).unwrap();
        let lower_s = lower_node(&layer, "s");
        let s_handle = layer.handle(&lower_s.node).unwrap().unwrap();
        staged.set_mark(&Mark::Origin(s_handle.clone())).unwrap();
        staged.set_mark(&Mark::Nlink(Some("U+0".into()))).unwrap();
        upper.index_add(&s_handle, staged.node()).unwrap();
        upper
            .publish(staged, &root, name("s"), Replace::Nothing)
            .unwrap();
        assert!(upper.index_lookup(&s_handle).unwrap().is_some());
        drop((fixture, root, dir, opaque));
        let extra = if trusted {
            FEATURES
        } else {
            ",userxattr,index=on"
        };
        let mount = kernel_mount(temp.path(), extra).expect("the kernel refuses it");
        let list = |path: &str| {
            let mut names: Vec<String> = std::fs::read_dir(mount.0.join(path))
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(list("d"), ["b"]);
        assert_eq!(list("e"), ["new"]);
        if trusted {
            assert_eq!(list("moved"), ["y"]);
            let [one, two] = ["one", "two"].map(|n| std::fs::metadata(mount.0.join(n)).unwrap());
            assert_eq!(std::fs::read(mount.0.join("two")).unwrap(), b"ONE");
            assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
            assert_eq!(one.ino(), lower_one.stat.ino);
        }
        // While the kernel has it, it is not to be had.
        let refused = Upper::open(
            &temp.path().join("u"),
            &temp.path().join("w"),
            options(namespace),
            Arc::new(FdCache::new(8)),
        );
        assert!(matches!(refused.unwrap_err(), UpperError::InUse(..)));
    }
}

#[test]
fn what_the_kernel_wrote_is_read() {
    if !is_root() {
        return skip("kernel overlay mounts need root");
    }
    let temp = tempfile::tempdir().unwrap();
    let layer = lower(temp.path());
    {
        let mount = kernel_mount(temp.path(), FEATURES).expect("no kernel overlay");
        let at = |path: &str| mount.0.join(path);
        std::fs::remove_file(at("d/a")).unwrap();
        std::fs::remove_dir_all(at("e")).unwrap();
        std::fs::create_dir(at("e")).unwrap();
        std::fs::write(at("one"), "changed").unwrap();
        assert!(run(Command::new("chown").arg("-h").arg("5").arg(at("s"))));
        assert!(run(Command::new("chmod").arg("600").arg(at("d/b"))));
        std::fs::rename(at("d"), at("moved")).unwrap();
        let nested = ["-n", "trusted.overlay.opaque", "-v", "y"];
        assert!(run(Command::new("setfattr").args(nested).arg(at("moved"))));
    }
    let fixture = Fixture::in_dir(temp.path(), options(Namespace::Trusted));
    let (upper, root) = (&fixture.upper, fixture.root());
    let marks = |found: &Found| upper.marks(&found.node, &found.stat).unwrap();
    assert!(fixture.is_whiteout(&root, "d"));
    let moved = fixture.found(&root, "moved");
    assert_eq!(marks(&moved).redirect.as_deref(), Some(name("d")));
    // What a program in the mount sets is not ours.
    assert_eq!(marks(&moved).opaque, Opaque::No);
    assert!(fixture.is_whiteout(&moved.node, "a"));
    let b = fixture.found(&moved.node, "b");
    assert!(marks(&b).metacopy);
    let e = fixture.found(&root, "e");
    assert_eq!(marks(&e).opaque, Opaque::Yes);
    assert!(marks(&fixture.upper_root()).impure);
    for path in ["one", "s"] {
        let found = fixture.found(&root, path);
        let expected = lower_node(&layer, path);
        let origin = marks(&found).origin.unwrap();
        assert_eq!(
            layer.handle(&expected.node).unwrap().unwrap(),
            origin,
            "{path}"
        );
        assert_eq!(layer.ino_of_handle(&origin), Some(expected.stat.ino));
        let stat = layer.stat_by_handle(&origin).unwrap().unwrap();
        assert_eq!(stat.ino, expected.stat.ino);
    }
    let one = fixture.found(&root, "one");
    let origin = marks(&one).origin.unwrap();
    let (_, indexed) = upper.index_lookup(&origin).unwrap().unwrap();
    assert_eq!(indexed.ino, one.stat.ino);
    assert!(marks(&one).nlink.is_some());
    // A layer that was an upper: the metacopy is seen, though its xattrs may take a block.
    let below = DirLayer::open(
        &temp.path().join("u"),
        LayerOptions::default(),
        Arc::new(FdCache::new(8)),
    )
    .unwrap();
    let found = lower_node(&below, "moved/b");
    assert!(below.marks(&found.node, &found.stat).unwrap().metacopy);
    assert!(
        std::fs::symlink_metadata(fixture.u("d"))
            .unwrap()
            .file_type()
            .is_char_device()
    );
}

impl Fixture {
    fn upper_root(&self) -> Found {
        let node = self.root();
        let stat = self.upper.stat(&node).unwrap();
        Found {
            node,
            stat,
            beside_whiteout: false,
        }
    }
}

#[test]
fn handles_are_the_kernels_on_every_filesystem() {
    if !is_root() {
        return skip("kernel overlay mounts need root");
    }
    let temp = tempfile::tempdir_in("/dev/shm").unwrap();
    let layer = lower(temp.path());
    {
        let mount = kernel_mount(temp.path(), ",index=on").expect("no kernel overlay");
        std::fs::write(mount.0.join("d/a"), "changed").unwrap();
    }
    let fixture = Fixture::in_dir(temp.path(), options(Namespace::Trusted));
    let dir = fixture.found(&fixture.root(), "d");
    let a = fixture.found(&dir.node, "a");
    let origin = fixture.upper.marks(&a.node, &a.stat).unwrap().origin;
    let expected = lower_node(&layer, "d/a");
    // A uuid that is not zero.
    assert_eq!(origin, layer.handle(&expected.node).unwrap());
    assert_eq!(
        layer.ino_of_handle(&origin.unwrap()),
        Some(expected.stat.ino)
    );
}
