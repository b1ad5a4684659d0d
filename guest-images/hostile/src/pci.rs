//! PCI configuration space, by the ports of old.

use crate::hw::port;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
/// Command register: memory decoding and bus mastering.
pub const COMMAND_ON: u16 = 1 << 1 | 1 << 2;
/// First register of the one memory region: 64 bits.
pub const BAR: u8 = 0x10;

/// A function: its device number on bus 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Function(pub u8);

impl Function {
    fn select(self, register: u8) -> u16 {
        let address = u32::from(self.0) << 11 | u32::from(register & 0xfc);
        port::write32(ADDRESS, ENABLE | address);
        DATA + u16::from(register & 3)
    }

    /// Reads 32 bits; `register` is a multiple of 4.
    pub fn read32(self, register: u8) -> u32 {
        port::read32(self.select(register))
    }

    /// Reads 16 bits.
    pub fn read16(self, register: u8) -> u16 {
        port::read16(self.select(register))
    }

    /// Reads 8 bits.
    pub fn read8(self, register: u8) -> u8 {
        port::read8(self.select(register))
    }

    /// Writes 32 bits; `register` is a multiple of 4.
    pub fn write32(self, register: u8, value: u32) {
        port::write32(self.select(register), value);
    }

    /// Writes 16 bits.
    pub fn write16(self, register: u8, value: u16) {
        port::write16(self.select(register), value);
    }

    /// Writes 8 bits.
    pub fn write8(self, register: u8, value: u8) {
        port::write8(self.select(register), value);
    }

    /// Where the memory region is.
    pub fn bar(self) -> u64 {
        u64::from(self.read32(BAR) & !0xf) | u64::from(self.read32(BAR + 4)) << 32
    }

    /// Moves the memory region.
    pub fn set_bar(self, address: u64) {
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        self.write32(BAR, u32::from_le_bytes([a, b, c, d]));
        self.write32(BAR + 4, u32::from_le_bytes([e, f, g, h]));
    }

    /// The register of the first capability for which `wanted` says so.
    pub fn capability(self, wanted: impl Fn(u8) -> bool) -> Option<u8> {
        let mut at = self.read8(0x34);
        // A list has no more members than fit.
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            if wanted(at) {
                return Some(at);
            }
            at = self.read8(at + 1);
        }
        None
    }
}
