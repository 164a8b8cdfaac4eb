//! The FUSE adaptor: convert a request, call one union operation, reply.
