//! `acetate`: a union filesystem driver via FUSE for container images.

pub mod cli;
pub mod fuse;
pub mod image;
pub mod layer;
pub mod mount;
pub mod sys;
pub mod union;
