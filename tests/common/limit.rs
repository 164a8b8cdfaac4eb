//! A time limit for a test.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use super::connection;

/// Ends the test's FUSE connections, so that what waits for them fails, when the test takes too long; ends
/// the process when even that does not help.
#[derive(Debug)]
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// The limit runs until the watchdog is dropped.
    pub fn new(what: &str, limit: Duration) -> Watchdog {
        let (alive, end) = channel::<()>();
        let what = what.to_owned();
        thread::spawn(move || {
            if end.recv_timeout(limit) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            eprintln!("TIME LIMIT: {what} took more than {limit:?}, aborting its mounts");
            connection::abort_all();
            if end.recv_timeout(Duration::from_secs(20)) == Err(RecvTimeoutError::Timeout) {
                eprintln!("TIME LIMIT: {what} does not end, giving up");
                std::process::exit(101);
            }
        });
        Watchdog { _alive: alive }
    }
}
