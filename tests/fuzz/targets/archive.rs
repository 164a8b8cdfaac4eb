//! An archive of images, docker's or OCI's.
#![no_main]

use acetate::image::probe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drop(probe::archive(bytes)));
