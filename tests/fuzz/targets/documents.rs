//! The documents of an image, each reader on each input.
#![no_main]

use acetate::image::probe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    drop(probe::docker_manifest(bytes));
    drop(probe::oci_index(bytes));
    drop(probe::oci_manifest(bytes));
    drop(probe::config(bytes));
});
