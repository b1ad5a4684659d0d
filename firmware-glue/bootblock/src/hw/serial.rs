//! The serial port COM1, a 16550.

use core::fmt;

use super::port;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;
/// Turns of waiting for the transmitter: where there is no port, output is lost, not the machine.
const PATIENCE: u32 = 100_000;

/// 115,200 baud, 8 bits, no parity, FIFO on, no interrupts.
pub fn set_up() {
    port::write8(COM1 + 1, 0);
    port::write8(COM1 + 3, 0x80);
    port::write8(COM1, 1);
    port::write8(COM1 + 1, 0);
    port::write8(COM1 + 3, 0x03);
    port::write8(COM1 + 2, 0x07);
    port::write8(COM1 + 4, 0x03);
}

/// Writes to COM1; a line feed becomes carriage return and line feed.
#[derive(Clone, Copy, Debug)]
pub struct Serial;

impl Serial {
    fn put(byte: u8) {
        for _ in 0..PATIENCE {
            if port::read8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                break;
            }
        }
        port::write8(COM1, byte);
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                Self::put(b'\r');
            }
            Self::put(byte);
        }
        Ok(())
    }
}

/// Writes one line, which begins with `bootblock: `.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::hw::serial::line(format_args!($($argument)*))
    };
}

/// What [`say!`] does.
pub fn line(text: fmt::Arguments<'_>) {
    use fmt::Write as _;
    // The serial port takes everything.
    let _ = writeln!(Serial, "bootblock: {text}");
}
