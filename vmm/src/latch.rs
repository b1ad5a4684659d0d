//! The first reason to end a run, and a way to wait for it.

use std::io;
use std::sync::OnceLock;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::exit::ExitReason;

/// Holds the first [`ExitReason`] that anybody gives. Later ones are consequences of the first and are dropped.
#[derive(Debug)]
pub struct ExitLatch {
    reason: OnceLock<ExitReason>,
    event: EventFd,
}

impl ExitLatch {
    /// An empty latch.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            reason: OnceLock::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Ends the run for `reason`, unless it has ended already.
    pub fn set(&self, reason: ExitReason) {
        if self.reason.set(reason).is_ok()
            && let Err(error) = self.event.write(1)
        {
            log::error!("Cannot report the end of the guest: {error}");
        }
    }

    /// Whether the run has ended.
    pub fn is_set(&self) -> bool {
        self.reason.get().is_some()
    }

    /// Why it ended.
    pub fn reason(&self) -> Option<&ExitReason> {
        self.reason.get()
    }

    /// Readable when the run has ended.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_wins() {
        let latch = ExitLatch::new().unwrap();
        assert!(!latch.is_set());
        latch.set(ExitReason::Reboot);
        latch.set(ExitReason::PowerOff);
        assert_eq!(latch.reason(), Some(&ExitReason::Reboot));
        assert_eq!(latch.event().read().unwrap(), 1, "one write for one end");
    }
}
