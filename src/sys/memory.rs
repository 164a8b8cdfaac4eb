//! The memory of this process.
#![allow(unsafe_code)]

/// Gives memory that was freed back to the system, where the allocator keeps it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number, and locks what it looks at by itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
