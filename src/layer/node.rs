//! Nodes of a directory tree, found by parent and name.

/// A node of a directory tree.
#[derive(Debug)]
pub struct PathNode {
    _private: (),
}
