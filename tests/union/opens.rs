//! What an open asks of the kernel, and what is left open afterwards.

use std::sync::Mutex;

use acetate::union::Notify;
use acetate::union::params::PassthroughLower;

use super::*;

/// Keeps what it is given to cache.
#[derive(Default)]
struct Cache {
    stored: Mutex<Vec<(NodeId, Vec<u8>)>>,
}

impl Notify for Cache {
    fn inval_attr(&self, _: NodeId) {}
    fn inval_attr_later(&self, _: NodeId) {}
    fn inval_data(&self, _: NodeId) {}
    fn store(&self, node: NodeId, data: &[u8]) {
        self.stored.lock().unwrap().push((node, data.to_vec()));
    }
}

impl Cache {
    fn of(rig: &Rig) -> Arc<Cache> {
        let cache = Arc::new(Cache::default());
        rig.u().set_notify(cache.clone());
        cache
    }

    fn taken(&self) -> Vec<(NodeId, Vec<u8>)> {
        std::mem::take(&mut *self.stored.lock().unwrap())
    }
}

fn open_and_close(rig: &Rig, path: &str, flags: i32) {
    let opened = rig.open(path, flags);
    rig.u().release(opened.handle);
}

#[test]
fn a_small_lower_file_is_given_to_the_kernel_once() {
    let edge = "e".repeat(64 << 10);
    let rig = Rig::new(1, Params::default(), |l| {
        put(&l[0].join("small"), "text");
        put(&l[0].join("empty"), "");
        put(&l[0].join("edge"), &edge);
        put(&l[0].join("large"), &(edge.clone() + "e"));
    });
    let cache = Cache::of(&rig);
    open_and_close(&rig, "small", libc::O_RDONLY);
    assert_eq!(cache.taken(), [(rig.node("small"), b"text".to_vec())]);
    open_and_close(&rig, "small", libc::O_RDONLY);
    assert_eq!(cache.taken(), [], "it is cached already");
    open_and_close(&rig, "edge", libc::O_RDONLY);
    assert_eq!(cache.taken(), [(rig.node("edge"), edge.into_bytes())]);
    for path in ["empty", "large"] {
        open_and_close(&rig, path, libc::O_RDONLY);
        assert_eq!(cache.taken(), [], "{path}");
    }
}

#[test]
fn what_was_copied_up_is_not_given_to_the_kernel() {
    let rig = Rig::new(1, Params::default(), |l| {
        for name in ["written", "cut", "beside", "removed"] {
            put(&l[0].join(name), "lower");
        }
    });
    let cache = Cache::of(&rig);
    rig.write("written", "upper");
    let set = SetAttr {
        size: Some(2),
        ..SetAttr::default()
    };
    rig.u().setattr(&ME, rig.node("cut"), &set).unwrap();
    for path in ["written", "cut"] {
        open_and_close(&rig, path, libc::O_RDONLY);
    }
    open_and_close(&rig, "beside", libc::O_RDWR);
    open_and_close(&rig, "removed", libc::O_RDONLY | libc::O_TRUNC);
    assert_eq!(cache.taken(), []);
}

#[test]
fn a_lower_file_that_is_run_again_is_registered_once() {
    let params = Params {
        passthrough: true,
        passthrough_lower: PassthroughLower::Always,
        ..Params::default()
    };
    let rig = Rig::new(1, params, |l| put(&l[0].join("f"), "old"));
    let node = rig.node("f");
    let kernel = Kernel::default();
    let registered = || kernel.opened.load(Ordering::Relaxed);
    for _ in 0..3 {
        let opened = rig.u().open(&ME, node, libc::O_RDONLY, &kernel).unwrap();
        assert!(matches!(opened.mode, OpenMode::Passthrough(_)));
        rig.u().release(opened.handle);
    }
    assert_eq!(registered(), 1);
    // Nobody has it open: it is copied up on the same node, and opened anew.
    let writer = rig.u().open(&ME, node, libc::O_RDWR, &kernel).unwrap();
    rig.u()
        .write(writer.handle, 0, b"new", WriteFlags::default())
        .unwrap();
    rig.u().release(writer.handle);
    assert_eq!(rig.read("f"), "new");
    assert_eq!(registered(), 2);
    assert_eq!(fs::read(rig.lowers[0].join("f")).unwrap(), b"old");
    // Files of the upper are closed at once: their room is to be free when they are removed.
    let fresh = rig.u().open(&ME, node, libc::O_RDONLY, &kernel).unwrap();
    rig.u().release(fresh.handle);
    assert_eq!(registered(), 3);
}

/// The descriptors of this process that refer to something below a directory.
fn open_below(dir: &Path) -> usize {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .filter(|target| target.starts_with(dir) || target.to_string_lossy().contains("/many/"))
        .count()
}

#[test]
fn no_more_than_a_bounded_number_of_files_is_kept_open() {
    const FILES: usize = 600;
    let rig = Rig::new(1, Params::default(), |l| {
        for i in 0..FILES {
            put(&l[0].join(format!("many/{i}")), "x");
        }
    });
    for i in 0..FILES {
        open_and_close(&rig, &format!("many/{i}"), libc::O_RDONLY);
    }
    let open = open_below(&rig.lowers[0]);
    assert!((1..=300).contains(&open), "{open} files are open");
    rig.u().shutdown();
    let left = open_below(&rig.lowers[0]);
    assert!(left < open / 2, "{left} of {open} are open after the end");
}
