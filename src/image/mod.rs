//! Images as input and the store they are unpacked into.
