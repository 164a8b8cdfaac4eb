//! The JSON that the program keeps of its mounts, containers and volumes: what is read is what is written again.
#![no_main]

use acetate::{container, mount};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(read) = serde_json::from_slice::<T>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&read).expect("it can be written");
    let again: T = serde_json::from_slice(&written).expect("it can be read again");
    assert_eq!(again, read);
}

fuzz_target!(|bytes: &[u8]| {
    check::<mount::Record>(bytes);
    check::<mount::Info>(bytes);
    check::<container::Record>(bytes);
    check::<container::State>(bytes);
    check::<container::VolumeRecord>(bytes);
});
