//! Maps by numbers that the kernel and the filesystems below gave, of which a process that takes a mount over reads up to
//! millions before it answers: nobody who could choose them gains by it, so the hash is the fastest that spreads them.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// By a node id or an inode number.
pub(crate) type Numbered<T> = HashMap<u64, T, BuildHasherDefault<Spread>>;

/// Node ids or inode numbers.
pub(crate) type Numbers = HashSet<u64, BuildHasherDefault<Spread>>;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // Tables look at the lowest bits and at the highest: each half of the product lacks what the other one has.
        let product = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_stride_are_spread() {
        for shift in [0, 1, 8, 12, 20, 32, 56] {
            let mut low = std::collections::BTreeSet::new();
            let mut high = std::collections::BTreeSet::new();
            for number in 0..256u64 {
                let mut hash = Spread::default();
                hash.write_u64(number << shift);
                low.insert(hash.finish() & 0xff);
                high.insert(hash.finish() >> 57);
            }
            assert!(low.len() > 64, "{shift}: {}", low.len());
            assert!(high.len() > 16, "{shift}: {}", high.len());
        }
    }
}
