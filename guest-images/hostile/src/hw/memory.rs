//! Guest memory and everything else that has a physical address: all of it is mapped where it is.
#![expect(
    unsafe_code,
    reason = "this program has the whole machine, and uses addresses that are nobody's"
)]

use core::arch::asm;

/// Reads 8 bits at `address`, whatever is there.
pub fn read8(address: u64) -> u8 {
    let value;
    // SAFETY: one access; no Rust object lives where this program goes by address.
    unsafe {
        asm!("mov {0}, [{1}]", out(reg_byte) value, in(reg) address, options(nostack, preserves_flags));
    }
    value
}

/// Writes 8 bits at `address`, whatever is there.
pub fn write8(address: u64, value: u8) {
    // SAFETY: as for `read8`.
    unsafe {
        asm!("mov [{1}], {0}", in(reg_byte) value, in(reg) address, options(nostack, preserves_flags));
    }
}

/// Reads 16 bits at `address`, whatever is there.
pub fn read16(address: u64) -> u16 {
    let value;
    // SAFETY: one access; no Rust object lives where this program goes by address.
    unsafe {
        asm!("mov {0:x}, [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
    value
}

/// Writes 16 bits at `address`, whatever is there.
pub fn write16(address: u64, value: u16) {
    // SAFETY: as for `read16`.
    unsafe {
        asm!("mov [{1}], {0:x}", in(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
}

/// Reads 32 bits at `address`, whatever is there.
pub fn read32(address: u64) -> u32 {
    let value;
    // SAFETY: one access; no Rust object lives where this program goes by address.
    unsafe {
        asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
    value
}

/// Writes 32 bits at `address`, whatever is there.
pub fn write32(address: u64, value: u32) {
    // SAFETY: as for `read32`.
    unsafe {
        asm!("mov [{1}], {0:e}", in(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
}

/// Reads 64 bits at `address`, whatever is there.
pub fn read64(address: u64) -> u64 {
    let value;
    // SAFETY: one access; no Rust object lives where this program goes by address.
    unsafe {
        asm!("mov {0:r}, [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
    value
}

/// Writes 64 bits at `address`, whatever is there.
pub fn write64(address: u64, value: u64) {
    // SAFETY: as for `read64`.
    unsafe {
        asm!("mov [{1}], {0:r}", in(reg) value, in(reg) address, options(nostack, preserves_flags));
    }
}

/// Sets `len` bytes from `address` on, a multiple of 8, to zero.
pub fn clear(address: u64, len: u64) {
    // SAFETY: as for `write64`.
    unsafe {
        asm!(
            "rep stosq",
            inout("rdi") address => _,
            inout("rcx") len / 8 => _,
            in("rax") 0_u64,
            options(nostack, preserves_flags)
        );
    }
}
