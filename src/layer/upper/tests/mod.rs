//! Tests of the upper on real filesystems.

mod attributes;
mod filesystems;
mod interchange;
mod opening;
mod operations;
mod unprivileged;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::whiteout::WhiteoutForm;
use super::workdir::Renames;
use super::*;
use crate::layer::error::UpperError;
use crate::layer::fdcache::FdCache;
use crate::layer::format::OverrideStat;
use crate::layer::{EntryKind, Found, Opaque};

/// Root of the machine, not of a user namespace.
pub(super) fn is_root() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    rustix::process::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

pub(super) fn options(namespace: Namespace) -> UpperOptions {
    UpperOptions {
        namespace,
        volatile: false,
        override_stat: OverrideStat::Off,
        access_times: AccessTimes::AsBelow,
    }
}

/// An upper in a directory of its own.
pub(super) struct Fixture {
    pub(super) upper: Arc<Upper>,
    pub(super) dir: PathBuf,
    _temp: Option<TempDir>,
}

impl Fixture {
    pub(super) fn new(namespace: Namespace) -> Fixture {
        let temp = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::in_dir(temp.path(), options(namespace));
        fixture._temp = Some(temp);
        fixture
    }

    pub(super) fn in_dir(dir: &Path, options: UpperOptions) -> Fixture {
        let (u, w) = (dir.join("u"), dir.join("w"));
        std::fs::create_dir_all(&u).unwrap();
        std::fs::create_dir_all(&w).unwrap();
        let open = || Upper::open(&u, &w, options.clone(), Arc::new(FdCache::new(8)));
        let begin = std::time::Instant::now();
        let mut opened = open();
        // Between fork and exec the child of another test holds this test's locks too.
        while matches!(opened, Err(UpperError::InUse(..))) && begin.elapsed().as_secs() < 1 {
            opened = open();
        }
        Fixture {
            upper: opened.unwrap(),
            dir: dir.to_owned(),
            _temp: None,
        }
    }

    /// The same with another form of whiteouts and less from `renameat2`.
    pub(super) fn with(namespace: Namespace, form: WhiteoutForm, renames: Renames) -> Fixture {
        let mut fixture = Fixture::new(namespace);
        let upper = Arc::get_mut(&mut fixture.upper).unwrap();
        upper.work.form = form;
        upper.work.renames = renames;
        fixture
    }

    pub(super) fn u(&self, path: &str) -> PathBuf {
        self.dir.join("u").join(path)
    }

    pub(super) fn root(&self) -> Node {
        self.upper.root()
    }

    pub(super) fn file(&self, dir: &Node, name: &str, replace: Replace) -> Node {
        use std::io::Write;
        let staged = self.upper.stage(Stage::File).unwrap();
        staged.file().unwrap().write_all(name.as_bytes()).unwrap();
        staged.chmod(0o644).unwrap();
        self.upper
            .publish(staged, dir, name.as_ref(), replace)
            .unwrap()
            .node
    }

    pub(super) fn mkdir(&self, dir: &Node, name: &str, replace: Replace) -> Node {
        let staged = self.upper.stage(Stage::Dir).unwrap();
        staged.chmod(0o755).unwrap();
        self.upper
            .publish(staged, dir, name.as_ref(), replace)
            .unwrap()
            .node
    }

    /// A directory that shows nothing but hides three names.
    pub(super) fn hiding_dir(&self, dir: &Node, name: &str) -> Node {
        let node = self.mkdir(dir, name, Replace::Nothing);
        for name in ["h1", "h2", "h3"] {
            self.upper
                .remove(&node, name.as_ref(), None, false, true)
                .unwrap();
        }
        node
    }

    pub(super) fn found(&self, dir: &Node, name: &str) -> Found {
        match self.upper.lookup(dir, name.as_ref(), false).unwrap() {
            LayerLookup::Found(found) => found,
            other => panic!("{name}: {other:?}"),
        }
    }

    pub(super) fn is_whiteout(&self, dir: &Node, name: &str) -> bool {
        matches!(
            self.upper.lookup(dir, name.as_ref(), false).unwrap(),
            LayerLookup::Whiteout
        )
    }

    pub(super) fn is_missing(&self, dir: &Node, name: &str) -> bool {
        matches!(
            self.upper.lookup(dir, name.as_ref(), false).unwrap(),
            LayerLookup::Missing
        )
    }

    pub(super) fn listing(&self, dir: &Node) -> BTreeMap<String, EntryKind> {
        listing(&*self.upper, dir)
    }

    /// What is left in the scratch directory but for the shared whiteout.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let shared = self.upper.work.shared_whiteout.lock().clone();
        let mut names: Vec<String> = std::fs::read_dir(self.dir.join("w/work"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .filter(|n| Some(n) != shared.as_ref() && n != "incompat")
            .map(|n| n.into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

pub(super) fn listing(layer: &dyn Layer, dir: &Node) -> BTreeMap<String, EntryKind> {
    let mut all = BTreeMap::new();
    layer
        .read_dir(dir, false, &mut |entry| {
            let name = entry.name.to_str().unwrap().to_owned();
            assert!(all.insert(name, entry.kind).is_none(), "listed twice");
            ControlFlow::Continue(())
        })
        .unwrap();
    all
}

pub(super) fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// Says loudly that a test did not run; with `CI=true` that is a failure.
pub(super) fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "SKIPPED: {why}"
    );
}
