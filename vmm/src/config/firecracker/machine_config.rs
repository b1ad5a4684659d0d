//! `machine-config`.

use api::model::MachineConfig;

use crate::config::{ConfigError, CpuConfig, CpuTemplate, MemorySize, VcpuCount};

pub(super) fn check(
    machine: &MachineConfig,
) -> Result<(VcpuCount, CpuConfig, MemorySize), ConfigError> {
    let vcpus = VcpuCount::new("machine-config.vcpu_count", machine.vcpu_count)?;
    let smt = machine.smt;
    if smt && vcpus.get() % 2 != 0 {
        return Err(ConfigError::OddThreads { vcpus: vcpus.get() });
    }
    let template = match &machine.cpu_template {
        Some(name) => CpuTemplate::new("machine-config.cpu_template", name)?,
        None => CpuTemplate::Host,
    };
    if machine.huge_pages != "None" {
        return Err(ConfigError::NotSupportedYet {
            what: "machine-config.huge_pages",
        });
    }
    Ok((
        vcpus,
        CpuConfig { template, smt },
        MemorySize::from_mib("machine-config.mem_size_mib", machine.mem_size_mib)?,
    ))
}
