//! The guest's balloon.

use std::time::Duration;

use super::{ConfigError, MemorySize};

/// A balloon device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalloonConfig {
    /// How much of the guest's memory the balloon shall have from the start, in MiB.
    pub amount_mib: u32,
    /// Whether the guest takes memory back from the balloon when it is short of it.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics, if ever.
    pub statistics_interval: Option<Duration>,
    /// Whether the guest reports free pages, which then go back to the host.
    pub free_page_reporting: bool,
}

impl BalloonConfig {
    /// Checks that the balloon is no larger than the guest's `memory`.
    pub(super) fn check(&self, memory: MemorySize) -> Result<(), ConfigError> {
        if self.amount_mib > memory.mib() {
            return Err(ConfigError::OutOfRange {
                field: "balloon.amount_mib",
                value: self.amount_mib.into(),
                min: 0,
                max: memory.mib().into(),
                unit: "MiB, all of the guest's memory",
            });
        }
        Ok(())
    }
}
