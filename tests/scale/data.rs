//! Contents of files in which a wrong block shows.

use std::fs;
use std::path::Path;

/// Bytes in which no block is like another.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut data = Vec::with_capacity(length + 8);
    while data.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(length);
    data
}

/// Writes a file of `length` bytes with real data in every block.
pub(crate) fn large_file(path: &Path, length: u64) {
    use std::io::Write;
    let block = pattern(length, 1 << 20);
    let mut file = fs::File::create(path).unwrap();
    let mut left = length;
    let mut number = 0u64;
    while left > 0 {
        let mut block = block.clone();
        block[..8].copy_from_slice(&number.to_le_bytes());
        let part = usize::try_from(left.min(block.len() as u64)).unwrap();
        file.write_all(&block[..part]).unwrap();
        left -= part as u64;
        number += 1;
    }
    file.sync_all().unwrap();
}
