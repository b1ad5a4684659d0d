//! `machine-config`.

use serde::{Deserialize, Serialize};

/// The guest's processors and memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpu_count: i64,
    /// Memory in MiB.
    pub mem_size_mib: i64,
    /// Whether each core has two threads.
    #[serde(default)]
    pub smt: bool,
    /// Whether the pages that the guest writes are told from the others.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// How much of the host's processor the guest sees: `"None"`, `"x86-64-v2"`, `"x86-64-v3"`, `"x86-64-v4"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    /// `"None"`.
    #[serde(default = "none")]
    pub huge_pages: String,
}

fn none() -> String {
    "None".into()
}

impl Default for MachineConfig {
    /// Firecracker's: one vCPU and 128 MiB.
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            cpu_template: None,
            huge_pages: none(),
        }
    }
}

impl MachineConfig {
    /// This with what `update` has.
    pub fn updated(self, update: MachineConfigUpdate) -> Self {
        Self {
            vcpu_count: update.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: update.smt.unwrap_or(self.smt),
            track_dirty_pages: update.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            cpu_template: update.cpu_template.or(self.cpu_template),
            huge_pages: update.huge_pages.unwrap_or(self.huge_pages),
        }
    }
}

/// A part of [`MachineConfig`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the fields are those of MachineConfig")]
pub struct MachineConfigUpdate {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
}
