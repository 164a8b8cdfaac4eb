//! The messages of `containerd.services.snapshots.v1`: the numbers and types are the wire's.

use std::collections::HashMap;

/// The service's name, the first part of each call's path.
pub const SERVICE: &str = "containerd.services.snapshots.v1.Snapshots";

/// A point in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct Timestamp {
    /// Seconds since the epoch.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds of that second.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// What of a message is meant.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FieldMask {
    /// Names of fields, their parts joined by dots.
    #[prost(string, repeated, tag = "1")]
    pub paths: Vec<String>,
}

/// One `mount(2)`, or one call of a mount helper.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Mount {
    /// The filesystem type.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// What is mounted.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Where below the mountpoint.
    #[prost(string, tag = "3")]
    pub target: String,
    /// As `fstab` has them.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Not told.
    Unknown = 0,
    /// Read-only.
    View = 1,
    /// Writable.
    Active = 2,
    /// A layer that others stand on.
    Committed = 3,
}

/// A snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Info {
    /// Its key, or the name it was committed by.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The committed snapshot below it; empty for none.
    #[prost(string, tag = "2")]
    pub parent: String,
    /// What it is.
    #[prost(enumeration = "Kind", tag = "3")]
    pub kind: i32,
    /// When it was made or committed.
    #[prost(message, optional, tag = "4")]
    pub created_at: Option<Timestamp>,
    /// When its record was last changed.
    #[prost(message, optional, tag = "5")]
    pub updated_at: Option<Timestamp>,
    /// Of any meaning.
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
}

/// Asks for a snapshot: the request of `Prepare` and of `View`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateRequest {
    /// What containerd calls this snapshotter; the socket has but one.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// The new snapshot.
    #[prost(string, tag = "2")]
    pub key: String,
    /// The committed snapshot below it; empty for none.
    #[prost(string, tag = "3")]
    pub parent: String,
    /// Of the new snapshot.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
}

/// Names a snapshot: the request of `Mounts`, `Remove`, `Stat` and `Usage`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct KeyRequest {
    /// What containerd calls this snapshotter.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// The snapshot.
    #[prost(string, tag = "2")]
    pub key: String,
}

/// What to mount: the response of `Prepare`, `View` and `Mounts`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MountsResponse {
    /// In this order.
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<Mount>,
}

/// The request of `Commit`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommitRequest {
    /// What containerd calls this snapshotter.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// The committed snapshot.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The active snapshot.
    #[prost(string, tag = "3")]
    pub key: String,
    /// Of the committed snapshot; those of the active one are not kept.
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
    /// What one that has no parent is put on; empty for nothing.
    #[prost(string, tag = "5")]
    pub parent: String,
}

/// The response of `Stat` and `Update`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoResponse {
    /// The snapshot.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// The request of `Update`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateRequest {
    /// What containerd calls this snapshotter.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// What it is to be.
    #[prost(message, optional, tag = "2")]
    pub info: Option<Info>,
    /// Which fields of it count; none for all that can change.
    #[prost(message, optional, tag = "3")]
    pub update_mask: Option<FieldMask>,
}

/// The request of `List`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListRequest {
    /// What containerd calls this snapshotter.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// A snapshot is listed that any of them matches; none for all.
    #[prost(string, repeated, tag = "2")]
    pub filters: Vec<String>,
}

/// A part of the list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListResponse {
    /// Snapshots.
    #[prost(message, repeated, tag = "1")]
    pub info: Vec<Info>,
}

/// What a snapshot takes beside its parents.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct UsageResponse {
    /// Bytes on disk.
    #[prost(int64, tag = "1")]
    pub size: i64,
    /// Files and directories.
    #[prost(int64, tag = "2")]
    pub inodes: i64,
}

/// The request of `Cleanup`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CleanupRequest {
    /// What containerd calls this snapshotter.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
}

/// An answer that says nothing but that it was done.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}
