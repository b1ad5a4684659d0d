//! The processor: wide registers for hashing, memory types, exceptions, time, and the way into the kernel.
#![expect(
    unsafe_code,
    reason = "control and model-specific registers are assembly"
)]

use core::arch::asm;
use core::arch::x86_64::{__cpuid, _rdtsc};

use super::ecam;
use crate::memory::halves;

const CPUID_1_EDX_MTRR: u32 = 1 << 12;
const CPUID_1_ECX_XSAVE: u32 = 1 << 26;
/// Set while `CR4_OSXSAVE` is, which only [`enable_avx`] sets.
const CPUID_1_ECX_OSXSAVE: u32 = 1 << 27;
const CPUID_1_ECX_AVX: u32 = 1 << 28;
const CR4_OSXSAVE: u64 = 1 << 18;
/// XCR0: x87, SSE and AVX state.
const XCR0_AVX: u32 = 7;

const MSR_MTRR_CAP: u32 = 0xfe;
const MSR_MTRR_BASE0: u32 = 0x200;
const MSR_MTRR_MASK0: u32 = 0x201;
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
/// Fixed ranges: 512 KiB, then to 0x9FFFF; the VGA window; then 32 KiB each up to 0xFFFFF.
const MSR_MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
const MSR_MTRR_FIXED_VGA: u32 = 0x259;
const UNCACHED: u64 = 0;
const WRITE_BACK: u64 = 6;
const ALL_WRITE_BACK: u64 = 0x0606_0606_0606_0606;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_FIXED_ENABLE: u64 = 1 << 10;
const MTRR_VALID: u64 = 1 << 11;

/// Instructions since reset on a virtual clock, cycles on a real one.
pub fn time() -> u64 {
    // SAFETY: every 64-bit processor has the time-stamp counter, and nothing forbids reading it here.
    unsafe { _rdtsc() }
}

/// Stops for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off; the processor sleeps.
        unsafe {
            asm!("cli", "hlt", options(nomem, nostack));
        }
    }
}

/// Allows the instructions on 256-bit registers, if there are any: BLAKE3 is twice as fast with them.
pub fn enable_avx() -> bool {
    let features = __cpuid(1).ecx;
    let wanted = CPUID_1_ECX_XSAVE | CPUID_1_ECX_AVX;
    if features & wanted != wanted {
        return false;
    }
    set_cr4(CR4_OSXSAVE, 0);
    // SAFETY: XSAVE is enabled, and these states are all there with AVX.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") XCR0_AVX, in("edx") 0, options(nomem, nostack));
    }
    true
}

/// All memory is cached except the VGA window and what lies from the PCI configuration window to 4 GiB.
pub fn set_memory_types() {
    if __cpuid(1).edx & CPUID_1_EDX_MTRR == 0 {
        return;
    }
    write_msr(MSR_MTRR_DEFAULT, WRITE_BACK);
    for register in MSR_MTRR_FIXED {
        let types = if register == MSR_MTRR_FIXED_VGA {
            UNCACHED
        } else {
            ALL_WRITE_BACK
        };
        write_msr(register, types);
    }
    if read_msr(MSR_MTRR_CAP) & 0xff != 0 {
        // One register holds a power of two at its own multiple: the last GiB, where all devices but the window are.
        let base = (ecam::BASE + ecam::SIZE) & !((1 << 30) - 1);
        let bits = match __cpuid(0x8000_0000).eax {
            0x8000_0008.. => __cpuid(0x8000_0008).eax & 0xff,
            _ => 36,
        };
        let mask = (1u64 << bits.clamp(36, 52)) - (1 << 30);
        write_msr(MSR_MTRR_BASE0, base | UNCACHED);
        write_msr(MSR_MTRR_MASK0, mask | MTRR_VALID);
    }
    write_msr(
        MSR_MTRR_DEFAULT,
        WRITE_BACK | MTRR_ENABLE | MTRR_FIXED_ENABLE,
    );
}

/// Where and how the kernel is entered.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Start of the kernel's code.
    pub kernel: u32,
    /// The zero page.
    pub zero_page: u32,
    /// Whether to use the 64-bit entry point.
    pub long_mode: bool,
}

/// Leaves the stage for good.
///
/// # Safety
///
/// There must be a kernel at `kernel` and its zero page at `zero_page`.
pub unsafe fn enter_kernel(entry: Entry) -> ! {
    // boot.rst asks for nothing of AVX; leave no trace of it.
    if __cpuid(1).ecx & CPUID_1_ECX_OSXSAVE != 0 {
        // SAFETY: upper halves hold nothing that is still needed.
        unsafe {
            asm!("vzeroupper", options(nomem, nostack));
        }
        set_cr4(0, CR4_OSXSAVE);
    }
    unsafe extern "C" {
        fn enter_kernel_64(kernel: u32, zero_page: u32) -> !;
        fn enter_kernel_32(kernel: u32, zero_page: u32) -> !;
    }
    if entry.long_mode {
        // SAFETY: defined in `entry.s`; the caller vouches for both addresses.
        unsafe { enter_kernel_64(entry.kernel, entry.zero_page) }
    }
    // SAFETY: as above.
    unsafe { enter_kernel_32(entry.kernel, entry.zero_page) }
}

fn set_cr4(set: u64, clear: u64) {
    // SAFETY: callers change bits that nothing they run later depends on.
    unsafe {
        asm!(
            "mov {value}, cr4",
            "and {value}, {keep}",
            "or {value}, {set}",
            "mov cr4, {value}",
            value = out(reg) _,
            keep = in(reg) !clear,
            set = in(reg) set,
            options(nostack)
        );
    }
}

fn write_msr(register: u32, value: u64) {
    let [high, low] = halves(value);
    // SAFETY: only registers whose presence was checked, with values that the manual allows.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack));
    }
}

fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: as for `write_msr`.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}
