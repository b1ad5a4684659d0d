//! `machine-config`.

use serde::Deserialize;

use crate::config::{ConfigError, MemorySize, VcpuCount};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MachineConfig {
    vcpu_count: i64,
    mem_size_mib: i64,
    smt: Option<bool>,
    track_dirty_pages: Option<bool>,
    cpu_template: Option<String>,
    huge_pages: Option<String>,
}

impl MachineConfig {
    pub(super) fn check(self) -> Result<(VcpuCount, MemorySize), ConfigError> {
        if self.smt == Some(true) {
            return Err(ConfigError::NotSupportedYet {
                what: "machine-config.smt",
            });
        }
        if self.track_dirty_pages == Some(true) {
            return Err(ConfigError::NotSupportedYet {
                what: "machine-config.track_dirty_pages",
            });
        }
        if self.cpu_template.is_some_and(|template| template != "None") {
            return Err(ConfigError::NotSupportedYet {
                what: "machine-config.cpu_template",
            });
        }
        if self.huge_pages.is_some_and(|pages| pages != "None") {
            return Err(ConfigError::NotSupportedYet {
                what: "machine-config.huge_pages",
            });
        }
        Ok((
            VcpuCount::new("machine-config.vcpu_count", self.vcpu_count)?,
            MemorySize::from_mib("machine-config.mem_size_mib", self.mem_size_mib)?,
        ))
    }
}
