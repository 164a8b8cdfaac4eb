//! The thread that completes, at idle priority, the files that were copied up by blocks, and what is left of that at the end.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::options::Complete;
use crate::sys::panics::caught;
use crate::sys::priority;
use crate::union::Union;

/// How often it looks. Data that programs wrote to such files becomes durable about as soon as the kernel sees to it for others.
const PERIOD: Duration = Duration::from_secs(5);

/// After how long without a change a file is completed.
const QUIET: Duration = Duration::from_secs(30);

/// The thread, until it is dropped.
pub(super) struct Completing {
    /// Dropped to stop it.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Completing {
    /// Starts it. `None` where there is nothing to do for it.
    pub(super) fn start(
        union: &Arc<Union>,
        complete: Option<Complete>,
        discarded: bool,
    ) -> Option<Completing> {
        if union.params().read_only {
            return None;
        }
        let quiet = match complete {
            Some(Complete::After(quiet)) => quiet,
            Some(Complete::Off | Complete::Never) => Duration::MAX,
            // Whatever is thrown away at the end is not worth it.
            None if discarded => Duration::MAX,
            None => QUIET,
        };
        let period = PERIOD.min(quiet).max(Duration::from_millis(20));
        let union = Arc::downgrade(union);
        let (stop, stopped) = channel::<()>();
        let started = thread::Builder::new()
            .name("completing".into())
            .spawn(move || {
                if let Err(e) = priority::be_idle() {
                    log::debug!("files are completed at ordinary priority: {e}");
                }
                let asked = || {
                    !matches!(
                        stopped.try_recv(),
                        Err(std::sync::mpsc::TryRecvError::Empty)
                    )
                };
                while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                    let Some(union) = union.upgrade() else { return };
                    match caught(|| union.tend_partial(quiet, &asked)) {
                        Ok(Ok(())) => {}
                        // Each file's own was logged where it happened.
                        Ok(Err(e)) => log::debug!("completing: {e}"),
                        // One file must not keep all others from being completed.
                        Err(text) => log::error!("completing panicked and goes on: {text}"),
                    }
                }
            });
        match started {
            Ok(thread) => Some(Completing {
                stop: Some(stop),
                thread: Some(thread),
            }),
            Err(e) => {
                log::warn!("files are completed at the end only: {e}");
                None
            }
        }
    }
}

impl Drop for Completing {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that completes files panicked");
        }
    }
}

/// Completes what is left when the mount is gone and its upper is kept, unless the next mount waits for that.
pub(super) fn at_the_end(union: &Union) {
    if union.params().read_only {
        return;
    }
    let stats = union.stats();
    let (files, missing) = (stats.partial_files, stats.partial_missing);
    if files > 0 {
        log::info!("completing {files} files that were copied up by blocks: {missing} bytes");
    }
    match union.complete_at_end() {
        Ok(done) if done.left > 0 => log::warn!(
            "{} files stay partially copied up: the next mount completes them",
            done.left
        ),
        Ok(_) => {}
        Err(e) => log::error!("not all files are complete, the next mount goes on: {e}"),
    }
}
