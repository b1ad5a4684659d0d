//! `machine-config`.

use serde::Deserialize;

use crate::config::{ConfigError, CpuConfig, CpuTemplate, MemorySize, VcpuCount};

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
    pub(super) fn check(self) -> Result<(VcpuCount, CpuConfig, MemorySize), ConfigError> {
        let vcpus = VcpuCount::new("machine-config.vcpu_count", self.vcpu_count)?;
        let smt = self.smt.unwrap_or(false);
        if smt && vcpus.get() % 2 != 0 {
            return Err(ConfigError::OddThreads { vcpus: vcpus.get() });
        }
        let template = match &self.cpu_template {
            Some(name) => CpuTemplate::new("machine-config.cpu_template", name)?,
            None => CpuTemplate::Host,
        };
        if self.track_dirty_pages == Some(true) {
            return Err(ConfigError::NotSupportedYet {
                what: "machine-config.track_dirty_pages",
            });
        }
        if self.huge_pages.is_some_and(|pages| pages != "None") {
            return Err(ConfigError::NotSupportedYet {
                what: "machine-config.huge_pages",
            });
        }
        Ok((
            vcpus,
            CpuConfig { template, smt },
            MemorySize::from_mib("machine-config.mem_size_mib", self.mem_size_mib)?,
        ))
    }
}
