//! The ACPI registers of a hardware-reduced platform (ACPI 6.5 §4.8.3.7, §5.6.9).
//!
//! [`AcpiPower`] is the FADT's sleep control, sleep status and reset registers; [`Ged`] is the generic
//! event device behind `ACPI0013`, by which the host presses the guest's power button. The tables that
//! announce them are the VMM's: it takes the offsets and values from here.

use std::io;
use std::sync::Arc;

use crate::bus::MutBusDevice;
use crate::interrupt::Interrupt;
use crate::platform::{EventSink, PlatformEvent};
use crate::throttle::Throttle;

/// Bytes of the range of [`AcpiPower`].
pub const POWER_LEN: u64 = 3;
/// Offset of the sleep control register (FADT `SLEEP_CONTROL_REG`).
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register (FADT `SLEEP_STATUS_REG`).
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register (FADT `RESET_REG`).
pub const RESET: u64 = 2;
/// What the guest writes there (FADT `RESET_VALUE`).
pub const RESET_VALUE: u8 = 1;
/// The sleep type of the soft-off state, the first element of the DSDT's `\_S5` package.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Sleep control: bits 2 to 4 are the sleep type, bit 5 enters it.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The registers by which a guest turns itself off or resets itself.
pub struct AcpiPower {
    events: EventSink,
    refused: Throttle,
}

impl AcpiPower {
    /// Registers that report to `events`.
    pub fn new(events: EventSink) -> Self {
        Self {
            events,
            refused: Throttle::default(),
        }
    }
}

impl MutBusDevice for AcpiPower {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Sleep control and reset are write-only, and there is no sleep state to wake from, so the
        // wake status never shows.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, &[value]) if value & SLEEP_ENABLE != 0 => {
                match (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK {
                    SLEEP_TYPE_S5 => (self.events)(PlatformEvent::PowerOff),
                    other => self.refused.warn(format_args!(
                        "Guest asked for ACPI sleep type {other}; only {SLEEP_TYPE_S5} (S5) exists"
                    )),
                }
            }
            (RESET, &[RESET_VALUE]) => (self.events)(PlatformEvent::Reset),
            _ => {}
        }
    }
}

/// Bytes of the range of [`Ged`].
pub const GED_LEN: u64 = 4;

/// What the generic event device can report, as bits of its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum GedEvent {
    /// The power button was pressed: `_EVT` notifies the power button device with 0x80.
    PowerButton = 1 << 0,
    /// The generation ID has changed: `_EVT` notifies its device with 0x80.
    GenerationId = 1 << 1,
    /// PCI functions have come or shall go: `_EVT` looks at the registers of [`hotplug`](crate::pci::hotplug).
    PciSlots = 1 << 2,
}

/// The generic event device: a 32-bit register of pending events, cleared by reading it, and an
/// interrupt. `_EVT` reads the register and notifies the devices whose bits are set.
pub struct Ged {
    pending: u32,
    interrupt: Arc<dyn Interrupt>,
}

impl Ged {
    /// A device with nothing pending that raises `interrupt` (edge).
    pub fn new(interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            pending: 0,
            interrupt,
        }
    }

    /// The events that the guest has not read yet, as the bits of its register.
    pub fn pending(&self) -> u32 {
        self.pending
    }

    /// Goes on with the events `pending`. The guest is interrupted for them again.
    pub fn restore(&mut self, pending: u32) -> io::Result<()> {
        const KNOWN: u32 = GedEvent::PowerButton as u32
            | GedEvent::GenerationId as u32
            | GedEvent::PciSlots as u32;
        self.pending = pending & KNOWN;
        match self.pending {
            0 => Ok(()),
            _ => self.interrupt.trigger(),
        }
    }

    /// Reports `event` to the guest.
    pub fn notify(&mut self, event: GedEvent) -> io::Result<()> {
        self.pending |= event as u32;
        self.interrupt.trigger()
    }
}

impl MutBusDevice for Ged {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Narrower reads would clear bits they do not return.
        if let (0, Ok(register)) = (offset, <&mut [u8; 4]>::try_from(data)) {
            *register = std::mem::take(&mut self.pending).to_le_bytes();
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::platform::testing::recording_sink;

    #[test]
    fn events_that_the_guest_has_not_read_are_there_after_a_restore() {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut ged = Ged::new(Arc::new(line.try_clone().unwrap()));
        ged.restore(0).unwrap();
        assert!(line.read().is_err(), "nothing to tell");
        ged.notify(GedEvent::PowerButton).unwrap();
        let pending = ged.pending();
        let mut ged = Ged::new(Arc::new(line.try_clone().unwrap()));
        ged.restore(pending | 0xffff_0000).unwrap();
        assert!(line.read().is_ok());
        let mut register = [0; 4];
        ged.read(0, &mut register);
        assert_eq!(u32::from_le_bytes(register), GedEvent::PowerButton as u32);
    }

    #[test]
    fn s5_powers_off_and_other_sleep_types_do_not() {
        for value in 0..=u8::MAX {
            let (sink, events) = recording_sink();
            AcpiPower::new(sink).write(SLEEP_CONTROL, &[value]);
            let expected: &[_] = if value & 0x3c == 0x34 {
                &[PlatformEvent::PowerOff]
            } else {
                &[]
            };
            assert_eq!(*events.lock().unwrap(), expected, "value {value:#x}");
        }
    }

    #[test]
    fn reset_register_resets_by_its_value_only() {
        let (sink, events) = recording_sink();
        let mut power = AcpiPower::new(sink);
        power.write(RESET, &[0]);
        power.write(RESET, &[RESET_VALUE, 0]);
        power.write(SLEEP_STATUS, &[RESET_VALUE]);
        assert!(events.lock().unwrap().is_empty());
        power.write(RESET, &[RESET_VALUE]);
        assert_eq!(*events.lock().unwrap(), [PlatformEvent::Reset]);
    }

    #[test]
    fn power_button_is_pending_until_it_is_read() {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut ged = Ged::new(Arc::new(line.try_clone().unwrap()));
        ged.notify(GedEvent::PowerButton).unwrap();
        assert_eq!(line.read().unwrap(), 1);

        let mut narrow = [0; 1];
        ged.read(0, &mut narrow);
        assert_eq!(narrow, [0]);
        let mut register = [0; 4];
        ged.read(0, &mut register);
        assert_eq!(register, [1, 0, 0, 0]);
        ged.read(0, &mut register);
        assert_eq!(register, [0; 4]);
    }
}
