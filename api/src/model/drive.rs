//! `drives`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RateLimiter;

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its name.
    pub drive_id: String,
    /// Its image. Required for every drive this VMM can have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Whether the guest's root file system is on it.
    pub is_root_device: bool,
    /// Whether the guest cannot write; it can by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_read_only: Option<bool>,
    /// The partition with the root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// `"Unsafe"` or `"Writeback"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<String>,
    /// `"Sync"` or `"Async"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<String>,
    /// How much the guest may move in a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// Of a vhost-user back-end, which this VMM does not use for disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<Value>,
    /// Ours: the number of queues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<i64>,
    /// Ours: `"raw"`, `"qcow2"`, or `"nbd"`, whose path is the socket of a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Ours: what a qcow2 image may be based on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_files: Option<Vec<PathBuf>>,
}

/// What can be changed of a disk while a guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PartialDrive {
    /// Its name.
    pub drive_id: String,
    /// Another image, or the same one whose length has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Other limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}
