//! What the guest sees of the host's processor.

use std::fmt;

use super::ConfigError;

/// How much of the host's processor a guest sees; the levels rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuTemplate {
    /// All that KVM can offer on this host.
    #[default]
    Host,
    /// Level 2 of the x86-64 psABI: SSE4.2, POPCNT.
    V2,
    /// Level 3: AVX2, BMI, FMA.
    V3,
    /// Level 4: AVX-512.
    V4,
}

impl CpuTemplate {
    const NAMES: [(Self, &str); 4] = [
        (Self::Host, "None"),
        (Self::V2, "x86-64-v2"),
        (Self::V3, "x86-64-v3"),
        (Self::V4, "x86-64-v4"),
    ];

    /// Reads the name of a template; `field` names it in the error.
    pub fn new(field: &'static str, name: &str) -> Result<Self, ConfigError> {
        Self::NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(template, _)| *template)
            .ok_or_else(|| ConfigError::UnknownWord {
                field,
                value: name.into(),
                permitted: "\"None\", \"x86-64-v2\", \"x86-64-v3\" and \"x86-64-v4\"",
            })
    }
}

impl fmt::Display for CpuTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(template, _)| template == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

/// The guest's processors, but for their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuConfig {
    /// How much of the host's processor the guest sees.
    pub template: CpuTemplate,
    /// Whether each core has two threads.
    pub smt: bool,
}

impl CpuConfig {
    /// vCPUs of one core.
    pub fn threads_per_core(self) -> u8 {
        if self.smt { 2 } else { 1 }
    }
}
