//! A copy of a file's data that takes long keeps nobody waiting but those who need it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::stand::Stand;
use crate::common::watched::{Method, Watch};
use crate::common::{Watchdog, skip};
use crate::require;
use crate::served::Served;

/// How long what is not to wait may take.
const LIMIT: Duration = Duration::from_secs(45);

/// Where those who open a file of the layer wait.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
    stats: AtomicUsize,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }
    fn pass(&self) {
        let mut closed = self.closed.lock().unwrap();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while *closed {
            closed = self.opened.wait(closed).unwrap();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits for a condition, which comes true or the test's time is up.
fn until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::sleep(Duration::from_millis(1));
    }
}

impl Watch for Arc<Gate> {
    fn asked(&self, method: Method) {
        match method {
            Method::Open => self.pass(),
            Method::Stat => {
                self.stats.fetch_add(1, Ordering::SeqCst);
            }
            _ => {}
        }
    }
}

#[test]
fn the_removal_of_a_name_that_waits_for_a_copy_stops_nothing_else() {
    require!(skip::privileged());
    let _limit = Watchdog::new("stalls", Duration::from_secs(170));
    let stand = Stand::new("stalls");
    for dir in ["a", "b", "c"] {
        fs::create_dir(stand.lower.join(dir)).unwrap();
    }
    fs::write(stand.lower.join("a/name"), "data").unwrap();
    for dir in ["b", "c"] {
        let name = stand.lower.join(dir).join("name");
        fs::hard_link(stand.lower.join("a/name"), name).unwrap();
    }
    let gate = Arc::new(Gate::default());
    let served = Served::new(&stand, 2, gate.clone());
    let merged = &served.merged;
    fs::create_dir(merged.join("elsewhere")).unwrap();
    for dir in ["a", "b", "c"] {
        // Everything above is in the upper: nothing else is copied up later.
        fs::write(merged.join(dir).join("new"), "").unwrap();
        fs::metadata(merged.join(dir).join("name")).unwrap();
    }
    gate.set(true);
    let (writer, remover, elsewhere) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let file = OpenOptions::new().append(true).open(merged.join("a/name"));
            io::Write::write_all(&mut file?, b" and more")
        });
        until(|| gate.waiting.load(Ordering::SeqCst) == 1);
        let before = gate.stats.load(Ordering::SeqCst);
        let remover = scope.spawn(|| fs::remove_file(merged.join("b/name")));
        until(|| gate.stats.load(Ordering::SeqCst) > before);
        let (done, answer) = channel();
        let elsewhere = merged.join("elsewhere");
        scope.spawn(move || {
            let made = (0..20).try_for_each(|at| fs::create_dir(elsewhere.join(at.to_string())));
            // Nobody listens any more where it came too late.
            done.send(made).unwrap_or_default();
        });
        let elsewhere = answer.recv_timeout(LIMIT);
        gate.set(false);
        (
            writer.join().unwrap(),
            remover.join().unwrap(),
            elsewhere.map_err(|_| "the mount stood still"),
        )
    });
    elsewhere.unwrap().unwrap();
    writer.unwrap();
    remover.unwrap();
    assert!(!merged.join("b/name").exists());
    let data = fs::read(merged.join("c/name")).unwrap();
    assert_eq!(data, b"data and more");
    assert_eq!(fs::metadata(merged.join("c/name")).unwrap().nlink(), 2);
    assert_eq!(fs::read(stand.lower.join("b/name")).unwrap(), b"data");
    served.end();
}
