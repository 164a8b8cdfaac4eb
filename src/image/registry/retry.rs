//! Which failures pass by themselves, and how long to wait for that.

use std::io;
use std::time::Duration;

use reqwest::{Response, StatusCode, header};

/// How often something is tried before it is given up.
const TRIES: u32 = 6;
/// The pause before the second try; each later one is twice as long as the one before.
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause, whatever the registry asks for.
const LONGEST: Duration = Duration::from_secs(60);

/// The pauses between tries.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failed: u32,
}

impl Backoff {
    /// How long to wait before the next try; `None` when it has been tried often enough. `asked`: what the registry
    /// asked for.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.failed += 1;
        if self.failed >= TRIES {
            return None;
        }
        let own = FIRST * 2u32.pow(self.failed - 1);
        // Processes that failed together do not come back together.
        let spread = u32::try_from(u64::from(std::process::id()) * 7919 % 100).unwrap_or(0);
        let own = own + own * spread / 400;
        Some(asked.unwrap_or(own).min(LONGEST))
    }
    /// It went on for a while: whatever fails now is a new failure.
    pub(super) fn reset(&mut self) {
        self.failed = 0;
    }
}

/// An answer that may be another one next time.
pub(super) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// What `Retry-After` says, where it gives seconds. (A date would need the registry's clock to be ours.)
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// A connection that broke or was slow. What refuses connections, has no address or the wrong certificate, will do so
/// again.
pub(super) fn may_pass(error: &reqwest::Error) -> bool {
    if error.is_builder() || error.is_redirect() {
        return false;
    }
    let mut inner: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = inner {
        if let Some(e) = e.downcast_ref::<io::Error>()
            && matches!(
                e.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted
            )
        {
            return true;
        }
        inner = e.source();
    }
    error.is_timeout() || !error.is_connect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = std::iter::from_fn(|| backoff.next(None)).collect();
        assert_eq!(pauses.len(), TRIES as usize - 1);
        assert!(pauses.windows(2).all(|p| p[0] < p[1]), "{pauses:?}");
        assert!(pauses[0] >= FIRST && pauses[0] < FIRST * 2);
        let mut backoff = Backoff::default();
        assert_eq!(
            backoff.next(Some(Duration::from_secs(3))),
            Some(Duration::from_secs(3))
        );
        assert_eq!(backoff.next(Some(Duration::from_secs(999))), Some(LONGEST));
    }
}
