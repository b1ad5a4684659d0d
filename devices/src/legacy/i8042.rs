//! The keyboard controller: no keyboard, no mouse, but the line that resets the machine.
//!
//! Linux pulses that line to reboot (`reboot=k`) and otherwise looks for a keyboard. Probing for one
//! that does not answer costs it half a second of timeouts, so the controller shows what Linux takes
//! for "no controller at all" in under a millisecond: an output buffer that never runs empty. The
//! input buffer always shows empty, so a reset needs no wait.

use std::sync::Arc;

use crate::bus::MutBusDevice;
use crate::metrics::I8042Metrics;
use crate::platform::{EventSink, PlatformEvent};

/// First I/O port of the range.
pub const PORT: u64 = 0x60;
/// Ports in the range: data (0x60), system control B (0x61), and command/status (0x64).
pub const LEN: u64 = 5;

/// The command port.
pub const COMMAND_PORT: u8 = 0x64;
/// The command that resets the machine: pulse output line 0.
pub const PULSE_RESET: u8 = 0xfe;

/// Port 0x61, system control port B.
const CONTROL_B: u64 = 1;
/// Port 0x64: status when read, command when written.
const COMMAND: u64 = COMMAND_PORT as u64 - PORT;
/// All status bits but "input buffer full" (bit 1).
const STATUS_ABSENT: u8 = !0x02;
/// Output of timer 2 is high: loops that calibrate a clock by the PC speaker's timer end at once, and
/// see by the time it took that the result is of no use.
const CONTROL_B_TIMER2_OUT: u8 = 0x20;
/// Command: pulse the output lines given by zeroes in the low four bits. Line 0 is the CPU's reset.
const PULSE_MASK: u8 = 0xf0;
const RESET_LINE: u8 = 0x01;

/// The keyboard controller.
pub struct I8042 {
    events: EventSink,
    metrics: Arc<I8042Metrics>,
}

impl I8042 {
    /// A controller that reports [`PlatformEvent::Reset`] to `events`.
    pub fn new(events: EventSink) -> Self {
        Self {
            events,
            metrics: Arc::default(),
        }
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<I8042Metrics> {
        self.metrics.clone()
    }
}

impl MutBusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match offset {
            COMMAND => data[0] = STATUS_ABSENT,
            CONTROL_B => data[0] = CONTROL_B_TIMER2_OUT,
            _ => return self.metrics.missed_read_count.count(),
        }
        self.metrics.read_count.count();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let pulses = |byte: u8| byte & PULSE_MASK == PULSE_MASK && byte & RESET_LINE == 0;
        if offset == COMMAND && data.first().is_some_and(|&byte| pulses(byte)) {
            self.metrics.reset_count.count();
            self.metrics.write_count.count();
            (self.events)(PlatformEvent::Reset);
        } else {
            self.metrics.missed_write_count.count();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::testing::recording_sink;

    #[test]
    fn only_commands_that_pulse_the_reset_line_reset() {
        for command in 0..=u8::MAX {
            let (sink, events) = recording_sink();
            let mut controller = I8042::new(sink);
            controller.write(COMMAND, &[command]);
            controller.write(0, &[command]);
            let resets = events.lock().unwrap().len();
            assert_eq!(
                resets == 1,
                command >= 0xf0 && command % 2 == 0,
                "command {command:#x}"
            );
        }
    }

    #[test]
    fn linux_finds_no_controller_and_waits_for_nothing() {
        let (sink, _) = recording_sink();
        let mut controller = I8042::new(sink);
        let mut status = [0];
        for _ in 0..20 {
            controller.read(COMMAND, &mut status);
            assert_eq!(status[0] & 0x01, 0x01, "output buffer must look full");
            assert_eq!(status[0] & 0x02, 0x00, "input buffer must look empty");
        }
        controller.read(CONTROL_B, &mut status);
        assert_eq!(status[0] & 0x20, 0x20);
    }
}
