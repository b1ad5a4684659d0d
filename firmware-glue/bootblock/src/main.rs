//! The ROM stage as a program: what the linker, the compiler and the processor need besides [`bootblock::boot`].
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "reset vector, exceptions and the compiler's memory functions"
)]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use bootblock::boot;

global_asm!(include_str!("reset.s"), options(att_syntax));
global_asm!(include_str!("entry.s"), options(att_syntax));

/// The first Rust code, called by `entry.s` in 64-bit mode.
#[unsafe(no_mangle)]
extern "C" fn stage_main() -> ! {
    // SAFETY: this is that assembly's call.
    unsafe { boot::run() }
}

/// An exception, called by `entry.s`: a fault of the stage itself, or of a kernel that does not get as far as its own table.
#[unsafe(no_mangle)]
extern "C" fn stage_exception(vector: u64, code: u64, rip: u64, address: u64) -> ! {
    boot::fail_internally(format_args!(
        "exception {vector} in the ROM stage or at the kernel's entry: code {code:#x}, rip {rip:#x}, cr2 {address:#x}"
    ))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    boot::fail_internally(format_args!(
        "internal fault of the ROM stage: {}",
        info.message()
    ))
}

/// The compiler calls these by name; loops in Rust would be compiled to calls of themselves.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; direction is forward, by the calling convention.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: as for `memcpy`.
    unsafe {
        asm!(
            "rep stosq",
            "mov rcx, {rest}",
            "rep stosb",
            rest = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            in("rax") u64::from(value.to_le_bytes()[0]) * 0x0101_0101_0101_0101,
            options(nostack, preserves_flags)
        );
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: forward is right where the target does not begin inside the source.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller vouches for both ranges; `len` is not 0 here, and the last bytes come first.
    unsafe {
        asm!(
            "std",
            "rep movsb",
            "cld",
            inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len - 1) => _,
            inout("rsi") from.wrapping_add(len - 1) => _,
            options(nostack)
        );
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: the caller vouches for `len` bytes at `a`.
        let left = unsafe { a.wrapping_add(at).read_volatile() };
        // SAFETY: and at `b`.
        let right = unsafe { b.wrapping_add(at).read_volatile() };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, len) }
}
