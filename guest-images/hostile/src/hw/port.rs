//! I/O ports.
#![expect(unsafe_code, reason = "port I/O is assembly")]

use core::arch::asm;

/// Writes 8 bits.
pub fn write8(port: u16, value: u8) {
    // SAFETY: the program owns the machine, and no port changes memory behind the compiler's back.
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

/// Writes all of `bytes` to one port: the processor may leave the guest once for many of them.
pub fn write_string(port: u16, bytes: &[u8]) {
    // SAFETY: reads `bytes` and nothing else.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port,
            inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags, readonly)
        );
    }
}

/// Reads one port into all of `bytes`.
pub fn read_string(port: u16, bytes: &mut [u8]) {
    // SAFETY: writes `bytes` and nothing else.
    unsafe {
        asm!(
            "rep insb",
            in("dx") port,
            inout("rdi") bytes.as_mut_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags)
        );
    }
}
