//! A reference, and what it is written as again.
#![no_main]

use acetate::image::{ImageError, probe};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(e @ ImageError::Inconsistent { .. }) = probe::reference(text) {
        panic!("{e}");
    }
});
