//! Attributes, marks, and what is kept in the workdir for them.

use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn attributes() {
    let fixture = Fixture::new(Namespace::User);
    let (upper, root) = (&fixture.upper, fixture.root());
    let staged = upper.stage(Stage::Symlink(name("target"))).unwrap();
    let time = |sec| TimeSet::At(Timestamp { sec, nsec: 5 });
    staged
        .set_times(Some(time(-100)), Some(time(1_000_000)))
        .unwrap();
    if is_root() {
        staged.chown(Some(7), None).unwrap();
    }
    let link = upper
        .publish(staged, &root, name("l"), Replace::Nothing)
        .unwrap()
        .node;
    let stat = upper.stat(&link).unwrap();
    assert_eq!(stat.atime, Timestamp { sec: -100, nsec: 5 });
    assert_eq!(stat.mtime.sec, 1_000_000);
    if is_root() {
        assert_eq!(stat.uid, 7);
    }
    let file = fixture.file(&root, "f", Replace::Nothing);
    upper.set_times(&file, Some(time(3)), None).unwrap();
    upper.set_times(&file, None, Some(time(4))).unwrap();
    let stat = upper.stat(&file).unwrap();
    assert_eq!((stat.atime.sec, stat.mtime.sec), (3, 4));
    upper.fsync(&file).unwrap();
    upper.fsync(&root).unwrap();
    upper.fsync(&link).unwrap();
    upper.set_xattr(&file, name("user.a"), b"1", 0).unwrap();
    let again = upper.set_xattr(&file, name("user.a"), b"1", libc::XATTR_CREATE);
    assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EEXIST));
    let big = vec![b'z'; 3000];
    upper.set_xattr(&file, name("user.big"), &big, 0).unwrap();
    assert_eq!(upper.get_xattr(&file, name("user.big")).unwrap(), Some(big));
    assert_eq!(upper.list_xattr(&file).unwrap().len(), 2);
    upper.remove_xattr(&file, name("user.a")).unwrap();
    assert_eq!(upper.get_xattr(&file, name("user.a")).unwrap(), None);
}

#[test]
fn marks_read_back() {
    let namespaces: &[Namespace] = if is_root() {
        &[Namespace::Trusted, Namespace::User]
    } else {
        &[Namespace::User]
    };
    for &namespace in namespaces {
        let fixture = Fixture::new(namespace);
        let (upper, root) = (&fixture.upper, fixture.root());
        let handle = OverlayHandle(vec![0, 0xfb, 5, 0, 1]);
        let kinds = [
            Stage::File,
            Stage::Dir,
            Stage::Symlink(name("x")),
            Stage::Special(libc::S_IFIFO, 0),
        ];
        for (i, kind) in kinds.into_iter().enumerate() {
            let staged = upper.stage(kind).unwrap();
            staged.set_mark(&Mark::Origin(handle.clone())).unwrap();
            staged.set_mark(&Mark::Nlink(Some("U+1".into()))).unwrap();
            if i == 1 {
                staged.set_mark(&Mark::Opaque).unwrap();
                staged.set_mark(&Mark::Impure).unwrap();
            }
            let node = upper
                .publish(staged, &root, name(&i.to_string()), Replace::Nothing)
                .unwrap()
                .node;
            let marks = |node| upper.marks(node, &upper.stat(node).unwrap()).unwrap();
            assert_eq!(marks(&node).origin.as_ref(), Some(&handle));
            assert_eq!(marks(&node).nlink.as_deref(), Some("U+1"));
            assert_eq!(marks(&node).impure, i == 1);
            assert_eq!(marks(&node).opaque == Opaque::Yes, i == 1);
            upper.set_mark(&node, &Mark::Nlink(None)).unwrap();
            upper.set_mark(&node, &Mark::Nlink(None)).unwrap();
            assert_eq!(marks(&node).nlink, None);
            if i == 0 {
                upper.set_mark(&node, &Mark::Metacopy(true)).unwrap();
                let to = Some("/a/b".into());
                upper.set_mark(&node, &Mark::Redirect(to)).unwrap();
                assert!(marks(&node).metacopy);
                assert_eq!(marks(&node).redirect.unwrap(), "/a/b");
                upper.set_mark(&node, &Mark::Metacopy(false)).unwrap();
                upper.set_mark(&node, &Mark::Redirect(None)).unwrap();
                assert!(!marks(&node).metacopy && marks(&node).redirect.is_none());
            }
        }
    }
}

#[test]
fn index_entries() {
    let fixture = Fixture::new(Namespace::User);
    let (upper, root) = (&fixture.upper, fixture.root());
    let handle = OverlayHandle(vec![0, 0xfb, 0x1d, 0, 1, 2, 3]);
    assert!(upper.index_is_empty());
    assert!(upper.index_lookup(&handle).unwrap().is_none());
    let staged = upper.stage(Stage::File).unwrap();
    upper.index_add(&handle, staged.node()).unwrap();
    let node = upper
        .publish(staged, &root, name("f"), Replace::Nothing)
        .unwrap()
        .node;
    let (found, stat) = upper.index_lookup(&handle).unwrap().unwrap();
    assert_eq!((stat.ino, stat.nlink), (upper.stat(&node).unwrap().ino, 2));
    // The entry is a place like any other.
    upper.add_location(&found, &root, name("f"));
    upper
        .remove(&root, name("f"), Some(&node), false, true)
        .unwrap();
    assert_eq!(upper.stat(&found).unwrap().nlink, 1);
    let Fixture { upper, dir, _temp } = fixture;
    drop((node, found, upper));
    let again = Fixture::in_dir(&dir, options(Namespace::User));
    assert!(again.upper.index_lookup(&handle).unwrap().is_some());
    again.upper.index_remove(&handle).unwrap();
    again.upper.index_remove(&handle).unwrap();
    assert!(again.upper.index_is_empty());
    assert_eq!(std::fs::read_dir(dir.join("w/index")).unwrap().count(), 0);
}

#[test]
fn owner_and_mode_in_xattrs() {
    let temp = tempfile::tempdir().unwrap();
    let opts = UpperOptions {
        override_stat: OverrideStat::User,
        ..options(Namespace::User)
    };
    let fixture = Fixture::in_dir(temp.path(), opts.clone());
    let (upper, root) = (&fixture.upper, fixture.root());
    let staged = upper
        .stage(Stage::Special(libc::S_IFBLK, libc::makedev(8, 1)))
        .unwrap();
    staged.chown(Some(1234), Some(5)).unwrap();
    staged.chmod(0o4640).unwrap();
    let device = upper
        .publish(staged, &root, name("dev"), Replace::Nothing)
        .unwrap()
        .node;
    let stat = upper.stat(&device).unwrap();
    assert_eq!(stat.mode, libc::S_IFBLK | 0o4640);
    assert_eq!((stat.uid, stat.gid), (1234, 5));
    assert_eq!(stat.rdev, libc::makedev(8, 1));
    let real = std::fs::symlink_metadata(fixture.u("dev")).unwrap();
    assert!(real.is_file());
    assert_eq!(real.mode() & 0o7777, 0o755);
    let value = upper
        .get_xattr(&device, name("user.containers.override_stat"))
        .unwrap();
    assert_eq!(value.unwrap(), b"1234:5:4640:block-8-1");
    let dir = fixture.mkdir(&root, "d", Replace::Nothing);
    upper.chmod(&dir, 0).unwrap();
    assert_eq!(upper.stat(&dir).unwrap().mode, libc::S_IFDIR);
    fixture.file(&dir, "f", Replace::Nothing);
    assert_eq!(
        fixture.listing(&root)["dev"],
        EntryKind::Node(libc::S_IFBLK)
    );
    assert_eq!(fixture.found(&root, "dev").stat, stat);
    // Whiteouts are told apart from devices that are kept in xattrs.
    upper
        .remove(&root, name("dev"), Some(&device), false, true)
        .unwrap();
    assert!(fixture.is_whiteout(&root, "dev"));
}

#[test]
fn marks_of_symlinks_survive_and_go() {
    let temp = tempfile::tempdir().unwrap();
    let fixture = Fixture::in_dir(temp.path(), options(Namespace::User));
    let handle = OverlayHandle(vec![0, 0xfb, 5, 0, 1]);
    let make = |fixture: &Fixture, at: &str| {
        let staged = fixture.upper.stage(Stage::Symlink(name("x"))).unwrap();
        staged.set_mark(&Mark::Origin(handle.clone())).unwrap();
        fixture
            .upper
            .publish(staged, &fixture.root(), name(at), Replace::Nothing)
            .unwrap()
            .node
    };
    let [a, b, c] = ["a", "b", "c"].map(|at| make(&fixture, at));
    let count = || {
        std::fs::read_dir(temp.path().join("w/acetate-marks"))
            .unwrap()
            .filter(|e| {
                !e.as_ref()
                    .unwrap()
                    .file_name()
                    .to_str()
                    .unwrap()
                    .starts_with('.')
            })
            .count()
    };
    assert_eq!(count(), 3);
    let root = fixture.root();
    fixture
        .upper
        .remove(&root, name("a"), Some(&a), false, true)
        .unwrap();
    assert_eq!(count(), 2);
    drop((a, b, c, root));
    drop(fixture);
    // An orderly end leaves no trace of use.
    assert!(!temp.path().join("w/acetate-marks/.in-use").exists());
    let fixture = Fixture::in_dir(temp.path(), options(Namespace::User));
    let found = fixture.found(&fixture.root(), "b");
    let marks = fixture.upper.marks(&found.node, &found.stat).unwrap();
    assert_eq!(marks.origin, Some(handle.clone()));
    drop((fixture, found));
    // After a crash what is gone is swept and what is there is kept.
    std::fs::write(temp.path().join("w/acetate-marks/.in-use"), "").unwrap();
    std::fs::remove_file(temp.path().join("u/c")).unwrap();
    let fixture = Fixture::in_dir(temp.path(), options(Namespace::User));
    assert_eq!(count(), 1);
    let found = fixture.found(&fixture.root(), "b");
    let marks = fixture.upper.marks(&found.node, &found.stat).unwrap();
    assert_eq!(marks.origin, Some(handle));
}
