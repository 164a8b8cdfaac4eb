//! The index of a layer, as it is and with its checksums made right.
#![no_main]

use acetate::layer::packed::{Index, seal};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let check = |bytes: Vec<u8>| Index::from_bytes(bytes).map(|index| index.check());
    drop(check(bytes.to_vec()));
    let mut bytes = bytes.to_vec();
    seal(&mut bytes);
    drop(check(bytes));
});
