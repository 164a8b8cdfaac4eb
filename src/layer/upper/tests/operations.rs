//! Every operation, with every form of whiteout and with all, some and none of `renameat2`'s features.

use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;

const ALL: Renames = Renames {
    no_replace: true,
    exchange: true,
    whiteout: true,
};
const NO_WHITEOUT: Renames = Renames {
    whiteout: false,
    ..ALL
};
const NONE: Renames = Renames {
    no_replace: false,
    exchange: false,
    whiteout: false,
};

/// Runs a test in all variants.
fn everywhere(test: impl Fn(&Fixture)) {
    let namespaces: &[Namespace] = if is_root() {
        &[Namespace::Trusted, Namespace::User]
    } else {
        &[Namespace::User]
    };
    for &namespace in namespaces {
        for form in [
            WhiteoutForm::Device,
            WhiteoutForm::Marked,
            WhiteoutForm::Dot,
        ] {
            for renames in [ALL, NO_WHITEOUT, NONE] {
                eprintln!("{namespace:?} {form:?} {renames:?}");
                let fixture = Fixture::with(namespace, form, renames);
                test(&fixture);
                assert_eq!(fixture.leftovers(), Vec::<String>::new());
            }
        }
    }
}

#[test]
fn publish_each_type() {
    let fixture = Fixture::new(Namespace::User);
    let (upper, root) = (&fixture.upper, fixture.root());
    let file = fixture.file(&root, "f", Replace::Nothing);
    assert_eq!(upper.stat(&file).unwrap().mode, libc::S_IFREG | 0o644);
    let dir = fixture.mkdir(&root, "d", Replace::Nothing);
    fixture.file(&dir, "g", Replace::Nothing);
    let staged = upper.stage(Stage::Symlink(name("/etc/passwd"))).unwrap();
    let link = upper
        .publish(staged, &dir, name("l"), Replace::Nothing)
        .unwrap()
        .node;
    assert_eq!(upper.read_link(&link).unwrap(), "/etc/passwd");
    let staged = upper.stage(Stage::Special(libc::S_IFIFO, 0)).unwrap();
    staged.chmod(0o640).unwrap();
    let fifo = upper
        .publish(staged, &dir, name("p"), Replace::Nothing)
        .unwrap()
        .node;
    assert_eq!(upper.stat(&fifo).unwrap().mode, libc::S_IFIFO | 0o640);
    assert_eq!(std::fs::read(fixture.u("d/g")).unwrap(), b"g");
    assert_eq!(fixture.found(&dir, "g").stat.size, 1);
    let listing = fixture.listing(&dir);
    assert_eq!(listing["g"], EntryKind::Node(libc::S_IFREG));
    assert_eq!(listing["l"], EntryKind::Node(libc::S_IFLNK));
    assert_eq!(listing["p"], EntryKind::Node(libc::S_IFIFO));
    assert!(fixture.leftovers().is_empty());
}

#[test]
fn what_is_not_published_is_removed() {
    let fixture = Fixture::new(Namespace::User);
    for kind in [Stage::File, Stage::Dir, Stage::Symlink(name("x"))] {
        let staged = fixture.upper.stage(kind).unwrap();
        assert_eq!(fixture.leftovers().len(), 1);
        drop(staged);
        assert!(fixture.leftovers().is_empty());
    }
}

#[test]
fn nothing_is_overwritten_unasked() {
    everywhere(|fixture| {
        let root = fixture.root();
        fixture.file(&root, "a", Replace::Nothing);
        for kind in [Stage::File, Stage::Dir] {
            let staged = fixture.upper.stage(kind).unwrap();
            let error = fixture
                .upper
                .publish(staged, &root, name("a"), Replace::Nothing)
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        }
        assert_eq!(std::fs::read(fixture.u("a")).unwrap(), b"a");
    });
}

#[test]
fn remove_and_make_again() {
    everywhere(|fixture| {
        let (upper, root) = (&fixture.upper, fixture.root());
        let dir = fixture.mkdir(&root, "dir", Replace::Nothing);
        // Of a lower entry alone.
        upper.remove(&dir, name("low"), None, false, true).unwrap();
        assert!(fixture.is_whiteout(&dir, "low"));
        // Of files, with and without a lower entry of the name.
        let a = fixture.file(&dir, "a", Replace::Nothing);
        let b = fixture.file(&dir, "b", Replace::Nothing);
        upper
            .remove(&dir, name("a"), Some(&a), false, true)
            .unwrap();
        upper
            .remove(&dir, name("b"), Some(&b), false, false)
            .unwrap();
        assert!(fixture.is_whiteout(&dir, "a"));
        assert!(fixture.is_missing(&dir, "b"));
        // Of directories that hide names.
        let c = fixture.hiding_dir(&dir, "c");
        let d = fixture.hiding_dir(&dir, "d");
        assert!(fixture.is_whiteout(&c, "h1"));
        upper.remove(&dir, name("c"), Some(&c), true, true).unwrap();
        upper
            .remove(&dir, name("d"), Some(&d), true, false)
            .unwrap();
        assert!(fixture.is_whiteout(&dir, "c"));
        assert!(fixture.is_missing(&dir, "d"));
        let listing = fixture.listing(&dir);
        assert_eq!(
            listing.into_iter().collect::<Vec<_>>(),
            ["a", "c", "low"].map(|n| (n.to_owned(), EntryKind::Whiteout))
        );
        // In the place of whiteouts.
        fixture.file(&dir, "a", Replace::Whiteout);
        let c = fixture.mkdir(&dir, "c", Replace::Whiteout);
        fixture.file(&c, "in", Replace::Nothing);
        assert_eq!(fixture.found(&dir, "a").stat.size, 1);
        assert!(!fixture.found(&dir, "c").beside_whiteout);
        assert_eq!(fixture.listing(&dir).len(), 3);
    });
}

#[test]
fn a_directory_that_shows_something_stays() {
    everywhere(|fixture| {
        let (upper, root) = (&fixture.upper, fixture.root());
        let dir = fixture.hiding_dir(&root, "dir");
        fixture.file(&dir, "shown", Replace::Nothing);
        for whiteout in [false, true] {
            let error = upper
                .remove(&root, name("dir"), Some(&dir), true, whiteout)
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY));
        }
        assert_eq!(fixture.listing(&dir).len(), 4);
    });
}

#[test]
fn replace_an_empty_directory() {
    everywhere(|fixture| {
        let root = fixture.root();
        fixture.hiding_dir(&root, "dir");
        let staged = fixture.upper.stage(Stage::Dir).unwrap();
        staged.chmod(0o711).unwrap();
        let new = fixture
            .upper
            .publish(staged, &root, name("dir"), Replace::EmptyDir)
            .unwrap()
            .node;
        assert!(fixture.listing(&new).is_empty());
        assert_eq!(fixture.upper.stat(&new).unwrap().mode & 0o777, 0o711);
    });
}

#[test]
fn rename_over_everything() {
    everywhere(|fixture| {
        let (upper, root) = (&fixture.upper, fixture.root());
        for whiteout in [false, true] {
            for is_dir in [false, true] {
                for replace in [
                    Replace::Nothing,
                    Replace::Whiteout,
                    Replace::File,
                    Replace::EmptyDir,
                ] {
                    let fits = match replace {
                        Replace::File => !is_dir,
                        Replace::EmptyDir => is_dir,
                        _ => true,
                    };
                    if !fits {
                        continue;
                    }
                    let case = format!("{whiteout}-{is_dir}-{replace:?}");
                    let from = fixture.mkdir(&root, &format!("{case}-from"), Replace::Nothing);
                    let to = fixture.mkdir(&root, &format!("{case}-to"), Replace::Nothing);
                    let node = if is_dir {
                        let dir = fixture.mkdir(&from, "old", Replace::Nothing);
                        fixture.file(&dir, "inner", Replace::Nothing);
                        dir
                    } else {
                        fixture.file(&from, "old", Replace::Nothing)
                    };
                    let replaced = match replace {
                        Replace::Nothing => None,
                        Replace::Whiteout => {
                            upper.remove(&to, name("new"), None, false, true).unwrap();
                            None
                        }
                        Replace::File => Some(fixture.file(&to, "new", Replace::Nothing)),
                        Replace::EmptyDir => Some(fixture.hiding_dir(&to, "new")),
                    };
                    upper
                        .rename(
                            (&from, name("old")),
                            &node,
                            (&to, name("new")),
                            replaced.as_ref(),
                            replace,
                            whiteout,
                        )
                        .unwrap_or_else(|e| panic!("{case}: {e}"));
                    assert_eq!(fixture.is_whiteout(&from, "old"), whiteout, "{case}");
                    assert_eq!(fixture.is_missing(&from, "old"), !whiteout, "{case}");
                    let found = fixture.found(&to, "new");
                    let stat = upper.stat(&node).unwrap();
                    assert_eq!(found.stat.ino, stat.ino, "{case}");
                    assert!(!found.beside_whiteout, "{case}");
                    assert_eq!(fixture.listing(&to).len(), 1, "{case}");
                    if is_dir {
                        assert_eq!(fixture.found(&node, "inner").stat.size, 5);
                        assert_eq!(fixture.listing(&node).len(), 1);
                    }
                    assert!(fixture.leftovers().is_empty(), "{case}");
                }
            }
        }
    });
}

#[test]
fn exchange_two_nodes() {
    let fixture = Fixture::new(Namespace::User);
    let (upper, root) = (&fixture.upper, fixture.root());
    let dir = fixture.mkdir(&root, "dir", Replace::Nothing);
    let inner = fixture.file(&dir, "inner", Replace::Nothing);
    let sub = fixture.mkdir(&root, "sub", Replace::Nothing);
    let file = fixture.file(&sub, "file", Replace::Nothing);
    upper
        .exchange((&root, name("dir"), &dir), (&sub, name("file"), &file))
        .unwrap();
    assert_eq!(std::fs::read(fixture.u("dir")).unwrap(), b"file");
    assert_eq!(
        std::fs::read(fixture.u("sub/file/inner")).unwrap(),
        b"inner"
    );
    assert_eq!(upper.stat(&file).unwrap().size, 4);
    assert_eq!(upper.stat(&inner).unwrap().size, 5);
}

#[test]
fn links_and_pins() {
    everywhere(|fixture| {
        let (upper, root) = (&fixture.upper, fixture.root());
        let dir = fixture.mkdir(&root, "dir", Replace::Nothing);
        let node = fixture.file(&root, "a", Replace::Nothing);
        upper
            .link(&node, &dir, name("b"), Replace::Nothing)
            .unwrap();
        upper.remove(&dir, name("c"), None, false, true).unwrap();
        upper
            .link(&node, &dir, name("c"), Replace::Whiteout)
            .unwrap();
        fixture.file(&dir, "d", Replace::Nothing);
        upper.link(&node, &dir, name("d"), Replace::File).unwrap();
        // Onto another name of itself.
        upper.link(&node, &dir, name("d"), Replace::File).unwrap();
        assert_eq!(upper.stat(&node).unwrap().nlink, 4);
        // Each name is as good as the first.
        upper
            .remove(&root, name("a"), Some(&node), false, false)
            .unwrap();
        assert_eq!(upper.stat(&node).unwrap().nlink, 3);
        for gone in ["b", "c"] {
            upper
                .remove(&dir, name(gone), Some(&node), false, true)
                .unwrap();
        }
        upper.pin(&node).unwrap();
        upper
            .remove(&dir, name("d"), Some(&node), false, true)
            .unwrap();
        assert_eq!(upper.stat(&node).unwrap().nlink, 0);
        upper.chmod(&node, 0o600).unwrap();
        upper.truncate(&node, 100).unwrap();
        let file = upper.open(&node, Access::Write).unwrap();
        file.as_file().unwrap().write_at(b"x", 99).unwrap();
        let mut byte = [0];
        let read = upper.open(&node, Access::Read).unwrap();
        assert_eq!(read.read_at(&mut byte, 99).unwrap(), 1);
        assert_eq!(&byte, b"x");
        upper.set_xattr(&node, name("user.k"), b"v", 0).unwrap();
        assert_eq!(
            upper.get_xattr(&node, name("user.k")).unwrap(),
            Some(b"v".to_vec())
        );
        let stat = upper.stat(&node).unwrap();
        assert_eq!((stat.size, stat.mode & 0o777), (100, 0o600));
        upper.unpin(&node);
        assert!(upper.stat(&node).is_err());
    });
}

#[test]
fn deep_paths_and_few_descriptors() {
    let fixture = Fixture::new(Namespace::User);
    let root = fixture.root();
    let long = "d".repeat(200);
    let mut nodes = vec![root.clone()];
    for _ in 0..3000 {
        let parent = nodes.last().unwrap().clone();
        nodes.push(fixture.mkdir(&parent, &long, Replace::Nothing));
    }
    let deepest = nodes.last().unwrap().clone();
    let file = fixture.file(&deepest, "f", Replace::Nothing);
    assert_eq!(fixture.upper.stat(&file).unwrap().size, 1);
    // The top of the tree moves; what is below follows.
    fixture
        .upper
        .rename(
            (&root, name(&long)),
            &nodes[1],
            (&root, name("moved")),
            None,
            Replace::Nothing,
            false,
        )
        .unwrap();
    assert_eq!(fixture.upper.stat(&nodes[1500]).unwrap().ino, {
        path_node(&nodes[1500]).unwrap().ino()
    });
    assert_eq!(fixture.upper.stat(&file).unwrap().size, 1);
    // Dropping the chain overflows no stack; neither does removing the tree.
    drop(nodes);
    drop((deepest, file));
    let Fixture { upper, dir, _temp } = fixture;
    std::fs::rename(dir.join("u/moved"), dir.join("w/work/junk")).unwrap();
    drop(upper);
    let again = Fixture::in_dir(&dir, options(Namespace::User));
    assert!(again.leftovers().is_empty());
}

#[test]
fn nodes_are_found_while_directories_are_renamed() {
    let fixture = Fixture::new(Namespace::User);
    let root = fixture.root();
    let dir = fixture.mkdir(&root, "a", Replace::Nothing);
    let sub = fixture.mkdir(&dir, "sub", Replace::Nothing);
    let file = fixture.file(&sub, "f", Replace::Nothing);
    // The other thread ends with this one, also where an assertion fails here.
    let (running, ended) = std::sync::mpsc::channel::<()>();
    let fixture = &fixture;
    let (dir, root) = (&dir, &root);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut names = ["a", "b"];
            while ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let [from, to] = names;
                fixture
                    .upper
                    .rename(
                        (root, name(from)),
                        dir,
                        (root, name(to)),
                        None,
                        Replace::Nothing,
                        false,
                    )
                    .unwrap();
                names.reverse();
            }
        });
        // Many other directories push the moving ones out of the cache.
        let others: Vec<Node> = (0..16)
            .map(|i| fixture.mkdir(root, &format!("o{i}"), Replace::Nothing))
            .collect();
        for _ in 0..3000 {
            for other in &others {
                path_node(other).unwrap().dir_fd().unwrap();
            }
            let stat = fixture.upper.stat(&file).unwrap();
            assert_eq!(stat.size, 1);
        }
        drop(running);
    });
}

#[test]
fn a_node_of_another_inode_is_not_taken_for_it() {
    let fixture = Fixture::new(Namespace::User);
    let root = fixture.root();
    let node = fixture.file(&root, "f", Replace::Nothing);
    std::fs::rename(fixture.u("f"), fixture.dir.join("kept")).unwrap();
    std::fs::write(fixture.u("f"), "other").unwrap();
    let stale = |e: io::Error| assert_eq!(e.raw_os_error(), Some(libc::ESTALE));
    stale(fixture.upper.stat(&node).unwrap_err());
    stale(fixture.upper.chmod(&node, 0).unwrap_err());
    stale(fixture.upper.open(&node, Access::Write).unwrap_err());
    assert_eq!(std::fs::read(fixture.u("f")).unwrap(), b"other");
}

#[test]
fn many_whiteouts_share_inodes() {
    let fixture = Fixture::new(Namespace::User);
    let root = fixture.root();
    for i in 0..100 {
        fixture
            .upper
            .remove(&root, name(&i.to_string()), None, false, true)
            .unwrap();
    }
    let first = std::fs::symlink_metadata(fixture.u("0")).unwrap().ino();
    let last = std::fs::symlink_metadata(fixture.u("99")).unwrap();
    assert_eq!((last.ino(), last.nlink()), (first, 101));
    assert_eq!(last.rdev(), 0);
}

#[test]
fn the_whiteout_that_is_shared_may_vanish() {
    let fixture = Fixture::new(Namespace::User);
    let root = fixture.root();
    for i in 0..3 {
        let shared = fixture.upper.work.shared_whiteout.lock().clone();
        if let Some(shared) = shared {
            std::fs::remove_file(fixture.dir.join("w/work").join(shared)).unwrap();
        }
        let gone = i.to_string();
        fixture
            .upper
            .remove(&root, name(&gone), None, false, true)
            .unwrap();
        assert!(fixture.is_whiteout(&root, &gone));
    }
}

#[test]
fn entries_made_in_place() {
    let fixture = Fixture::new(Namespace::User);
    let (upper, root) = (&fixture.upper, fixture.root());
    let dir = fixture.mkdir(&root, "sgid", Replace::Nothing);
    let own = upper.stat(&dir).unwrap();
    for sgid in [0, libc::S_ISGID] {
        upper.chmod(&dir, 0o755 | sgid).unwrap();
        let parent = upper.stat(&dir).unwrap();
        let attributes = |mode| NewAttributes {
            uid: own.uid,
            gid: own.gid,
            mode,
        };
        for (at, kind, mode) in [
            ("file", Stage::File, 0o462),
            ("dir", Stage::Dir, 0o1777 | sgid),
            ("link", Stage::Symlink(name("x")), 0o777),
            ("fifo", Stage::Special(libc::S_IFIFO, 0), 0o606),
        ] {
            let at = format!("{at}{sgid:o}");
            let made = upper
                .create(&dir, &parent, name(&at), kind, attributes(mode))
                .unwrap()
                .unwrap();
            let stat = upper.stat(&made.node).unwrap();
            assert_eq!(made.stat, Some(stat));
            assert_eq!(stat.mode & 0o7777, mode, "{at}");
            assert_eq!((stat.uid, stat.gid), (own.uid, own.gid));
            assert_eq!(made.file.is_some(), matches!(kind, Stage::File));
            let again = upper.create(&dir, &parent, name(&at), kind, attributes(mode));
            assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EEXIST));
        }
        let refused = |kind, attributes| {
            let made = upper.create(&dir, &parent, name("no"), kind, attributes);
            assert!(made.unwrap().is_none());
        };
        refused(Stage::File, attributes(0o4755));
        refused(Stage::Dir, attributes(0o755 | (sgid ^ libc::S_ISGID)));
        let stranger = NewAttributes {
            uid: own.uid + 1,
            ..attributes(0o644)
        };
        refused(Stage::File, stranger);
    }
    assert!(fixture.is_missing(&dir, "no"));
}
