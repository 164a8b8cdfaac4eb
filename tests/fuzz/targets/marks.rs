//! What the xattrs and names of a layer say; and of a file that was copied up by blocks as it is, and with its checksum made
//! right.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use acetate::layer::format::{PartialRecord, probe};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 8] = [
    "opaque", "redirect", "metacopy", "origin", "nlink", "impure", "acetate.partial", "other",
];

/// The rest of the input as what its first byte says.
fn check_mark(bytes: &[u8]) {
    let Some((first, value)) = bytes.split_first() else {
        return;
    };
    let name = NAMES[usize::from(first % 8)];
    for namespace in ["trusted", "user"] {
        let name = format!("{namespace}.overlay.{name}");
        probe::mark(OsStr::new(&name), value).unwrap();
    }
    probe::override_stat(value).unwrap();
    for name in ["system.posix_acl_access", "security.capability"] {
        probe::owned(OsStr::new(name), value).unwrap();
    }
    probe::entry_name(OsStr::from_bytes(value)).unwrap();
    if let Some((uuid, handle)) = value.split_first_chunk::<16>() {
        probe::handle(uuid, handle);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let check = |bytes: &[u8]| {
        if let Ok(record) = PartialRecord::decode(bytes) {
            // What is read is what is written again, in whatever shorter form.
            let again = PartialRecord::decode(&record.encode()).expect("its own encoding");
            assert_eq!(again, record);
        }
    };
    check(bytes);
    check_mark(bytes);
    if let Some((body, _)) = bytes.split_last_chunk::<4>() {
        let sum = crc32fast::hash(body).to_le_bytes();
        check(&[body, &sum].concat());
    }
});
