//! The gates, see the module above. A gate is one of shuttle's locks beside the real one: who has passed it finds the real lock
//! free.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use shuttle::sync as gate;
use shuttle::sync::atomic::Ordering as GateOrdering;

/// Which of a model's threads runs; 0 outside of one.
pub(crate) fn task() -> usize {
    shuttle::current::try_get_current_task().map_or(0, |task| usize::from(task) + 1)
}

fn is_model() -> bool {
    task() != 0
}

fn passed<T>(result: Result<T, std::sync::PoisonError<T>>) -> T {
    result.unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Lets other threads of a model go on; else sleeps.
pub(crate) fn sleep(time: Duration) {
    match is_model() {
        true => shuttle::thread::yield_now(),
        false => std::thread::sleep(time),
    }
}

/// Runs `body` again and again, with its threads (`shuttle::thread`) in another order each time; as often as a test can wait
/// for, and thirty times as often with `ACETATE_LONG`.
pub(crate) fn model(often: usize, body: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
    let often = match std::env::var_os("ACETATE_LONG") {
        Some(_) => often * 30,
        None => often,
    };
    let body = std::sync::Arc::new(body);
    // Chosen at each step; and mostly one thread after the other, with few changes at deep places.
    let random = RandomScheduler::new(often.div_ceil(2));
    let few = PctScheduler::new(3, often / 2);
    let schedulers: [Box<dyn Scheduler + Send>; 2] = [Box::new(random), Box::new(few)];
    for scheduler in schedulers {
        let mut config = shuttle::Config::new();
        config.stack_size = 1 << 20;
        config.silence_warnings = true;
        let body = body.clone();
        shuttle::Runner::new(scheduler, config).run(move || body());
    }
}

/// As parking_lot's.
pub(crate) struct Mutex<T> {
    gate: Option<gate::Mutex<()>>,
    inner: parking_lot::Mutex<T>,
}

/// As parking_lot's. Fields are dropped in this order.
pub(crate) struct MutexGuard<'a, T> {
    inner: parking_lot::MutexGuard<'a, T>,
    _gate: Option<gate::MutexGuard<'a, ()>>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex {
            gate: is_model().then(|| gate::Mutex::new(())),
            inner: parking_lot::Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let gate = self.gate.as_ref().map(|gate| passed(gate.lock()));
        MutexGuard {
            inner: self.inner.lock(),
            _gate: gate,
        }
    }

    pub(crate) fn try_lock_for(&self, time: Duration) -> Option<MutexGuard<'_, T>> {
        let gate = match self.gate.as_ref().map(|gate| gate.try_lock()) {
            None => None,
            Some(Ok(gate)) => Some(gate),
            Some(Err(_)) => {
                sleep(time);
                return None;
            }
        };
        let inner = self.inner.try_lock_for(time)?;
        Some(MutexGuard { inner, _gate: gate })
    }
}

/// As parking_lot's.
pub(crate) struct RwLock<T> {
    /// Held by who writes or may come to it.
    writers: Option<gate::Mutex<()>>,
    gate: Option<gate::RwLock<()>>,
    inner: parking_lot::RwLock<T>,
}

/// One of the guards of a [`RwLock`]. Fields are dropped in this order.
pub(crate) struct RwGuard<G, H, W> {
    inner: G,
    _gate: Option<H>,
    _writers: Option<W>,
}

type ReadGuard<'a, T> =
    RwGuard<parking_lot::RwLockReadGuard<'a, T>, gate::RwLockReadGuard<'a, ()>, ()>;
type UpgradableGuard<'a, T> = RwGuard<
    parking_lot::RwLockUpgradableReadGuard<'a, T>,
    gate::RwLockReadGuard<'a, ()>,
    gate::MutexGuard<'a, ()>,
>;
type WriteGuard<'a, T> = RwGuard<
    parking_lot::RwLockWriteGuard<'a, T>,
    gate::RwLockWriteGuard<'a, ()>,
    gate::MutexGuard<'a, ()>,
>;

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> RwLock<T> {
        RwLock {
            writers: is_model().then(|| gate::Mutex::new(())),
            gate: is_model().then(|| gate::RwLock::new(())),
            inner: parking_lot::RwLock::new(value),
        }
    }

    pub(crate) fn read(&self) -> ReadGuard<'_, T> {
        let gate = self.gate.as_ref().map(|gate| passed(gate.read()));
        RwGuard {
            inner: self.inner.read(),
            _gate: gate,
            _writers: None,
        }
    }

    pub(crate) fn upgradable_read(&self) -> UpgradableGuard<'_, T> {
        let writers = self.writers.as_ref().map(|gate| passed(gate.lock()));
        let gate = self.gate.as_ref().map(|gate| passed(gate.read()));
        RwGuard {
            inner: self.inner.upgradable_read(),
            _gate: gate,
            _writers: writers,
        }
    }

    pub(crate) fn write(&self) -> WriteGuard<'_, T> {
        let writers = self.writers.as_ref().map(|gate| passed(gate.lock()));
        let gate = self.gate.as_ref().map(|gate| passed(gate.write()));
        RwGuard {
            inner: self.inner.write(),
            _gate: gate,
            _writers: writers,
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<G: Deref, H, W> Deref for RwGuard<G, H, W> {
    type Target = G::Target;
    fn deref(&self) -> &G::Target {
        &self.inner
    }
}

impl<G: DerefMut, H, W> DerefMut for RwGuard<G, H, W> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.inner
    }
}

macro_rules! common {
    ($($lock:ident)*) => {$(
        impl<T: Default> Default for $lock<T> {
            fn default() -> Self {
                $lock::new(T::default())
            }
        }

        impl<T: fmt::Debug> fmt::Debug for $lock<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.inner.fmt(f)
            }
        }
    )*};
}
common!(Mutex RwLock);

macro_rules! atomics {
    ($($name:ident of $value:ty),*) => {$(
        /// As the standard library's. Every order is the strongest.
        pub(crate) struct $name {
            gate: Option<gate::atomic::AtomicBool>,
            inner: std::sync::atomic::$name,
        }

        impl $name {
            pub(crate) fn new(value: $value) -> $name {
                $name {
                    gate: is_model().then(|| gate::atomic::AtomicBool::new(false)),
                    inner: std::sync::atomic::$name::new(value),
                }
            }

            fn inner(&self) -> &std::sync::atomic::$name {
                if let Some(gate) = &self.gate {
                    gate.load(GateOrdering::SeqCst);
                }
                &self.inner
            }

            #[allow(dead_code)]
            pub(crate) fn load(&self, order: GateOrdering) -> $value {
                self.inner().load(order)
            }

            #[allow(dead_code)]
            pub(crate) fn store(&self, value: $value, order: GateOrdering) {
                self.inner().store(value, order)
            }

            #[allow(dead_code)]
            pub(crate) fn swap(&self, value: $value, order: GateOrdering) -> $value {
                self.inner().swap(value, order)
            }
        }

        impl Default for $name {
            fn default() -> Self {
                $name::new(Default::default())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.inner.fmt(f)
            }
        }
    )*};
}
atomics!(AtomicBool of bool, AtomicI32 of i32, AtomicU32 of u32, AtomicU64 of u64, AtomicUsize of usize);

macro_rules! counting {
    ($($name:ident of $value:ty),*) => {$(
        #[allow(dead_code)]
        impl $name {
            pub(crate) fn fetch_add(&self, value: $value, order: GateOrdering) -> $value {
                self.inner().fetch_add(value, order)
            }

            pub(crate) fn fetch_max(&self, value: $value, order: GateOrdering) -> $value {
                self.inner().fetch_max(value, order)
            }
        }
    )*};
}
counting!(AtomicI32 of i32, AtomicU32 of u32, AtomicU64 of u64, AtomicUsize of usize);
