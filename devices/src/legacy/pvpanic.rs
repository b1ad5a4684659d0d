//! The panic device: one I/O port by which a guest's kernel says that it has panicked.
//!
//! As QEMU's `isa-pvpanic`, so that every Linux has a driver for it (ACPI `QEMU0001`). Reading the port says which events
//! the device understands; writing one reports it. What follows from it is not decided here: the guest goes on, to reboot
//! or to start its crash kernel as it was told.

use crate::bus::MutBusDevice;
use crate::platform::{EventSink, PlatformEvent};

/// The I/O port (range of [`LEN`] bytes).
pub const PORT: u64 = 0x505;
/// Bytes of the range.
pub const LEN: u64 = 1;

/// The guest has panicked.
const PANICKED: u8 = 1 << 0;
/// The guest has panicked and starts its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// Reports a guest's panics.
pub struct PvPanic {
    events: EventSink,
}

impl PvPanic {
    /// A device that reports to `events`.
    pub fn new(events: EventSink) -> Self {
        Self { events }
    }
}

impl MutBusDevice for PvPanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        data[0] = PANICKED | CRASH_LOADED;
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        for (bit, event) in [
            (PANICKED, PlatformEvent::Panicked),
            (CRASH_LOADED, PlatformEvent::CrashLoaded),
        ] {
            if value & bit != 0 {
                (self.events)(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::testing::recording_sink;

    #[test]
    fn every_known_event_is_offered_and_reported() {
        let (sink, events) = recording_sink();
        let mut device = PvPanic::new(sink);
        let mut known = [0];
        device.read(0, &mut known);
        assert_eq!(known, [3]);
        for value in [0, 4, 0xfc] {
            device.write(0, &[value]);
        }
        device.write(0, &[PANICKED, 0]);
        assert!(events.lock().unwrap().is_empty());
        device.write(0, &[PANICKED]);
        device.write(0, &[CRASH_LOADED]);
        assert_eq!(
            *events.lock().unwrap(),
            [PlatformEvent::Panicked, PlatformEvent::CrashLoaded]
        );
    }
}
