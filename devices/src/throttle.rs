//! Logging what a guest does wrong, without letting the guest fill the log.

use std::fmt::Display;

/// Counts a guest's offences and logs the first, second, fourth, eighth … of them.
///
/// A guest decides how often it misbehaves; the log grows with the logarithm of that. No clock is
/// involved, so the same run logs the same lines.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    count: u64,
}

impl Throttle {
    /// Counts one more offence and logs it if its turn has come.
    pub(crate) fn warn(&mut self, what: impl Display) {
        self.count = self.count.saturating_add(1);
        if self.count.is_power_of_two() {
            log::warn!("{what} (occurrence {})", self.count);
        }
    }

    /// How many offences there were so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}
