//! A layer's tar as a tree: nothing is written beside it, and twice the same comes out.
#![no_main]

use acetate::image::probe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let inner = dir.path().join("inner");
    std::fs::create_dir(&inner).expect("a folder");
    if let Ok(Some(difference)) = probe::unpack(bytes, &inner) {
        panic!("unpacked twice, it differs: {difference}");
    }
    let beside = |path: &std::path::Path| std::fs::read_dir(path).expect("a listing").count();
    assert_eq!(beside(dir.path()), 1);
    assert!(beside(&inner) <= 2);
});
