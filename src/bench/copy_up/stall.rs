//! How long everything else waits while a large file is copied up.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::changes::Change;
use super::files::SMALL;
use crate::bench::measure::Summary;

/// As long as this nothing else goes on, and as long at least while something does.
const WINDOW: Duration = Duration::from_millis(300);

/// How one system kept others waiting.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stall {
    /// The system's number in the report.
    pub system: usize,
    /// The size of the file that was changed, in bytes.
    pub size: u64,
    /// How long its first change took, in microseconds.
    pub change_us: f64,
    /// `stat` and create elsewhere, while nothing went on.
    pub idle: Summary,
    /// The same during the change, and shortly after.
    pub busy: Summary,
}

/// `stat` of a name that is new to the kernel and creation of a file, by turns, until told to stop.
fn probe(
    root: &Path,
    next: &mut usize,
    files: usize,
    stop: &dyn Fn() -> bool,
) -> io::Result<Vec<Duration>> {
    let mut times = Vec::new();
    while !stop() {
        let small = root.join(SMALL).join((*next % files).to_string());
        let new = root.join(SMALL).join(format!("new{next}"));
        let begin = Instant::now();
        fs::symlink_metadata(small)?;
        times.push(begin.elapsed());
        let begin = Instant::now();
        drop(File::create_new(new)?);
        times.push(begin.elapsed());
        *next += 1;
        thread::sleep(Duration::from_micros(200));
    }
    Ok(times)
}

/// The times when nothing goes on and while one file is changed, and how long that took.
pub(super) fn measure(
    root: &Path,
    file: &Path,
    size: u64,
    files: usize,
    before: impl FnOnce() -> io::Result<()> + Send,
) -> io::Result<(Vec<Duration>, Vec<Duration>, Duration)> {
    let mut next = 0;
    let begin = Instant::now();
    let idle = probe(root, &mut next, files, &|| begin.elapsed() > WINDOW)?;
    let done = AtomicBool::new(false);
    let begin = Instant::now();
    thread::scope(|scope| {
        let change = scope.spawn(|| {
            let result = before().and_then(|()| Change::Block.make(&root.join(file), size, 1));
            done.store(true, Ordering::Release);
            result
        });
        let busy = probe(root, &mut next, files, &|| {
            done.load(Ordering::Acquire) && begin.elapsed() > WINDOW
        });
        let took = change
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the writer panicked")))?;
        Ok((idle, busy?, took))
    })
}
