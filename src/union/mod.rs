//! The union of layers as a filesystem. Knows neither FUSE nor OCI.
