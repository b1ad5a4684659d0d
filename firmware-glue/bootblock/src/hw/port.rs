//! I/O ports.
#![expect(unsafe_code, reason = "port I/O is assembly")]

use core::arch::asm;

/// Writes 8 bits.
pub fn write8(port: u16, value: u8) {
    // SAFETY: the stage owns the machine; no port it uses changes memory behind the compiler's back, except fw_cfg's DMA,
    // which has barriers of its own.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags));
    }
}

/// Writes 16 bits.
pub fn write16(port: u16, value: u16) {
    // SAFETY: as for `write8`.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags));
    }
}

/// Writes 32 bits.
pub fn write32(port: u16, value: u32) {
    // SAFETY: as for `write8`.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
    }
}

/// Reads 8 bits.
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: as for `write8`.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags));
    }
    value
}

/// Reads 16 bits.
pub fn read16(port: u16) -> u16 {
    let value;
    // SAFETY: as for `write8`.
    unsafe {
        asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack, preserves_flags));
    }
    value
}

/// Reads 32 bits.
pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: as for `write8`.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags));
    }
    value
}
