//! Descriptors, memory and panics at their limits.
