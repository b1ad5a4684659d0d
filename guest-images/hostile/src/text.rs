//! Lines on the serial port. No formatting machinery: it would be most of the program.

use crate::hw::port;

const COM1: u16 = 0x3f8;

/// A line under construction.
pub struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Line {
    /// An empty line.
    pub fn new() -> Self {
        Self {
            bytes: [0; 160],
            len: 0,
        }
    }

    /// Appends `text`; what is too long is cut off.
    pub fn text(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            if self.len < self.bytes.len() {
                self.bytes[self.len] = byte;
                self.len += 1;
            }
        }
        self
    }

    /// Appends `value` in hexadecimal digits.
    pub fn hex(self, value: u64) -> Self {
        self.digits(value, 16)
    }

    /// Appends `value` in decimal digits.
    pub fn number(self, value: u64) -> Self {
        self.digits(value, 10)
    }

    fn digits(mut self, value: u64, base: u64) -> Self {
        let mut digits = [0; 20];
        let (mut rest, mut first) = (value, digits.len());
        loop {
            first -= 1;
            let [digit, ..] = (rest % base).to_le_bytes();
            digits[first] = b"0123456789abcdef"[usize::from(digit)];
            rest /= base;
            if rest == 0 {
                break;
            }
        }
        for digit in &digits[first..] {
            if self.len < self.bytes.len() {
                self.bytes[self.len] = *digit;
                self.len += 1;
            }
        }
        self
    }

    /// Says it.
    pub fn say(mut self) {
        self.len = self.len.min(self.bytes.len() - 1);
        self.bytes[self.len] = b'\n';
        port::write_string(COM1, &self.bytes[..=self.len]);
    }
}
