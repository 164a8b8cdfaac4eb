//! What a process knows of nodes and open files of the one before, before it has looked.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use acetate::layer::Layer;
use acetate::layer::dir::{DirLayer, LayerOptions};
use acetate::layer::fdcache::FdCache;
use acetate::layer::format::OverrideStat;
use acetate::layer::upper::{AccessTimes, Namespace, Upper, UpperOptions};
use acetate::sys::shared_log::SharedLog;
use acetate::union::{Backing, BackingOpener, Caller, Journal, Lookup, Params, ROOT, Union};

use crate::common::Scratch;

const ME: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
};

struct NoBacking;

impl BackingOpener for NoBacking {
    fn open_backing(&self, _: BorrowedFd<'_>, _: bool) -> io::Result<Backing> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// One below, and where changes go.
fn layers(scratch: &Path) -> (Vec<Arc<dyn Layer>>, Arc<Upper>) {
    let cache = Arc::new(FdCache::for_this_process());
    let lower = scratch.join("lower");
    let layer = DirLayer::open(&lower, LayerOptions::default(), cache.clone()).unwrap();
    let options = UpperOptions {
        namespace: Namespace::User,
        volatile: true,
        override_stat: OverrideStat::Off,
        access_times: AccessTimes::AsBelow,
    };
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    let upper = Upper::open(&upper, &work, options, cache).unwrap();
    (vec![Arc::new(layer)], upper)
}

/// Whatever may copy a file's data must not be done by a thread that all others wait for.
#[test]
fn what_was_not_looked_at_since_a_death_may_take_long() {
    let scratch = Scratch::new("takeover-adopted");
    for name in ["lower", "upper", "work"] {
        scratch.dir(name);
    }
    fs::write(scratch.join("lower/file"), "text").unwrap();
    let log = Arc::new(SharedLog::new().unwrap());
    let (layers, upper) = layers(scratch.path());
    let union = || Union::new(layers.clone(), Some(upper.clone()), Params::default()).unwrap();
    let dead = union();
    dead.set_journal(Journal::new(log.clone()));
    dead.note_root();
    let Lookup::Found(entry) = dead.lookup(ROOT, OsStr::new("file")).unwrap() else {
        panic!("not found");
    };
    let node = entry.attr.ino;
    let opened = dead.open(&ME, node, libc::O_RDONLY, &NoBacking).unwrap();
    assert!(dead.may_copy_data(node));
    assert!(!dead.may_wait(opened.handle));
    upper.renew().unwrap();
    let next = union();
    let journal = Journal::take_up(log);
    next.adopt(&journal, &|_| Arc::new(())).unwrap();
    next.set_journal(journal);
    assert!(next.may_copy_data(node));
    assert!(next.may_wait(opened.handle));
    let mut text = [0; 4];
    assert_eq!(next.read(opened.handle, 0, &mut text).unwrap(), 4);
    assert_eq!(&text, b"text");
    assert!(next.may_copy_data(node));
    assert!(!next.may_wait(opened.handle));
    // A process that died closes nothing.
    std::mem::forget(dead);
}
