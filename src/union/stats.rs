//! Counters of the union.

use crate::sys::sync::AtomicU64;
use std::sync::atomic::Ordering;

/// Counters since the mount was made. Each is independent of the others.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub lookup_hits: AtomicU64,
    pub lookup_misses: AtomicU64,
    pub copy_up_data: AtomicU64,
    pub copy_up_meta: AtomicU64,
    pub copy_up_bytes: AtomicU64,
    pub copy_up_partial: AtomicU64,
    pub partial_completed: AtomicU64,
    pub passthrough_opens: AtomicU64,
    pub cached_opens: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(crate) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
