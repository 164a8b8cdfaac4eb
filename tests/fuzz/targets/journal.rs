//! The journal that a worker leaves to the next one.
#![no_main]

use acetate::union::probe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(e) = probe::journal(bytes) {
        panic!("{e}");
    }
});
