//! Random layers and operations against a model: see `union.rs` beside this folder.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../union.rs"]
mod union;

fuzz_target!(|bytes: &[u8]| union::run(bytes));
