//! The only unsafe code: system calls that no crate wraps.
