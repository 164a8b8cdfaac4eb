//! What the xattrs of an upper say of a file that was copied up by blocks: as it is, and with its checksum made right.
#![no_main]

use acetate::layer::format::PartialRecord;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let check = |bytes: &[u8]| {
        if let Ok(record) = PartialRecord::decode(bytes) {
            // What is read is what is written again, in whatever shorter form.
            let again = PartialRecord::decode(&record.encode()).expect("its own encoding");
            assert_eq!(again, record);
        }
    };
    check(bytes);
    if let Some((body, _)) = bytes.split_last_chunk::<4>() {
        let sum = crc32fast::hash(body).to_le_bytes();
        check(&[body, &sum].concat());
    }
});
