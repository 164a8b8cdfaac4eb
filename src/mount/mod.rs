//! The composition root: image, layers, union and FUSE session make a mount.
