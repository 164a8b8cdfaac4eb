//! The on-disk forms of whiteouts, opaque directories and the overlay's private xattrs.
