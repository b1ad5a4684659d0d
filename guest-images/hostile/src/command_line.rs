//! What the VMM was told to tell this program.

use crate::hw::memory;

/// Offset of the command line's address in the zero page (Linux x86 boot protocol, `cmd_line_ptr`).
const COMMAND_LINE_ADDRESS: u64 = 0x228;

/// The kernel command line.
pub struct CommandLine {
    bytes: [u8; 512],
    len: usize,
}

impl CommandLine {
    /// Reads it by the zero page.
    pub fn read(zero_page: u64) -> Self {
        let address = u64::from(memory::read32(zero_page + COMMAND_LINE_ADDRESS));
        let mut bytes = [0; 512];
        let mut len = 0;
        while len < bytes.len() {
            let byte = memory::read8(address + len as u64);
            if byte == 0 {
                break;
            }
            bytes[len] = byte;
            len += 1;
        }
        Self { bytes, len }
    }

    /// The value of the word `key=value`; `key` ends in `=`.
    pub fn value(&self, key: &str) -> Option<&[u8]> {
        let words = self.bytes[..self.len].split(|byte| *byte == b' ');
        let mut values = words.filter_map(|word| word.strip_prefix(key.as_bytes()));
        values.next()
    }
}
