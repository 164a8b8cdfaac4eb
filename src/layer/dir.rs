//! A layer that is a plain directory tree.
