//! Sizes with a permitted range.

use std::fmt;

use super::ConfigError;
use crate::layout::MIB;

/// Number of virtual CPUs of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// Fewest vCPUs.
    pub const MIN: i64 = 1;
    /// Most vCPUs (Firecracker's limit).
    pub const MAX: i64 = 32;

    /// Checks the number; `field` names it in the error.
    pub fn new(field: &'static str, value: i64) -> Result<Self, ConfigError> {
        match u8::try_from(value) {
            Ok(count) if (Self::MIN..=Self::MAX).contains(&value) => Ok(Self(count)),
            _ => Err(ConfigError::OutOfRange {
                field,
                value,
                min: Self::MIN,
                max: Self::MAX,
                unit: "vCPUs",
            }),
        }
    }

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for VcpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of a guest's memory: whole mebibytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize {
    mib: u32,
}

impl MemorySize {
    /// Least memory in MiB: the boot structures and a small kernel above 1 MiB.
    pub const MIN_MIB: i64 = 2;
    /// Most memory in MiB: 1 TiB, below every 64-bit processor's physical address limit.
    pub const MAX_MIB: i64 = 1 << 20;

    /// Checks a size in MiB; `field` names it in the error.
    pub fn from_mib(field: &'static str, value: i64) -> Result<Self, ConfigError> {
        match u32::try_from(value) {
            Ok(mib) if (Self::MIN_MIB..=Self::MAX_MIB).contains(&value) => Ok(Self { mib }),
            _ => Err(ConfigError::OutOfRange {
                field,
                value,
                min: Self::MIN_MIB,
                max: Self::MAX_MIB,
                unit: "MiB",
            }),
        }
    }

    /// The size in MiB.
    pub fn mib(self) -> u32 {
        self.mib
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.mib) * MIB
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zero_and_33_vcpus_are_refused_with_the_range() {
        for value in [0, 33, -1, 256 + 1] {
            let text = VcpuCount::new("vcpu_count", value).unwrap_err().to_string();
            assert_eq!(
                text,
                format!("vcpu_count is {value}, permitted are 1 to 32 vCPUs")
            );
        }
    }

    #[test]
    fn one_mebibyte_is_refused_with_the_range() {
        let text = MemorySize::from_mib("mem_size_mib", 1)
            .unwrap_err()
            .to_string();
        assert_eq!(text, "mem_size_mib is 1, permitted are 2 to 1048576 MiB");
    }

    proptest! {
        #[test]
        fn only_values_in_range_are_accepted(value: i64) {
            prop_assert_eq!(VcpuCount::new("v", value).is_ok(), (1..=32).contains(&value));
            prop_assert_eq!(MemorySize::from_mib("m", value).is_ok(), (2..=1 << 20).contains(&value));
        }
    }
}
