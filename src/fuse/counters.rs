//! How often each operation was asked, and how long it took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::union::report::OperationStats;

macro_rules! operations {
    ($($variant:ident $name:literal,)*) => {
        /// One kind of request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Op { $($variant,)* }

        impl Op {
            const NAMES: &'static [&'static str] = &[$($name,)*];
        }
    };
}

operations! {
    Lookup "lookup",
    Forget "forget",
    Getattr "getattr",
    Setattr "setattr",
    Readlink "readlink",
    Mknod "mknod",
    Mkdir "mkdir",
    Unlink "unlink",
    Rmdir "rmdir",
    Symlink "symlink",
    Rename "rename",
    Link "link",
    Open "open",
    Create "create",
    Read "read",
    Write "write",
    Release "release",
    Fsync "fsync",
    Fallocate "fallocate",
    Lseek "lseek",
    CopyFileRange "copy_file_range",
    Opendir "opendir",
    Readdir "readdir",
    Readdirplus "readdirplus",
    Releasedir "releasedir",
    Fsyncdir "fsyncdir",
    Statfs "statfs",
    Setxattr "setxattr",
    Getxattr "getxattr",
    Listxattr "listxattr",
    Removexattr "removexattr",
}

impl Op {
    pub(super) fn name(self) -> &'static str {
        Self::NAMES.get(self as usize).copied().unwrap_or("?")
    }
}

/// Each counter is atomic on its own; a reader may see one request in some and not yet in others.
#[derive(Debug, Default)]
struct Slot {
    count: AtomicU64,
    total_ns: AtomicU64,
    max_ns: AtomicU64,
}

/// Counters of all operations of one mount.
#[derive(Debug)]
pub struct Counters {
    /// One per [`Op`], in its order. Immutable but for the atomics within.
    slots: Vec<Slot>,
}

impl Counters {
    pub(super) fn new() -> Counters {
        Counters {
            slots: Op::NAMES.iter().map(|_| Slot::default()).collect(),
        }
    }

    pub(super) fn add(&self, op: Op, took: Duration) {
        let Some(slot) = self.slots.get(op as usize) else {
            return;
        };
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        slot.count.fetch_add(1, Ordering::Relaxed);
        slot.total_ns.fetch_add(ns, Ordering::Relaxed);
        // Most requests are no record: spare them the write.
        if ns > slot.max_ns.load(Ordering::Relaxed) {
            slot.max_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// The operations that were asked for at least once.
    pub fn snapshot(&self) -> Vec<OperationStats> {
        std::iter::zip(Op::NAMES, &self.slots)
            .map(|(name, slot)| OperationStats {
                name: (*name).to_owned(),
                count: slot.count.load(Ordering::Relaxed),
                total_us: slot.total_ns.load(Ordering::Relaxed) / 1000,
                max_us: slot.max_ns.load(Ordering::Relaxed) / 1000,
            })
            .filter(|stats| stats.count != 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_times_add_up() {
        let counters = Counters::new();
        counters.add(Op::Lookup, Duration::from_micros(5));
        counters.add(Op::Lookup, Duration::from_micros(9));
        counters.add(Op::Removexattr, Duration::from_micros(1));
        let snapshot = counters.snapshot();
        assert_eq!(snapshot.len(), 2);
        assert_eq!(snapshot[0].name, "lookup");
        assert_eq!(
            (snapshot[0].count, snapshot[0].total_us, snapshot[0].max_us),
            (2, 14, 9)
        );
        assert_eq!(snapshot[1].name, "removexattr");
    }

    #[test]
    fn each_operation_has_its_name() {
        assert_eq!(Op::Lookup.name(), "lookup");
        assert_eq!(Op::CopyFileRange.name(), "copy_file_range");
        assert_eq!(Op::Removexattr.name(), "removexattr");
    }
}
