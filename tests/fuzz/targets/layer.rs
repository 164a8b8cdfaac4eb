//! A layer, as it is stored and as a tar.
#![no_main]

use acetate::image::probe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Errors are what most inputs are to give.
    drop(probe::layer(bytes));
    drop(probe::compressed(bytes, 1 << 20));
});
