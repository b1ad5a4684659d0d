//! The boot timer: a byte by which a guest says that it has booted.
//!
//! Compatible with Firecracker's, in its old form (an I/O port) and its current one (a physical
//! address): a write of 123 counts, everything else is ignored, and reads give the open bus.

use crate::bus::MutBusDevice;
use crate::platform::{EventSink, PlatformEvent};

/// The I/O port (range of [`LEN`] bytes).
pub const PORT: u64 = 0x3f0;
/// The physical address (range of [`LEN`] bytes).
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Bytes of either range.
pub const LEN: u64 = 1;
/// The value that means "booted".
const BOOTED: u8 = 123;

/// Reports [`PlatformEvent::BootTimer`] each time the guest writes the magic byte.
pub struct BootTimer {
    events: EventSink,
}

impl BootTimer {
    /// A boot timer that reports to `events`, on the vCPU thread and before the vCPU goes on.
    pub fn new(events: EventSink) -> Self {
        Self { events }
    }
}

impl MutBusDevice for BootTimer {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data.first() == Some(&BOOTED) {
            (self.events)(PlatformEvent::BootTimer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::testing::recording_sink;

    #[test]
    fn only_the_magic_byte_is_reported() {
        let (sink, events) = recording_sink();
        let mut timer = BootTimer::new(sink);
        timer.write(0, &[122]);
        timer.write(0, &[0, 123]);
        assert!(events.lock().unwrap().is_empty());
        timer.write(0, &[123]);
        timer.write(0, &[123, 0, 0, 0]);
        assert_eq!(*events.lock().unwrap(), [PlatformEvent::BootTimer; 2]);
    }
}
