//! A guest that is out to do harm: it breaks the rules of every device it finds, and sees after each attack whether the
//! rest of the machine still serves it.
//!
//! It says one line for each attack: `attack NAME on DEVICE/TRANSPORT: survived`. Its command line chooses what it does:
//!
//! | word | |
//! |---|---|
//! | `run=GROUPS` | groups with commas between them: `devices` (default), `machine`, `ports`, `low-ports`, `processor`, `let-go`, `leave` (at work) |
//! | `only=NAME` | attacks whose names start so |
//! | `end=HOW` | nothing of that, but what ends a guest: see `attacks::processor::end` |
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "the entry, exceptions and the compiler's memory functions"
)]

mod attacks;
mod command_line;
mod device;
mod driver;
mod hw;
mod pci;
mod ring;
mod text;
mod witness;

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use attacks::Report;
use command_line::CommandLine;
use device::Devices;
use hw::{cpu, port};
use text::Line;
use witness::Witness;

global_asm!(include_str!("entry.s"), options(att_syntax));

/// The ACPI register that switches the machine off, and what does it.
const SLEEP_CONTROL: u16 = 0x600;
const OFF: u8 = 5 << 2 | 1 << 5;

/// The first Rust code, called by `entry.s`.
#[unsafe(no_mangle)]
extern "C" fn program(zero_page: u64) -> ! {
    cpu::map_everything();
    let line = CommandLine::read(zero_page);
    if let Some(how) = line.value("end=") {
        attacks::processor::end(how);
    }
    let mut report = Report::new(&line);
    let devices = Devices::find();
    match Witness::new(&devices) {
        Ok(mut witness) => {
            let groups = line.value("run=").unwrap_or(b"devices");
            for group in groups.split(|byte| *byte == b',') {
                match group {
                    b"devices" => attacks::on_devices(&devices, &mut witness, &mut report),
                    b"leave" => attacks::leave_at_work(&devices),
                    b"let-go" => attacks::let_go(&devices, &mut witness, &mut report),
                    _ => attacks::on_machine(group, &mut witness, &mut report),
                }
            }
        }
        Err(why) => report.note(Line::new().text("witness"), Err(why)),
    }
    Line::new()
        .text("hostile: survived ")
        .number(report.survived)
        .text(", failed ")
        .number(report.failed)
        .say();
    power_off()
}

fn power_off() -> ! {
    port::write8(SLEEP_CONTROL, OFF);
    cpu::halt()
}

/// A fault that nobody waited for, called by `entry.s`.
#[unsafe(no_mangle)]
extern "C" fn unexpected_fault(vector: u64, code: u64, rip: u64, address: u64) -> ! {
    Line::new()
        .text("hostile: FAILED: exception ")
        .number(vector)
        .text(" code ")
        .hex(code)
        .text(" at ")
        .hex(rip)
        .text(" for ")
        .hex(address)
        .say();
    power_off()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let place = info.location();
    Line::new()
        .text("hostile: FAILED: panic at ")
        .text(place.map_or("", |place| place.file()))
        .text(" line ")
        .number(place.map_or(0, |place| place.line().into()))
        .say();
    power_off()
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
