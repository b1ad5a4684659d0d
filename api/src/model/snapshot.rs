//! The bodies of the snapshot requests.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::NetworkInterface;

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are Firecracker's")]
pub struct CreateSnapshot {
    pub mem_file_path: PathBuf,
    pub snapshot_path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_type: Option<String>,
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are Firecracker's")]
pub struct LoadSnapshot {
    pub snapshot_path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemoryBackend>,
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    #[serde(default)]
    pub track_dirty_pages: bool,
    #[serde(default)]
    pub resume_vm: bool,
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    /// Ours: other interfaces, with addresses of their own, in place of those of these names.
    #[serde(default)]
    pub network_replacements: Vec<NetworkInterface>,
    /// Ours: other files for drives.
    #[serde(default)]
    pub drive_overrides: Vec<DriveOverride>,
    /// Ours: other files for persistent memory.
    #[serde(default)]
    pub pmem_overrides: Vec<PmemOverride>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    #[serde(default)]
    pub clock_realtime: bool,
}

/// Where the guest's memory is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are Firecracker's")]
pub struct MemoryBackend {
    pub backend_type: String,
    pub backend_path: PathBuf,
}

/// Another tap for an interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are Firecracker's")]
pub struct NetworkOverride {
    pub iface_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// Ours: a tap that was opened for this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_dev_fd: Option<i32>,
}

/// Another file, or the like, for a drive.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DriveOverride {
    /// Which.
    pub drive_id: String,
    /// Where its contents are, in the format of before.
    pub path_on_host: PathBuf,
}

/// Another file for persistent memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PmemOverride {
    /// Which.
    pub id: String,
    /// The file, as long as the one before.
    pub path_on_host: PathBuf,
}

/// Another socket for the socket device, or another address. One of them may be left as it was.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the names are Firecracker's")]
pub struct VsockOverride {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uds_path: Option<PathBuf>,
    /// Ours: the guest's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_cid: Option<u32>,
}
