//! The `acetate` binary.

fn main() {}
