//! The locks and atomics of what is checked under every order of threads.
//!
//! The program has parking_lot's and the standard library's, under these names. In the unit tests they are the same with a gate
//! before them: within a model (`model`), which runs threads one at a time in orders of shuttle's choice, taking a lock or
//! touching an atomic is where another thread may go on. Outside of a model the gate stands open.

#[cfg(not(test))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
#[cfg(not(test))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize};
#[cfg(not(test))]
pub(crate) use std::thread::sleep;

#[cfg(test)]
pub(crate) use gated::{
    AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard, RwLock, model,
    sleep, task,
};

/// Which of a model's threads runs; 0 outside of one. Threads of a model share what is thread-local.
#[cfg(not(test))]
#[cfg_attr(not(debug_assertions), allow(dead_code))]
pub(crate) fn task() -> usize {
    0
}

#[cfg(test)]
mod gated;
