//! What is refused, and what is cleaned.

use super::*;
use crate::layer::error::UpperError;

fn open(dir: &Path, upper: &str, work: &str) -> Result<Arc<Upper>, UpperError> {
    Upper::open(
        &dir.join(upper),
        &dir.join(work),
        options(Namespace::User),
        Arc::new(FdCache::new(8)),
    )
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                pending.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn each_refusal_names_its_cause_and_touches_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    for sub in ["u/in", "w/in"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
    }
    std::fs::write(dir.join("file"), "").unwrap();
    std::os::unix::fs::symlink("u", dir.join("link")).unwrap();
    let before = names(dir);
    let refused = |upper, work| open(dir, upper, work).unwrap_err();
    assert!(matches!(
        refused("no", "w"),
        UpperError::Missing("upper directory", _)
    ));
    assert!(matches!(
        refused("u", "no"),
        UpperError::Missing("workdir", _)
    ));
    assert!(matches!(
        refused("file", "w"),
        UpperError::NotADirectory(..)
    ));
    assert!(matches!(
        refused("u", "file"),
        UpperError::NotADirectory(..)
    ));
    for (upper, work) in [
        ("u", "u"),
        ("u", "u/in"),
        ("w/in", "w"),
        ("u", "link/in"),
        ("link", "u"),
    ] {
        let error = refused(upper, work);
        assert!(
            matches!(error, UpperError::Nested { .. }),
            "{upper} {work}: {error}"
        );
        assert!(error.to_string().contains(dir.to_str().unwrap()));
        assert_eq!(error.to_string().lines().count(), 1);
    }
    assert_eq!(names(dir), before);
}

#[test]
fn one_mount_at_a_time() {
    let fixture = Fixture::new(Namespace::User);
    std::fs::create_dir(fixture.dir.join("other")).unwrap();
    let refused = |u, w| open(&fixture.dir, u, w).unwrap_err();
    assert!(matches!(
        refused("u", "other"),
        UpperError::InUse("upper directory", _)
    ));
    assert!(matches!(
        refused("other", "w"),
        UpperError::InUse("workdir", _)
    ));
    // The lock goes with the upper, even while a node lives on.
    let dir = fixture.dir.clone();
    let node = fixture.root();
    let Fixture { upper, _temp, .. } = fixture;
    drop(upper);
    drop(open(&dir, "u", "w").unwrap());
    drop(node);
}

/// Whoever may open the directory may lock it: it is said who does, as no mount would be found.
#[test]
fn who_holds_the_lock_is_named() {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};
    if !is_root() {
        return skip("another user's process takes root");
    }
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let upper = temp.path().join("u");
    for dir in [&upper, &temp.path().join("w")] {
        std::fs::create_dir(dir).unwrap();
    }
    let mut stranger = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["flock", "--no-fork"])
        .arg(&upper)
        .args(["sleep", "100"])
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let error = loop {
        match open(temp.path(), "u", "w") {
            Err(e) => break Some(e),
            Ok(_) if begin.elapsed() > Duration::from_secs(60) => break None,
            Ok(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let process = stranger.id();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    let error = error.expect("it is never locked");
    match &error {
        UpperError::Locked {
            what,
            process: p,
            user,
            ..
        } => assert_eq!((*what, *p, *user), ("upper directory", process, 65534)),
        other => panic!("{other}"),
    }
    drop(open(temp.path(), "u", "w").unwrap());
}

#[test]
fn what_was_put_in_the_place_of_either_is_not_touched() {
    use std::os::unix::fs::MetadataExt;
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    for dir in ["u", "w/work/left", "other/work/left"] {
        std::fs::create_dir_all(at(dir)).unwrap();
    }
    let id = |name: &str| {
        let found = std::fs::metadata(at(name)).unwrap();
        (found.dev(), found.ino())
    };
    let (upper, work) = (id("u"), id("w"));
    let open = |upper_name: &str, work_name: &str| {
        let cache = Arc::new(FdCache::new(8));
        let found = [(&*at(upper_name), upper), (&*at(work_name), work)];
        Upper::open_found(found, options(Namespace::User), cache, false)
    };
    let before = names(temp.path());
    for (names, what) in [
        (("other", "w"), "upper directory"),
        (("u", "other"), "workdir"),
    ] {
        match open(names.0, names.1).unwrap_err() {
            UpperError::Replaced(found, _) => assert_eq!(found, what),
            other => panic!("{other}"),
        }
    }
    assert_eq!(names(temp.path()), before);
    drop(open("u", "w").unwrap());
    assert!(!at("w/work/left").exists());
}

#[test]
fn another_filesystem_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        return skip("no /dev/shm");
    };
    std::fs::create_dir(temp.path().join("u")).unwrap();
    let error = Upper::open(
        &temp.path().join("u"),
        other.path(),
        options(Namespace::User),
        Arc::new(FdCache::new(8)),
    )
    .unwrap_err();
    if rustix::fs::stat(temp.path()).unwrap().st_dev
        == rustix::fs::stat(other.path()).unwrap().st_dev
    {
        return skip("/tmp and /dev/shm are one filesystem");
    }
    assert!(
        matches!(error, UpperError::OtherFilesystem { .. }),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
}

#[test]
fn the_workdir_is_cleaned() {
    let temp = tempfile::tempdir().unwrap();
    let junk = temp.path().join("w/work/#5/a/b/c");
    std::fs::create_dir_all(&junk).unwrap();
    std::fs::write(junk.join("f"), "x").unwrap();
    std::fs::write(temp.path().join("w/work/#6"), "x").unwrap();
    std::os::unix::fs::symlink("/etc", temp.path().join("w/work/#7")).unwrap();
    let mut depth = temp.path().join("w/work/deep");
    for _ in 0..300 {
        depth.push("d");
    }
    std::fs::create_dir_all(&depth).unwrap();
    std::fs::create_dir_all(temp.path().join("w/index")).unwrap();
    let fixture = Fixture::in_dir(temp.path(), options(Namespace::User));
    assert!(fixture.leftovers().is_empty());
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn unknown_features_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir(temp.path().join("u")).unwrap();
    std::fs::create_dir_all(temp.path().join("w/work/incompat/future")).unwrap();
    let error = open(temp.path(), "u", "w").unwrap_err();
    assert!(
        matches!(&error, UpperError::Incompatible(_, f) if f == "future"),
        "{error}"
    );
    assert!(temp.path().join("w/work/incompat/future").exists());
}

#[test]
fn a_volatile_mount_is_remembered_across_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let volatile = UpperOptions {
        volatile: true,
        ..options(Namespace::User)
    };
    let dirty = temp.path().join("w/work/incompat/volatile/dirty");
    let fixture = Fixture::in_dir(temp.path(), volatile.clone());
    assert!(dirty.exists());
    let root = fixture.root();
    fixture.upper.fsync(&root).unwrap();
    fixture.upper.sync().unwrap();
    drop((fixture, root));
    // The machine is still the same one: nothing can be lost.
    drop(Fixture::in_dir(temp.path(), volatile));
    assert!(dirty.exists());
    drop(Fixture::in_dir(temp.path(), options(Namespace::User)));
    assert!(!dirty.exists());
    // The kernel's mark, and that of another boot.
    for content in ["", "another boot"] {
        std::fs::create_dir_all(dirty.parent().unwrap()).unwrap();
        std::fs::write(&dirty, content).unwrap();
        let error = open(temp.path(), "u", "w").unwrap_err();
        assert!(matches!(error, UpperError::Volatile(_)), "{error}");
        assert!(dirty.exists());
    }
}
