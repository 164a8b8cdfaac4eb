//! Nodes of a directory tree, found by parent and name.
