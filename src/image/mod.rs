//! Images as input and the store they are unpacked into.
//!
//! [`Store::prepare`] takes what a user calls an image (an archive of `docker save`, an OCI layout as a folder or a tar,
//! or a name that the store knows) and gives the trees of its layers, unpacking those that the store lacks.
//!
//! Every byte of an image is taken to be hostile. Digests are checked before anything is published, sizes have
//! [`Limits`], and layers are written through descriptors that cannot leave their folder; the head of
//! `unpack/extract.rs` tells how every oddity of a tar is treated.
//!
//! ```text
//! source -> files -> archive | layout -> resolve -> store -> unpack -> tarball, compress, hash
//! ```

mod acl;
mod archive;
mod catalog;
mod change;
mod commit;
mod compare;
mod compress;
pub(crate) mod durable;
mod ensure;
mod error;
mod export;
mod files;
mod filter;
mod hash;
mod import;
mod layer_index;
mod layout;
mod lease;
mod limits;
mod load;
pub(crate) mod lock;
mod partial;
mod pax;
mod platform;
mod prepare;
#[doc(hidden)]
pub mod probe;
mod prune;
mod reference;
#[cfg(feature = "registry")]
pub mod registry;
mod remove;
mod resolve;
mod save;
mod source;
mod store;
mod tarball;
mod tee;
pub mod time;
mod tree;
mod unpack;
mod usage;
mod users;
mod verify;

pub use catalog::StoredImage;
pub use commit::{Commit, NewImage};
pub use error::ImageError;
pub use export::Exported;
pub use filter::Filter;
pub use import::ImportSource;
pub use layer_index::index_beside;
pub use limits::Limits;
pub(crate) use lock::remove_tree;
pub use prepare::{ImageOrigin, PreparedImage};
pub use prune::Removed;
pub use reference::Reference;
pub use save::SaveFormat;
pub use store::{LayerGuard, Store};
pub use tarball::TarError;
pub use unpack::{LayerInfo, Ownership};
pub use usage::{StoreUsage, Usage};
pub use verify::{Damage, Verified};
